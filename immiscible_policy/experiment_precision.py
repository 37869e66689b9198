"""The precision of an experiment: one for all its trainings and evaluations, on whatever machines they are made.

What ``auto`` becomes depends on the processor. Cells that are made on different machines, or beside published ones,
would otherwise be compared across precisions without anybody's having wanted it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from immiscible_policy.evaluation.results import RunResults
from immiscible_policy.experiment import Experiment
from immiscible_policy.files import write_json
from immiscible_policy.training.precision import resolve_device, resolve_precision

RECORD = "precision.json"


def experiment_precision(
    experiment: Experiment, folder: Path, joined: Mapping[Path, RunResults], given: str | None, device: str
) -> str:
    """The precision that missing cells are to be made in: fp32, bf16 or fp16.

    Args:
        folder: of the experiment, where the first precision is recorded for later calls and other machines.
        joined: as ``experiment_join.find_joined`` gives them.
        given: auto | fp32 | bf16 | fp16, for this call; None keeps to what the folder records, else to what most
            finished and joined trainings have, else to ``auto``.
        device: auto | cpu | cuda.

    Raises:
        ValueError: the device cannot compute in it.
    """
    record = folder / RECORD
    recorded = _recorded(record)
    wanted = given or recorded or _most_frequent(experiment, folder, joined) or "auto"
    precision = resolve_precision(wanted, resolve_device(device))
    first = recorded or _record_first(record, precision)
    return precision if given else first


def _most_frequent(experiment: Experiment, folder: Path, joined: Mapping[Path, RunResults]) -> str | None:
    """Precision of most trainings that are there."""
    summaries = [cell.run_dir / "summary.json" for cell in experiment.cells(folder) if cell.is_trained]
    known = [json.loads(path.read_text())["precision"] for path in summaries]
    known += [results.record["precision"] for results in joined.values()]
    counted = Counter(precision for precision in known if precision).most_common(1)
    return counted[0][0] if counted else None


def _recorded(record: Path) -> str | None:
    """What the record says; None where there is none, or where it is empty since it is just being written."""
    text = record.read_text() if record.is_file() else ""
    return str(json.loads(text)["mixed_precision"]) if text else None


def _record_first(record: Path, precision: str) -> str:
    """Write the record, unless another process, perhaps on another machine, has done so by then; what it then says."""
    content = {"mixed_precision": precision}
    record.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(record, "x", encoding="utf-8") as file:
            file.write(json.dumps(content))
    except FileExistsError:
        if found := _recorded(record):
            return found
        write_json(record, content)  # the other one was killed before it wrote
    return precision

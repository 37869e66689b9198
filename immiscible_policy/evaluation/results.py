"""The tidy table of an experiment: one row for each training run, checkpoint, kind of evaluation and initial state."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from immiscible_policy.files import complete_or_absent
from immiscible_policy.training.metrics import last_logged, read_metrics

MEASURES = ("max_reward", "max_coverage", "final_coverage", "success")
# What an evaluation chooses of the noise that sampling starts from.
INITIAL_NOISE = ("inference_coupling", "selection", "first_chunk", "known_only", "noise_scale", "noise_seed")
# How an episode came about: rows that agree in these, in the factors and in the seed of training are of one policy.
SETTINGS = ("num_inference_steps", "sampler", *INITIAL_NOISE, "mixed_precision")
# What is measured of a policy besides episodes, None where it is not.
RUN_MEASUREMENTS = ("modes", "modes_warm", "prior_gap")
# What a run's summary tells.
_KEPT = ("command", "versions", "training_seconds", "precision", "parameters", "demonstrations")
_NUMBERS = {"max_reward": pa.float32(), "max_coverage": pa.float32(), "final_coverage": pa.float32()}


class Results:
    """What has been measured, as columns of equal length.

    Args:
        table: as ``collect_results`` writes it.
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self.columns: dict[str, np.ndarray] = {
            name: np.asarray(table.column(name).to_pylist(), dtype=object)
            if pa.types.is_dictionary(table.schema.field(name).type)
            else table.column(name).to_numpy()
            for name in table.column_names
        }
        content = json.loads(table.schema.metadata[b"experiment"])
        self.name: str = content["name"]
        self.factors: list[str] = content["factors"]
        # Older tables do not know every measurement.
        self.runs: list[dict[str, Any]] = [{**dict.fromkeys(RUN_MEASUREMENTS), **run} for run in content["runs"]]

    def __len__(self) -> int:
        return len(self.columns["training_seed"])

    def where(self, **values: Any) -> np.ndarray:
        """(rows,) bool: where all these columns have these values."""
        chosen = np.ones(len(self), bool)
        for name, value in values.items():
            chosen &= self.columns[name] == value
        return chosen

    def levels(self, name: str, **values: Any) -> list[Any]:
        """Different values of a column, in order of first appearance, where others have given values."""
        return list(dict.fromkeys(self.columns[name][self.where(**values)].tolist()))

    def own_sampler(self, **values: Any) -> str | None:
        """The sampler of the policies themselves, of those with these levels; None where there is no row of them.

        Args:
            values: of columns, of which those that are no factors do not count.
        """
        chosen = self.where(**{name: values[name] for name in self.factors if name in values})
        return _own_sampler(zip(*(self.columns[name][chosen].tolist() for name in ("kind", "sampler")), strict=True))

    def runs_with(self, measurement: str, **levels: Any) -> list[dict[str, Any]]:
        """Records of the training runs with these levels of factors of which something was measured.

        Args:
            measurement: one of ``RUN_MEASUREMENTS``.
        """
        return [
            run
            for run in self.runs
            if run[measurement] and all(run["levels"][name] == level for name, level in levels.items())
        ]

    def scores(self, measure: str, **values: Any) -> dict[int, dict[int, float]]:
        """Training seed -> initial state's seed -> score, where columns have given values.

        Raises:
            ValueError: two episodes stand for the same pair, so the values do not single one evaluation out.
        """
        chosen = self.where(**values)
        scores: dict[int, dict[int, float]] = {}
        names = ("training_seed", "evaluation_seed", measure)
        for seed, state, score in zip(*(self.columns[name][chosen].tolist() for name in names), strict=True):
            if state in scores.setdefault(seed, {}):
                raise ValueError(f"{values}: training seed {seed} has several episodes of initial state {state}")
            scores[seed][state] = float(score)
        return scores


def load_results(path: Path) -> Results:
    """A table that ``collect_results`` has written.

    Raises:
        ValueError: it is something else, or damaged.
    """
    try:
        return Results(pq.read_table(path))
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file; results of an experiment are a results.parquet") from error
    except (pa.ArrowInvalid, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not the results of an experiment ({error})") from error


def write_evaluation(path: Path, report: Mapping[str, Any]) -> None:
    """The episodes and settings of ``evaluate_policy``'s report as a parquet file, atomically."""
    table = pa.Table.from_pylist([dict(episode) for episode in report["episodes"]])
    content = {"settings": report["settings"], "seconds": report["seconds"]}
    _write(table.replace_schema_metadata({"evaluation": json.dumps(content)}), path)


def write_evaluation_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """As ``write_evaluation``, of rows of a tidy table that are one evaluation's; how long it took is not known."""
    episodes = [{"seed": row["evaluation_seed"], **{name: row[name] for name in (*MEASURES, "length")}} for row in rows]
    settings = {name: rows[0][name] for name in SETTINGS}
    write_evaluation(path, {"episodes": episodes, "settings": settings, "seconds": None})


@dataclass(frozen=True)
class RunResults:
    """What is known of one training run, whatever experiment it stands in.

    Args:
        record: the run's entry in ``Results.runs``, without its levels and seed.
        rows: of the tidy table, without the columns of factors and the training seed.
    """

    record: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]

    @cached_property
    def own_sampler(self) -> str | None:
        """As ``Results.own_sampler``."""
        return _own_sampler((row["kind"], row["sampler"]) for row in self.rows)


def _own_sampler(rows: Iterable[tuple[str, str]]) -> str | None:
    """Of (kind, sampler) of rows: that of the first rollout made while training, else of the first evaluation."""
    first = None
    for kind, sampler in rows:
        if kind == "training":
            return sampler
        first = first or sampler
    return first


def collect_results(
    name: str,
    cells: Sequence[tuple[Path, Mapping[str, str], int]],
    path: Path,
    wanted: Mapping[Path, Collection[str]] | None = None,
    joined: Mapping[Path, RunResults] | None = None,
    measurements: Mapping[str, Mapping[str, Any]] | None = None,
    describe: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict,
) -> None:
    """Join the evaluations of cells, and the rollouts made while they trained, in one table at ``path``.

    Args:
        name: of the experiment.
        cells: folder (with ``run/`` and ``evaluations/``), factor -> level, training seed.
        wanted: folder -> file names of the evaluations to take; all of them where it is None. A folder may hold others,
            made before an experiment was changed.
        joined: folder -> results that stand for what the folder holds, which need not be there.
        measurements: name -> settings of what else is to be taken; all of it where it is None. What was measured with
            other settings is left out.
        describe: record of a run's demonstrations -> the same with whatever else is to be known of them.
    """
    rows: list[dict[str, Any]] = []
    runs: list[dict[str, Any]] = []
    factors = list(cells[0][1]) if cells else []
    for folder, levels, seed in cells:
        files = None if wanted is None else wanted[folder]
        found = (joined or {}).get(folder) or results_of_cell(name, folder, files)
        record = found.record if measurements is None else measured_as(found.record, measurements)
        demonstrations = record["demonstrations"]
        described = {"demonstrations": describe(demonstrations)} if demonstrations else {}
        runs.append({"levels": dict(levels), "seed": seed, **record, **described})
        rows += [{**levels, "training_seed": seed, **row} for row in found.rows]
    content = {"name": name, "factors": factors, "runs": runs}
    _write(_table(rows, factors).replace_schema_metadata({"experiment": json.dumps(content)}), path)


def results_by_overrides(path: Path) -> list[tuple[list[str], RunResults]]:
    """Every training run of a table, with the overrides of ``train_policy.py`` that made it.

    Raises:
        ValueError: it is something else, damaged, or older than the record of overrides.
    """
    results = load_results(path)
    if not all(run.get("overrides") for run in results.runs):
        raise ValueError(f"{path}: does not say what its runs were trained with; it was made by an earlier version")
    table = results.table.drop_columns([*results.factors, "training_seed"])
    found = []
    for run in results.runs:
        record = {name: value for name, value in run.items() if name not in ("levels", "seed")}
        chosen = results.where(training_seed=run["seed"], **run["levels"])
        found.append((run["overrides"], RunResults(record, table.filter(pa.array(chosen)).to_pylist())))
    return found


def rollouts_of(results: RunResults) -> list[dict[str, Any]]:
    """Every episode rolled out during training, as a table stores it, sorted: equal where the trainings were."""
    rows = [dict(row) for row in results.rows if row["kind"] == "training"]
    return _table(rows, []).sort_by([("checkpoint_step", "ascending"), ("evaluation_seed", "ascending")]).to_pylist()


def results_of_cell(name: str, folder: Path, wanted: Collection[str] | None = None) -> RunResults:
    """What ``collect_results`` takes of a cell's folder.

    Args:
        name: of the experiment.
        wanted: file names of the evaluations to take; all of them where it is None.
    """
    summary = json.loads((folder / "run" / "summary.json").read_text())
    grid = _content(folder / "cell.json") or {}
    record = {
        "overrides": grid.get("overrides"),
        "steps": summary["steps"],
        "trained_with": summary["coupling"],
        **{k: summary[k] for k in _KEPT},
        **{measurement: _content(folder / f"{measurement}.json") for measurement in RUN_MEASUREMENTS},
    }
    # Whatever folder the experiment was run in: a published table names no place on somebody's machine.
    usual = f"outputs/experiments/{name}/cells/{folder.name}"
    for place in (folder.resolve(), folder):
        record["command"] = record["command"].replace(str(place), usual)
    found = sorted((folder / "evaluations").glob("*.parquet"))
    files = [file for file in found if wanted is None or file.name in wanted]
    return RunResults(record, [*_final_rows(files, summary["steps"]), *_rollout_rows(folder / "run")])


def measured_as(record: Mapping[str, Any], measurements: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A run's record without what was measured otherwise.

    Args:
        measurements: name -> settings of what is wanted.
    """
    kept = dict(record)
    for name in RUN_MEASUREMENTS:
        settings = measurements.get(name)
        if kept[name] is not None and (settings is None or kept[name]["settings"] != dict(settings)):
            kept[name] = None
    return kept


def _content(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else None


def reserved_names() -> list[str]:
    """Columns that every tidy table has, which no factor can be called."""
    return list(_table([], []).column_names)


def _final_rows(files: Sequence[Path], step: int) -> Iterator[dict[str, Any]]:
    for path in files:
        table = pq.read_table(path)
        settings = json.loads(table.schema.metadata[b"evaluation"])["settings"]
        for episode in table.to_pylist():
            yield _row("final", step, None, settings, episode)


def _rollout_rows(run_dir: Path) -> Iterator[dict[str, Any]]:
    path = run_dir / "rollouts.jsonl"
    if not path.is_file():
        return
    lines = read_metrics(run_dir / "metrics.jsonl")
    by_step = {line["step"]: line for line in read_metrics(path)}  # a resumed run may repeat one
    for step, line in sorted(by_step.items()):
        loss = last_logged(lines, "train/loss", step)
        for episode in line["episodes"]:
            yield _row("training", step, loss, line["settings"], episode)


def _row(
    kind: str, step: int, loss: float | None, settings: Mapping[str, Any], episode: Mapping[str, Any]
) -> dict[str, Any]:
    row = {"kind": kind, "checkpoint_step": step, "train_loss": loss}
    row |= {name: settings.get(name) for name in SETTINGS}
    row["noise_scale"] = settings.get("noise_scale", 1.0)  # which older evaluations do not know
    row |= {"evaluation_seed": episode["seed"], **{name: episode[name] for name in MEASURES}}
    return {**row, "length": episode["length"]}


def _table(rows: list[dict[str, Any]], factors: Sequence[str]) -> pa.Table:
    text = pa.dictionary(pa.int16(), pa.string())
    schema = pa.schema(
        [(name, text) for name in factors]
        + [("training_seed", pa.int64()), ("kind", text), ("checkpoint_step", pa.int32()), ("train_loss", pa.float32())]
        + [
            ("num_inference_steps", pa.int16()),
            *[(name, text) for name in ("sampler", "inference_coupling", "selection", "first_chunk")],
            ("known_only", pa.bool_()),
            ("noise_scale", pa.float64()),
            ("noise_seed", pa.int64()),
            ("mixed_precision", text),
            ("evaluation_seed", pa.int64()),
            *_NUMBERS.items(),
            ("success", pa.bool_()),
            ("length", pa.int16()),
        ]
    )
    return pa.Table.from_pylist(rows, schema=schema)


def _write(table: pa.Table, path: Path) -> None:
    with complete_or_absent(path) as partial:
        pq.write_table(table, partial, compression="zstd", use_byte_stream_split=False)

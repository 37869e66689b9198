"""Where a run's numbers go: metrics.jsonl always, TensorBoard by default, Weights & Biases only if asked."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from immiscible_policy.files import write_text


class MetricsLogger:
    """Appends one JSON object a line to ``metrics.jsonl`` and mirrors numbers to the trackers.

    Args:
        run_dir: existing folder of the run.
        tensorboard: write TensorBoard events into the run folder.
        wandb: project name to log to, or None. Needs the ``wandb`` extra.
        step: the step a resumed run continues from; later lines of an interrupted run are dropped, so that every
            step stands in the file once.
    """

    def __init__(self, run_dir: Path, tensorboard: bool = True, wandb: str | None = None, step: int = 0) -> None:
        self.path = run_dir / "metrics.jsonl"
        self._drop_lines_after(step)
        self._file = open(self.path, "a", buffering=1)  # noqa: SIM115 - closed by close()
        self._tensorboard: Any = None
        self._wandb: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(str(run_dir), purge_step=step + 1 if step else None)
        if wandb:
            try:
                import wandb as wandb_module
            except ImportError as error:
                raise ValueError(f"wandb={wandb!r} needs the wandb extra: pip install -e '.[wandb]'") from error
            self._wandb = wandb_module.init(project=wandb, dir=str(run_dir), name=run_dir.name)

    def _drop_lines_after(self, step: int) -> None:
        if not self.path.exists():
            return
        kept = [line for line in read_metrics(self.path) if line["step"] <= step]
        write_metrics(self.path, kept)

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Record numbers under names such as ``train/loss``; NaN is stored as null, as JSON has no NaN."""
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in metrics.items()}
        self._file.write(json.dumps({"step": step, **clean}) + "\n")
        numbers = {k: v for k, v in clean.items() if isinstance(v, int | float)}
        if self._tensorboard is not None:
            for name, value in numbers.items():
                self._tensorboard.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(numbers, step=step)

    def close(self) -> None:
        self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last line cut off by a kill is left out."""
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


def write_metrics(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write what ``read_metrics`` reads, atomically."""
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))


def last_logged(lines: Iterable[Mapping[str, Any]], name: str, step: int) -> float | None:
    """The last number of a name that was logged at or before a step; None where there is none.

    Args:
        lines: as ``read_metrics`` gives them.
    """
    known = [(line["step"], line[name]) for line in lines if line["step"] <= step and line.get(name) is not None]
    return float(max(known, key=lambda pair: pair[0])[1]) if known else None

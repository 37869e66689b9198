"""A study: image trainings that differ in some settings, and what is looked at in them.

Trainings lie in the folder of a set of runs, so that studies of the same runs train them once. What is finished is
skipped and an interrupted training continues, whoever works on it (``immiscible_policy.grid_run``).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from image_diffusion.base_model import ImageModel
from image_diffusion.model import last_model_folder, load_image_model
from immiscible_policy.cli import CONFIG_DIR, explain
from immiscible_policy.grid_run import GridRun, check_grid, running, work_off
from immiscible_policy.training.metrics import read_metrics


class ImageRun(GridRun):
    """One image training of a study."""

    script = "train_image.py"

    @property
    def summary(self) -> dict[str, Any]:
        """``summary.json`` of the finished run."""
        return dict(json.loads((self.run_dir / "summary.json").read_text()))

    def provenance(self) -> dict[str, Any]:
        """What the finished run was made with, and how each of its final numbers was measured."""
        summary, measured = self.summary, json.loads((self.run_dir / "evaluation.json").read_text())
        made = {key: summary[key] for key in ("command", "versions", "precision", "num_threads", "parameters")}
        records = {name: {k: v for k, v in one["record"].items() if k != "run"} for name, one in measured.items()}
        return {**made, "pixels_hash": summary["data"]["pixels_hash"], "measurements": records}

    def configuration(self) -> DictConfig:
        """What it is trained with, whether or not that has been done.

        Raises:
            ValueError: an override that cannot be.
        """
        # A script of Hydra's is at work with these configurations already.
        begun = GlobalHydra.instance().is_initialized()
        try:
            with nullcontext() if begun else initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
                return compose("train_image", [*self.overrides])
        except (HydraException, OmegaConfBaseException) as error:
            raise ValueError(f"{self.folder.name}: {explain(error, 'train_image')}") from error

    def curve(self, name: str) -> dict[int, float]:
        """A number of ``metrics.jsonl`` by training step; a resumed run's last word counts."""
        lines = read_metrics(self.run_dir / "metrics.jsonl")
        return {int(line["step"]): float(line[name]) for line in lines if line.get(name) is not None}

    def logged(self) -> list[str]:
        """Names of the numbers in ``metrics.jsonl``."""
        return sorted({name for line in read_metrics(self.run_dir / "metrics.jsonl") for name in line})

    def load(self, device: str = "cpu") -> ImageModel:
        """The last averaged weights."""
        return load_image_model(last_model_folder(self.run_dir), device)


@dataclass(frozen=True)
class Study:
    """What is trained, and what is compared.

    Args:
        name: of the study; its tables and figures are named after it.
        runs: name of the set of trainings.
        factors: name of a factor -> name of a level -> overrides of ``train_image.py``. All combinations are trained.
        seeds: training seeds, of every combination.
        train: overrides that all trainings share.
        extra: more of them, which come after those of ``train`` and before those of the levels.
        compare: the factor whose levels are arms; each combination of the others is a table of its own.
        baseline: the arm that others are compared with.
        only: factor -> those of its levels that the study takes; the others' trainings belong to other studies.
        analysis: ``name``, a key of ``ANALYSES``, and its settings.
    """

    name: str
    runs: str
    factors: Mapping[str, Mapping[str, Sequence[str]]]
    seeds: Sequence[int]
    analysis: Mapping[str, Any]
    train: Sequence[str] = ()
    extra: Sequence[str] = ()
    compare: str = "coupling"
    baseline: str = "none"
    only: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_grid(self.factors, self.seeds)
        if isinstance(self.extra, str):
            raise ValueError(f"extra={self.extra!r}: must be a list of overrides, extra=['{self.extra}']")
        for name, levels in self.only.items():
            if name not in self.factors:
                raise ValueError(f"only.{name}: choose one of the factors {', '.join(self.factors)}")
            if isinstance(levels, str) or not levels or not set(levels) <= set(self.factors[name]):
                raise ValueError(f"only.{name}={levels}: choose a list out of {', '.join(self.factors[name])}")
        if self.compare not in self.factors:
            raise ValueError(f"compare={self.compare!r}: choose one of the factors {', '.join(self.factors)}")
        if self.baseline not in self.chosen[self.compare]:
            raise ValueError(
                f"baseline={self.baseline!r}: choose a level of {self.compare}: {', '.join(self.chosen[self.compare])}"
            )
        if "name" not in self.analysis:
            raise ValueError(f"analysis={dict(self.analysis)}: needs a name")

    @property
    def settings(self) -> dict[str, Any]:
        """Of the analysis."""
        return {name: value for name, value in self.analysis.items() if name != "name"}

    @property
    def chosen(self) -> dict[str, dict[str, Sequence[str]]]:
        """The factors with the levels that the study takes, in its order."""
        return {
            name: {level: levels[level] for level in self.only.get(name, levels)}
            for name, levels in self.factors.items()
        }

    def trainings(self, folder: Path) -> list[ImageRun]:
        """All trainings; ``folder`` is that of all sets of runs."""
        return ImageRun.grid(folder / self.runs, self.chosen, self.seeds, [*self.train, *self.extra])

    def baselines(self) -> list[ImageRun]:
        """The baseline's trainings of the first seed, one for every combination of the other factors, in no folder."""
        runs = self.trainings(Path())
        return [run for run in runs if run.seed == self.seeds[0] and run.levels[self.compare] == self.baseline]

    def groups(self, folder: Path) -> Iterator[tuple[str, dict[str, list[ImageRun]]]]:
        """For every combination of the other factors its name and its arms' finished trainings, the baseline first.

        Arms without a finished training are left out, combinations without one of the baseline, too.

        Raises:
            ValueError: a training was made with other settings than the study's.
        """
        finished = [run for run in self.trainings(folder) if run.is_trained]
        factors = self.chosen
        others = [name for name in factors if name != self.compare]
        arms = [self.baseline, *(arm for arm in factors[self.compare] if arm != self.baseline)]
        for levels in itertools.product(*(factors[name] for name in others)):
            place = dict(zip(others, levels, strict=True))
            chosen = [run for run in finished if all(run.levels[name] == level for name, level in place.items())]
            group = {arm: [run for run in chosen if run.levels[self.compare] == arm] for arm in arms}
            group = {arm: runs for arm, runs in group.items() if runs}
            if self.baseline in group:
                yield "-".join(levels) or self.runs, group


def train_missing(
    runs: Sequence[ImageRun], device: str = "auto", announce: Callable[[str], None] = print
) -> tuple[int, list[str]]:
    """Train what is neither finished nor being worked on by another process.

    A training that fails is reported and not tried again by this process; the others go on.

    Args:
        device: auto | cpu | cuda.
        announce: told a line at every beginning.

    Returns:
        How many were trained, and the names of those that failed.
    """
    trained = 0

    def work(run: ImageRun, title: str, lock: int) -> None:
        nonlocal trained
        announce(f"{title}: training")
        run.train(device, lock)
        trained += 1

    progress = work_off(runs, lambda run: run.is_trained, work, announce)
    return trained, progress.failed


def status(study: Study, folder: Path) -> str:
    """One line on how far the study's trainings are."""
    runs = study.trainings(folder)
    return f"{study.name}: {sum(run.is_trained for run in runs)} of {len(runs)} trained{running(runs)}"

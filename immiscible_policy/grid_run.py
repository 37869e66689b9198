"""A training run of a grid: a folder that processes lock, and whose training continues where it was interrupted."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Self, TypeVar

from immiscible_policy.checks import check_seed
from immiscible_policy.files import locked, write_json
from immiscible_policy.run_setup import holds_run

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
R = TypeVar("R", bound="GridRun")


@dataclass(frozen=True)
class GridRun:
    """One training run, in ``run/`` of a folder of its own.

    Args:
        folder: everything of the run.
        levels: factor -> level.
        seed: training seed.
        overrides: of the training script.

    Attributes:
        script: the training script, in ``scripts/``.
    """

    folder: Path
    levels: Mapping[str, str]
    seed: int
    overrides: tuple[str, ...] = ()

    script: ClassVar[str] = "train_policy.py"

    @classmethod
    def grid(
        cls,
        folder: Path,
        factors: Mapping[str, Mapping[str, Sequence[str]]],
        seeds: Sequence[int],
        train: Sequence[str],
    ) -> list[Self]:
        """All combinations of the factors' levels, with the first seed first: stopped early it is a whole grid.

        Args:
            folder: the runs' folders lie in its ``cells/``.
            factors: name of a factor -> name of a level -> its overrides.
            train: overrides that all runs share.
        """
        runs = []
        for seed in seeds:
            for levels in itertools.product(*factors.values()):
                named = dict(zip(factors, levels, strict=True))
                overrides = [o for name, level in named.items() for o in factors[name][level]]
                path = folder / "cells" / ("-".join(levels) + f"-seed{seed}")
                runs.append(cls(path, named, seed, (*train, *overrides, f"seed={seed}")))
        return runs

    @property
    def run_dir(self) -> Path:
        return self.folder / "run"

    @property
    def is_trained(self) -> bool:
        """Whether the training has finished.

        Raises:
            ValueError: the folder was made with other settings, so that its results would stand in the wrong row.
        """
        self._check_overrides()
        return (self.run_dir / "summary.json").is_file()

    def _check_overrides(self) -> None:
        record = self.folder / "cell.json"
        before = json.loads(record.read_text()) if record.is_file() else None
        if before is not None and before["overrides"] != list(self.overrides):
            raise ValueError(
                f"{self.folder} was trained with {' '.join(before['overrides'])}, the experiment now says "
                f"{' '.join(self.overrides)}: take another folder, or remove this one"
            )

    def record_overrides(self) -> None:
        """Write down what the folder is made with, unless that is there.

        Raises:
            ValueError: what is there are other settings.
        """
        self._check_overrides()
        record = self.folder / "cell.json"
        if not record.is_file():
            write_json(record, {"levels": dict(self.levels), "overrides": list(self.overrides)})

    def train(self, device: str, lock: int, precision: str = "auto") -> None:
        """Train in a process of its own, which keeps the folder locked even if this one is killed.

        Args:
            device: auto | cpu | cuda.
            lock: as ``locked`` gives it.
            precision: fp32 | bf16 | fp16, unless the overrides say; auto leaves it to the configuration. A training
                that has begun keeps its own.

        Raises:
            ValueError: training failed; says how, and where its log is.
        """
        # Not Hydra's record, which a kill can leave half written: without checkpoints there is nothing to resume.
        begun = holds_run(self.run_dir)
        arguments = [f"resume={self.run_dir}"] if begun else [*self.overrides, f"hydra.run.dir={self.run_dir}"]
        said = any(override.startswith("trainer.mixed_precision=") for override in self.overrides)
        if not begun and not said and precision != "auto":  # presets may say, too
            arguments.append(f"trainer.mixed_precision={precision}")
        log_path = self.folder / "train.log"
        with open(log_path, "ab") as log:
            result = subprocess.run(
                [sys.executable, os.path.relpath(SCRIPTS / self.script), *arguments, f"device={device}"],
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(lock,),
                check=False,
            )
        if result.returncode != 0:
            last = log_path.read_text(errors="replace").strip().splitlines()[-1:]
            raise ValueError(f"training ended with code {result.returncode}: {' '.join(last)} ({log_path})")


def check_grid(factors: Mapping[str, Mapping[str, Sequence[str]]], seeds: Sequence[int]) -> None:
    """Check a grid.

    Raises:
        ValueError: a factor has no levels, levels cannot be told apart, or training seeds are missing or not different.
    """
    for seed in seeds:
        check_seed(seed)
    empty = [name for name, levels in factors.items() if not levels]
    if empty or not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds={list(seeds)} must be different ones, and factors have levels; empty: {empty}")
    unnamed = [
        f"{name}.{level!r}" for name, levels in factors.items() for level in levels if not isinstance(level, str)
    ]
    if unnamed:
        raise ValueError(f"factors: {', '.join(unnamed)}: names of levels are text, so put them in quotes")
    names = ["-".join(levels) for levels in itertools.product(*factors.values())]
    if len(set(names)) < len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"factors: two combinations of levels would share the folder {repeated}; rename a level")


@dataclass
class Progress:
    """What a process did with a grid's runs: names of those that failed, and how many it left to others or as done."""

    skipped: int = 0
    elsewhere: int = 0
    failed: list[str] = field(default_factory=list)


def work_off(
    runs: Sequence[R],
    is_done: Callable[[R], bool],
    work: Callable[[R, str, int], None],
    announce: Callable[[str], None],
) -> Progress:
    """Do the work of every run that is neither done nor being worked on by another process.

    A run that fails, in whatever way, is reported and not tried again by this process; the others go on. What another
    process held is looked at once more at the end: it may have died, or only have asked whether the run was held. Of
    several processes that one has started, each ends with the run in hand when that one is gone.

    Args:
        work: (run, how to call it, lock) -> None, under the run's lock.
        announce: told of failures.
    """
    progress = Progress()
    numbered = list(enumerate(runs, 1))
    started_by = os.getppid()
    for _ in range(2):
        elsewhere = []
        for number, run in numbered:
            if _is_worker() and os.getppid() != started_by:
                announce("the process that started this one is gone: no further runs")
                return progress
            title = f"[{number}/{len(runs)}] {run.folder.name}"
            with locked(run.folder) as lock:
                if lock is None:
                    elsewhere.append((number, run))
                    continue
                try:
                    if is_done(run):  # asked under the lock: nobody can finish it in between
                        progress.skipped += 1
                        continue
                    run.record_overrides()
                    work(run, title, lock)
                except Exception as error:
                    progress.failed.append(run.folder.name)
                    kind = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
                    announce(f"{title}: failed: {kind}{error}")
        numbered = elsewhere
    progress.elsewhere = len(numbered)
    return progress


def _is_worker() -> bool:
    """Whether multiprocessing or joblib made this process, which is then nobody's to stop when theirs is gone."""
    return multiprocessing.current_process().name != "MainProcess"


def running(runs: Sequence[GridRun]) -> str:
    """What is being worked on now, to end a line of status with; empty where nothing is."""
    names = [run.folder.name for run in runs if is_locked(run.folder)]
    return f", now working on {', '.join(names)}" if names else ""


def is_locked(folder: Path) -> bool:
    """Whether a process works in the folder."""
    if not folder.is_dir():
        return False
    with locked(folder) as lock:
        return lock is None

"""An experiment: a grid of training runs, each evaluated in several ways, that any number of processes work off.

A cell is one training run (a level of every factor, and a seed) and its evaluations. It is a folder of its own,
``cells/<levels>-seed<n>/`` with the run in ``run/`` and one file for each evaluation in ``evaluations/``. A process
takes a cell by locking it, which the system undoes when the process ends in whatever way; what is finished is skipped,
and an interrupted training continues. So the work can be stopped and taken up at any moment, by any number of processes
on one machine or on several that share the folder.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from envs.pusht.modes import symmetric_starts
from immiscible_policy.coupling import Independent
from immiscible_policy.coupling.spec import parse_coupling
from immiscible_policy.evaluation.evaluate import EvaluationConfig, evaluate_policy, write_json
from immiscible_policy.evaluation.modes import count_modes
from immiscible_policy.evaluation.modes_rollout import roll_policy
from immiscible_policy.evaluation.results import collect_results, write_evaluation
from immiscible_policy.policy import load_policy
from immiscible_policy.policy_run import last_policy_folder
from immiscible_policy.training.precision import resolve_device, resolve_precision

TRAIN_SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "train_policy.py"
# Settings of an evaluation that may be lists, one evaluation for each combination.
VARIED = ("num_inference_steps", "inference_coupling", "selection", "first_chunk", "known_only")


@dataclass(frozen=True)
class Experiment:
    """What is trained and how it is evaluated.

    Args:
        name: of the experiment.
        train: overrides of ``train_policy.py`` that all runs share.
        factors: name of a factor -> name of a level -> its overrides. Runs are made of all combinations.
        seeds: training seeds, of every combination.
        evaluations: settings of ``EvaluationConfig``; those in ``VARIED`` may be lists. ``only`` restricts an entry to
            cells: factor, or ``seed``, -> its levels.
        baseline: level of the factor ``coupling`` that the others are compared with.
        modes: which way round the block the policies go, counted from symmetric starts: ``n_starts``, ``n_repeats``,
            ``num_inference_steps``; empty counts nothing.
    """

    name: str
    factors: Mapping[str, Mapping[str, Sequence[str]]]
    seeds: Sequence[int]
    evaluations: Sequence[Mapping[str, Any]]
    train: Sequence[str] = ()
    baseline: str = "none"
    modes: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if "coupling" not in self.factors or self.baseline not in self.factors["coupling"]:
            raise ValueError(
                f"baseline={self.baseline!r}: choose a level of the factor coupling "
                f"({', '.join(self.factors.get('coupling', {})) or 'which is missing'})"
            )
        empty = [name for name, levels in self.factors.items() if not levels]
        if empty or not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(
                f"seeds={list(self.seeds)} must be different ones, and factors have levels; empty: {empty}"
            )
        for settings in self.evaluations:  # which refuses what is not allowed
            _evaluation_configs(settings)
            for name, levels in settings.get("only", {}).items():
                allowed = self.seeds if name == "seed" else self.factors.get(name, ())
                if isinstance(levels, str) or not set(levels) <= set(allowed):
                    raise ValueError(
                        f"evaluations: only.{name}={levels}: choose a list out of {', '.join(map(str, allowed))}"
                        if allowed
                        else f"evaluations: only.{name}: choose seed or one of {', '.join(self.factors)}"
                    )
        unknown = set(self.modes) - {"n_starts", "n_repeats", "num_inference_steps"}
        if unknown:
            raise ValueError(f"modes: {', '.join(sorted(unknown))} is none of n_starts, n_repeats, num_inference_steps")

    def evaluation_configs(self, cell: Cell) -> list[EvaluationConfig]:
        """Every evaluation of a cell."""
        place = {**cell.levels, "seed": cell.seed}
        configs: list[EvaluationConfig] = []
        for settings in self.evaluations:
            if all(place[name] in levels for name, levels in settings.get("only", {}).items()):
                configs += [config for config in _evaluation_configs(settings) if config not in configs]
        return configs

    def cells(self, folder: Path) -> list[Cell]:
        """All cells, the first seed of all combinations first: an experiment that is stopped early is a whole one."""
        cells = []
        for seed in self.seeds:
            for levels in itertools.product(*(self.factors[name] for name in self.factors)):
                named = dict(zip(self.factors, levels, strict=True))
                overrides = [o for name, level in named.items() for o in self.factors[name][level]]
                path = folder / "cells" / ("-".join(levels) + f"-seed{seed}")
                cells.append(Cell(path, named, seed, (*self.train, *overrides, f"seed={seed}")))
        return cells


@dataclass(frozen=True)
class Cell:
    """One training run of an experiment, and its evaluations.

    Args:
        folder: everything of the cell.
        levels: factor -> level.
        seed: training seed.
        overrides: of ``train_policy.py``.
    """

    folder: Path
    levels: Mapping[str, str]
    seed: int
    overrides: tuple[str, ...] = field(default=())

    @property
    def run_dir(self) -> Path:
        return self.folder / "run"

    @property
    def is_trained(self) -> bool:
        return (self.run_dir / "summary.json").is_file()

    def evaluation_file(self, config: EvaluationConfig) -> Path:
        return self.folder / "evaluations" / f"{evaluation_name(config)}.parquet"

    def missing(self, configs: Sequence[EvaluationConfig]) -> list[EvaluationConfig]:
        """Evaluations that are still to be made. One by a coupling that has nothing to choose is plain inference."""
        missing = [config for config in configs if not self.evaluation_file(config).is_file()]
        if not missing or not self.is_trained or self._chooses():
            return missing
        return [config for config in missing if config.inference_coupling == "none" or config.selection is not None]

    def _chooses(self) -> bool:
        """Whether the run's own coupling can choose noise at inference."""
        text = json.loads((self.run_dir / "summary.json").read_text())["coupling"]
        try:
            coupling = parse_coupling(text).at_inference()
        except ValueError:
            return False
        return not (isinstance(coupling, Independent) or getattr(coupling, "k", None) == 1)

    @property
    def modes_file(self) -> Path:
        return self.folder / "modes.json"


def _evaluation_configs(settings: Mapping[str, Any]) -> list[EvaluationConfig]:
    """All combinations of the settings that are lists."""
    lists = {k: v if isinstance(v, list | tuple) else [v] for k, v in settings.items() if k in VARIED}
    fixed = {k: v for k, v in settings.items() if k != "only"}
    try:
        return [
            EvaluationConfig(**{"n_videos": 0, **fixed, **dict(zip(lists, values, strict=True))})
            for values in itertools.product(*lists.values())
        ]
    except TypeError as error:
        raise ValueError(f"evaluations: {error}") from error


def evaluation_name(config: EvaluationConfig) -> str:
    """A file name that says what differs between evaluations."""
    parts = [f"steps{config.num_inference_steps or 'default'}", config.inference_coupling]
    if config.inference_coupling != "none":
        parts += [] if config.selection is None else ["".join(c if c.isalnum() else "_" for c in config.selection)]
        parts += [] if config.inference_coupling == "two_pass" else [f"first_{config.first_chunk}"]
        parts += ["known"] if config.known_only else []
    parts += [f"n{config.n_episodes}", f"from{config.seed_start}", f"noise{config.noise_seed}"]
    return "-".join(parts)


@dataclass
class Progress:
    """What a process did."""

    trained: int = 0
    evaluated: int = 0
    skipped: int = 0
    elsewhere: int = 0
    failed: list[str] = field(default_factory=list)


def work_off(
    experiment: Experiment,
    folder: Path,
    device: str = "auto",
    announce: Callable[[str], None] = print,
    cells: Sequence[Cell] | None = None,
) -> Progress:
    """Train and evaluate every cell that is neither finished nor being worked on by another process.

    A cell that fails is reported and left for the next time; the others go on.

    Args:
        folder: of the experiment.
        device: auto | cpu | cuda, of training and evaluation.
        announce: told a line at every beginning.
        cells: some of the experiment's; default all.
    """
    progress = Progress()
    every = experiment.cells(folder) if cells is None else list(cells)
    for number, cell in enumerate(every, 1):
        title = f"[{number}/{len(every)}] {cell.folder.name}"
        if is_done(experiment, cell):
            progress.skipped += 1
            continue
        with locked(cell.folder) as lock:
            if lock is None:
                progress.elsewhere += 1
                continue
            try:
                _check_overrides(cell)
                if not cell.is_trained:
                    announce(f"{title}: training")
                    _train(cell, device, lock)
                    progress.trained += 1
                for config in cell.missing(experiment.evaluation_configs(cell)):
                    announce(f"{title}: {evaluation_name(config)}")
                    evaluate_cell(cell, config, device)
                    progress.evaluated += 1
                if experiment.modes and not cell.modes_file.is_file():
                    announce(f"{title}: modes")
                    count_cell_modes(cell, experiment.modes, device)
            except (ValueError, OSError, subprocess.CalledProcessError) as error:
                progress.failed.append(cell.folder.name)
                announce(f"{title}: failed: {error}")
    return progress


def evaluate_cell(cell: Cell, config: EvaluationConfig, device: str = "auto") -> None:
    """Evaluate the cell's last policy and write the episodes; readers see the whole file or none."""
    policy = load_policy(last_policy_folder(cell.run_dir), resolve_device(device))
    report = evaluate_policy(policy, config)
    write_evaluation(cell.evaluation_file(config), report)


def status(experiment: Experiment, folder: Path) -> str:
    """One line on how far the experiment is."""
    cells = experiment.cells(folder)
    trained = sum(cell.is_trained for cell in cells)
    missing = sum(len(cell.missing(experiment.evaluation_configs(cell))) for cell in cells)
    running = [cell.folder.name for cell in cells if cell.folder.is_dir() and _is_locked(cell.folder)]
    line = f"{experiment.name}: {trained} of {len(cells)} trained, {missing} evaluations missing"
    return line + (f", now working on {', '.join(running)}" if running else "")


def _is_locked(folder: Path) -> bool:
    with locked(folder) as lock:
        return lock is None


def is_done(experiment: Experiment, cell: Cell) -> bool:
    """Whether nothing of the cell is missing."""
    counted = not experiment.modes or cell.modes_file.is_file()
    return cell.is_trained and counted and not cell.missing(experiment.evaluation_configs(cell))


def count_cell_modes(cell: Cell, settings: Mapping[str, int], device: str = "auto") -> None:
    """Count from symmetric starts which way round the block the cell's last policy goes; write ``modes.json``."""
    policy = load_policy(last_policy_folder(cell.run_dir), resolve_device(device))
    starts = symmetric_starts(settings.get("n_starts", 16), seed=0)
    trajectories = roll_policy(
        policy,
        starts,
        n_repeats=settings.get("n_repeats", 16),
        n_steps=min(100, policy.task["max_steps"] - 1),  # enough to have touched the block
        num_inference_steps=settings.get("num_inference_steps"),
        precision=resolve_precision("auto", str(policy.device)),
    )
    write_json(cell.modes_file, {"settings": dict(settings), **count_modes(trajectories).as_dict()})


def collect(experiment: Experiment, folder: Path) -> Path:
    """One tidy table of all that has been evaluated so far, ``results.parquet``; returns its path."""
    path = folder / "results.parquet"
    finished = [(cell.folder, cell.levels, cell.seed) for cell in experiment.cells(folder) if cell.is_trained]
    collect_results(experiment.name, finished, path)
    write_json(folder / "experiment.json", {**asdict(experiment), "command": " ".join(["python", *sys.argv])})
    return path


@contextmanager
def locked(folder: Path) -> Iterator[int | None]:
    """Hold the folder's lock, a file descriptor; None where another process holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        yield descriptor
    finally:
        os.close(descriptor)


def _check_overrides(cell: Cell) -> None:
    """Refuse a folder that was made with other settings: its results would stand in the wrong row."""
    record, content = cell.folder / "cell.json", {"levels": dict(cell.levels), "overrides": list(cell.overrides)}
    if not record.is_file():
        write_json(record, content)
        return
    before = json.loads(record.read_text())
    if before["overrides"] != content["overrides"]:
        raise ValueError(
            f"{cell.folder} was trained with {' '.join(before['overrides'])}, the experiment now says "
            f"{' '.join(cell.overrides)}: take another folder, or remove this one"
        )


def _train(cell: Cell, device: str, lock: int) -> None:
    """Train in a process of its own, which keeps the cell locked even if this one is killed."""
    begun = (cell.run_dir / ".hydra" / "config.yaml").is_file()
    arguments = [f"resume={cell.run_dir}"] if begun else [*cell.overrides, f"hydra.run.dir={cell.run_dir}"]
    with open(cell.folder / "train.log", "ab") as log:
        result = subprocess.run(
            [sys.executable, os.path.relpath(TRAIN_SCRIPT), *arguments, f"device={device}"],
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=(lock,),
            check=False,
        )
    if result.returncode != 0:
        last = (cell.folder / "train.log").read_text(errors="replace").strip().splitlines()[-1:]
        raise ValueError(
            f"training ended with code {result.returncode}: {' '.join(last)} ({cell.folder / 'train.log'})"
        )

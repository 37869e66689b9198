"""An experiment: a grid of training runs, each evaluated in several ways, that any number of processes work off.

A cell is one training run (a level of every factor, and a seed) and its evaluations, in ``cells/<levels>-seed<n>/``.
What is finished is skipped, and an interrupted training continues. So the work can be stopped and taken up at any
moment, by any number of processes on one machine or on several that share the folder.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from immiscible_policy import grid_run
from immiscible_policy.data.sources import load_demonstrations
from immiscible_policy.data.windows import split_episodes
from immiscible_policy.evaluation.evaluate import EvaluationConfig
from immiscible_policy.evaluation.modes import demonstration_modes, replay_episodes
from immiscible_policy.evaluation.results import RunResults, collect_results, reserved_names
from immiscible_policy.experiment_cell import (
    SETTINGS,
    Cell,
    evaluate_cell,
    evaluation_name,
    measurable,
    measure_cell,
)
from immiscible_policy.files import write_json
from immiscible_policy.grid_run import Progress, check_grid

# Settings of an evaluation that may be lists, one evaluation for each combination.
VARIED = (
    "num_inference_steps",
    "sampler",
    "inference_coupling",
    "selection",
    "first_chunk",
    "known_only",
    "noise_scale",
)


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
        measurements: name -> settings of what else is measured of every policy. ``modes``: which way round the block it
            goes from symmetric starts, sampled from N(0, I) (``n_starts``, ``n_repeats``, ``num_inference_steps``);
            ``modes_warm``: the same from noise that its coupling chooses, of policies whose coupling chooses any.
            ``prior_gap``: what it does with N(0, I) and with its training noise (``n_windows``, ``n_samples``,
            ``num_inference_steps``).
    """

    name: str
    factors: Mapping[str, Mapping[str, Sequence[str]]]
    seeds: Sequence[int]
    evaluations: Sequence[Mapping[str, Any]]
    train: Sequence[str] = ()
    baseline: str = "none"
    measurements: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if "coupling" not in self.factors or self.baseline not in self.factors["coupling"]:
            raise ValueError(
                f"baseline={self.baseline!r}: choose a level of the factor coupling "
                f"({', '.join(self.factors.get('coupling', {})) or 'which is missing'})"
            )
        check_grid(self.factors, self.seeds)
        taken = sorted(set(self.factors) & set(reserved_names()))
        if taken:
            raise ValueError(f"factors: {', '.join(taken)} are columns of every table of results; choose other names")
        for settings in self.evaluations:  # which refuses what is not allowed
            _evaluation_configs(settings)
            for name, levels in settings.get("only", {}).items():
                allowed = self.seeds if name == "seed" else self.factors.get(name, ())
                if not isinstance(levels, list | tuple) or not set(levels) <= set(allowed):
                    raise ValueError(
                        f"evaluations: only.{name}={levels}: choose a list out of {', '.join(map(str, allowed))}"
                        if allowed
                        else f"evaluations: only.{name}: choose seed or one of {', '.join(self.factors)}"
                    )
        self._check_evaluations()
        for name, settings in self.measurements.items():
            if name not in SETTINGS:
                raise ValueError(f"measurements: {name!r} is none of {', '.join(SETTINGS)}")
            known = ", ".join(SETTINGS[name])
            if not isinstance(settings, Mapping):
                raise ValueError(f"measurements.{name}={settings!r}: must be a mapping out of {known}")
            if unknown := set(settings) - set(SETTINGS[name]):
                raise ValueError(f"measurements.{name}: {', '.join(sorted(unknown))} is none of {known}")

    def _check_evaluations(self) -> None:
        """Refuse evaluations of which no table could be made: their episodes could not be told apart, or paired."""
        every = {config for settings in self.evaluations for config in _evaluation_configs(settings)}
        for steps in {config.num_inference_steps for config in every}:
            if steps is None:
                raise ValueError("evaluations: num_inference_steps is missing, by which rows are told apart")
            # Two passes stand beside one of twice the steps, too.
            alike = [c for c in every if c.num_inference_steps == steps or _network_calls(c) == steps]
            states = {(c.seed_start, c.n_episodes) for c in alike}
            if len(states) > 1:
                listed = ", ".join(f"{first} to {first + n - 1}" for first, n in sorted(states))
                raise ValueError(
                    f"evaluations: those of num_inference_steps={steps} have different initial states ({listed}): give "
                    "them the same n_episodes and seed_start, so that all arms are compared over the same"
                )
        if len({config.mixed_precision for config in every}) > 1:
            raise ValueError("evaluations: mixed_precision must be the same for all, or left out")

    def missing_measurements(self, cell: Cell) -> list[str]:
        """Those not made yet, or made with other settings."""
        missing = [name for name, wanted in self.measurements.items() if cell.measured_with(name) != dict(wanted)]
        return measurable(missing, cell.trained_with) if missing and cell.is_trained else missing

    def evaluation_configs(self, cell: Cell) -> list[EvaluationConfig]:
        """Every evaluation of a cell; of a trained one not twice by its policy's own sampler, left out and named."""
        place = {**cell.levels, "seed": cell.seed}
        configs: list[EvaluationConfig] = []
        for settings in self.evaluations:
            if all(place[name] in levels for name, levels in settings.get("only", {}).items()):
                configs += [config for config in _evaluation_configs(settings) if config not in configs]
        named = [config for config in configs if config.sampler and replace(config, sampler=None) in configs]
        if named and cell.is_trained:
            own = cell.own_sampler
            configs = [config for config in configs if config not in named or config.sampler != own]
        return configs

    def cells(self, folder: Path) -> list[Cell]:
        """All cells, the first seed of all combinations first: an experiment that is stopped early is a whole one."""
        return Cell.grid(folder, self.factors, self.seeds, self.train)


def _network_calls(config: EvaluationConfig) -> int | None:
    passes = 2 if config.inference_coupling == "two_pass" else 1
    return None if config.num_inference_steps is None else passes * config.num_inference_steps


def _evaluation_configs(settings: Mapping[str, Any]) -> list[EvaluationConfig]:
    """All combinations of the settings that are lists."""
    lists = {k: v if isinstance(v, list | tuple) else [v] for k, v in settings.items() if k in VARIED}
    empty = [name for name, values in lists.items() if not values]
    if empty:
        raise ValueError(f"evaluations: {', '.join(empty)}: an empty list, so that nothing would be evaluated")
    for name, value in settings.items():
        if isinstance(value, list | tuple) and name not in VARIED:
            raise ValueError(f"evaluations: {name}={value}: may not be a list; those that may: {', '.join(VARIED)}")
    if settings.get("n_videos"):
        raise ValueError(f"evaluations: n_videos={settings['n_videos']}: an experiment's evaluations make no videos")
    fixed = {k: v for k, v in settings.items() if k != "only"}
    try:
        return [
            EvaluationConfig(**{"n_videos": 0, **fixed, **dict(zip(lists, values, strict=True))})
            for values in itertools.product(*lists.values())
        ]
    except TypeError as error:
        raise ValueError(f"evaluations: {error}") from error


@dataclass
class ExperimentProgress(Progress):
    """What a process did: also how many cells it trained, and evaluations it made."""

    trained: int = 0
    evaluated: int = 0


def work_off(
    experiment: Experiment,
    folder: Path,
    device: str = "auto",
    announce: Callable[[str], None] = print,
    cells: Sequence[Cell] | None = None,
    precision: str = "auto",
    take_over: Callable[[Cell], str] = lambda cell: "",
) -> ExperimentProgress:
    """Train and evaluate every cell that is neither finished nor being worked on by another process.

    A cell that fails is reported and not tried again by this process; the others go on.

    Args:
        folder: of the experiment.
        device: auto | cpu | cuda, of training and evaluation.
        announce: told a line at every beginning.
        cells: some of the experiment's; default all.
        precision: auto | fp32 | bf16 | fp16, of trainings and evaluations that do not say.
        take_over: given a trained cell before anything is evaluated; says what it has found that need not be.
    """
    trained = evaluated = 0

    def work(cell: Cell, title: str, lock: int) -> None:
        nonlocal trained, evaluated
        if not cell.is_trained:
            announce(f"{title}: training")
            cell.train(device, lock, precision)
            trained += 1
        if taken := take_over(cell):
            announce(f"{title}: {taken}")
        for config in cell.missing(experiment.evaluation_configs(cell)):
            announce(f"{title}: {evaluation_name(config)}")
            evaluate_cell(cell, config, device, precision)
            evaluated += 1
        for name in experiment.missing_measurements(cell):
            announce(f"{title}: {name}")
            measure_cell(cell, name, experiment.measurements[name], device, precision)

    every = experiment.cells(folder) if cells is None else list(cells)
    progress = grid_run.work_off(every, lambda cell: is_done(experiment, cell), work, announce)
    return ExperimentProgress(**asdict(progress), trained=trained, evaluated=evaluated)


def status(experiment: Experiment, folder: Path, joined: Collection[Path] = ()) -> str:
    """One line on how far the experiment is.

    Which evaluations a policy needs is known once it is trained: one by a coupling that has nothing to choose is
    another in disguise. Until then their number is the largest possible.

    Args:
        joined: folders of cells whose results are those of trainings made elsewhere.

    Raises:
        ValueError: a cell was made with other settings than the experiment's.
    """
    cells = experiment.cells(folder)
    here = [cell for cell in cells if cell.folder not in joined]
    trained = sum(cell.is_trained for cell in here)
    missing = sum(len(cell.missing(experiment.evaluation_configs(cell))) for cell in here)
    taken = f", {len(joined)} joined" if joined else ""
    at_most = "at most " if trained < len(here) else ""
    return (
        f"{experiment.name}: {trained} of {len(cells)} trained{taken}, {at_most}{missing} evaluations missing"
        f"{grid_run.running(cells)}"
    )


def check_folder(experiment: Experiment, folder: Path) -> None:
    """Raise a ValueError for a folder of another experiment, whose tables would be overwritten.

    One of another name that has trainings of this one is this one, renamed.
    """
    record = folder / "experiment.json"
    name = json.loads(record.read_text())["name"] if record.is_file() else experiment.name
    if name != experiment.name and not any(cell.folder.is_dir() for cell in experiment.cells(folder)):
        raise ValueError(f"folder={folder}: holds the experiment {name}, not {experiment.name}; choose another folder")


def is_done(experiment: Experiment, cell: Cell) -> bool:
    """Whether nothing of the cell is missing.

    Raises:
        ValueError: it was made with other settings than the experiment's.
    """
    if not cell.is_trained:
        return False
    return not cell.missing(experiment.evaluation_configs(cell)) and not experiment.missing_measurements(cell)


def collect(
    experiment: Experiment, folder: Path, joined: Mapping[Path, RunResults] | None = None, worked: bool = True
) -> Path:
    """One tidy table of all that has been evaluated so far, ``results.parquet``; returns its path.

    Args:
        joined: as ``experiment_join.find_joined`` gives them.
        worked: whether this command trained or evaluated, so that ``experiment.json`` is to name it; otherwise it goes
            on naming the one that did.
    """
    path = folder / "results.parquet"
    cells = [cell for cell in experiment.cells(folder) if cell.folder in (joined or {}) or cell.is_trained]
    wanted = {
        cell.folder: [cell.evaluation_file(config).name for config in experiment.evaluation_configs(cell)]
        for cell in cells
    }
    places = [(cell.folder, cell.levels, cell.seed) for cell in cells]
    collect_results(experiment.name, places, path, wanted, joined, experiment.measurements, _with_ways)
    record = folder / "experiment.json"
    command = " ".join(["python", *sys.argv])
    if not worked and record.is_file():
        command = json.loads(record.read_text())["command"]
    write_json(record, {**asdict(experiment), "command": command})
    return path


def _with_ways(demonstrations: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a run's demonstrations with their ways round the block, where they can still be read."""
    known = demonstrations.get("ways")
    limit = demonstrations.get("max_train_episodes")
    split = None if limit is None else (demonstrations["val_ratio"], demonstrations["split_seed"], limit)
    found = known or _ways(*(demonstrations[name] for name in ("path", "n_episodes", "n_steps")), split)
    return {**demonstrations, "ways": found}


@cache
def _ways(path: str, n_episodes: int, n_steps: int, split: tuple[float, int, int] | None) -> dict[str, Any] | None:
    """First ways of these demonstrations; None where they cannot be read, or are others by now.

    Args:
        split: as ``split_episodes`` takes it where training was limited to fewer; None counts all of them.
    """
    try:
        replay = load_demonstrations(Path(path), ("state",), n_episodes)
    except (ValueError, OSError):
        return None
    if replay.n_steps != n_steps or "state" not in replay.arrays:
        return None
    episodes = replay_episodes(replay)
    if split is not None:
        episodes = [episodes[index] for index in np.flatnonzero(split_episodes(len(episodes), *split)[0])]
    return demonstration_modes(episodes).all.as_dict()

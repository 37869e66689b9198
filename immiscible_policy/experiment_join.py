"""Results of trainings made elsewhere, as cells of an experiment.

An experiment can go on where its ``results.parquet`` is all that is left of it, or was published, and can share
trainings with another: a training is known by what it was trained with, not by what it is called.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from immiscible_policy.evaluation.evaluate import EvaluationConfig
from immiscible_policy.evaluation.results import INITIAL_NOISE, RunResults, measured_as, results_by_overrides
from immiscible_policy.experiment import Experiment, is_done
from immiscible_policy.experiment_cell import Cell, measurable, possible

# Settings that tell one evaluation's rows from another's, besides the initial states and the precision.
_SETTINGS = ("num_inference_steps", *INITIAL_NOISE)


def find_joined(experiment: Experiment, folder: Path, paths: Sequence[Path]) -> dict[Path, RunResults]:
    """Results, for cells that are not finished in the folder, of trainings with the same overrides.

    Of these only what the experiment asks for is kept: rows of its evaluations, in whole, and measurements with its
    settings.

    Args:
        folder: of the experiment.
        paths: of ``results.parquet`` files; the first that has a training counts.

    Returns:
        cell's folder -> its results.

    Raises:
        ValueError: a file has no training of the experiment, or is not a table of results.
    """
    trainings: dict[frozenset[tuple[str, str]], RunResults] = {}
    cells = experiment.cells(folder)
    asked = {settings_of(cell.overrides) for cell in cells}
    for path in paths:
        found = {settings_of(overrides): results for overrides, results in results_by_overrides(path)}
        if not asked & found.keys():
            raise ValueError(f"join={path}: none of its {len(found)} trainings is one of experiment {experiment.name}")
        trainings = found | trainings
    joined = {}
    for cell in cells:
        results = trainings.get(settings_of(cell.overrides))
        if results is not None and not is_done(experiment, cell):
            joined[cell.folder] = _asked_for(results, experiment, cell)
    return joined


def incomplete(experiment: Experiment, folder: Path, joined: Mapping[Path, RunResults]) -> list[Cell]:
    """Cells whose joined results lack an evaluation or a measurement of the experiment."""
    return [
        cell
        for cell in experiment.cells(folder)
        if cell.folder in joined
        and (
            _missing(joined[cell.folder], experiment.evaluation_configs(cell))
            or _not_measured(joined[cell.folder], experiment)
        )
    ]


def _asked_for(results: RunResults, experiment: Experiment, cell: Cell) -> RunResults:
    """The part that the experiment asks for, which may have other evaluations than the one it is from."""
    configs = experiment.evaluation_configs(cell)
    missing = _missing(results, configs)
    wanted = {(_key(asdict(config)), state) for config in configs if config not in missing for state in config.seeds}
    record = measured_as(results.record, experiment.measurements)
    rows = [row for row in results.rows if row["kind"] != "final" or (_key(row), row["evaluation_seed"]) in wanted]
    return RunResults(record, rows)


def _missing(results: RunResults, configs: Sequence[EvaluationConfig]) -> list[EvaluationConfig]:
    """Evaluations of a training run that its results do not have in whole."""
    states = defaultdict(set)
    for row in results.rows:
        if row["kind"] == "final":
            states[_key(row), row["mixed_precision"]].add(row["evaluation_seed"])
            states[_key(row), "auto"].add(row["evaluation_seed"])  # which any will do for
    every = possible(configs, results.record["trained_with"])
    return [c for c in every if not states[_key(asdict(c)), c.mixed_precision].issuperset(c.seeds)]


def _not_measured(results: RunResults, experiment: Experiment) -> list[str]:
    """Measurements of the experiment that a training run's results do not have."""
    missing = [name for name in experiment.measurements if results.record[name] is None]
    return measurable(missing, results.record["trained_with"])


def _key(settings: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(settings[name] for name in _SETTINGS)


def settings_of(overrides: Sequence[str]) -> frozenset[tuple[str, str]]:
    """What overrides set, of several of one name the last, whatever their order."""
    return frozenset({name: value for name, _, value in (text.partition("=") for text in overrides)}.items())

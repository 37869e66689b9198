"""Results of trainings made elsewhere, as cells of an experiment.

An experiment can go on where its ``results.parquet`` is all that is left of it, or was published, and can share
trainings with another: a training is known by what it was trained with, not by what it is called. One that is made
again, to be evaluated in more ways, keeps the results that it had where it gives the same policy.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from immiscible_policy.evaluation.evaluate import EvaluationConfig
from immiscible_policy.evaluation.results import (
    INITIAL_NOISE,
    RunResults,
    measured_as,
    results_by_overrides,
    results_of_cell,
    rollouts_of,
    write_evaluation_rows,
)
from immiscible_policy.experiment import Experiment, is_done
from immiscible_policy.experiment_cell import Cell, measurable, names_own, possible
from immiscible_policy.files import write_json

Row = Mapping[str, Any]
# Settings -> precision -> initial state -> row.
Evaluations = defaultdict[tuple[Any, ...], defaultdict[str, dict[int, Row]]]
# Settings that tell one evaluation's rows from another's, besides the initial states and the precision.
_SETTINGS = ("num_inference_steps", "sampler", *INITIAL_NOISE)


def find_joined(experiment: Experiment, folder: Path, paths: Sequence[Path]) -> dict[Path, RunResults]:
    """Results, for cells that are not finished in the folder, of trainings with the same overrides.

    Of these only what the experiment asks for is kept: rows of its evaluations, in whole, and measurements with its
    settings. A cell that was trained in ``folder`` is its own, unless it still lacks something that they have.

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
        if results is None or is_done(experiment, cell):
            continue
        asked_for = _asked_for(results, experiment, cell)
        if not cell.is_trained or any(_lacked(asked_for, experiment, cell)):
            joined[cell.folder] = asked_for
    return joined


def _lacked(
    results: RunResults, experiment: Experiment, cell: Cell
) -> tuple[dict[EvaluationConfig, list[Row]], list[str]]:
    """Evaluations and measurements of the experiment that they have, and a cell trained here lacks so far."""
    found, configs = _evaluations(results), cell.missing(experiment.evaluation_configs(cell))
    known = {config: rows for config in configs if (rows := _rows_of(found, config, results))}
    return known, [name for name in experiment.missing_measurements(cell) if results.record[name] is not None]


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


def take_over(experiment: Experiment, joined: Mapping[Path, RunResults], cell: Cell) -> str:
    """Give a cell that was trained again what joined results have of the same policy and it lacks.

    The policy is the same where every episode rolled out while it trained, and the losses then, are.

    Args:
        joined: as ``find_joined`` gives them.

    Returns:
        What was done, in words; empty where there was nothing to do.
    """
    results = joined.get(cell.folder)
    if results is None or is_done(experiment, cell):
        return ""
    rollouts = rollouts_of(results_of_cell(experiment.name, cell.folder))
    if not rollouts or rollouts != rollouts_of(results):
        return "not the policy of the joined results, which are therefore not used for it"
    known, measured = _lacked(results, experiment, cell)
    for config, rows in known.items():
        write_evaluation_rows(cell.evaluation_file(config), rows)
    for name in measured:
        write_json(cell.measurement_file(name), results.record[name])
    if not (known or measured):
        return ""
    kept = f"{len(known)} evaluations and {len(measured)} measurements"
    return f"the policy of the joined results, of which {kept} are kept"


def _asked_for(results: RunResults, experiment: Experiment, cell: Cell) -> RunResults:
    """The part that the experiment asks for, which may have other evaluations than the one it is from."""
    configs = possible(experiment.evaluation_configs(cell), results.record["trained_with"])
    missing = _missing(results, configs)
    kept = [config for config in configs if config not in missing]
    # A selection is called here what the experiment calls it, so that its arms' rows are found by one name.
    wanted = {(_key(asdict(config), results), state): config.selection for config in kept for state in config.seeds}
    record = measured_as(results.record, experiment.measurements)
    rows: list[Row] = []
    taken = set()
    for row in results.rows:
        if row["kind"] != "final":
            rows.append(row)
            continue
        key = (_key(row, results), row["evaluation_seed"])
        if key in wanted and (key, row["mixed_precision"]) not in taken:
            taken.add((key, row["mixed_precision"]))
            rows.append({**row, "selection": wanted[key]})
    return RunResults(record, rows)


def _missing(results: RunResults, configs: Sequence[EvaluationConfig]) -> list[EvaluationConfig]:
    """Evaluations of a training run that its results do not have in whole."""
    found = _evaluations(results)
    return [c for c in possible(configs, results.record["trained_with"]) if not _rows_of(found, c, results)]


def _evaluations(results: RunResults) -> Evaluations:
    found: Evaluations = defaultdict(lambda: defaultdict(dict))
    for row in results.rows:
        if row["kind"] == "final":
            found[_key(row, results)][row["mixed_precision"]][row["evaluation_seed"]] = row
    return found


def _rows_of(found: Evaluations, config: EvaluationConfig, results: RunResults) -> list[Row]:
    """A row for each initial state of an evaluation; none where it is not there in whole."""
    for precision, rows in found[_key(asdict(config), results)].items():
        if config.mixed_precision in ("auto", precision) and rows.keys() >= set(config.seeds):
            return [rows[state] for state in config.seeds]
    return []


def _not_measured(results: RunResults, experiment: Experiment) -> list[str]:
    """Measurements of the experiment that a training run's results do not have."""
    missing = [name for name in experiment.measurements if results.record[name] is None]
    return measurable(missing, results.record["trained_with"])


def _key(settings: Row, results: RunResults) -> tuple[Any, ...]:
    """Settings of an evaluation, equal where what they do to the policy is."""
    own = {"sampler": settings["sampler"] or results.own_sampler}
    if names_own(settings["selection"], results.record["trained_with"]):
        own["selection"] = None
    return tuple({**settings, **own}[name] for name in _SETTINGS)


def settings_of(overrides: Sequence[str]) -> frozenset[tuple[str, str]]:
    """What overrides set, of several of one name the last, whatever their order."""
    return frozenset({name: value for name, _, value in (text.partition("=") for text in overrides)}.items())

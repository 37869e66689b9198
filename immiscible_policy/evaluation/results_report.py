"""Tables and figures of an experiment as files, made from its tidy table alone."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from immiscible_policy.evaluation.results import Results, load_results
from immiscible_policy.evaluation.results_cells import Rows
from immiscible_policy.evaluation.results_differences import differences_to_baseline
from immiscible_policy.evaluation.results_figure import (
    coverage_by_gap,
    coverage_by_level,
    coverage_by_steps,
    coverage_while_training,
)
from immiscible_policy.evaluation.results_modes import MODE_NOTE, mode_rows
from immiscible_policy.evaluation.results_tables import (
    GAIN_NOTE,
    GAP_NOTE,
    LEVEL_NOTE,
    NOTE,
    POOLED_NOTE,
    RULE_NOTE,
    STEPS_NOTE,
    WAYS_NOTE,
    coverage_rows,
    gain_rows,
    gap_rows,
    level_rows,
    pooled_rows,
    rules_rows,
    step_rows,
)
from immiscible_policy.evaluation.table_files import write_table

# Of a training run in the grid: its levels and its seed.
_Place = tuple[Any, ...]


def write_tables(results_path: Path, folder: Path, baseline: str = "none") -> list[Path]:
    """Write ``tables/*.md, *.tex, *.json`` and ``figures/*.png`` into ``folder``; returns their paths.

    One table of a kind, in which factors with several levels have columns; figures for every combination of them. What
    an earlier call has written there and this one does not is removed: it would stand beside the new ones as if it were
    of the same results.

    Args:
        results_path: as ``collect_results`` writes it.
        baseline: the coupling that the others are compared with.
    """
    results = load_results(results_path)
    written: list[Path] = []
    if not len(results):
        return written
    others = [name for name in results.factors if name != "coupling"]
    varied = [name for name in others if len(results.levels(name)) > 1]
    combinations = _combinations(results, others)
    mixed = precision_note(results, baseline)
    samplers = dict.fromkeys(name for fixed in combinations if (name := results.own_sampler(**fixed)) is not None)
    own = f" The policies' own: {', '.join(samplers)}." if samplers else ""
    kinds: dict[str, tuple[Callable[[Results, dict[str, Any]], Rows], str]] = {
        "coverage": (partial(coverage_rows, baseline=baseline), NOTE + own + WAYS_NOTE),
        "coupled_inference": (gain_rows, GAIN_NOTE + own),
        "steps": (step_rows, STEPS_NOTE),
        "rules": (rules_rows, RULE_NOTE),
        "modes": (partial(mode_rows, baseline=baseline), MODE_NOTE),
        "prior_gap": (gap_rows, GAP_NOTE),
    }
    tables = {
        name: (_with_factors([(fixed, make(results, fixed)) for fixed in combinations], varied), note)
        for name, (make, note) in kinds.items()
    }
    if varied:
        evaluated = [fixed for fixed in combinations if results.where(kind="final", **fixed).any()]
        note = POOLED_NOTE.format(factors=", ".join(varied))
        tables["pooled"] = (pooled_rows(results, evaluated, baseline), note)
        parts = [
            (fixed, level_rows(results, name, fixed, baseline))
            for name in varied
            for fixed in _combinations(results, [other for other in others if other != name])
        ]
        tables["levels"] = (_with_factors(parts, []), LEVEL_NOTE)
    for name, ((rows, content), note) in tables.items():
        if len(rows) > 1:
            written += write_table(folder / "tables", name, rows, content, note + mixed)
    coverage = tables["coverage"][0][1]
    written += _write_figures(results, folder / "figures", others, varied, baseline, coverage)
    for path in [file for pattern in _patterns([*kinds, "pooled", "levels"]) for file in folder.glob(pattern)]:
        if path not in written:
            path.unlink()
    return written


def _write_figures(
    results: Results,
    folder: Path,
    others: Sequence[str],
    varied: Sequence[str],
    baseline: str,
    coverage: Sequence[dict[str, Any]],
) -> list[Path]:
    """Figures of every combination of the factors ``others``, and one over each that is ``varied``.

    Args:
        coverage: the numbers of the table of coverage.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn: dict[Path, bool] = {}
    for fixed in _combinations(results, others):
        stem = "-".join(map(str, fixed.values())) or "all"
        names = ("training", "sampling_steps", "prior_gap", "differences")
        training, steps, gap, differences = (folder / f"{name}-{stem}.png" for name in names)
        drawn[gap] = coverage_by_gap(results, fixed, gap)
        drawn[training] = coverage_while_training(results, fixed, training)
        drawn[steps] = coverage_by_steps(results, fixed, baseline, steps)
        wanted = {**fixed, "sampler": results.own_sampler(**fixed)}
        shown = [row for row in coverage if wanted.items() <= row.items()]
        drawn[differences] = differences_to_baseline(shown, baseline, differences)
    for factor in varied:
        for fixed in _combinations(results, [name for name in others if name != factor]):
            path = folder / ("-".join(["coverage_by", factor, *map(str, fixed.values())]) + ".png")
            drawn[path] = coverage_by_level(results, factor, fixed, path)
    return [path for path, is_drawn in drawn.items() if is_drawn]


def _combinations(results: Results, factors: Sequence[str]) -> list[dict[str, Any]]:
    """All combinations of the factors' levels."""
    levels = itertools.product(*(results.levels(name) for name in factors))
    return [dict(zip(factors, values, strict=True)) for values in levels]


def _patterns(kinds: Sequence[str]) -> list[str]:
    """Of the files that ``write_tables`` writes."""
    tables = [f"tables/{name}.{suffix}" for name in kinds for suffix in ("md", "tex", "json")]
    figures = ("differences", "training", "sampling_steps", "prior_gap", "coverage_by")
    return [*tables, *(f"figures/{name}-*.png" for name in figures)]


def _with_factors(parts: Sequence[tuple[dict[str, Any], Rows]], varied: Sequence[str]) -> Rows:
    """The tables of several combinations as one, with a column for each factor that differs between them."""
    rows = [[*varied, *parts[0][1][0][0]]]
    for fixed, (part, _) in parts:
        rows += [[*(str(fixed[name]) for name in varied), *row] for row in part[1:]]
    return rows, [entry for _, (_, content) in parts for entry in content]


def precision_note(results: Results, baseline: str) -> str:
    """What to tell the reader where policies were trained or evaluated in different precisions, else nothing.

    Args:
        baseline: the coupling that the others are compared with.
    """
    evaluated: dict[_Place, set[str]] = {}
    final = results.where(kind="final")
    columns = (results.columns[name][final] for name in (*results.factors, "training_seed", "mixed_precision"))
    for *place, precision in set(zip(*(column.tolist() for column in columns), strict=True)):
        evaluated.setdefault(tuple(place), set()).add(str(precision))
    trained = {_place(run): {str(run["precision"])} for run in results.runs}
    coupling = results.factors.index("coupling")
    told = []
    for what, found in (("trained", trained), ("evaluated", evaluated)):
        counts = Counter(" and ".join(sorted(precisions)) for precisions in found.values())
        if len(set().union(*found.values())) < 2:
            continue
        pairs = [(place, (*place[:coupling], baseline, *place[coupling + 1 :])) for place in found]
        compared = [found[place] == found[other] for place, other in pairs if place != other and other in found]
        listed = ", ".join(f"{number} in {name}" for name, number in sorted(counts.items()))
        told.append(
            f" **Not all policies were {what} in the same precision** ({listed}): {compared.count(False)} of the "
            f"{len(compared)} that are compared with {baseline} of the same training seed differ from it in that."
        )
    return "".join(told)


def _place(run: Mapping[str, Any]) -> _Place:
    """Of a training run in the grid."""
    return (*run["levels"].values(), run["seed"])

"""Tables and figures of an experiment as files, made from its tidy table alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from immiscible_policy.evaluation.results import Results, load_results
from immiscible_policy.evaluation.results_figure import coverage_by_level, coverage_by_steps, coverage_while_training
from immiscible_policy.evaluation.results_tables import (
    GAIN_NOTE,
    GAP_NOTE,
    MODE_NOTE,
    NOTE,
    POOLED_NOTE,
    RULE_NOTE,
    Rows,
    coverage_rows,
    gain_rows,
    gap_rows,
    mode_rows,
    pooled_rows,
    rules_rows,
)
from immiscible_policy.evaluation.table_files import write_table


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
    combinations = [
        dict(zip(others, values, strict=True))
        for values in itertools.product(*(results.levels(name) for name in others))
    ]
    varied = [name for name in others if len(results.levels(name)) > 1]
    kinds: dict[str, tuple[Callable[[dict[str, Any]], Rows], str]] = {
        "coverage": (lambda fixed: coverage_rows(results, fixed, baseline), NOTE),
        "coupled_inference": (lambda fixed: gain_rows(results, fixed), GAIN_NOTE),
        "rules": (lambda fixed: rules_rows(results, fixed), RULE_NOTE),
        "modes": (lambda fixed: mode_rows(results, fixed), MODE_NOTE),
        "prior_gap": (lambda fixed: gap_rows(results, fixed), GAP_NOTE),
    }
    for name, (make, note) in kinds.items():
        rows, content = _with_factors([(fixed, make(fixed)) for fixed in combinations], varied)
        if len(rows) > 1:
            written += write_table(folder / "tables", name, rows, content, note + precision_note(results))
    if varied:
        evaluated = [fixed for fixed in combinations if results.where(kind="final", **fixed).any()]
        rows, content = pooled_rows(results, evaluated, baseline)
        if len(rows) > 1:
            note = POOLED_NOTE.format(factors=", ".join(varied))
            written += write_table(folder / "tables", "pooled", rows, content, note + precision_note(results))
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    for fixed in combinations:
        stem = "-".join(str(value) for value in fixed.values()) or "all"
        training, steps = (folder / "figures" / f"{name}-{stem}.png" for name in ("training", "sampling_steps"))
        if coverage_while_training(results, fixed, training):
            written.append(training)
        if coverage_by_steps(results, fixed, baseline, steps):
            written.append(steps)
    for factor in varied:
        for values in itertools.product(*(results.levels(name) for name in others if name != factor)):
            fixed = dict(zip((name for name in others if name != factor), values, strict=True))
            path = folder / "figures" / ("-".join(["coverage_by", factor, *map(str, values)]) + ".png")
            if coverage_by_level(results, factor, fixed, path):
                written.append(path)
    for path in [file for pattern in _patterns(list(kinds)) for file in folder.glob(pattern)]:
        if path not in written:
            path.unlink()
    return written


def _patterns(kinds: Sequence[str]) -> list[str]:
    """Of the files that ``write_tables`` writes."""
    tables = [f"tables/{name}.{kind}" for name in [*kinds, "pooled"] for kind in ("md", "tex", "json")]
    return [*tables, *(f"figures/{name}-*.png" for name in ("training", "sampling_steps", "coverage_by"))]


def _with_factors(parts: Sequence[tuple[dict[str, Any], Rows]], varied: Sequence[str]) -> Rows:
    """The tables of several combinations as one, with a column for each factor that differs between them."""
    rows = [[*varied, *parts[0][1][0][0]]]
    for fixed, (part, _) in parts:
        rows += [[*(str(fixed[name]) for name in varied), *row] for row in part[1:]]
    return rows, [entry for _, (_, content) in parts for entry in content]


def precision_note(results: Results) -> str:
    """What to tell the reader where ``auto`` became different precisions on different machines, else nothing."""
    trained = {str(run["precision"]) for run in results.runs}
    known = "mixed_precision" in results.columns  # which older results do not have
    evaluated = {str(value) for value in results.levels("mixed_precision", kind="final")} if known else set()
    told = [
        f" **Not all rows were {what} in the same precision** ({', '.join(sorted(found))})."
        for what, found in (("trained", trained), ("evaluated", evaluated))
        if len(found) > 1
    ]
    return "".join(told)

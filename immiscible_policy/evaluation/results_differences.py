"""Figure of an experiment: how far couplings and ways of inference are from the baseline, interval by interval."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator

from immiscible_policy.evaluation.results_figure import way_label
from immiscible_policy.files import save_figure

# In points. Where differences exceed four times this, axes are logarithmic from here on, so that 5 and 70 can be read.
LINEAR = 10.0
TICKS, MINOR_TICKS = (-60, -10, 0, 10, 60), (-30, -20, -5, 5, 20, 30)
MEASURES = {"max coverage": "difference", "success": "success_difference"}


def differences_to_baseline(content: Sequence[dict[str, Any]], baseline: str, path: Path) -> bool:
    """Differences in max coverage and success with 95% intervals; columns of panels are numbers of sampling steps.

    A line is a coupling in training and a way of inference, as in the table of coverage; lines of one coupling stand
    together. Marks are open where there is one training seed, whose interval is over initial states alone. Left out are
    numbers of steps with a single line, and panels where every difference is 0, as of success where nothing succeeds.

    Args:
        content: numbers of the table of coverage (``results_tables.coverage_rows``), of one combination of factors and
            one sampler.
        baseline: the coupling that the others are compared with.

    Returns:
        whether there was anything to draw.
    """
    compared = [row for row in content if row["difference"] is not None]
    lines = Counter(row["num_inference_steps"] for row in compared)
    compared = [row for row in compared if lines[row["num_inference_steps"]] > 1]
    # In the order that they have where most of them are.
    by_lines = sorted(compared, key=lambda row: -lines[row["num_inference_steps"]])
    arms = list(dict.fromkeys(tuple(row["arm"].split("|")) for row in by_lines))
    steps = sorted({row["num_inference_steps"] for row in compared}, reverse=True)
    panes = [(count, measure, _differences(compared, count, measure)) for count in steps for measure in MEASURES]
    columns = [pane for pane in panes if any(interval["mean"] for _, interval, _ in pane[2])]
    if not columns:
        return False
    couplings = list(dict.fromkeys(coupling for coupling, _ in arms))
    ways = sorted(dict.fromkeys(way for _, way in arms), key=lambda way: (way != "none", way != "warm"))
    heights, edges = _heights(arms, couplings, ways)
    figure = Figure(figsize=(2.5 + 1.9 * len(columns), 1.3 + 0.17 * edges[-1]), layout="constrained")
    panels = figure.subplots(1, len(columns), sharex=True, sharey=True, squeeze=False)[0]
    marks: dict[str, Any] = {}
    for axes, (count, measure, found) in zip(panels, columns, strict=True):
        for (coupling, way), interval, seeds in found:
            mean, low, high = (100 * interval[end] for end in ("mean", "low", "high"))
            mark = axes.errorbar(
                mean,
                heights[coupling, way],
                xerr=np.nan_to_num([[mean - low], [high - mean]]),
                fmt="os^"[ways.index(way) // 10 % 3],
                color=f"C{ways.index(way)}",
                markerfacecolor="white" if seeds == 1 else None,
                markersize=4,
                linewidth=1.2,
                capsize=2,
            )
            if seeds > 1 or way not in marks:
                marks[way] = mark
        axes.axvline(0, color="0.4", linewidth=0.8)
        axes.set_title(f"{measure},\n{count} step{'s' * (count > 1)}", fontsize=9)
        axes.tick_params(axis="x", labelsize=7)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", which="both", alpha=0.3)
        for edge in edges:
            axes.axhline(edge, color="0.85", linewidth=0.8)
    first = panels[0]
    _scale(first, [interval for *_, found in columns for _, interval, _ in found])
    first.set_yticks(np.add(edges[1:], edges[:-1]) / 2, couplings)
    first.set_ylim(edges[-1], edges[0])
    figure.supxlabel(f"difference to {baseline} from N(0, I), points", fontsize=9)
    named = {_label(way): marks[way] for way in ways if way in marks}
    single = any(seeds == 1 for *_, found in columns for *_, seeds in found)
    title = "initial noise" + "\n(open: one training seed)" * single
    figure.legend(named.values(), named.keys(), fontsize=7, loc="outside right upper", title=title, title_fontsize=8)
    save_figure(figure, path, dpi=140)
    return True


def _scale(axes: Axes, intervals: Sequence[dict[str, float]]) -> None:
    """Limits and ticks of the axis of differences, so that all of them and 0 are seen."""
    ends = [100 * interval[end] for interval in intervals for end in ("mean", "low", "high")]
    left, right = 1.2 * min(0.0, np.nanmin(ends)) - 1, 1.2 * max(0.0, np.nanmax(ends)) + 1
    axes.set_xlim(left, right)
    if max(-left, right) > 4 * LINEAR:
        axes.set_xscale("symlog", linthresh=LINEAR, linscale=1.2)
        axes.xaxis.set_major_locator(FixedLocator(TICKS))
        axes.xaxis.set_minor_locator(FixedLocator(MINOR_TICKS))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:+g}" if value else "0")


def _differences(content: Sequence[dict[str, Any]], steps: int, measure: str) -> list[tuple[Any, Any, int]]:
    """(coupling, way of inference), interval of the difference, number of training seeds."""
    return [
        (tuple(row["arm"].split("|")), row[MEASURES[measure]], len(row["shared_seeds"]))
        for row in content
        if row["num_inference_steps"] == steps and row[MEASURES[measure]] is not None
    ]


def _heights(
    arms: Sequence[tuple[str, ...]], couplings: Sequence[str], ways: Sequence[str]
) -> tuple[dict[tuple[str, ...], float], list[float]]:
    """Where the line of an arm stands, from above, and the edges between couplings."""
    heights: dict[tuple[str, ...], float] = {}
    edges = [-1.0]
    for coupling in couplings:
        own = sorted((arm for arm in arms if arm[0] == coupling), key=lambda arm: ways.index(arm[1]))
        heights |= {arm: edges[-1] + place for place, arm in enumerate(own, 1)}
        edges.append(edges[-1] + len(own) + 1)
    return heights, edges


def _label(way: str) -> str:
    inference, _, choice = way.partition(" ")
    label = way_label(inference, choice or None)
    return f"{label} {choice}".rstrip() if inference == "none" else label

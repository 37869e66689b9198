"""Coverage while training, over runs grouped by coupling."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from immiscible_policy.evaluation.table import arm_names
from immiscible_policy.files import save_figure


def coverage_curves(runs: Sequence[dict[str, Any]], path: Path, measure: str = "max_coverage") -> None:
    """Plot the rollouts of runs (``table.load_runs``) against processor minutes of training, as a PNG.

    A thin line a training seed and a thick one for their mean, in one colour a coupling (and set of demonstrations).
    Processor time counts all threads and leaves validation and rollouts out.
    """
    curves: dict[str, list[tuple[np.ndarray, np.ndarray]]] = defaultdict(list)
    for run, name in zip(runs, arm_names(runs), strict=True):
        if run["curve"]:
            minutes = np.array([point["cpu_seconds"] / 60 for point in run["curve"]])
            curves[name].append((minutes, np.array([point[measure] for point in run["curve"]])))
    if not curves:
        raise ValueError(f"none of the {len(runs)} runs made rollouts while training, so there is nothing to plot")
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for index, (coupling, seeds) in enumerate(sorted(curves.items())):
        color = f"C{index}"
        points_made = min(len(scores) for _, scores in seeds)
        marker = "o" if points_made == 1 else ""  # a line needs two
        for minutes, scores in seeds:
            axes.plot(minutes, scores, color=color, linewidth=0.8, alpha=0.4, marker=marker, markersize=3)
        means = [np.mean([curve[axis][:points_made] for curve in seeds], axis=0) for axis in (0, 1)]
        axes.plot(*means, color=color, linewidth=2.2, marker=marker, label=f"{coupling}, {len(seeds)} training seeds")
    axes.set(xlabel="training, processor minutes", ylabel=f"mean {measure.replace('_', ' ')}", ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend(loc="center right", fontsize=8)
    save_figure(figure, path)

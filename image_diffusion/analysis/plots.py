"""Figures of the analyses: one look, each file whole or not there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from torch import Tensor

from image_diffusion.analysis.arms import Comparison, spread
from image_diffusion.analysis.curves import DistanceCurves
from image_diffusion.analysis.perturbation import PerturbationStability, PerturbedImages
from image_diffusion.analysis.training_curves import TrainingCurves
from image_diffusion.analysis.trajectory import STATISTICS, Trajectory, TrajectoryStatistics
from image_diffusion.analysis.tsne import PathMap
from image_diffusion.image_bytes import to_bytes
from immiscible_policy.files import save_figure

_COLUMNS = 4  # of panels
_SHOWN_NOISE = 3.0  # standard deviations from black to grey, and from grey to white
_TITLES = {
    "noise_norm": "|predicted noise| / √D",
    "noise_variance": "variance of predicted noise",
    "data_change": "change of predicted image",
    "pixel_rmse": "RMS pixel difference",
    "feature_distance": "feature distance",
    "kept_class": "class kept",
}


def plot_curves(curves: DistanceCurves, path: Path, log: bool = True) -> None:
    """Distance against the points of the curves, a colour an arm, with t intervals over training seeds.

    Thin lines are single training seeds.

    Args:
        log: logarithmic axes, for distances, and for points that are not one after the other.
    """
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.add_subplot()
    order = np.argsort(curves.points)
    points = np.array(curves.points)[order]
    comparisons = [curves.comparisons()[i] for i in order]
    for index, (arm, by_seed) in enumerate(curves.measurements.items()):
        if len(by_seed) > 1:
            for row in by_seed.values():
                values = [row[i].value for i in order]
                axes.plot(points, values, color=f"C{index}", linewidth=0.8, alpha=0.4)
        _line(axes, points, [rows[arm] for rows in comparisons], index, _label(arm, len(by_seed)))
    axes.set(xlabel=curves.axis, ylabel=curves.key)
    if log:
        _scale_by_factors(axes.set_yscale, axes.yaxis)
        if bool((np.diff(points) == 1).all()):  # one call after the other
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        else:
            _scale_by_factors(axes.set_xscale, axes.xaxis)
            if len(points) <= 10:
                axes.set_xticks(points, [str(point) for point in points])
    _finish(figure, [axes], path)


def plot_training_curves(groups: Mapping[str, TrainingCurves], path: Path) -> None:
    """A panel for every group: distance against training steps, a colour an arm; thin lines are single training seeds.

    Of two seeds the interval is wider than the figure and says no more than their lines, so it is drawn from three on.
    """
    figure = Figure(figsize=(3.6 * len(groups) + 2.4, 3.4), layout="constrained")
    all_axes = np.atleast_1d(figure.subplots(1, len(groups)))
    for axes, (title, curves) in zip(all_axes, groups.items(), strict=True):
        comparisons = curves.comparisons()
        for index, (arm, by_seed) in enumerate(curves.curves.items()):
            rows = [comparisons[step][arm] for step in curves.steps]
            label = _label(arm, len(by_seed))
            _line(axes, np.array(curves.steps), rows, index, label, marker=False, band=len(by_seed) > 2)
            for curve in by_seed.values():
                if len(by_seed) > 1:
                    axes.plot(list(curve), list(curve.values()), color=f"C{index}", linewidth=0.6, alpha=0.5)
        values = [value for by_seed in curves.curves.values() for curve in by_seed.values() for value in curve.values()]
        axes.set(xlabel="training steps", ylabel=curves.key, title=title)
        _scale_by_factors(axes.set_yscale, axes.yaxis)
        # Of very different seeds the interval may go below 0.
        axes.set_ylim(0.8 * min(values), 1.25 * max(values))
    _finish(figure, all_axes, path)


def plot_statistics(statistics: TrajectoryStatistics, path: Path) -> None:
    """A panel for every statistic against the network call, a colour an arm, with intervals over seeds and images."""
    figure = Figure(figsize=(3.3 * len(STATISTICS) + 1.6, 3.2), layout="constrained")
    all_axes = np.atleast_1d(figure.subplots(1, len(STATISTICS)))
    calls = np.arange(1, statistics.calls + 1)
    for axes, name in zip(all_axes, STATISTICS, strict=True):
        comparisons = statistics.comparisons(name)
        for index, arm in enumerate(comparisons[0]):
            row = [rows[arm] for rows in comparisons]
            _line(axes, calls, row, index, _label(arm, len(row[0].seeds)), marker=statistics.calls <= 20)
        axes.set_title(_TITLES[name], fontsize=9)
        axes.set_xlabel("network call", fontsize=9)
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _finish(figure, all_axes, path)


def plot_stability(stability: PerturbationStability, path: Path) -> None:
    """A panel for every measure against W, a colour an arm; dashed: images of different noises."""
    measures = list(stability.values)
    figure = Figure(figsize=(3.3 * len(measures) + 1.6, 3.2), layout="constrained")
    all_axes = np.atleast_1d(figure.subplots(1, len(measures)))
    weights = 100 * np.array(stability.settings.weights)
    for axes, measure in zip(all_axes, measures, strict=True):
        comparisons = stability.comparisons(measure)
        for index, arm in enumerate(comparisons[0]):
            row = [rows[arm] for rows in comparisons[:-1]]
            _line(axes, weights, row, index, _label(arm, len(row[0].seeds)))
            axes.axhline(comparisons[-1][arm].mean.mean, color=f"C{index}", linestyle="--", linewidth=1)
        axes.set_title(_TITLES[measure], fontsize=9)
        axes.set_xlabel("W, %", fontsize=9)
        axes.set_ylim(0, 1.02 if measure == "kept_class" else None)
    _finish(figure, all_axes, path)


def plot_perturbed(images: PerturbedImages, weights: Sequence[float], path: Path, index: int = 0) -> None:
    """One image and, below it, a row for every W with the images of its perturbed noises.

    Args:
        index: of the image.
    """
    n_draws = images.perturbed.shape[2]
    figure = Figure(figsize=(0.6 * n_draws + 0.9, 0.66 * (len(weights) + 1)), layout="constrained")
    grid = figure.subplots(len(weights) + 1, n_draws, squeeze=False)
    rows = [images.original[index][None], *images.perturbed[:, index]]
    for line, (row, axes_row) in enumerate(zip(rows, grid, strict=True)):
        label = "original" if line == 0 else f"W = {100 * weights[line - 1]:g}%"
        axes_row[0].set_ylabel(label, fontsize=8, rotation=0, ha="right", va="center")
        for column, axes in enumerate(axes_row):
            axes.set(xticks=[], yticks=[], frame_on=False)
            if column < len(row):
                _show(axes, row[column])
    save_figure(figure, path)


def plot_trajectory(
    trajectory: Trajectory, path: Path, max_calls: int = 10, to_images: Callable[[Tensor], Tensor] = to_bytes
) -> None:
    """Predicted images (left) and predicted noise (right): network calls across, images down.

    Args:
        max_calls: show so many, evenly spread, the first and the last among them.
        to_images: from predicted data (n, ...) to pictures (n, C, H, W) uint8.
    """
    shown = spread(len(trajectory.times), max_calls)
    n = len(trajectory.seeds)
    figure = Figure(figsize=(1.2 * len(shown) + 0.6, 0.6 * n + 0.8), layout="constrained")
    subfigures: Any = figure.subfigures(1, 2, wspace=0.04)
    left, right = subfigures
    noise = (trajectory.noise / _SHOWN_NOISE).clamp(-1, 1)
    blocks: list[tuple[Any, str, Callable[[int], Tensor]]] = [
        (left, "predicted image", lambda call: to_images(trajectory.data[call])),
        (right, "predicted noise", lambda call: to_bytes(noise[call])),
    ]
    for block, title, pictures in blocks:
        grid = block.subplots(n, len(shown), squeeze=False, gridspec_kw={"wspace": 0.06, "hspace": 0.06})
        block.suptitle(title, fontsize=9)
        for column, call in enumerate(shown):
            grid[0, column].set_title(f"{call + 1}", fontsize=7)
            for axes, picture in zip(grid[:, column], pictures(call), strict=True):
                axes.set(xticks=[], yticks=[], frame_on=False)
                _show(axes, picture)
    save_figure(figure, path)


def plot_paths(maps: Mapping[str, PathMap], path: Path) -> None:
    """A panel an arm: paths of predicted images from ring to dot, a colour a class."""
    columns = min(_COLUMNS, len(maps))
    lines = -(-len(maps) // columns)
    figure = Figure(figsize=(3.6 * columns, 3.7 * lines), layout="constrained")
    for number, (arm, one) in enumerate(maps.items(), 1):
        axes = figure.add_subplot(lines, columns, number)
        for points, label in zip(one.points, one.classes, strict=True):
            color = f"C{label % 10}"
            axes.plot(points[:, 0], points[:, 1], color=color, linewidth=0.6, alpha=0.6)
            axes.plot(*points[0], marker="o", markersize=4, markerfacecolor="white", color=color)
            axes.plot(*points[-1], marker="o", markersize=4, color=color)
        axes.set_title(arm, fontsize=9)
        axes.set(xticks=[], yticks=[])
    save_figure(figure, path)


def _line(
    axes: Any,
    points: np.ndarray,
    rows: Sequence[Comparison],
    index: int,
    label: str,
    marker: bool = True,
    band: bool = True,
) -> None:
    """A mean with its interval as a band; a mean without interval is a line alone."""
    means, low, high = (np.array([getattr(row.mean, name) for row in rows]) for name in ("mean", "low", "high"))
    color = f"C{index}"
    axes.plot(points, means, color=color, linewidth=1.8, marker="o" if marker else None, markersize=3, label=label)
    if band:
        axes.fill_between(points, low, high, color=color, alpha=0.15, linewidth=0)


def _scale_by_factors(set_scale: Callable[[str], None], axis: Any) -> None:
    """A logarithmic axis with plain numbers at 1, 2 and 5 times the powers of ten."""
    set_scale("log")
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def _label(arm: str, n_seeds: int) -> str:
    return arm if n_seeds == 1 else f"{arm}, {n_seeds} training seeds"


def _show(axes: Any, image: Tensor) -> None:
    """One image (C, H, W) uint8."""
    array = image.permute(1, 2, 0).numpy() if image.shape[0] == 3 else image[0].numpy()
    axes.imshow(array, cmap="gray", vmin=0, vmax=255, interpolation="nearest")


def _finish(figure: Figure, all_axes: Any, path: Path) -> None:
    for axes in all_axes:
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=8)
    handles, labels = all_axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=7)
    save_figure(figure, path)

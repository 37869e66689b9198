"""Figures of an analysis of couplings: statistics with intervals, cluster distances, t-SNE of noise clusters."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from immiscible_policy.evaluation.tsne import tsne_map
from immiscible_policy.files import save_figure

# Statistic, title, factor, value of independent noise.
_PANELS = (
    ("distance_change", "distance change, %", 1.0, 0.0),
    ("alignment", "alignment", 1.0, 0.0),
    ("noise_norm", "|n|² / D", 1.0, 1.0),
    ("condition_skew", "explained by\ncondition, %", 100.0, 0.0),
    ("condition_alignment", "along the predicted\ndata", 1.0, 0.0),
)
_TSNE_COLUMNS = 4


def plot_statistics(analysis: Mapping[str, Any], path: Path) -> None:
    """A row a coupling, a panel a statistic, with 95% intervals; the dashed line is independent noise."""
    rows = analysis["rows"]
    panels = [panel for panel in _PANELS if any(_known(row[panel[0]]["mean"]) for row in rows.values())]
    height = 1.1 + 0.32 * len(rows)
    figure = Figure(figsize=(2.6 + 1.9 * len(panels), height), layout="constrained")
    all_axes = np.atleast_1d(figure.subplots(1, len(panels), sharey=True))
    positions = np.arange(len(rows))[::-1]
    for axes, (key, title, factor, neutral) in zip(all_axes, panels, strict=True):
        means = factor * _column(rows, key, "mean")
        ends = [factor * _column(rows, key, end) for end in ("low", "high")]
        errors = np.nan_to_num([means - ends[0], ends[1] - means])
        axes.axvline(neutral, color="0.5", linestyle="--", linewidth=1)
        axes.errorbar(means, positions, xerr=errors, fmt="o", markersize=4, capsize=2, color="C0")
        axes.set_title(title, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(axis="x", alpha=0.3)
        axes.margins(x=0.12)
    all_axes[0].set_yticks(positions, _wrapped(rows), fontsize=8)
    all_axes[0].set_ylim(-0.6, len(rows) - 0.4)
    save_figure(figure, path)


def plot_clusters(clusters: Mapping[str, Any], path: Path) -> None:
    """Distances between the noise clusters of all pairs of tracked data, a violin a coupling."""
    first = next(iter(clusters.values()))
    figure = Figure(figsize=(7, 1.1 + 0.42 * len(clusters)), layout="constrained")
    axes = figure.add_subplot()
    positions = np.arange(len(clusters))[::-1]
    for position, row in zip(positions, clusters.values(), strict=True):
        values = np.asarray(row["pair_distances"])
        if len(values) > 1 and np.ptp(values) > 0:
            shapes = axes.violinplot([values], [position], orientation="horizontal", widths=0.8, showextrema=False)
            bodies: Any = shapes["bodies"]  # a list, which matplotlib's types call a single collection
            bodies[0].set_facecolor("C0")
        axes.plot(values.mean(), position, "o", color="C0", markersize=4)
    axes.axvline(first["independent"], color="0.5", linestyle="--", linewidth=1)
    beside: dict[str, Any] = {
        "xytext": (4, -4),
        "textcoords": "offset points",
        "va": "top",
        "fontsize": 7,
        "color": "0.35",
    }
    axes.annotate("sampling alone", (first["independent"], 1), xycoords=("data", "axes fraction"), **beside)
    axes.set_yticks(positions, _wrapped(clusters), fontsize=8)
    axes.set_ylim(-0.6, len(clusters) - 0.2)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"distance between mean noises of two data, {first['n_noises']:,} noises each", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(axis="x", alpha=0.3)
    save_figure(figure, path)


def plot_tsne(noises: Mapping[str, Tensor], path: Path, seed: int = 0) -> None:
    """t-SNE of the noises of several data, a panel a coupling, a colour a datum.

    Args:
        noises: by coupling, (T, n, D) noises of T data (``miscibility.tracked_noises``), T n >= 10.
    """
    columns = min(_TSNE_COLUMNS, len(noises))
    lines = -(-len(noises) // columns)
    figure = Figure(figsize=(2.7 * columns, 3.0 * lines), layout="constrained")
    for number, (name, noise) in enumerate(noises.items(), 1):
        axes = figure.add_subplot(lines, columns, number)
        flat = tsne_map(noise.reshape(-1, noise.shape[-1]).float().numpy(), seed)
        owner = np.repeat(np.arange(len(noise)), noise.shape[1])
        axes.scatter(flat[:, 0], flat[:, 1], c=owner, cmap="tab10", s=7, linewidths=0)
        axes.set_title(_wrapped([name])[0], fontsize=8)
        axes.set(xticks=[], yticks=[])
    save_figure(figure, path, dpi=100)


def _wrapped(names: Iterable[str]) -> list[str]:
    """Labels in lines of at most 34 characters, broken after parentheses and commas where that is possible."""
    lines = [textwrap.wrap(name.replace("(", "( "), 34) for name in names]
    return ["\n".join(parts).replace("( ", "(") for parts in lines]


def _column(rows: Mapping[str, Any], key: str, part: str) -> np.ndarray:
    return np.array([row[key][part] if _known(row[key][part]) else math.nan for row in rows.values()], dtype=float)


def _known(value: float | None) -> bool:
    return value is not None and not math.isnan(value)

"""Charts of a report as SVG text for inline use, with the page's colour and font."""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from scipy import stats

from immiscible_policy.evaluation.report_data import series

SUCCESS_COVERAGE = 0.95
Curve = tuple[np.ndarray, np.ndarray]  # (n,) steps, (n,) values
# Mid-tones that stand out on white and on black.
_COLORS = ("#3584e4", "#e66100", "#2ca05a", "#c2479e", "#8f6be0", "#a67c00", "#1a9fb3", "#d3434a", "#7f8c8d", "#6b8e23")
_STROKES = ("solid", "dashed", "dotted")  # known to matplotlib and to CSS
_INK = "#010203"  # stands for the page's text colour
_SIZE = (4.2, 2.7)


def coverage_curve(metrics: Sequence[Mapping[str, Any]]) -> str | None:
    """Mean max coverage of the rollouts made while training, with the 95% interval of the episodes where logged."""
    steps, mean = series(metrics, "rollout/max_coverage")
    if not len(steps):
        return None
    whole = [line for line in metrics if all(_is_number(line.get(f"rollout/max_coverage{end}")) for end in _ENDS)]
    with _chart() as figure:
        axes = figure.add_subplot()
        axes.plot(steps, mean, color=_COLORS[0], marker="o", markersize=3)
        if whole:
            low, high = (series(whole, f"rollout/max_coverage{end}") for end in ("_low", "_high"))
            axes.fill_between(low[0], low[1], high[1], color=_COLORS[0], alpha=0.2, linewidth=0)
        _finish_coverage_axes(axes)
        return _svg(figure, "coverage of the rollouts while training")


_ENDS = ("", "_low", "_high")


def loss_curves(metrics: Sequence[Mapping[str, Any]]) -> str | None:
    """Training and validation loss, on a logarithmic axis."""
    names = [("train/loss", "training")]
    measured = sorted({key for line in metrics for key in line if key.startswith("validation/")})
    names += [(name, "validation, " + name.split("/")[1].removeprefix("loss_") + " noise") for name in measured]
    curves = [(label, *_positive(*series(metrics, name))) for name, label in names]
    curves = [curve for curve in curves if len(curve[1])]
    if not curves:
        return None
    with _chart() as figure:
        axes = figure.add_subplot()
        for index, (label, steps, values) in enumerate(curves):
            few = len(steps) <= 30
            axes.plot(steps, values, color=_COLORS[index], label=label, marker="o" if few else None, markersize=3)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set(ylabel="loss")
        _finish_steps_axis(axes)
        axes.legend()
        return _svg(figure, "training and validation loss")


def learning_rate_curve(metrics: Sequence[Mapping[str, Any]]) -> str | None:
    steps, rates = series(metrics, "train/learning_rate")
    if not len(steps):
        return None
    with _chart() as figure:
        axes = figure.add_subplot()
        axes.plot(steps, rates, color=_COLORS[0])
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set(ylabel="learning rate", ylim=(0, None))
        _finish_steps_axis(axes)
        return _svg(figure, "learning rate")


def coverage_histogram(coverages: Sequence[float], label: str) -> str | None:
    """Share of episodes by max coverage in bins of 0.05; successes in a colour of their own."""
    values = np.asarray(coverages, float)
    if not len(values):
        return None
    with _chart() as figure:
        axes = figure.add_subplot()
        edges = np.linspace(0, 1, 21)
        heights = np.histogram(np.clip(values, 0, 1), edges)[0] / len(values)
        colors = [_COLORS[2] if edge >= SUCCESS_COVERAGE - 1e-9 else _COLORS[0] for edge in edges[:-1]]
        axes.bar(edges[:-1], 100 * heights, width=0.05, align="edge", color=colors, alpha=0.85, linewidth=0)
        axes.axvline(SUCCESS_COVERAGE, color=_INK, linestyle="--", linewidth=1)
        axes.set(xlabel="max coverage of an episode", ylabel="% of episodes", xlim=(0, 1))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        return _svg(figure, label)


def arm_curves(arms: Mapping[str, Sequence[Curve]]) -> tuple[str, list[dict[str, Any]]] | None:
    """Coverage while training, a colour an arm: a thin line a training seed, a thick one for their mean, and a band.

    The band is the 95% Student t interval of the mean over training seeds, at the steps that all seeds of the arm have.

    Returns:
        The chart, and its legend as ``name``, ``n_seeds``, ``color`` and ``stroke`` (of a line) of each arm,
        since names of arms are long; None without any rollouts.
    """
    shown = {name: curves for name, each in arms.items() if (curves := [curve for curve in each if len(curve[0])])}
    if not shown:
        return None
    legend = []
    with _chart((5.2, 3.2)) as figure:
        axes = figure.add_subplot()
        for index, (name, curves) in enumerate(shown.items()):
            color, stroke = _COLORS[index % len(_COLORS)], _STROKES[index // len(_COLORS) % len(_STROKES)]
            for curve in curves:
                axes.plot(*curve, color=color, linestyle=stroke, linewidth=0.7, alpha=0.45)
            steps, mean, low, high = mean_curve(curves)
            axes.plot(steps, mean, color=color, linestyle=stroke, linewidth=2, marker="o", markersize=3)
            if len(curves) > 1:
                axes.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
            legend.append({"name": name, "n_seeds": len(curves), "color": color, "stroke": stroke})
        _finish_coverage_axes(axes)
        return _svg(figure, "coverage while training, by arm"), legend


def mean_curve(curves: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mean of curves and its 95% Student t interval, clipped to [0, 1].

    Args:
        curves: for each training seed (n_i,) steps and (n_i,) values.

    Returns:
        (m,) the steps that all curves have, and mean, low and high there; the interval of one curve is NaN.
    """
    common = sorted(set.intersection(*(set(steps.tolist()) for steps, _ in curves)))
    values = np.array([[dict(zip(steps.tolist(), y.tolist(), strict=True))[s] for s in common] for steps, y in curves])
    n, mean = len(curves), values.mean(axis=0)
    if n == 1:
        return np.array(common), mean, np.full(len(common), np.nan), np.full(len(common), np.nan)
    half = stats.t.ppf(0.975, n - 1) * values.std(axis=0, ddof=1) / np.sqrt(n)
    return np.array(common), mean, np.clip(mean - half, 0, 1), np.clip(mean + half, 0, 1)


def _finish_coverage_axes(axes: Axes) -> None:
    axes.axhline(SUCCESS_COVERAGE, color=_INK, linestyle="--", linewidth=0.8, alpha=0.6)
    axes.set(ylabel="mean max coverage", ylim=(0, 1))
    _finish_steps_axis(axes)


def _finish_steps_axis(axes: Axes) -> None:
    """To be called after everything is drawn: limits end the adaptation to the data."""
    axes.set(xlabel="training step", xlim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _positive(steps: np.ndarray, values: np.ndarray) -> Curve:
    return steps[values > 0], values[values > 0]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


@contextmanager
def _chart(size: tuple[float, float] = _SIZE) -> Iterator[Figure]:
    """A figure in the report's look; drawn and saved inside the block, since the settings end with it."""
    look: Any = {
        **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
        **{"font.size": 9.5, "legend.frameon": False, "legend.fontsize": 9, "lines.linewidth": 1.6},
        **{"axes.grid": True, "grid.color": _INK, "grid.alpha": 0.15, "axes.axisbelow": True},
        **{"axes.spines.top": False, "axes.spines.right": False, "text.parse_math": False, "svg.fonttype": "none"},
    }
    with matplotlib.rc_context(look):
        yield Figure(figsize=size, layout="constrained")


def _svg(figure: Figure, label: str) -> str:
    """The figure as an ``<svg>`` element with this text alternative; safe to insert into HTML as it is."""
    buffer = io.BytesIO()
    # The salt keeps the names of one chart's clip paths apart from those of the others on the page.
    with matplotlib.rc_context({"svg.hashsalt": label}):
        figure.savefig(
            buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    text = buffer.getvalue().decode()
    text = text[text.index("<svg") :]
    text = re.sub(r' id="[A-Za-z][A-Za-z0-9.]*_\d+"', "", text)  # group names, which nothing refers to
    text = re.sub(r" xmlns(:xlink)?=\"[^\"]*\"", "", text)  # implied in HTML
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    text = re.sub(r"[ \n]+", " ", text).replace("> <", "><")
    escaped = label.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    # Half a point of every size is the drawing's, not the page's: the page scales it by its width.
    text = re.sub(r'<svg width="[\d.]+pt" height="[\d.]+pt"', f'<svg role="img" aria-label="{escaped}"', text, count=1)
    return text.replace(_INK, "currentColor")

"""Figures of an experiment: coverage while training, over sampling steps, over a factor, and by what may explain it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from immiscible_policy.evaluation.evaluate import EvaluationConfig
from immiscible_policy.evaluation.results import Results
from immiscible_policy.evaluation.variance_components import mean_t
from immiscible_policy.files import save_figure


def coverage_while_training(results: Results, fixed: dict[str, Any], path: Path) -> bool:
    """Mean max coverage of the rollouts against training steps, a line a coupling with t intervals over training seeds.

    Args:
        fixed: factor -> level of what is shown.

    Returns:
        whether there was anything to draw.
    """
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for index, coupling in enumerate(results.levels("coupling", **fixed)):
        values = {**fixed, "coupling": coupling, "kind": "training"}
        points = sorted(results.levels("checkpoint_step", **values))
        if not points:
            continue
        mean, low, high = _percentages(results, values, "checkpoint_step", points)
        axes.plot(points, mean, marker="o", markersize=3, color=f"C{index}", label=coupling)
        axes.fill_between(points, low, high, color=f"C{index}", alpha=0.12, linewidth=0)
    if not axes.get_legend_handles_labels()[0]:
        return False
    axes.set(xlabel="training steps", ylabel="max coverage, %", ylim=(0, 100))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    save_figure(figure, path, dpi=140)
    return True


def coverage_by_steps(results: Results, fixed: dict[str, Any], baseline: str, path: Path) -> bool:
    """Max coverage after training against sampling steps: a panel a coupling, a line a way of choosing the noise.

    Every panel shows the baseline's plain inference in grey. Intervals are t intervals over training seeds; marks are
    open where not all of the panel's seeds were evaluated. Two passes stand at the steps of both together, above one
    pass that takes as many network calls.

    Args:
        baseline: the coupling that the others are compared with.

    Returns:
        whether there was anything to draw: there is nothing to see in one number of steps.
    """
    chosen = {**fixed, "kind": "final"}
    couplings = results.levels("coupling", **chosen)
    if len(results.levels("num_inference_steps", **chosen)) < 2:
        return False
    columns = min(3, len(couplings))
    rows = -(-len(couplings) // columns)
    figure = Figure(figsize=(2 + 2.6 * columns, 0.9 + 2.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    ways = list(dict.fromkeys(way for name in couplings for way in _ways(results, {**chosen, "coupling": name})))
    lines: dict[str, Any] = {}
    ticks: set[int] = set()
    title = "initial noise"
    for name, axes in zip(couplings, panels, strict=False):
        seeds = len(results.levels("training_seed", **chosen, coupling=name))
        if baseline in couplings and name != baseline:
            plain = {**chosen, "coupling": baseline, "inference_coupling": "none"}
            lines[f"{baseline}, N(0, I)"] = _steps_line(axes, results, plain, color="0.6", linewidth=1.0)
        for index, (inference, selection) in enumerate(ways):
            values = {**chosen, "coupling": name, "inference_coupling": inference, "selection": selection}
            if not results.where(**values).any():
                continue
            lines[way_label(inference, selection)] = _steps_line(
                axes, results, values, shift=index, color=f"C{index}", marker="o", markersize=3, linewidth=1.2
            )
            ticks.update(_steps_of_all_passes(values, results.levels("num_inference_steps", **values)))
            if _open_marks(axes, results, values, seeds, shift=index, color=f"C{index}"):
                title = "initial noise\n(open: fewer seeds)"
        axes.set_title(f"{name} ({seeds} training seed{'s' * (seeds > 1)})", fontsize=9)
        axes.grid(alpha=0.3)
    for index in range(len(couplings), len(panels)):  # what the grid has beyond the couplings
        panels[index].set_visible(False)
        if index >= columns:
            panels[index - columns].tick_params(labelbottom=True)
    first = figure.axes[0]
    first.set(xscale="log", ylim=(0, 100))
    first.set_xticks(sorted(ticks), [str(tick) for tick in sorted(ticks)])
    first.minorticks_off()
    both = any(inference == "two_pass" for inference, _ in ways)
    figure.supxlabel(f"sampling steps{', of both passes together' * both}", fontsize=9)
    figure.supylabel("max coverage, %", fontsize=9)
    figure.legend(lines.values(), lines.keys(), fontsize=7, loc="outside right upper", title=title, title_fontsize=8)
    save_figure(figure, path, dpi=140)
    return True


def coverage_by_level(results: Results, factor: str, fixed: dict[str, Any], path: Path) -> bool:
    """Max coverage at the largest number of sampling steps over the levels of a factor, with t intervals.

    A colour a coupling; open marks and dashed lines where the initial noise is chosen.

    Args:
        fixed: the other factors' levels.

    Returns:
        whether there was anything to draw.
    """
    chosen = {**fixed, "kind": "final"}
    counts = results.levels("num_inference_steps", **chosen)
    if not counts:
        return False
    chosen["num_inference_steps"] = max(counts)
    levels = results.levels(factor, **chosen)
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.add_subplot()
    place = 0
    for index, coupling in enumerate(results.levels("coupling", **chosen)):
        for inference, selection in _ways(results, {**chosen, "coupling": coupling}):
            values = {**chosen, "coupling": coupling, "inference_coupling": inference, "selection": selection}
            present = [level for level in levels if results.where(**values, **{factor: level}).any()]
            plain = inference == "none"
            _bars(
                axes,
                [levels.index(level) + 0.05 * place for level in present],
                _percentages(results, values, factor, present),
                color=f"C{index}",
                linestyle="-" if plain else "--",
                marker="o",
                markerfacecolor=None if plain else "white",
                markersize=4,
                linewidth=1.2,
                label=coupling if plain else f"{coupling}, {way_label(inference, selection)}",
            )
            place += 1
    axes.set_xticks(range(len(levels)), [str(level) for level in levels])
    axes.set(ylabel=f"max coverage, %, {chosen['num_inference_steps']} sampling steps", ylim=(0, 100))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="lower right")
    save_figure(figure, path, dpi=140)
    return True


def coverage_by_gap(results: Results, fixed: dict[str, Any], path: Path) -> bool:
    """Max coverage, sampled from N(0, I), against what the coupling did to the noise and against the actions' spread.

    A point is a training run; the measures are those of ``evaluation.prior_gap``. Coverage is that of the most sampling
    steps that all these runs were evaluated with. Titles give Spearman's rank correlation over the runs.

    Returns:
        whether there was anything to draw: runs of at least two couplings.
    """
    measured = {
        name: results.runs_with("prior_gap", **fixed, coupling=name) for name in results.levels("coupling", **fixed)
    }
    runs = {name: found for name, found in measured.items() if found}
    if len(runs) < 2:
        return False
    plain = {**fixed, "kind": "final", "inference_coupling": "none"}
    counts = set.intersection(
        *(
            set(results.levels("num_inference_steps", **plain, coupling=name, training_seed=run["seed"]))
            for name, found in runs.items()
            for run in found
        )
    )
    if not counts:
        return False
    plain["num_inference_steps"] = max(counts)
    coverage = {}
    for name in runs:
        scores = results.scores("max_coverage", **single_variant(results, {**plain, "coupling": name}))
        coverage[name] = {seed: 100 * float(np.mean(list(episodes.values()))) for seed, episodes in scores.items()}
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    labels = ("shift of the training noise, sd", "spread of actions from N(0, I), pixels")
    for axes, label, measure in zip(panels, labels, (_shift, _spread), strict=True):
        every: list[tuple[float, float]] = []
        for index, name in enumerate(runs):
            # Steps in common may be those of other evaluations that sample from N(0, I), such as from shorter noise.
            evaluated = [run for run in runs[name] if run["seed"] in coverage[name]]
            measured_runs = [(measure(run), coverage[name][run["seed"]]) for run in evaluated]
            points = [(value, score) for value, score in measured_runs if value is not None]
            if points:
                axes.plot(*zip(*points, strict=True), "o", color=f"C{index}", markersize=5, label=name)
            every += points
        axes.set_title(_rank_correlation(every), fontsize=9)
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(f"max coverage, %, {plain['num_inference_steps']} sampling steps")
    handles, names = panels[1].get_legend_handles_labels()
    figure.legend(handles, names, fontsize=7, loc="outside right upper")
    save_figure(figure, path, dpi=140)
    return True


def _rank_correlation(points: Sequence[tuple[float, float]]) -> str:
    runs = f"{len(points)} runs"
    if not points or any(len(set(values)) < 2 for values in zip(*points, strict=True)):
        return runs  # of equal values there is none
    return f"rank correlation {spearmanr(*zip(*points, strict=True)).statistic:+.2f}, {runs}"


def _shift(run: dict[str, Any]) -> float | None:
    return run["prior_gap"]["shift"]


def _spread(run: dict[str, Any]) -> float | None:
    return run["prior_gap"]["prior"]["spread"]


def _ways(results: Results, values: dict[str, Any]) -> list[tuple[str, str | None]]:
    """(inference_coupling, selection) of the evaluations with these values."""
    return [
        (inference, selection)
        for inference in results.levels("inference_coupling", **values)
        for selection in results.levels("selection", **values, inference_coupling=inference)
    ]


def _steps_line(axes: Any, results: Results, values: dict[str, Any], shift: int = 0, **style: Any) -> Any:
    """Mean and interval at each number of sampling steps, moved aside a little so that lines can be told apart."""
    steps = sorted(results.levels("num_inference_steps", **values))
    places = _beside(_steps_of_all_passes(values, steps), shift)
    return _bars(axes, places, _percentages(results, values, "num_inference_steps", steps), **style)


def _open_marks(axes: Any, results: Results, values: dict[str, Any], seeds: int, shift: int, color: str) -> bool:
    """Opens the marks of ``_steps_line`` where fewer than so many training seeds were evaluated; whether any was."""
    every = sorted(results.levels("num_inference_steps", **values))
    fewer = [n for n in every if len(_score_table(results, {**values, "num_inference_steps": n})) < seeds]
    if fewer:
        mean, _, _ = _percentages(results, values, "num_inference_steps", fewer)
        places = _beside(_steps_of_all_passes(values, fewer), shift)
        axes.plot(places, mean, "o", markersize=3, color=color, markerfacecolor="white", zorder=5)
    return bool(fewer)


def _steps_of_all_passes(values: dict[str, Any], steps: Sequence[int]) -> list[int]:
    passes = 2 if values["inference_coupling"] == "two_pass" else 1
    return [passes * count for count in steps]


def _beside(steps: Sequence[int], shift: int) -> list[float]:
    return [count * (1 + 0.03 * shift) for count in steps]


def way_label(inference: str, selection: str | None) -> str:
    """What figures call a way of choosing the initial noise."""
    return "N(0, I)" if inference == "none" else f"{inference} {selection or 'as trained'}"


def _bars(axes: Any, places: Sequence[float], percentages: np.ndarray, **style: Any) -> Any:
    """Means with their intervals (3, points) as ``_percentages`` gives them; without those that have no ends."""
    mean, low, high = percentages
    return axes.errorbar(places, mean, np.nan_to_num(np.stack([mean - low, high - mean])), capsize=2, **style)


def _percentages(results: Results, values: dict[str, Any], name: str, levels: Sequence[Any]) -> np.ndarray:
    """Mean max coverage and its t interval in percent, (3, levels), at each of these levels of a column."""
    intervals = [mean_t(_score_table(results, {**values, name: level})) for level in levels]
    return 100 * np.array([[getattr(i, end) for i in intervals] for end in ("mean", "low", "high")])


def _score_table(results: Results, values: dict[str, Any]) -> np.ndarray:
    """Max coverage (training seeds, initial states), of the states that all seeds have."""
    scores = results.scores("max_coverage", **single_variant(results, values))
    states = sorted(set.intersection(*(set(row) for row in scores.values())))
    return np.array([[row[state] for state in states] for row in scores.values()])


def single_variant(results: Results, values: dict[str, Any]) -> dict[str, Any]:
    """Of evaluations that differ only in what a figure does not show, the one with the default setting."""
    own = results.own_sampler(**values)
    for name in ("first_chunk", "known_only", "noise_scale", "noise_seed", "sampler"):
        default = own if name == "sampler" else getattr(EvaluationConfig, name)
        levels = results.levels(name, **values)
        values = {**values, name: default if default in levels else levels[0]}
    return values

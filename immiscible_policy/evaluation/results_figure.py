"""Figures of an experiment: coverage while training, and over sampling steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from immiscible_policy.evaluation.evaluate import EvaluationConfig
from immiscible_policy.evaluation.results import Results
from immiscible_policy.evaluation.variance_components import mean_t
from immiscible_policy.files import save_figure

# Plain inference is a full line, coupled inference a dashed one.
STYLES = {"none": "-", "warm": "--", "two_pass": ":"}


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
        intervals = [mean_t(_score_table(results, {**values, "checkpoint_step": point})) for point in points]
        means = np.array([interval.mean for interval in intervals])
        axes.plot(points, 100 * means, marker="o", markersize=3, color=f"C{index}", label=coupling)
        low, high = (np.array([getattr(interval, end) for interval in intervals]) for end in ("low", "high"))
        axes.fill_between(points, 100 * low, 100 * high, color=f"C{index}", alpha=0.12, linewidth=0)
    axes.set(xlabel="training steps", ylabel="max coverage, %", ylim=(0, 100))
    return _save(figure, axes, path)


def coverage_by_steps(results: Results, fixed: dict[str, Any], path: Path) -> bool:
    """Max coverage after training against sampling steps, a colour a coupling, a line style a way of inference."""
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for index, coupling in enumerate(results.levels("coupling", **fixed)):
        for inference in results.levels("inference_coupling", coupling=coupling, kind="final", **fixed):
            values = {**fixed, "coupling": coupling, "kind": "final", "inference_coupling": inference}
            selections = results.levels("selection", **values)
            steps = sorted(results.levels("num_inference_steps", **values))
            for selection in selections:
                points = []
                for count in steps:
                    chosen = {**values, "num_inference_steps": count, "selection": selection}
                    if results.where(**chosen).any():
                        points.append((count, mean_t(_score_table(results, chosen))))
                if not points:
                    continue
                mean = np.array([interval.mean for _, interval in points])
                reach = [np.abs([getattr(i, end) - i.mean for _, i in points]) for end in ("low", "high")]
                axes.errorbar(
                    [count * (1 + 0.015 * index) for count, _ in points],
                    100 * mean,
                    100 * np.nan_to_num(np.array(reach)),
                    color=f"C{index}",
                    linestyle=STYLES.get(inference, "-."),
                    marker="o" if inference == "none" else "s",
                    markersize=4,
                    capsize=2,
                    linewidth=1.2,
                    label=coupling + ("" if inference == "none" else f", {inference} {selection or ''}".rstrip()),
                )
    axes.set(xlabel="sampling steps", ylabel="max coverage, %", xscale="log", ylim=(0, 100))
    ticks = sorted(results.levels("num_inference_steps", kind="final", **fixed))
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    return _save(figure, axes, path)


def _score_table(results: Results, values: dict[str, Any]) -> np.ndarray:
    """Max coverage (training seeds, initial states), of the states that all seeds have."""
    scores = results.scores("max_coverage", **single_variant(results, values))
    states = sorted(set.intersection(*(set(row) for row in scores.values())))
    return np.array([[row[state] for state in states] for row in scores.values()])


def single_variant(results: Results, values: dict[str, Any]) -> dict[str, Any]:
    """Of evaluations that differ only in what a figure does not show, the one with the default setting."""
    for name, default in (("first_chunk", EvaluationConfig.first_chunk), ("known_only", False), ("noise_seed", 0)):
        levels = results.levels(name, **values)
        values = {**values, name: default if default in levels else levels[0]}
    return values


def _save(figure: Figure, axes: Any, path: Path) -> bool:
    if not axes.get_legend_handles_labels()[0]:
        return False
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    save_figure(figure, path, dpi=140)
    return True

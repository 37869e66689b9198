"""How fast the Frechet distance falls while training, and how many steps it takes to a given one.

Immiscible Diffusion (2024), figures 4 and 5 and table 3 (training steps until an FID is reached).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from image_diffusion.analysis.arms import Comparison, cell, compare, spread
from immiscible_policy.evaluation.table_files import markdown

_SHOWN = 8  # columns of a table

Curves = Mapping[str, Mapping[int, Mapping[int, float]]]
"""Arm -> training seed -> training step -> distance."""


def check_thresholds(thresholds: Sequence[float]) -> None:
    """Raise a ValueError unless there is a threshold, and all are positive."""
    if not thresholds or not all(value > 0 for value in thresholds):
        raise ValueError(f"thresholds={list(thresholds)}: needs positive numbers")


@dataclass(frozen=True)
class TrainingCurves:
    """Distances of several arms while they train.

    Attributes:
        key: the distance's name, such as ``fd_digits-cnn_500``.
        curves: see ``Curves``; the first arm is the baseline.
        thresholds: distances, in units of what the baseline ends with (mean over its seeds).
    """

    key: str
    curves: Curves
    thresholds: tuple[float, ...] = (2.0, 1.5, 1.25, 1.0)

    def __post_init__(self) -> None:
        if not self.curves or not all(self.curves.values()):
            raise ValueError("curves: needs at least one arm, and a training seed of every arm")
        check_thresholds(self.thresholds)

    @property
    def steps(self) -> list[int]:
        """Training steps at which every run was measured."""
        return sorted(set.intersection(*(set(curve) for arm in self.curves.values() for curve in arm.values())))

    def comparisons(self) -> dict[int, dict[str, Comparison]]:
        """Training step -> arm -> mean over training seeds, and the paired difference to the baseline."""
        return {
            step: compare({arm: {s: [curve[step]] for s, curve in seeds.items()} for arm, seeds in self.curves.items()})
            for step in self.steps
        }

    def targets(self) -> list[float]:
        """The thresholds as distances."""
        last = self.steps[-1]
        baseline = next(iter(self.curves.values()))
        end = float(np.mean([curve[last] for curve in baseline.values()]))
        return [factor * end for factor in self.thresholds]

    def steps_to(self, target: float) -> dict[str, dict[int, float]]:
        """Arm -> training seed -> steps until the distance is at most ``target``; infinity where it never is."""
        return {
            arm: {seed: steps_until(curve, target) for seed, curve in seeds.items()}
            for arm, seeds in self.curves.items()
        }

    def to_json(self) -> dict[str, Any]:
        """Everything that the tables show, and the curves."""
        return {
            "key": self.key,
            "curves": {
                arm: {str(seed): {str(step): value for step, value in curve.items()} for seed, curve in seeds.items()}
                for arm, seeds in self.curves.items()
            },
            "rows": [
                {"step": step, **{arm: asdict(row) for arm, row in rows.items()}}
                for step, rows in self.comparisons().items()
            ],
            "steps_to": [
                {
                    "distance": target,
                    "of_baseline": factor,
                    **{
                        arm: {str(seed): steps if math.isfinite(steps) else None for seed, steps in seeds.items()}
                        for arm, seeds in self.steps_to(target).items()
                    },
                }
                for factor, target in zip(self.thresholds, self.targets(), strict=True)
            ],
        }

    def markdown(self) -> str:
        """Distances by training step, and steps to the thresholds."""
        steps = self.steps
        shown = [steps[i] for i in spread(len(steps), _SHOWN)]
        comparisons = self.comparisons()
        rows = []
        for arm, seeds in self.curves.items():
            found = [comparisons[step][arm] for step in shown]
            rows.append([f"`{arm}`", str(len(seeds)), *(cell(row.mean, ".4g") for row in found)])
            if any(row.difference is not None for row in found):
                rows.append(["difference", "", *(cell(row.difference, "+.3g") for row in found)])
        lines = [
            f"`{self.key}` of the averaged weights; mean [95% t interval over training seeds], differences to "
            f"`{next(iter(self.curves))}` paired by seed.",
            "",
            markdown([["training steps:", "training seeds", *map(str, shown)], *rows]),
            "Training steps until the distance is reached (linear between measurements, its lowest so far), mean over "
            "the seeds [each], and the share of the baseline's, paired [95% t interval of its logarithm]:",
            "",
            markdown([["distance", *(f"`{arm}`" for arm in self.curves)], *self._threshold_rows()]),
        ]
        return "\n".join(lines)

    def _threshold_rows(self) -> list[list[str]]:
        rows = []
        for factor, target in zip(self.thresholds, self.targets(), strict=True):
            steps_to = self.steps_to(target)
            first = next(iter(steps_to.values()))
            rows.append(
                [
                    f"{target:.3g} ({factor:g} x the baseline's last)",
                    *(_steps_cell(seeds, None if seeds is first else first) for seeds in steps_to.values()),
                ]
            )
        return rows


@dataclass(frozen=True)
class FinalTable:
    """All numbers of the last averaged weights: a table, and what it was made from."""

    markdown: str
    content: dict[str, Any]


def final_table(scores: Mapping[str, Mapping[int, Mapping[str, float]]]) -> FinalTable:
    """Every measured number of every arm, differences below it.

    Args:
        scores: arm -> training seed -> name -> value; the first arm is the baseline.
    """
    names = [name for name in next(iter(next(iter(scores.values())).values())) if "floor" not in name]
    found = {
        name: compare({arm: {seed: [values[name]] for seed, values in seeds.items()} for arm, seeds in scores.items()})
        for name in names
    }
    rows = []
    for arm, seeds in scores.items():
        rows.append([f"`{arm}`", str(len(seeds)), *(cell(found[name][arm].mean, ".4g") for name in names)])
        if any(found[name][arm].difference is not None for name in names):
            rows.append(["difference", "", *(cell(found[name][arm].difference, "+.3g") for name in names)])
    measured = next(iter(next(iter(scores.values())).values()))
    note = "; ".join(f"{k}: {v:.4g} between halves of the data" for k, v in measured.items() if "floor" in k)
    lines = [
        "After training: mean [95% t interval over training seeds], differences paired by seed. " + note,
        "",
        markdown([["arm", "training seeds", *names], *rows]),
    ]
    content = {name: {arm: asdict(row) for arm, row in rows.items()} for name, rows in found.items()}
    return FinalTable("\n".join(lines), content)


def steps_until(curve: Mapping[int, float], target: float) -> float:
    """Training steps until a falling curve reaches ``target``: linear between points, infinity where it never does."""
    before: tuple[int, float] | None = None
    for step, value in sorted(curve.items()):
        if value <= target:
            if before is None or before[1] == value:
                return float(step)
            return before[0] + (step - before[0]) * (before[1] - target) / (before[1] - value)
        before = (step, value)
    return math.inf


def _steps_cell(seeds: Mapping[int, float], baseline: Mapping[int, float] | None) -> str:
    reached = {seed: steps for seed, steps in seeds.items() if math.isfinite(steps)}
    if not reached:
        return "not reached"
    text = f"{np.mean(list(reached.values())):,.0f} [{', '.join(f'{steps:,.0f}' for steps in reached.values())}]"
    if len(reached) < len(seeds):
        return f"{text}; {len(seeds) - len(reached)} of {len(seeds)} never"
    pairs = [(seeds[s], baseline[s]) for s in seeds if s in baseline] if baseline is not None else []
    if not pairs or not all(math.isfinite(theirs) for _, theirs in pairs):
        return text
    return f"{text}; {_ratio(pairs)}"


def _ratio(pairs: Sequence[tuple[float, float]]) -> str:
    """Geometric mean of the pairs' ratios with its interval."""
    logarithms = [[math.log(ours / theirs)] for ours, theirs in pairs]
    mean = compare({"ratio": dict(enumerate(logarithms))})["ratio"].mean
    if math.isnan(mean.low):
        return f"x {math.exp(mean.mean):.2f}"
    return f"x {math.exp(mean.mean):.2f} [{math.exp(mean.low):.2f}, {math.exp(mean.high):.2f}]"

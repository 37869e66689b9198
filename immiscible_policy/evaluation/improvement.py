"""Interquartile means and probabilities of improvement with hierarchical bootstrap intervals.

The measures are those of Agarwal et al., Deep Reinforcement Learning at the Edge of the Statistical Precipice (NeurIPS
2021), and agree with their package rliable, which is not a dependency: it pulls pandas, statsmodels, arch and seaborn
(about 160 MB), pins arch below 8, whose last release cannot be imported beside pandas 3, and its bootstrap resamples
training runs, not the initial states that all runs share.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from immiscible_policy.evaluation.statistics import (
    _BATCH_VALUES,
    Interval,
    _check_resampling,
    _checked,
    bootstrap_mean,
    hierarchical_bootstrap_mean,
    resample_counts,
)

Unit = Literal["runs", "episodes"]


def interquartile_mean(
    *tables: ArrayLike, unit: Unit = "runs", level: float = 0.95, n_resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Mean of the middle half of the scores, the quarter at either end left out (Agarwal et al., section 4.3).

    With unit="runs" a score is a training run's mean over its episodes, as in rliable: the number resists a training
    run that failed or excelled by luck. int(n / 4) runs are cut at either end, so below four runs it is the mean. With
    unit="episodes" a score is one episode: what a typical episode reaches. That drops every failure of a policy that
    fails in less than a quarter of them, which in a single task is most of what sets policies apart, so it is no
    substitute for the mean.

    Args:
        tables: one (n_seeds, n_episodes) table of finite scores a task, in one unit of score. Their scores are pooled.

    Returns:
        The interquartile mean (in `mean`) and its percentile interval from resampling, in each task on its own
        (stratified), training runs and shared initial states. One training run: episodes are resampled, but runs have
        no interval (NaN ends). With few runs it is too narrow in the way of `hierarchical_bootstrap_mean`.

    Raises:
        ValueError: no table, an unknown unit, bad scores, or a level or n_resamples out of range.
    """
    checked = [_checked(f"tables[{i}]", table, ndim=2) for i, table in enumerate(tables)]
    if not checked:
        raise ValueError("tables must hold at least one score table, got none")
    _check_unit(unit)
    _check_resampling(level, n_resamples)
    scores = [table.mean(axis=1) if unit == "runs" else table.ravel() for table in checked]
    estimate = float(stats.trim_mean(np.concatenate(scores), 0.25))
    n_values = sum(len(score) for score in scores)
    if any(table.shape[1] == 1 or (unit == "runs" and len(table) == 1) for table in checked):
        return Interval(estimate, math.nan, math.nan, n_values, level)
    rng = np.random.default_rng(seed)
    estimates = [
        stats.trim_mean(np.concatenate([_resampled(rng, table, unit, size) for table in checked], axis=1), 0.25, axis=1)
        for size in _batches(n_resamples, sum(table.size for table in checked))
    ]
    return _percentile_interval(estimate, np.concatenate(estimates), n_values, level)


def probability_of_improvement(
    a: ArrayLike, b: ArrayLike, unit: Unit = "runs", level: float = 0.95, n_resamples: int = 10_000, seed: int = 0
) -> Interval:
    """P(A > B) + P(A = B) / 2: how often a beats b, by however little (Agarwal et al., section 4.3).

    With unit="runs" A and B are the means of a training run of either arm, and every run of a meets every run of b: the
    Mann-Whitney statistic over its largest value, as in rliable. The arms may have different training seeds. With
    unit="episodes" A and B are the scores of one initial state under the same training seed, so only like meets like.

    Args:
        a, b: (n_seeds, n_episodes) finite scores; columns from the same evaluation seeds, and with unit="episodes" rows
            from the same training seeds.

    Returns:
        The probability (in `mean`) with a percentile interval from resampling training runs (of either arm on its own
        for unit="runs", in pairs for unit="episodes") and shared initial states. NaN ends from one run in an arm
        (unit="runs") or one episode; unit="episodes" with one training seed resamples episodes only. Where all of three
        runs beat all of three others the interval may be [1, 1], though equal arms do that once in 20 times: read
        `paired_difference_t` for the evidence.

    Raises:
        ValueError: shapes that do not fit, an unknown unit, bad scores, or a level or n_resamples out of range.
    """
    first, second = _checked("a", a, ndim=2), _checked("b", b, ndim=2)
    _check_unit(unit)
    _check_resampling(level, n_resamples)
    if first.shape[1] != second.shape[1] or (unit == "episodes" and len(first) != len(second)):
        raise ValueError(
            f"a and b must share their {'evaluation' if unit == 'runs' else 'training and evaluation'} seeds, "
            f"got shapes {first.shape} and {second.shape}"
        )
    if unit == "episodes":
        wins = (np.sign(first - second) + 1) / 2
        if len(wins) == 1:
            return bootstrap_mean(wins[0], level, n_resamples, seed)
        return hierarchical_bootstrap_mean(wins, level, n_resamples, seed)
    estimate = float(_wins(first.mean(axis=1)[None], second.mean(axis=1)[None])[0])
    n_pairs = len(first) * len(second)
    if len(first) == 1 or len(second) == 1 or first.shape[1] == 1:
        return Interval(estimate, math.nan, math.nan, n_pairs, level)
    rng = np.random.default_rng(seed)
    both = np.concatenate([first, second])
    estimates = []
    for size in _batches(n_resamples, first.shape[1] + n_pairs):
        means = _column_resampled(rng, both, size)
        estimates.append(_wins(_drawn(rng, means[:, : len(first)]), _drawn(rng, means[:, len(first) :])))
    return _percentile_interval(estimate, np.concatenate(estimates), n_pairs, level)


def _resampled(rng: np.random.Generator, table: np.ndarray, unit: Unit, size: int) -> np.ndarray:
    """(size, n_values) scores of tables whose rows and columns are each drawn with replacement."""
    if unit == "runs":
        return _drawn(rng, _column_resampled(rng, table, size))
    n_seeds, n_episodes = table.shape
    rows = rng.integers(n_seeds, size=(size, n_seeds, 1))
    columns = rng.integers(n_episodes, size=(size, 1, n_episodes))
    return table[rows, columns].reshape(size, -1)


def _column_resampled(rng: np.random.Generator, table: np.ndarray, size: int) -> np.ndarray:
    """(size, n_seeds) means of all rows over columns drawn with replacement, the same columns for all rows."""
    n_episodes = table.shape[1]
    return resample_counts(rng, n_episodes, size) @ table.T / n_episodes


def _drawn(rng: np.random.Generator, scores: np.ndarray) -> np.ndarray:
    """Each row's entries drawn with replacement."""
    return np.take_along_axis(scores, rng.integers(scores.shape[1], size=scores.shape), axis=1)


def _wins(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(size,) share of the pairs from (size, n_a) and (size, n_b) that a wins, ties counted half."""
    return ((np.sign(a[:, :, None] - b[:, None, :]) + 1) / 2).mean(axis=(1, 2))


def _batches(n_resamples: int, n_values: int) -> list[int]:
    batch = max(1, _BATCH_VALUES // n_values)
    return [min(batch, n_resamples - start) for start in range(0, n_resamples, batch)]


def _percentile_interval(estimate: float, estimates: np.ndarray, n: int, level: float) -> Interval:
    low, high = np.quantile(estimates, [(1 - level) / 2, (1 + level) / 2])
    return Interval(estimate, float(low), float(high), n, level)


def _check_unit(unit: str) -> None:
    if unit not in ("runs", "episodes"):
        raise ValueError(f"unit must be 'runs' or 'episodes', got {unit!r}")

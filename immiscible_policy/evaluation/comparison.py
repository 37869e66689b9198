"""Arms of an experiment against a baseline: what a report prints in each row, and checkpoint rules over training runs.

An arm is one way to train (a coupling, say), run with several training seeds and evaluated on shared initial states.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from immiscible_policy.evaluation.detectable_difference import smallest_detectable_difference
from immiscible_policy.evaluation.improvement import interquartile_mean, probability_of_improvement
from immiscible_policy.evaluation.statistics import (
    Interval,
    RuleScore,
    _checked,
    k_min_train_loss_mean,
    last_k_mean,
    max_score,
)
from immiscible_policy.evaluation.variance_components import TInterval, mean_t, paired_difference_t

Arm = Mapping[int, ArrayLike] | ArrayLike


@dataclass(frozen=True)
class ArmComparison:
    """One arm beside the baseline. What needs a baseline is None in the baseline's own row; what needs pairs also
    where the two have no training seed in common.

    Attributes:
        arm: its name.
        seeds: its training seeds.
        shared_seeds: those that the baseline has too, which the paired numbers are over; () in its own row.
        n_episodes: episodes of each training seed.
        mean: over all its training seeds (`mean_t`).
        iqm: interquartile mean over its training runs (`interquartile_mean`).
        difference: its mean less the baseline's, paired (`paired_difference_t`), with an unadjusted p-value.
        p_holm: that p-value adjusted for the number of arms compared (`holm`); the intervals are not adjusted.
        improvement_runs: probability that a training run of it beats one of the baseline (all runs of both).
        improvement_episodes: probability that it beats the baseline in an episode (paired).
        detectable: the smallest true difference that this design finds with power 0.8, unadjusted.
    """

    arm: str
    seeds: tuple[int, ...]
    shared_seeds: tuple[int, ...]
    n_episodes: int
    mean: TInterval
    iqm: Interval
    difference: TInterval | None = None
    p_holm: float | None = None
    improvement_runs: Interval | None = None
    improvement_episodes: Interval | None = None
    detectable: float | None = None


@dataclass(frozen=True)
class RuleSummary:
    """One checkpoint rule over several training runs.

    Attributes:
        rule: key into `statistics.RULES`.
        per_seed: the rule's score of every training seed.
        interval: mean of the seeds' scores and its t interval with n_seeds - 1 degrees of freedom.
    """

    rule: str
    per_seed: dict[int, RuleScore]
    interval: TInterval


def holm(p_values: ArrayLike) -> np.ndarray:
    """p-values adjusted for their number by Holm's step-down method (1979).

    Rejecting those below alpha keeps the chance of any false rejection below alpha, however the tests depend on one
    another. (`scipy.stats.false_discovery_control` bounds the share of false ones instead, for many tests.)

    Args:
        p_values: (n_tests,) in [0, 1].

    Returns:
        (n_tests,) adjusted p-values in the order given, each at least its p-value and at most 1.

    Raises:
        ValueError: empty, not 1-D, NaN, or outside [0, 1].
    """
    p = _checked("p_values", p_values, ndim=1)
    if (p < 0).any() or (p > 1).any():
        raise ValueError(f"p_values must be in [0, 1], got {p[(p < 0) | (p > 1)][0]}")
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted


def compare_arms(
    tables: Mapping[str, Arm], baseline: str, level: float = 0.95, n_resamples: int = 10_000, seed: int = 0
) -> list[ArmComparison]:
    """Every arm's mean, and how it compares with the baseline over the training seeds that both have.

    Args:
        tables: by arm, {training seed: (n_episodes,) scores} or an (n_seeds, n_episodes) array whose rows are the
            training seeds 0, 1, ...; column j is the same initial state everywhere.
        baseline: a key of tables.

    Returns:
        One row an arm, the baseline first, then in the order given. Bootstrap intervals draw n_resamples from `seed`.

    Raises:
        ValueError: the baseline is no arm, different numbers of episodes, bad scores, or an option out of range.
    """
    if baseline not in tables:
        raise ValueError(f"baseline must be one of {', '.join(map(repr, tables)) or 'no arms'}, got {baseline!r}")
    arms = {name: _by_seed(name, tables[name]) for name in [baseline, *(name for name in tables if name != baseline)]}
    lengths = {name: len(next(iter(arm.values()))) for name, arm in arms.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"arms must share their evaluation seeds, got numbers of episodes {lengths}")
    rows = [
        _compared(name, arm, None if name == baseline else arms[baseline], level, n_resamples, seed)
        for name, arm in arms.items()
    ]
    # One value in each arm gives a difference without a p-value.
    p_values = {
        row.arm: row.difference.p_value
        for row in rows
        if row.difference is not None and not math.isnan(row.difference.p_value)
    }
    if not p_values:
        return rows
    adjusted = dict(zip(p_values, holm(list(p_values.values())).tolist(), strict=True))
    return [replace(row, p_holm=adjusted.get(row.arm)) for row in rows]


def rule_scores(
    curves: Mapping[int, tuple[ArrayLike, ArrayLike]], k: int = 10, level: float = 0.95
) -> dict[str, RuleSummary]:
    """All of `statistics.RULES` over the training runs of one arm: the rule is applied to each run, then averaged.

    "Average of the last 10 checkpoints" has two readings, which are "last_k_mean" (the words) and
    "k_min_train_loss_mean" (what the reference implementation computes); "max_score" is its "max".

    Args:
        curves: by training seed, the mean rollout scores at each point of the run, and the training losses there:
            two of (n_points,), finite, as many points in all runs.
        k: >= 1; with fewer points all are used, and each `RuleScore.n_points` says so.

    Returns:
        By rule, the seeds' scores, their mean and its t interval over training seeds (NaN ends for one seed).

    Raises:
        ValueError: no runs, runs of different length (a maximum over more points is higher), or what the rules refuse.
    """
    if not curves:
        raise ValueError("curves must hold at least one training seed's scores and losses, got none")
    rules = {
        "last_k_mean": {s: last_k_mean(scores, k) for s, (scores, _) in curves.items()},
        "k_min_train_loss_mean": {
            s: k_min_train_loss_mean(scores, losses, k) for s, (scores, losses) in curves.items()
        },
        "max_score": {s: max_score(scores) for s, (scores, _) in curves.items()},
    }
    n_points = {s: score.n_points for s, score in rules["max_score"].items()}
    if len(set(n_points.values())) > 1:
        raise ValueError(f"runs must have as many rollout points, got {n_points} by training seed")
    return {
        rule: RuleSummary(rule, per_seed, mean_t([[score.value] for score in per_seed.values()], level))
        for rule, per_seed in rules.items()
    }


def _compared(
    name: str,
    arm: dict[int, np.ndarray],
    baseline: dict[int, np.ndarray] | None,
    level: float,
    n_resamples: int,
    seed: int,
) -> ArmComparison:
    table = np.stack(list(arm.values()))
    row = ArmComparison(
        arm=name,
        seeds=tuple(arm),
        shared_seeds=tuple(s for s in arm if baseline is not None and s in baseline),
        n_episodes=table.shape[1],
        mean=mean_t(table, level),
        iqm=interquartile_mean(table, level=level, n_resamples=n_resamples, seed=seed),
    )
    if baseline is None:
        return row
    others = np.stack(list(baseline.values()))
    row = replace(row, improvement_runs=probability_of_improvement(table, others, "runs", level, n_resamples, seed))
    if not row.shared_seeds:
        return row
    a, b = (np.stack([rows[s] for s in row.shared_seeds]) for rows in (arm, baseline))
    return replace(
        row,
        difference=paired_difference_t(a, b, level),
        improvement_episodes=probability_of_improvement(a, b, "episodes", level, n_resamples, seed),
        detectable=smallest_detectable_difference(a, b, level=level),
    )


def _by_seed(name: str, arm: Arm) -> dict[int, np.ndarray]:
    """The arm's rows by training seed, in ascending order."""
    if not isinstance(arm, Mapping):
        return dict(enumerate(_checked(f"tables[{name!r}]", arm, ndim=2)))
    if not arm:
        raise ValueError(f"tables[{name!r}] must hold at least one training seed, got none")
    rows = {s: _checked(f"tables[{name!r}][{s}]", arm[s], ndim=1) for s in sorted(arm)}
    lengths = {s: len(row) for s, row in rows.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"tables[{name!r}] must have as many episodes for every training seed, got {lengths}")
    return rows

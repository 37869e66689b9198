"""Interquartile means and probabilities of improvement: closed forms, rliable's numbers, what is resampled."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from immiscible_policy.evaluation.improvement import interquartile_mean, probability_of_improvement
from immiscible_policy.evaluation.statistics import Interval, hierarchical_bootstrap_mean

UNITS = ["runs", "episodes"]


def width(interval: Interval) -> float:
    return interval.high - interval.low


def test_interquartile_mean_of_runs_leaves_out_a_quarter_of_them_at_either_end():
    runs = np.array([0.1, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 5.0])
    table = runs[:, None] + np.array([[-0.1, 0.0, 0.1]])
    interval = interquartile_mean(table)
    assert interval.mean == pytest.approx(np.mean([0.6, 0.7, 0.8, 0.9]))
    assert (interval.n, interval.level) == (8, 0.95)


@pytest.mark.parametrize("n_seeds", [2, 3])
def test_below_four_runs_it_is_the_mean(n_seeds):
    table = np.random.default_rng(0).random((n_seeds, 50))
    interval, mean = interquartile_mean(table), hierarchical_bootstrap_mean(table)
    assert interval.mean == pytest.approx(table.mean())
    # The same resampling of rows and columns, so the same interval up to the draws.
    assert (interval.low, interval.high) == pytest.approx((mean.low, mean.high), abs=0.01)


def test_interquartile_mean_of_episodes_is_blind_to_rare_failures():
    rng = np.random.default_rng(1)
    steady = rng.uniform(0.9, 1.0, (5, 100))
    failing = steady.copy()
    failing[:, :10] = 0.0
    ours = [interquartile_mean(t, unit="episodes", n_resamples=200) for t in (steady, failing)]
    assert steady.mean() - failing.mean() > 0.09
    assert ours[0].mean - ours[1].mean < 0.01
    assert ours[0].n == 500
    assert ours[0].mean == pytest.approx(np.sort(steady.ravel())[125:375].mean())


def test_a_runaway_run_does_not_widen_the_interval():
    runs = np.append(np.random.default_rng(10).random(19), 100.0)
    table = np.repeat(runs[:, None], 2, axis=1)
    assert width(interquartile_mean(table, n_resamples=500)) < 1 < 5 < width(hierarchical_bootstrap_mean(table))


def test_several_tasks_are_pooled_and_resampled_each_on_their_own():
    # Each task's runs agree, the tasks differ: with strata the resampled mean cannot move.
    tasks = [np.full((4, 6), level) for level in (0.0, 1.0, 2.0, 3.0)]
    interval = interquartile_mean(*tasks, n_resamples=100)
    assert (interval.mean, interval.low, interval.high, interval.n) == (1.5, 1.5, 1.5, 16)


def test_runs_and_shared_states_are_both_resampled():
    rng = np.random.default_rng(2)
    seeds_differ = np.repeat(rng.normal(0, 1, (40, 1)), 50, axis=1)
    states_differ = np.repeat(rng.normal(0, 1, (1, 50)), 40, axis=0)
    for unit in UNITS:
        assert width(interquartile_mean(seeds_differ, unit=unit, n_resamples=500)) > 0.3
        assert width(interquartile_mean(states_differ, unit=unit, n_resamples=500)) > 0.3
    # Without the quarters at either end, the standard error of normal runs' mean grows by 1.09 (its known efficiency).
    interval = interquartile_mean(np.repeat(rng.normal(0, 1, (400, 1)), 2, axis=1))
    assert width(interval) == pytest.approx(2 * 1.96 * 1.09 / 20, rel=0.12)


def test_the_unbatched_and_the_batched_resamples_are_alike(monkeypatch):
    a, b = np.random.default_rng(3).random((2, 5, 30))
    for function in (
        lambda: interquartile_mean(a, unit="episodes"),
        lambda: interquartile_mean(a),
        lambda: probability_of_improvement(a, b),
    ):
        whole = function()
        with monkeypatch.context() as patch:
            patch.setattr("immiscible_policy.evaluation.improvement._BATCH_VALUES", 100_003)
            batched = function()
        assert (batched.mean, batched.n) == (whole.mean, whole.n)
        assert (batched.low, batched.high) == pytest.approx((whole.low, whole.high), abs=0.05)


def test_improvement_over_runs_is_the_mann_whitney_statistic():
    rng = np.random.default_rng(4)
    a, b = rng.integers(0, 4, (6, 20)) / 4, rng.integers(0, 4, (9, 20)) / 4  # with ties
    found = probability_of_improvement(a, b, n_resamples=100)
    expected = stats.mannwhitneyu(a.mean(axis=1), b.mean(axis=1)).statistic / 54
    assert (found.mean, found.n) == (pytest.approx(expected), 54)


def test_improvement_over_episodes_pairs_like_with_like():
    a = np.array([[1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 1.0, 1.0]])
    b = np.array([[0.0, 2.0, 4.0, 3.0], [1.0, 0.0, 0.0, 0.0]])
    found = probability_of_improvement(a, b, "episodes")
    assert (found.mean, found.n) == ((5 + 2 / 2) / 8, 8)
    # A constant gain below the spread of states: certain in pairs, a coin toss among unpaired episodes.
    spread = np.random.default_rng(5).random((3, 100))
    certain = probability_of_improvement(spread + 1e-3, spread, "episodes")
    assert (certain.mean, certain.low, certain.high) == (1.0, 1.0, 1.0)


def test_improvement_of_shifted_normal_runs_has_a_closed_form():
    rng = np.random.default_rng(6)
    a, b = rng.normal(0.5, 1, (200, 1)), rng.normal(0, 1, (200, 1))
    found = probability_of_improvement(np.repeat(a, 2, axis=1), np.repeat(b, 2, axis=1), n_resamples=300)
    truth = stats.norm.cdf(0.5 / math.sqrt(2))
    # The Mann-Whitney statistic of two samples of n varies by about 2 (P(both of two beaten) - truth^2) / n.
    both = stats.multivariate_normal.cdf([0.5, 0.5], cov=[[2, 1], [1, 2]])
    assert found.low <= truth <= found.high
    assert width(found) == pytest.approx(2 * 1.96 * math.sqrt(2 * (both - truth**2) / 200), rel=0.15)


@settings(max_examples=30, deadline=None)
@given(n_a=st.integers(1, 5), n_b=st.integers(1, 5), n_episodes=st.integers(1, 6), seed=st.integers(0, 10**4))
def test_improvement_is_a_probability_whatever_the_order_and_the_other_way_round_its_complement(
    n_a, n_b, n_episodes, seed
):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 3, (n_a, n_episodes)) / 2, rng.integers(0, 3, (n_b, n_episodes)) / 2
    for unit in UNITS if n_a == n_b else ["runs"]:
        forth = probability_of_improvement(a, b, unit, n_resamples=50, seed=seed)
        assert forth.mean + probability_of_improvement(b, a, unit, n_resamples=50).mean == pytest.approx(1)
        columns = rng.permutation(n_episodes)
        turned = probability_of_improvement(a[::-1, columns], b[::-1, columns], unit, n_resamples=50)
        assert turned.mean == pytest.approx(forth.mean)
        assert probability_of_improvement(a, a, unit, n_resamples=50).mean == 0.5
        if not math.isnan(forth.low):
            assert 0 <= forth.low <= forth.high <= 1


@settings(max_examples=30, deadline=None)
@given(n_seeds=st.integers(2, 6), n_episodes=st.integers(2, 9), seed=st.integers(0, 1000), unit=st.sampled_from(UNITS))
def test_interquartile_means_stay_within_the_scores_whatever_their_order(n_seeds, n_episodes, seed, unit):
    rng = np.random.default_rng(seed)
    table = rng.random((n_seeds, n_episodes))
    interval = interquartile_mean(table, unit=unit, n_resamples=50, seed=seed)
    assert table.min() - 1e-9 <= interval.low <= interval.high <= table.max() + 1e-9
    assert interval == interquartile_mean(table, unit=unit, n_resamples=50, seed=seed)
    turned = table[rng.permutation(n_seeds)][:, rng.permutation(n_episodes)]
    assert interquartile_mean(turned, unit=unit, n_resamples=50).mean == pytest.approx(interval.mean)


def test_spread_that_was_not_sampled_gives_no_interval():
    rng = np.random.default_rng(7)
    row, column, table = rng.random((1, 20)), rng.random((20, 1)), rng.random((20, 20))
    runs_need_seeds = [interquartile_mean(row), probability_of_improvement(row, table)]
    runs_need_seeds.append(probability_of_improvement(table, row))
    need_episodes = [interquartile_mean(column, unit=u) for u in UNITS]
    need_episodes += [probability_of_improvement(column, column, u) for u in UNITS]
    for interval in runs_need_seeds + need_episodes:
        assert math.isnan(interval.low)
        assert math.isnan(interval.high)
    # One training seed: over episodes only.
    for interval in (
        interquartile_mean(row, unit="episodes"),
        probability_of_improvement(row, rng.random((1, 20)), "episodes"),
    ):
        assert 0.1 < width(interval) < 0.7


def test_bad_arguments_are_refused():
    table = np.zeros((2, 3))
    with pytest.raises(ValueError, match="at least one score table, got none"):
        interquartile_mean()
    with pytest.raises(ValueError, match=r"tables\[1\] must be finite, got 1 NaN"):
        interquartile_mean(table, [[math.nan, 1.0]])
    with pytest.raises(ValueError, match=r"a must have shape \(n_seeds, n_episodes\)"):
        probability_of_improvement([1.0], table)
    with pytest.raises(ValueError, match=r"share their evaluation seeds, got shapes \(2, 3\) and \(2, 4\)"):
        probability_of_improvement(table, np.zeros((2, 4)))
    with pytest.raises(
        ValueError, match=r"share their training and evaluation seeds, got shapes \(2, 3\) and \(4, 3\)"
    ):
        probability_of_improvement(table, np.zeros((4, 3)), "episodes")
    for function in (
        lambda **o: interquartile_mean(table, **o),
        lambda **o: probability_of_improvement(table, table, **o),
    ):
        with pytest.raises(ValueError, match="unit must be 'runs' or 'episodes', got 'tasks'"):
            function(unit="tasks")
        with pytest.raises(ValueError, match=r"level must be in \(0, 1\), got 95"):
            function(level=95)
        with pytest.raises(ValueError, match="n_resamples must be at least 1, got 0"):
            function(n_resamples=0)


def test_the_numbers_are_those_of_rliable():
    metrics = pytest.importorskip("rliable.metrics", reason="rliable is not installed")
    rng = np.random.default_rng(8)
    tasks = [(rng.random((7, 12)), rng.random((9, 12))) for _ in range(3)]
    # rliable takes (n_runs, n_tasks) of run means.
    ours = interquartile_mean(*(a for a, _ in tasks), n_resamples=10).mean
    assert ours == pytest.approx(metrics.aggregate_iqm(np.stack([a.mean(axis=1) for a, _ in tasks], axis=1)))
    for a, b in tasks:
        expected = metrics.probability_of_improvement(a.mean(axis=1, keepdims=True), b.mean(axis=1, keepdims=True))
        assert probability_of_improvement(a, b, n_resamples=10).mean == pytest.approx(expected)


def test_the_interval_is_rliables_where_episodes_add_nothing():
    try:
        from rliable import library, metrics
    except (ImportError, TypeError) as error:  # arch 7, which rliable pins, fails to import beside pandas 3
        pytest.skip(f"rliable's bootstrap cannot be imported: {error}")
    runs = np.random.default_rng(9).random((12, 1))
    np.random.seed(0)  # noqa: NPY002 - rliable draws from numpy's global generator
    _, reference = library.get_interval_estimates(
        {"a": runs}, lambda scores: np.array([metrics.aggregate_iqm(scores)]), reps=4000
    )
    ours = interquartile_mean(np.repeat(runs, 2, axis=1))
    assert (ours.low, ours.high) == pytest.approx(tuple(reference["a"].ravel()), abs=0.02)

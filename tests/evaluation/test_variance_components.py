"""t intervals over the crossed design: closed forms, honest coverage at few training seeds, p-values that agree."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from immiscible_policy.evaluation.statistics import hierarchical_bootstrap_mean
from immiscible_policy.evaluation.variance_components import (
    TInterval,
    VarianceComponents,
    mean_squares,
    mean_t,
    paired_difference_t,
    variance_components,
)

TABLES = st.tuples(st.integers(2, 6), st.integers(2, 12), st.integers(0, 10_000)).map(
    lambda drawn: np.random.default_rng(drawn[2]).uniform(-1, 1, drawn[:2])
)


def crossed(rng: np.random.Generator, shape: tuple[int, int], seed_std: float, episode_std: float, noise_std: float):
    """(n_seeds, n_episodes) values around 0: a training seed's effect, an initial state's, and the rest."""
    n_seeds, n_episodes = shape
    return (
        rng.normal(0, seed_std, (n_seeds, 1))
        + rng.normal(0, episode_std, (1, n_episodes))
        + rng.normal(0, noise_std, shape)
    )


def ends(interval: TInterval) -> list[float]:
    return [interval.mean, interval.low, interval.high]


def test_mean_squares_are_those_of_the_analysis_of_variance():
    table = np.random.default_rng(0).random((4, 7))
    squares = mean_squares(table)
    grand = table.mean()
    total = seed = episode = 0.0
    for s, e in itertools.product(range(4), range(7)):
        total += (table[s, e] - grand) ** 2
        seed += (table[s].mean() - grand) ** 2
        episode += (table[:, e].mean() - grand) ** 2
    assert squares.seed == pytest.approx(seed / 3)
    assert squares.episode == pytest.approx(episode / 6)
    assert squares.residual == pytest.approx((total - seed - episode) / 18)


def test_components_are_recovered_without_bias():
    rng = np.random.default_rng(1)
    found = [variance_components(crossed(rng, (20, 40), 0.3, 0.4, 0.6)) for _ in range(300)]
    for name, std in [("seed", 0.3), ("episode", 0.4), ("residual", 0.6)]:
        assert np.mean([getattr(c, name) for c in found]) == pytest.approx(std**2, rel=0.05)


def test_negative_estimates_are_clipped():
    # Rows and columns have equal means: less spread between them than the residual would give.
    assert variance_components([[1.0, 0.0], [0.0, 1.0]]) == VarianceComponents(0.0, 0.0, 1.0)


def test_components_that_one_row_or_column_hides_are_nan():
    row = variance_components([[1.0, 2.0, 4.0]])
    assert math.isnan(row.seed)
    assert (row.episode, row.residual) == (pytest.approx(np.var([1, 2, 4], ddof=1)), 0.0)
    column = variance_components([[1.0], [2.0], [4.0]])
    assert math.isnan(column.episode)
    assert (column.seed, column.residual) == (pytest.approx(np.var([1, 2, 4], ddof=1)), 0.0)
    assert str(column) == "standard deviations: training seeds 1.5275, episodes nan, residual 0.0000"
    with pytest.raises(ValueError, match=r"at least two values, got shape \(1, 1\)"):
        variance_components([[1.0]])


@pytest.mark.parametrize(
    ("transposed", "over"), [(False, "episodes only"), (True, "training seeds only")], ids=["one seed", "one episode"]
)
def test_a_single_row_or_column_gives_the_ordinary_t_test(transposed, over):
    values = np.random.default_rng(2).normal(0.3, 1, 12)
    interval = mean_t(values[:, None] if transposed else values[None], level=0.9)
    reference = stats.ttest_1samp(values, 0.0)
    assert interval.p_value == pytest.approx(reference.pvalue, rel=1e-9)
    expected = reference.confidence_interval(0.9)
    assert ends(interval) == pytest.approx([values.mean(), expected.low, expected.high])
    assert interval.standard_error == pytest.approx(stats.sem(values))
    assert interval.over == over
    assert math.isnan(interval.seed_share)
    assert str(interval).endswith(f"(90% interval, n=12), over {over}")


def test_where_training_seeds_dominate_it_is_the_t_interval_of_their_means():
    table = crossed(np.random.default_rng(3), (4, 500), 1.0, 0.0, 0.01)
    interval, means = mean_t(table), table.mean(axis=1)
    expected = stats.ttest_1samp(means, 0.0).confidence_interval(0.95)
    assert ends(interval) == pytest.approx([means.mean(), expected.low, expected.high], rel=1e-4)
    assert interval.seed_share > 0.999
    assert interval.over == "training seeds and episodes"


def test_where_initial_states_dominate_it_is_the_t_interval_of_theirs():
    table = crossed(np.random.default_rng(4), (4, 500), 0.0, 1.0, 0.01)
    interval, means = mean_t(table), table.mean(axis=0)
    expected = stats.ttest_1samp(means, 0.0).confidence_interval(0.95)
    assert ends(interval) == pytest.approx([means.mean(), expected.low, expected.high], rel=1e-3)
    assert interval.seed_share < 0.001


def test_the_quantile_is_weighted_by_the_two_parts():
    # Exact effects of sizes that can be checked by hand: row means +-1, column means +-2, no residual.
    table = np.array([[1.0], [-1.0]]) + np.array([[2.0, -2.0]])
    rows, columns = 2.0 / 2, 8.0 / 2  # variances of the means, over their number
    interval = mean_t(table)
    t = stats.t.ppf(0.975, 1)  # both have two values
    assert interval.high == pytest.approx(t * math.sqrt(rows + columns))
    assert interval.seed_share == pytest.approx(rows / (rows + columns))
    wider = np.hstack([table, table])  # four columns: the columns' part now has three degrees of freedom
    rows, columns = 1.0, np.var([2, -2, 2, -2], ddof=1) / 4
    weighted = (rows * t + columns * stats.t.ppf(0.975, 3)) / (rows + columns)
    assert mean_t(wider).high == pytest.approx(weighted * math.sqrt(rows + columns))


@pytest.mark.parametrize("n_seeds", [3, 5, 10])
@pytest.mark.parametrize(("seed_std", "episode_std"), [(0.02, 0.15), (0.02, 0.05), (0.0, 0.15), (0.0, 0.0)])
def test_the_interval_covers_the_truth_as_often_as_it_says(n_seeds, seed_std, episode_std):
    rng = np.random.default_rng(5)
    intervals = [mean_t(crossed(rng, (n_seeds, 100), seed_std, episode_std, 0.12)) for _ in range(400)]
    coverage = np.mean([interval.low <= 0 <= interval.high for interval in intervals])
    assert 0.93 <= coverage <= 0.995  # 0.95 less two standard errors; up to 0.99 where training seeds hardly differ


@pytest.mark.parametrize(("n_seeds", "n_episodes"), [(2, 500), (3, 500), (5, 100)])
def test_it_is_never_narrower_than_over_these_very_training_seeds(n_seeds, n_episodes):
    rng, limited = np.random.default_rng(10), 0
    for _ in range(200):
        table = crossed(rng, (n_seeds, n_episodes), 0.01, 0.1, 0.6)
        interval, states = mean_t(table), stats.ttest_1samp(table.mean(axis=0), 0.0)
        half, limit = interval.high - interval.mean, states.confidence_interval(0.95).high - interval.mean
        assert half >= 0.99 * limit  # for which the residual is known with fewer degrees of freedom
        assert interval.standard_error >= stats.sem(table.mean(axis=0)) * (1 - 1e-9)
        limited += half <= limit * (1 + 1e-9)
    assert 0 < limited < 100  # a minority


def test_training_seeds_that_agree_by_chance_leave_what_the_residual_makes_of_them():
    table = crossed(np.random.default_rng(11), (3, 50), 0.0, 0.2, 0.6)
    table -= table.mean(axis=1, keepdims=True) - 0.1
    interval, squares = mean_t(table), mean_squares(table)
    parts = np.array([squares.residual, squares.episode - squares.residual]) / table.size
    quantile = parts @ stats.t.ppf(0.975, [2 * 49, 49]) / parts.sum()
    assert squares.seed == pytest.approx(0)
    assert interval.standard_error == pytest.approx(stats.sem(table.mean(axis=0)))
    assert ends(interval) == pytest.approx([0.1, *(0.1 + sign * quantile * math.sqrt(parts.sum()) for sign in (-1, 1))])
    touching = mean_t(table, 1 - interval.p_value)
    assert min(abs(touching.low), abs(touching.high)) == pytest.approx(0, abs=1e-9)


def test_the_lower_limit_costs_little_width():
    rng, ratios = np.random.default_rng(12), []
    for _ in range(300):
        table = crossed(rng, (5, 100), 0.0, 0.0, 0.12)
        rows, columns = mean_squares(table).parts(5, 100)
        weighted = (rows * stats.t.ppf(0.975, 4) + columns * stats.t.ppf(0.975, 99)) / math.sqrt(rows + columns)
        interval = mean_t(table)
        ratios.append([interval.high - interval.mean, weighted])
    wide, narrow = np.mean(ratios, axis=0)
    assert 1 < wide / narrow < 1.06


def test_the_percentile_bootstrap_is_too_narrow_at_three_training_seeds():
    rng = np.random.default_rng(6)
    tables = [crossed(rng, (3, 100), 0.05, 0.0, 0.12) for _ in range(150)]
    bootstrap = [hierarchical_bootstrap_mean(table, n_resamples=300) for table in tables]
    assert np.mean([interval.low <= 0 <= interval.high for interval in bootstrap]) < 0.85
    assert np.mean([mean_t(table).low <= 0 <= mean_t(table).high for table in tables]) > 0.9


def test_p_values_of_equal_arms_are_uniform_where_one_part_dominates():
    rng = np.random.default_rng(7)
    p = [mean_t(crossed(rng, (4, 30), 0.5, 0.0, 0.05)).p_value for _ in range(400)]
    assert stats.kstest(p, "uniform").pvalue > 0.01


@settings(max_examples=60, deadline=None)
@given(table=TABLES, level=st.floats(0.5, 0.999))
def test_the_p_value_is_that_of_the_interval(table, level):
    interval = mean_t(table, level)
    if abs(interval.p_value - (1 - level)) > 1e-9:
        assert (interval.p_value < 1 - level) == (not interval.low <= 0 <= interval.high)
    if 1e-6 < interval.p_value < 1:
        touching = mean_t(table, 1 - interval.p_value)
        assert min(abs(touching.low), abs(touching.high)) == pytest.approx(0, abs=1e-6 * interval.standard_error)


@settings(max_examples=60, deadline=None)
@given(table=TABLES, data=st.data())
def test_order_of_seeds_and_episodes_shift_and_scale_do_not_matter(table, data):
    rows = data.draw(st.permutations(range(table.shape[0])))
    columns = data.draw(st.permutations(range(table.shape[1])))
    interval = mean_t(table)
    assert ends(mean_t(table[rows][:, columns])) == pytest.approx(ends(interval))
    assert mean_t(table[rows][:, columns]).p_value == pytest.approx(interval.p_value)
    assert ends(mean_t(3 * table + 2)) == pytest.approx([3 * end + 2 for end in ends(interval)])


@settings(max_examples=40, deadline=None)
@given(table=TABLES, seed=st.integers(0, 100))
def test_differences_are_antisymmetric(table, seed):
    other = np.random.default_rng(seed).random(table.shape)
    forth, back = paired_difference_t(table, other), paired_difference_t(other, table)
    assert ends(forth) == pytest.approx([-back.mean, -back.high, -back.low])
    assert (forth.p_value, forth.standard_error) == pytest.approx((back.p_value, back.standard_error))


def test_pairing_cancels_what_both_arms_share():
    rng = np.random.default_rng(8)
    common = crossed(rng, (3, 200), 0.2, 0.3, 0.0)
    a, b = 0.05 + rng.normal(0, 0.05, common.shape), rng.normal(0, 0.05, common.shape)
    interval, alone = paired_difference_t(common + a, common + b), paired_difference_t(a, b)
    assert ends(interval) == pytest.approx(ends(alone))
    assert interval.p_value == pytest.approx(alone.p_value, rel=1e-6)
    assert interval.low > 0
    # The arm's own interval is far too wide to show a difference of 0.05.
    assert mean_t(common + a).high - mean_t(common + a).low > 0.2 > 5 * (interval.high - interval.low)


def test_equal_arms_have_a_p_value_of_one():
    a = np.random.default_rng(9).random((3, 10))
    interval = paired_difference_t(a, a)
    assert (ends(interval), interval.p_value, interval.standard_error) == ([0.0, 0.0, 0.0], 1.0, 0.0)
    assert math.isnan(interval.seed_share)


def test_a_constant_difference_has_a_p_value_of_zero():
    b = np.arange(12.0).reshape(3, 4)
    interval = paired_difference_t(b + 0.5, b)
    assert (ends(interval), interval.p_value) == ([0.5, 0.5, 0.5], 0.0)


def test_tiny_p_values_are_exact_down_to_the_stated_limit():
    values = np.array([1.0, 2.0, 3.0])
    for shift in (1e3, 1e10):  # two degrees of freedom: p = 1 / t ** 2 for large t
        t = (shift + 2) / (1 / math.sqrt(3))
        assert mean_t(values[:, None] + shift).p_value == pytest.approx(1 / t**2, rel=1e-4)
    assert mean_t(np.array([[1.0, 2.0] * 50]) + 1e6).p_value == 0.0


def test_a_single_value_says_nothing():
    interval = mean_t([[0.7]])
    assert (interval.mean, interval.n, interval.over) == (0.7, 1, "nothing")
    assert all(math.isnan(v) for v in (interval.low, interval.high, interval.p_value, interval.standard_error))
    assert str(interval) == "0.700 (no interval: too few values, n=1)"


@pytest.mark.parametrize("values", [[], np.empty((3, 0)), [1.0, 2.0], [[1.0, math.nan]], [[1.0, math.inf]]])
def test_bad_tables_are_refused(values: Any):
    for function in (mean_t, variance_components):
        with pytest.raises(ValueError, match=r"values must (have shape \(n_seeds, n_episodes\)|be finite)"):
            function(values)
    with pytest.raises(ValueError, match="a must"):
        paired_difference_t(values, values)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"share their seeds, got shapes \(2, 3\) and \(3, 3\)"):
        paired_difference_t(np.zeros((2, 3)), np.zeros((3, 3)))
    with pytest.raises(ValueError, match=r"level must be in \(0, 1\), got 95"):
        mean_t(np.zeros((2, 3)), level=95)

"""Intervals and the rules behind a Table 2 number."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from immiscible_policy.evaluation.statistics import (
    RULES,
    Interval,
    bootstrap_mean,
    hierarchical_bootstrap_mean,
    k_min_train_loss_mean,
    last_k_mean,
    max_score,
    paired_difference,
    resample_counts,
    success_interval,
)

Z = 1.959963984540054  # normal quantile of 0.975


def width(interval: Interval) -> float:
    return interval.high - interval.low


def covers(interval: Interval, truth: float) -> bool:
    return interval.low <= truth <= interval.high


def scores_of_seeds(rng, n_seeds, n_episodes, seed_std, episode_std, noise_std):
    """(n_seeds, n_episodes) scores around 0: a training seed's effect, an initial state's, and the rest."""
    return (
        rng.normal(0, seed_std, (n_seeds, 1))
        + rng.normal(0, episode_std, (1, n_episodes))
        + rng.normal(0, noise_std, (n_seeds, n_episodes))
    )


def test_bootstrap_of_two_values_has_a_closed_form():
    # Resampled means of (0, 1) are 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4.
    assert bootstrap_mean([0.0, 1.0], level=0.95) == Interval(0.5, 0.0, 1.0, 2, 0.95)
    assert bootstrap_mean([0.0, 1.0], level=0.4) == Interval(0.5, 0.5, 0.5, 2, 0.4)


def test_bootstrap_of_many_values_has_the_width_of_the_standard_error():
    values = np.random.default_rng(0).normal(3, 2, 1000)
    interval = bootstrap_mean(values)
    assert interval.mean == pytest.approx(values.mean())
    assert width(interval) == pytest.approx(2 * Z * values.std() / math.sqrt(1000), rel=0.05)


def test_bootstrap_covers_the_true_mean_about_as_often_as_promised():
    rng = np.random.default_rng(1)
    draws = rng.beta(4, 1, (400, 50))  # skewed towards 1, as coverage is
    hits = [covers(bootstrap_mean(values, n_resamples=500), 0.8) for values in draws]
    assert 0.90 <= np.mean(hits) <= 0.98


def test_large_samples_are_resampled_in_batches():
    values = np.random.default_rng(0).random(50_000)
    interval = bootstrap_mean(values, n_resamples=300)
    assert covers(interval, 0.5)
    assert width(interval) == pytest.approx(2 * Z * values.std() / math.sqrt(50_000), rel=0.2)


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30),
    level=st.floats(0.5, 0.99),
    seed=st.integers(0, 1000),
)
def test_bootstrap_stays_within_the_values(values, level, seed):
    interval = bootstrap_mean(values, level, n_resamples=200, seed=seed)
    slack = 1e-9 * (1 + max(abs(v) for v in values))
    assert min(values) - slack <= interval.low <= interval.high <= max(values) + slack
    assert interval.n == len(values)
    assert interval == bootstrap_mean(values, level, n_resamples=200, seed=seed)


def test_a_higher_level_is_wider():
    values = np.random.default_rng(2).random(40)
    widths = [width(bootstrap_mean(values, level)) for level in (0.5, 0.8, 0.95, 0.99)]
    assert widths == sorted(widths)
    assert widths[0] < widths[-1]


def test_one_value_has_no_interval_and_says_so():
    interval = bootstrap_mean([0.7])
    assert (interval.mean, interval.n) == (0.7, 1)
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)
    assert str(interval) == "0.700 (no interval: too few values, n=1)"


def test_constant_values_have_an_interval_without_width():
    interval = bootstrap_mean([0.1] * 7)
    assert interval.low == interval.mean == interval.high == pytest.approx(0.1)
    table = hierarchical_bootstrap_mean(np.full((3, 5), 0.1))
    assert table.low == table.mean == table.high == pytest.approx(0.1)


def test_an_interval_reads_well():
    assert str(Interval(0.8283, 0.8012, 0.8501, 200, 0.95)) == "0.828 [0.801, 0.850] (95% interval, n=200)"
    assert "99.9% interval" in str(Interval(0.5, 0.4, 0.6, 9, 0.999))


def test_hierarchical_interval_is_wider_than_the_naive_one_when_seeds_differ():
    table = scores_of_seeds(np.random.default_rng(3), 5, 100, seed_std=0.3, episode_std=0.0, noise_std=0.3)
    naive = bootstrap_mean(table.ravel())
    for shared in (True, False):
        interval = hierarchical_bootstrap_mean(table, shared_episodes=shared)
        assert interval.mean == pytest.approx(naive.mean)
        assert interval.n == naive.n == 500
        assert width(interval) > 3 * width(naive)


def test_initial_states_in_common_widen_the_interval_only_if_they_are_shared():
    table = scores_of_seeds(np.random.default_rng(4), 10, 50, seed_std=0.0, episode_std=0.3, noise_std=0.05)
    shared = hierarchical_bootstrap_mean(table)
    nested = hierarchical_bootstrap_mean(table, shared_episodes=False)
    assert width(shared) == pytest.approx(2 * Z * table.mean(axis=0).std() / math.sqrt(50), rel=0.1)
    assert width(nested) < 0.6 * width(shared)


@pytest.mark.parametrize("shared", [True, False])
def test_pure_seed_effects_have_a_closed_form(shared):
    effects = np.random.default_rng(5).normal(size=(200, 1))
    table = np.repeat(effects, 4, axis=1)
    interval = hierarchical_bootstrap_mean(table, shared_episodes=shared)
    assert width(interval) == pytest.approx(2 * Z * effects.std() / math.sqrt(200), rel=0.05)


def test_hierarchical_bootstrap_covers_where_the_naive_one_does_not():
    rng = np.random.default_rng(6)
    tables = [scores_of_seeds(rng, 10, 40, 0.1, 0.1, 0.2) for _ in range(200)]
    hierarchical = [covers(hierarchical_bootstrap_mean(t, n_resamples=500), 0.0) for t in tables]
    naive = [covers(bootstrap_mean(t.ravel(), n_resamples=500), 0.0) for t in tables]
    assert 0.88 <= np.mean(hierarchical) <= 0.995
    assert np.mean(naive) <= 0.75


@settings(max_examples=40, deadline=None)
@given(
    n_seeds=st.integers(2, 5),
    n_episodes=st.integers(2, 9),
    seed=st.integers(0, 1000),
    shared=st.booleans(),
)
def test_hierarchical_bootstrap_stays_within_the_values(n_seeds, n_episodes, seed, shared):
    table = np.random.default_rng(seed).random((n_seeds, n_episodes))
    interval = hierarchical_bootstrap_mean(table, 0.9, 100, seed, shared_episodes=shared)
    assert table.min() - 1e-9 <= interval.low <= interval.high <= table.max() + 1e-9
    assert interval == hierarchical_bootstrap_mean(table, 0.9, 100, seed, shared_episodes=shared)


@pytest.mark.parametrize("shape", [(1, 20), (20, 1), (1, 1)])
def test_one_seed_or_one_episode_has_no_hierarchical_interval(shape):
    interval = hierarchical_bootstrap_mean(np.random.default_rng(0).random(shape))
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)
    assert "no interval" in str(interval)


def test_paired_difference_cancels_what_both_arms_share():
    rng = np.random.default_rng(7)
    common = scores_of_seeds(rng, 3, 200, seed_std=0.2, episode_std=0.3, noise_std=0.0)
    own_a, own_b = 0.05 + rng.normal(0, 0.05, common.shape), rng.normal(0, 0.05, common.shape)
    interval = paired_difference(common + own_a, common + own_b)
    alone = paired_difference(own_a, own_b)
    assert (interval.mean, interval.low, interval.high) == pytest.approx((alone.mean, alone.low, alone.high))
    assert covers(interval, 0.05)
    assert interval.low > 0
    # Each arm's own interval is far too wide to show a difference of 0.05.
    assert width(hierarchical_bootstrap_mean(common + own_a)) > 0.1 > 5 * width(interval)


def test_paired_difference_of_swapped_arms_is_its_mirror_image():
    rng = np.random.default_rng(8)
    a, b = rng.random((3, 40)), rng.random((3, 40))
    forth, back = paired_difference(a, b), paired_difference(b, a)
    assert (forth.mean, forth.low, forth.high) == pytest.approx((-back.mean, -back.high, -back.low))


def test_equal_arms_differ_by_zero():
    a = np.random.default_rng(9).random((2, 10))
    assert paired_difference(a, a) == Interval(0.0, 0.0, 0.0, 20, 0.95)


def test_arms_of_different_shape_are_refused():
    with pytest.raises(ValueError, match=r"share their seeds, got shapes \(2, 10\) and \(2, 11\)"):
        paired_difference(np.zeros((2, 10)), np.zeros((2, 11)))


@pytest.mark.parametrize(("successes", "n"), [(0, 20), (7, 20), (20, 20), (1, 1), (130, 200)])
def test_success_interval_is_wilsons(successes, n):
    outcome = [True] * successes + [False] * (n - successes)
    rate = successes / n
    centre = (rate + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(rate * (1 - rate) / n + Z**2 / (4 * n**2))
    interval = success_interval(outcome)
    assert interval.mean == rate
    assert interval.low == pytest.approx(max(0.0, centre - half), abs=1e-9)
    assert interval.high == pytest.approx(min(1.0, centre + half), abs=1e-9)
    assert interval.n == n


@settings(max_examples=50, deadline=None)
@given(outcome=st.lists(st.booleans(), min_size=1, max_size=60), level=st.floats(0.5, 0.999))
def test_success_interval_holds_the_rate_and_stays_a_probability(outcome, level):
    interval = success_interval(outcome, level)
    assert 0 <= interval.low <= interval.mean + 1e-12
    assert interval.mean - 1e-12 <= interval.high <= 1
    assert interval.low < interval.high


def test_success_interval_refuses_scores():
    with pytest.raises(ValueError, match=r"successes must be 0 or 1, got 0\.9"):
        success_interval([1.0, 0.9, 0.0])


@pytest.mark.parametrize(
    "function",
    [bootstrap_mean, success_interval, last_k_mean, max_score, lambda v: k_min_train_loss_mean(v, v)],
)
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], r"shape \(n,\) and not be empty, got shape \(0,\)"),
        ([[1.0, 0.0]], r"got shape \(1, 2\)"),
        ([1.0, math.nan], "must be finite, got 1 NaN or infinite"),
        ([math.inf, math.nan], "must be finite, got 2 NaN or infinite"),
    ],
)
def test_bad_values_are_refused(function, values, message):
    with pytest.raises(ValueError, match=message):
        function(values)


@pytest.mark.parametrize("values", [[], np.empty((3, 0)), [1.0, 2.0], [[1.0, math.nan]]])
def test_bad_tables_are_refused(values):
    with pytest.raises(ValueError, match=r"values must (have shape \(n_seeds, n_episodes\)|be finite)"):
        hierarchical_bootstrap_mean(values)
    with pytest.raises(ValueError, match="a must"):
        paired_difference(values, values)


@pytest.mark.parametrize("function", [bootstrap_mean, lambda v, **o: hierarchical_bootstrap_mean([v, v], **o)])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": 0.0}, r"level must be in \(0, 1\), got 0.0"),
        ({"level": 95}, r"level must be in \(0, 1\), got 95"),
        ({"level": math.nan}, r"level must be in \(0, 1\), got nan"),
        ({"n_resamples": 0}, "n_resamples must be at least 1, got 0"),
    ],
)
def test_bad_resampling_options_are_refused(function, options, message):
    with pytest.raises(ValueError, match=message):
        function([0.1, 0.2], **options)


SCORES = [0.1, 0.2, 0.9, 0.4, 0.5, 0.6]
LOSSES = [0.9, 0.8, 0.1, 0.3, 0.2, 0.7]


def test_last_k_takes_the_end_of_the_run():
    score = last_k_mean(SCORES, k=3)
    assert (score.value, score.n_points, score.rule) == (pytest.approx(0.5), 3, "last_k_mean")


def test_k_min_train_loss_takes_the_lowest_losses_wherever_they_are():
    score = k_min_train_loss_mean(SCORES, LOSSES, k=3)
    assert (score.value, score.n_points) == (pytest.approx((0.9 + 0.5 + 0.4) / 3), 3)
    assert score.rule == "k_min_train_loss_mean"


def test_equal_losses_count_the_earlier_point():
    assert k_min_train_loss_mean([1.0, 2.0, 3.0, 4.0], [0.5, 0.1, 0.5, 0.5], k=2).value == 1.5


def test_the_rules_agree_when_the_loss_only_falls():
    falling = np.linspace(1, 0.1, 6)
    assert k_min_train_loss_mean(SCORES, falling, k=4).value == pytest.approx(last_k_mean(SCORES, k=4).value)


def test_fewer_points_than_k_are_all_used_and_counted():
    for score in (last_k_mean(SCORES), k_min_train_loss_mean(SCORES, LOSSES)):
        assert (score.value, score.n_points) == (pytest.approx(np.mean(SCORES)), 6)
        assert "6 points" in str(score)


def test_max_score():
    score = max_score(SCORES)
    assert (score.value, score.n_points, score.rule) == (0.9, 6, "max_score")


def test_every_rule_is_described_beside_its_number():
    scores = [last_k_mean(SCORES), k_min_train_loss_mean(SCORES, LOSSES), max_score(SCORES)]
    assert {score.rule for score in scores} == set(RULES)
    for score in scores:
        assert RULES[score.rule] in str(score)
        assert "\n" not in str(score)


@settings(max_examples=60, deadline=None)
@given(
    points=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 10)), min_size=1, max_size=30),
    k=st.integers(1, 40),
)
def test_rules_stay_between_the_worst_and_the_best_point(points, k):
    scores, losses = [p[0] for p in points], [p[1] for p in points]
    best = max_score(scores).value
    for score in (last_k_mean(scores, k), k_min_train_loss_mean(scores, losses, k)):
        assert min(scores) - 1e-12 <= score.value <= best + 1e-12
        assert score.n_points == min(k, len(points))


def test_bad_rule_arguments_are_refused():
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        last_k_mean(SCORES, k=0)
    with pytest.raises(ValueError, match="k must be at least 1, got -1"):
        k_min_train_loss_mean(SCORES, LOSSES, k=-1)
    with pytest.raises(ValueError, match="must have one length, got 6 and 5"):
        k_min_train_loss_mean(SCORES, LOSSES[:5])


def test_counts_of_a_resample_are_multinomial() -> None:
    n, size = 6, 40_000
    counts = resample_counts(np.random.default_rng(0), n, size)
    assert counts.shape == (size, n)
    np.testing.assert_array_equal(counts.sum(axis=1), n)
    np.testing.assert_allclose(counts.mean(axis=0), 1, atol=5 * math.sqrt((1 - 1 / n) / size))
    covariance = np.cov(counts.T)
    expected = np.eye(n) - 1 / n  # of n draws among n things: n (1/n) (1 - 1/n) on the diagonal, -n/n^2 beside it
    np.testing.assert_allclose(covariance, expected, atol=0.03)

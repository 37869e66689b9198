"""The detectable difference: closed forms, and that the test finds it as often as promised."""

import math

import numpy as np
import pytest
from scipy import optimize, stats

from immiscible_policy.evaluation.detectable_difference import detectable_for, smallest_detectable_difference
from immiscible_policy.evaluation.variance_components import (
    VarianceComponents,
    paired_difference_t,
    variance_components,
)

COMPONENTS = VarianceComponents(seed=0.02**2, episode=0.1**2, residual=0.15**2)


def drawn_differences(rng: np.random.Generator, n_seeds: int, n_episodes: int, components: VarianceComponents):
    return (
        rng.normal(0, math.sqrt(components.seed), (n_seeds, 1))
        + rng.normal(0, math.sqrt(components.episode), (1, n_episodes))
        + rng.normal(0, math.sqrt(components.residual), (n_seeds, n_episodes))
    )


@pytest.mark.parametrize(
    ("n_seeds", "n_episodes", "power", "level"),
    [(3, 200, 0.8, 0.95), (3, 50, 0.9, 0.9), (5, 100, 0.8, 0.95), (10, 50, 0.5, 0.95), (2, 100, 0.8, 0.9)],
)
def test_the_interval_finds_the_difference_with_the_stated_power(n_seeds, n_episodes, power, level):
    difference = detectable_for(n_seeds, n_episodes, COMPONENTS, power, level)
    rng = np.random.default_rng(0)
    found = []
    for _ in range(800):
        base = rng.random((n_seeds, n_episodes))
        a = base + difference + drawn_differences(rng, n_seeds, n_episodes, COMPONENTS)
        found.append(paired_difference_t(a, base, level).p_value < 1 - level)
    assert np.mean(found) == pytest.approx(power, abs=0.04)  # three standard errors of 800


@pytest.mark.parametrize("n", [3, 10, 200])
@pytest.mark.parametrize("seeds_only", [True, False])
@pytest.mark.parametrize("power", [0.8, 0.1])
def test_one_source_of_spread_is_the_noncentral_t_distribution(n, seeds_only, power):
    components = VarianceComponents(0.3**2 if seeds_only else 0.0, 0.0 if seeds_only else 0.3**2, 0.0)
    found = detectable_for(*((n, 1) if seeds_only else (1, n)), components, power)
    threshold = stats.t.ppf(0.975, n - 1)

    def missing(noncentrality):
        wrong_side = np.nan_to_num(stats.nct.cdf(-threshold, n - 1, noncentrality))  # NaN where it is all but 0
        return power - stats.nct.sf(threshold, n - 1, noncentrality) - wrong_side

    assert found == pytest.approx(optimize.brentq(missing, 0.1, 9) * 0.3 / math.sqrt(n), rel=1e-4)


def test_more_seeds_more_episodes_and_less_power_find_smaller_differences():
    by_seeds = [detectable_for(n, 200, COMPONENTS) for n in (2, 3, 5, 10, 30)]
    by_episodes = [detectable_for(5, n, COMPONENTS) for n in (50, 200, 1000)]
    by_power = [detectable_for(5, 200, COMPONENTS, power) for power in (0.95, 0.8, 0.5, 0.2)]
    by_level = [detectable_for(5, 200, COMPONENTS, level=level) for level in (0.99, 0.95, 0.8)]
    for series in (by_seeds, by_episodes, by_power, by_level):
        assert series == sorted(series, reverse=True)
        assert series[0] > series[-1] > 0


def test_episodes_without_end_leave_the_training_seeds():
    limit = detectable_for(4, 1, VarianceComponents(COMPONENTS.seed, math.nan, 0.0))
    assert detectable_for(4, 10**7, COMPONENTS) == pytest.approx(limit, rel=1e-3)


def test_it_scales_with_the_scores():
    tenfold = VarianceComponents(*(100 * part for part in (COMPONENTS.seed, COMPONENTS.episode, COMPONENTS.residual)))
    assert detectable_for(3, 100, tenfold) == pytest.approx(10 * detectable_for(3, 100, COMPONENTS), rel=1e-6)


def test_the_designs_own_difference_takes_components_and_shape_from_the_data():
    rng = np.random.default_rng(1)
    b = rng.random((4, 60))
    a = b + drawn_differences(rng, 4, 60, COMPONENTS)
    found = smallest_detectable_difference(a, b, power=0.9, level=0.9)
    assert found == detectable_for(4, 60, variance_components(a - b), power=0.9, level=0.9)
    assert smallest_detectable_difference(b, a, power=0.9, level=0.9) == pytest.approx(found)
    assert smallest_detectable_difference(a + 1, b, power=0.9, level=0.9) == pytest.approx(found)
    order = rng.permutation(60)
    assert smallest_detectable_difference(a[::-1, order], b[::-1, order], 0.9, 0.9) == pytest.approx(found)


def test_one_training_seed_and_one_value():
    a, b = np.random.default_rng(2).random((2, 1, 50))
    assert 0 < smallest_detectable_difference(a, b) < 1
    assert math.isnan(smallest_detectable_difference([[1.0]], [[0.5]]))
    with pytest.raises(ValueError, match=r"components\.seed .* to plan 3 seeds x 50 episodes, got nan: one seed alone"):
        detectable_for(3, 50, variance_components(a - b))


def test_what_does_not_vary_is_found_at_any_size():
    assert detectable_for(3, 10, VarianceComponents(0.0, 0.0, 0.0)) == 0.0
    assert smallest_detectable_difference(np.ones((3, 4)), np.zeros((3, 4))) == 0.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_seeds": 0}, "n_seeds and n_episodes must be at least 1 and not both 1, got 0 and 100"),
        ({"n_seeds": 1, "n_episodes": 1}, "not both 1, got 1 and 1: a single value has no spread"),
        ({"power": 0.04}, r"power must be in \(1 - level, 1\) = \(0\.05, 1\), got 0\.04"),
        ({"power": 1.0}, r"got 1\.0"),
        ({"power": math.nan}, "got nan"),
        ({"level": 95}, r"level must be in \(0, 1\), got 95"),
        ({"components": VarianceComponents(0.1, 0.1, math.nan)}, r"components\.residual must be a finite .* got nan$"),
        ({"components": VarianceComponents(0.1, -0.1, 0.1)}, r"components\.episode must be .* got -0\.1$"),
        ({"components": VarianceComponents(math.inf, 0.1, 0.1)}, r"components\.seed must be .* got inf$"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        detectable_for(**{"n_seeds": 3, "n_episodes": 100, "components": COMPONENTS, **arguments})
    with pytest.raises(ValueError, match=r"got shapes \(2, 3\) and \(3, 3\)"):
        smallest_detectable_difference(np.zeros((2, 3)), np.zeros((3, 3)))

"""The smallest difference between two arms that an experiment can be expected to find, done or still planned."""

from __future__ import annotations

import math

from numpy.typing import ArrayLike
from scipy import optimize, stats
from scipy.stats import qmc

from immiscible_policy.evaluation.statistics import _check_resampling
from immiscible_policy.evaluation.variance_components import (
    MeanSquares,
    VarianceComponents,
    half_width,
    paired_differences,
    variance_components,
)

_LOG2_DRAWS = 12  # of the quasi-random mean squares that a power is the mean over: 1e-4 of the answer, relative


def detectable_for(
    n_seeds: int, n_episodes: int, components: VarianceComponents, power: float = 0.8, level: float = 0.95
) -> float:
    """The smallest true difference that a planned design finds with the given power.

    Found means that the interval of `paired_difference_t` leaves 0 out; the power is of that very test, averaged over
    the mean squares that the design would give (their chi-squared distributions, by quasi-random points).

    Args:
        n_seeds: training seeds of each arm, >= 1. With 1 the answer is about those two runs, not other training seeds.
        n_episodes: evaluation episodes of each training seed, shared by all, >= 1.
        components: of the paired differences (`variance_components(a - b)`), true or estimated.
        power: in (1 - level, 1).

    Returns:
        A difference in means, in the unit of the scores, >= 0; 0 where nothing varies.

    Raises:
        ValueError: an argument out of range, or a component that the design needs is NaN.
    """
    _check_design(n_seeds, n_episodes, components, power, level)
    expected = _expected_squares(n_seeds, n_episodes, components)
    deviation = math.sqrt(float(sum(expected.parts(n_seeds, n_episodes))))
    if deviation == 0:
        return 0.0
    drawn = _drawn_squares(n_seeds, n_episodes, expected)
    halves = half_width(drawn, n_seeds, n_episodes, (1 - level) / 2)

    def missing(difference: float) -> float:
        found = stats.norm.cdf((difference - halves) / deviation) + stats.norm.cdf((-difference - halves) / deviation)
        return power - float(found.mean())

    if missing(0.0) <= 0:  # a power hardly above the rate of false alarms
        return 0.0
    return float(optimize.brentq(missing, 0.0, float(halves.max()) + 10 * deviation, rtol=1e-8))


def smallest_detectable_difference(a: ArrayLike, b: ArrayLike, power: float = 0.8, level: float = 0.95) -> float:
    """The smallest true difference in means that this very design would find with the given power.

    It takes the components from the data (`variance_components`) and the design from their shape (`detectable_for`). An
    estimate itself: from three training seeds read it as an order of magnitude.

    Args:
        a, b: (n_seeds, n_episodes) finite scores, row for row and column for column from the same seeds.
        power: in (1 - level, 1).

    Returns:
        A difference in the unit of the scores; NaN for a single value in each arm. With one training seed it is about
        these two runs.

    Raises:
        ValueError: shapes differ, bad values, or power or level out of range.
    """
    table = paired_differences(a, b)
    if table.size == 1:
        return math.nan
    n_seeds, n_episodes = table.shape
    return detectable_for(n_seeds, n_episodes, variance_components(table), power, level)


def _expected_squares(n_seeds: int, n_episodes: int, components: VarianceComponents) -> MeanSquares:
    crossed = n_seeds > 1 and n_episodes > 1
    return MeanSquares(
        seed=n_episodes * components.seed + components.residual if n_seeds > 1 else 0.0,
        episode=n_seeds * components.episode + components.residual if n_episodes > 1 else 0.0,
        residual=components.residual if crossed else 0.0,
    )


def _drawn_squares(n_seeds: int, n_episodes: int, expected: MeanSquares) -> MeanSquares:
    n_draws = 2**_LOG2_DRAWS
    # Unscrambled points are multiples of 1 / n_draws; in the middle of their cells none is 0.
    uniform = qmc.Sobol(d=3, scramble=False).random_base2(_LOG2_DRAWS).T + 0.5 / n_draws
    freedom = [max(1, n_seeds - 1), max(1, n_episodes - 1), max(1, (n_seeds - 1) * (n_episodes - 1))]
    scale = [stats.chi2.ppf(u, df) / df for u, df in zip(uniform, freedom, strict=True)]
    return MeanSquares(expected.seed * scale[0], expected.episode * scale[1], expected.residual * scale[2])


def _check_design(n_seeds: int, n_episodes: int, components: VarianceComponents, power: float, level: float) -> None:
    _check_resampling(level, n_resamples=1)
    if n_seeds < 1 or n_episodes < 1 or n_seeds * n_episodes == 1:
        raise ValueError(
            f"n_seeds and n_episodes must be at least 1 and not both 1, got {n_seeds} and {n_episodes}: "
            "a single value has no spread to test against"
        )
    if not 1 - level < power < 1:
        raise ValueError(f"power must be in (1 - level, 1) = ({1 - level:g}, 1), got {power}")
    needed = {"seed": n_seeds > 1, "episode": n_episodes > 1, "residual": True}
    for name, is_needed in needed.items():
        value = getattr(components, name)
        if is_needed and not 0 <= value < math.inf:
            raise ValueError(
                f"components.{name} must be a finite variance >= 0 to plan {n_seeds} seeds x {n_episodes} episodes, "
                f"got {value}"
                + (f": one {name} alone does not tell it" if math.isnan(value) and name != "residual" else "")
            )

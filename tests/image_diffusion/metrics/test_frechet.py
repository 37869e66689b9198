"""The Frechet distance against closed forms and the usual square root."""

import numpy as np
import pytest
import scipy.linalg

from image_diffusion.metrics.frechet import frechet_distance
from image_diffusion.metrics.statistics import FeatureStatistics


def statistics(mean: object, covariance: object) -> FeatureStatistics:
    return FeatureStatistics(1000, np.array(mean, dtype=np.float64), np.array(covariance, dtype=np.float64))


def random_statistics(seed: int, dim: int, rank: int) -> FeatureStatistics:
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(dim, rank))
    return statistics(rng.normal(size=dim), factor @ factor.T)


def test_gaussians_on_a_line():
    # (m1 - m2)^2 + (s1 - s2)^2
    assert frechet_distance(statistics([1.0], [[4.0]]), statistics([4.0], [[25.0]])) == pytest.approx(9 + 9)


def test_commuting_covariances():
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    first = rotation @ np.diag([1.0, 4.0, 9.0]) @ rotation.T
    second = rotation @ np.diag([16.0, 4.0, 0.0]) @ rotation.T
    found = frechet_distance(statistics([0, 0, 0], first), statistics([0, 2, 0], second))
    assert found == pytest.approx(4 + (1 - 4) ** 2 + 0 + 3**2)


@pytest.mark.parametrize("seed", range(5))
def test_the_square_root_of_the_product(seed):
    first, second = random_statistics(seed, 8, 20), random_statistics(seed + 100, 8, 20)
    root = scipy.linalg.sqrtm(first.covariance @ second.covariance).real
    expected = np.sum((first.mean - second.mean) ** 2) + np.trace(first.covariance + second.covariance - 2 * root)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(second, first) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("rank", [0, 1, 5, 30])
def test_a_distribution_is_at_distance_0_of_itself_also_where_it_is_flat(rank):
    same = random_statistics(3, 30, rank)
    assert 0 <= frechet_distance(same, same) < 1e-9


def test_flat_distributions_in_orthogonal_directions():
    # Without common directions the distance is the sum of both variances.
    first, second = np.zeros((4, 4)), np.zeros((4, 4))
    first[0, 0], second[1, 1] = 2.0, 3.0
    assert frechet_distance(statistics([0] * 4, first), statistics([0] * 4, second)) == pytest.approx(5.0)


def test_a_common_scale_of_features_is_squared():
    first, second = random_statistics(0, 5, 9), random_statistics(1, 5, 9)
    scaled = [statistics(1e-4 * s.mean, 1e-8 * s.covariance) for s in (first, second)]
    assert frechet_distance(*scaled) == pytest.approx(1e-8 * frechet_distance(first, second), rel=1e-9)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="equal dims, got 3 and 4"):
        frechet_distance(random_statistics(0, 3, 3), random_statistics(0, 4, 4))
    with pytest.raises(ValueError, match="finite"):
        frechet_distance(statistics([np.nan], [[1.0]]), statistics([0.0], [[1.0]]))

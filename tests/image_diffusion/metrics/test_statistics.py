"""Streaming moments: equal to NumPy's however the stream is cut, also far from 0."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from image_diffusion.metrics.statistics import RunningStatistics


def running(features: np.ndarray, sizes: list[int]) -> RunningStatistics:
    statistics = RunningStatistics(features.shape[1])
    start = 0
    for size in [*sizes, len(features)]:
        statistics.add(torch.from_numpy(features[start : start + size]))
        start = min(len(features), start + size)
    return statistics


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(2, 40),
    sizes=st.lists(st.integers(0, 17), max_size=8),
    offset=st.sampled_from([0.0, -3.0, 1e6]),
    seed=st.integers(0, 1000),
)
def test_any_batches_give_the_moments_of_the_whole(n, sizes, offset, seed):
    features = np.random.default_rng(seed).normal(offset, 2.0, (n, 3))
    found = running(features, sizes).finish()
    assert found.n == n
    assert found.dim == 3
    np.testing.assert_allclose(found.mean, features.mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(features.T), rtol=1e-7, atol=1e-9)


def test_parts_can_be_merged_and_an_empty_one_changes_nothing():
    features = np.random.default_rng(0).normal(5.0, 1.0, (30, 4))
    whole, part = running(features[:11], []), running(features[11:], [7])
    whole.merge(RunningStatistics(4))
    whole.merge(part)
    np.testing.assert_allclose(whole.finish().covariance, np.cov(features.T), rtol=1e-10)
    assert part.n == 19


def test_moments_given_out_stay_as_they_were():
    statistics = running(np.random.default_rng(0).normal(size=(5, 2)), [])
    before = statistics.finish()
    mean, covariance = before.mean.copy(), before.covariance.copy()
    statistics.add(torch.full((3, 2), 100.0))
    np.testing.assert_array_equal(before.mean, mean)
    np.testing.assert_array_equal(before.covariance, covariance)


def test_what_cannot_be_taken_in_is_refused():
    with pytest.raises(ValueError, match=r"features must be \(N, 3\), got \(4, 2\)"):
        RunningStatistics(3).add(torch.zeros(4, 2))
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        running(np.zeros((1, 2)), []).finish()
    with pytest.raises(ValueError, match="dim must be at least 1, got 0"):
        RunningStatistics(0)

"""The kernel distance against loops over pairs, and its error against repeated draws."""

import math

import numpy as np
import pytest
import torch

from image_diffusion.metrics.kid import kernel_distance, unbiased_mmd


def kernel(a: np.ndarray, b: np.ndarray) -> float:
    return (float(a @ b) / len(a) + 1.0) ** 3


def slow_mmd(x: np.ndarray, y: np.ndarray) -> float:
    n, m = len(x), len(y)
    within_x = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_y = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within_x + within_y - 2 * sum(kernel(a, b) for a in x for b in y) / (n * m)


def slow_error(x: np.ndarray, y: np.ndarray) -> float:
    variance = 0.0
    left_out = [slow_mmd(np.delete(x, i, 0), y) for i in range(len(x))]
    variance += (len(x) - 1) / len(x) * sum((value - np.mean(left_out)) ** 2 for value in left_out)
    left_out = [slow_mmd(x, np.delete(y, i, 0)) for i in range(len(y))]
    variance += (len(y) - 1) / len(y) * sum((value - np.mean(left_out)) ** 2 for value in left_out)
    return math.sqrt(variance)


def draw(n: int, dim: int = 4, shift: float = 0.0, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)) + shift


def test_all_pairs_and_the_jackknife():
    x, y = draw(9), draw(6, shift=0.5, seed=1)
    value, error = unbiased_mmd(x, y)
    assert value == pytest.approx(slow_mmd(x.double().numpy(), y.double().numpy()), rel=1e-12)
    assert error == pytest.approx(slow_error(x.double().numpy(), y.double().numpy()), rel=1e-9)


def test_subsets_of_everything_are_everything():
    x, y = draw(8), draw(8, shift=0.5, seed=1)
    found = kernel_distance(x, y, n_subsets=3, subset_size=8)
    assert found.value == pytest.approx(found.full, rel=1e-12)
    assert found.subset_deviation == pytest.approx(0.0, abs=1e-12)
    assert found.standard_error == pytest.approx(found.full_standard_error)


def test_subsets_are_seeded_and_average_to_the_whole():
    x, y = draw(40), draw(30, shift=0.5, seed=1)
    found = kernel_distance(x, y, n_subsets=100, subset_size=10, seed=3)
    assert found == kernel_distance(x, y, n_subsets=100, subset_size=10, seed=3)
    assert found.value != kernel_distance(x, y, n_subsets=100, subset_size=10, seed=4).value
    assert abs(found.value - found.full) < 4 * found.subset_deviation / 10
    expected = math.hypot(found.full_standard_error, found.subset_deviation / 10)
    assert found.standard_error == pytest.approx(expected)


def test_equal_distributions_are_at_0_on_average_and_the_error_is_the_spread():
    equal = [unbiased_mmd(draw(50, seed=2 * i), draw(50, seed=2 * i + 1)) for i in range(60)]
    values = np.array([value for value, _ in equal])
    assert abs(values.mean()) < 3.5 * values.std() / math.sqrt(60)
    assert values.min() < 0
    apart = [unbiased_mmd(draw(50, seed=2 * i), draw(50, shift=0.7, seed=2 * i + 1)) for i in range(60)]
    spread = np.std([value for value, _ in apart])
    assert np.mean([error for _, error in apart]) == pytest.approx(spread, rel=0.3)


def test_arguments_out_of_range_are_refused():
    x, y = draw(8), draw(5)
    with pytest.raises(ValueError, match="kid_subset_size must be from 2 to the smaller set's 5 images, got 6"):
        kernel_distance(x, y, subset_size=6)
    with pytest.raises(ValueError, match="at least 3 images on either side, got 2"):
        kernel_distance(x, y[:2], subset_size=2)
    with pytest.raises(ValueError, match="kid_subsets must be at least 2, got 1"):
        kernel_distance(x, y, n_subsets=1, subset_size=3)

"""Regressions of noise on what it should not depend on, and class means against their sampling null."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from immiscible_policy.coupling.skew import (
    class_shift,
    explained_share,
    leading_components,
    predicted_data,
    regressors_of,
    share_explained_by,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_explained_share_finds_the_known_share():
    """n = a x + sqrt(1 - a^2) z: the data explain a^2."""
    x, z = normal(4_000, 8).double(), normal(4_000, 8, seed=1).double()
    valid = torch.ones(4_000, 8, dtype=torch.bool)
    for a in (0.0, 0.3, 0.8, 1.0):
        found = explained_share(x, a * x + math.sqrt(1 - a * a) * z, valid)
        assert found == pytest.approx(a * a, abs=0.02)


def test_explained_share_is_unbiased_for_independent_noise_even_in_small_masked_batches():
    """Many batches of 24 with 6 regressors, of which chance alone explains a quarter."""
    torch.manual_seed(0)
    shares = []
    for _ in range(400):
        valid = torch.rand(24, 5) < torch.linspace(0.2, 1.0, 24)[:, None]
        noise = (torch.randn(24, 5, dtype=torch.float64) + 0.5).masked_fill(~valid, 0.0)
        shares.append(explained_share(torch.randn(24, 40, dtype=torch.float64), noise, valid))
    standard_error = np.std(shares) / math.sqrt(len(shares))
    assert np.mean(shares) == pytest.approx(0.0, abs=4 * standard_error)
    assert standard_error < 0.01


def test_explained_share_equals_the_adjusted_r_squared_for_equal_rows():
    rows, regressors = 64, 5
    x = normal(rows, regressors).double()
    # +-1 noise with zero column sums: all centred rows have the same norm.
    noise = torch.stack(
        [torch.randperm(rows, generator=torch.Generator().manual_seed(s)) % 2 * 2.0 - 1.0 for s in range(7)], 1
    ).double()
    design = torch.cat((torch.ones(rows, 1, dtype=torch.float64), x), 1)
    residual = noise - design @ torch.linalg.lstsq(design, noise).solution
    r_squared = 1 - float(residual.square().sum() / noise.square().sum())
    adjusted = 1 - (1 - r_squared) * (rows - 1) / (rows - 1 - regressors)
    assert explained_share(x, noise, torch.ones_like(noise, dtype=torch.bool)) == pytest.approx(adjusted, abs=1e-10)


@pytest.mark.parametrize("shape", [(40, 7), (40, 200), (40, 40)])
def test_leading_components_are_those_of_an_svd(shape):
    """Tall and wide regressors take different ways."""
    regressors = normal(*shape).double() @ torch.diag(torch.linspace(3, 1, shape[1], dtype=torch.float64)) + 5.0
    basis = leading_components(regressors, 6)
    scores, _, _ = torch.linalg.svd(regressors - regressors.mean(0), full_matrices=False)
    assert basis.shape == (40, 6)
    torch.testing.assert_close(basis.T @ basis, torch.eye(6, dtype=torch.float64))
    torch.testing.assert_close(basis @ basis.T, scores[:, :6] @ scores[:, :6].T)


@pytest.mark.parametrize("columns", [5, 60])
def test_leading_components_leave_out_what_is_constant_or_repeated(columns):
    one = normal(40, 1).double()
    assert leading_components(torch.full((40, columns), 1e3), 10).shape == (40, 0)
    assert leading_components(1e3 + one.expand(40, columns), 10).shape == (40, 1)


def test_share_of_a_basis_is_that_of_its_regressors_with_and_without_mask():
    x, noise = normal(80, 5).double(), normal(80, 3, seed=1) + normal(80, 5)[:, :3]
    everything = torch.ones(80, 3, dtype=torch.bool)
    expected = explained_share(x, noise, everything)
    assert expected > 0.3
    assert share_explained_by(leading_components(x, 20), noise) == pytest.approx(expected, rel=1e-9)


def test_predicted_data_of_labels_are_class_means():
    data, labels = normal(60, 2, 3), torch.arange(60) % 4
    data[labels == 2] += 3.0
    predicted = predicted_data(data, labels)
    for label in range(4):
        mean = data[labels == label].mean(0).flatten()
        torch.testing.assert_close(predicted[labels == label], mean.expand(15, 6))


def test_predicted_data_of_vectors_are_a_linear_regression():
    condition = normal(100, 2, 2)
    weights = normal(4, 3, seed=1)
    data = condition.flatten(1) @ weights + 2.0
    torch.testing.assert_close(predicted_data(data, condition), data)
    noisy = data + normal(100, 3, seed=2)
    design = torch.cat((torch.ones(100, 1), condition.flatten(1)), 1)
    torch.testing.assert_close(predicted_data(noisy, condition), design @ torch.linalg.lstsq(design, noisy).solution)


def test_regressors_keep_vectors_and_spread_labels():
    assert torch.equal(regressors_of(torch.tensor([7, 3, 7])), torch.tensor([[0, 1], [1, 0], [0, 1]]).double())
    assert regressors_of(torch.zeros(4, 2, 3)).shape == (4, 6)
    assert regressors_of(torch.tensor([0.5, 1.5])).shape == (2, 1)


def test_class_shift_of_independent_noise_has_its_null_law():
    """p-values uniform, and distances as expected, for classes of unequal sizes."""
    labels = torch.tensor([0] * 10 + [1] * 30 + [2] * 60)
    shifts = [class_shift(2.0 * normal(100, 6, seed=s) + 1.0, labels) for s in range(400)]
    assert stats.kstest([s.p_value for s in shifts], "uniform").pvalue > 1e-3
    square = np.square([s.distances for s in shifts]).mean(0)
    expected = 4.0 * 6 * (1 / np.array([10, 30, 60]) - 1 / 100)
    np.testing.assert_allclose(square, expected, rtol=0.15)
    np.testing.assert_allclose(np.square([s.expected for s in shifts]).mean(0), expected, rtol=0.02)
    excess = np.mean([np.average(np.square(s.distances) - np.square(s.expected), weights=s.counts) for s in shifts])
    assert abs(excess) < 0.03


def test_class_shift_finds_a_known_shift():
    labels = torch.arange(9_000) % 3
    shift = torch.tensor([[0.3, 0.0], [0.0, 0.0], [-0.3, 0.0]])[labels]
    found = class_shift((normal(9_000, 2) + shift).view(9_000, 1, 2), labels)
    assert found.labels == (0, 1, 2)
    assert found.counts == (3_000,) * 3
    assert found.distances == pytest.approx((0.3, 0.0, 0.3), abs=0.06)
    assert found.shift == pytest.approx(0.3 * math.sqrt(2 / 3), abs=0.04)
    assert found.p_value < 1e-9


def test_class_shift_counts_all_rows_of_many_blocks():
    noise, labels = normal(5_000, 3), torch.randint(0, 4, (5_000,), generator=torch.Generator().manual_seed(1))
    found = class_shift(noise, labels)
    for label, distance in zip(found.labels, found.distances, strict=True):
        direct = (noise[labels == label].double().mean(0) - noise.double().mean(0)).norm()
        assert distance == pytest.approx(float(direct), rel=1e-9)
    within = sum(float((noise[labels == c].double().var(0) * ((labels == c).sum() - 1)).sum()) for c in range(4))
    variance = within / (4_996 * 3)
    count = int((labels == 2).sum())
    assert found.expected[2] == pytest.approx(math.sqrt(variance * 3 * (1 / count - 1 / 5_000)), rel=1e-9)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(4), r"labels must be \(B,\) integers with B=4, got torch.float32"),
        (torch.zeros(3, dtype=torch.long), r"labels must be \(B,\) integers with B=4, got torch.int64 of shape \(3,\)"),
        (torch.ones(4, dtype=torch.long), r"labels must name at least two classes, got \[1\]"),
    ],
)
def test_labels_that_are_none_are_named(labels, message):
    with pytest.raises(ValueError, match=message):
        class_shift(torch.zeros(4, 2), labels)

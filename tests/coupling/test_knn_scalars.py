"""The scalars of candidates: chi-square draws, the largest of k-1 normals, the winner."""

import numpy as np
import pytest
import torch
from scipy import stats

from immiscible_policy.coupling._knn_scalars import chi_square, largest_of_others, winner

P_VALUE = 1e-4


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dof", [1, 2, 31, 499, 500, 3071])
def test_chi_square_law(dof, dtype):
    draws = chi_square(dof, (20_000, 2), torch.empty(0, dtype=dtype), generator(dof))
    assert draws.dtype == dtype
    assert stats.kstest(draws.flatten().double().numpy(), stats.chi2(dof).cdf).pvalue > P_VALUE


@pytest.mark.parametrize("dof", [500, 3071, 200_000])
def test_many_degrees_of_freedom_are_quantiles_of_normals_to_rounding(dof):
    """What float32 itself costs r^2, half a unit in the last place, is the yardstick."""
    draws = chi_square(dof, (50_000, 1), torch.empty(0), generator(0)).double().numpy()[:, 0]
    z = torch.randn(50_000, 1, generator=generator(0)).double().numpy()[:, 0]
    quantile = np.where(z < 0, stats.chi2.ppf(stats.norm.cdf(z), dof), stats.chi2.isf(stats.norm.sf(z), dof))
    assert np.abs(draws - quantile).max() <= 2.0 * np.spacing(np.float32(dof)) + 1e-6 * np.sqrt(2 * dof)


def test_degrees_of_freedom_of_each_row():
    dof = (torch.arange(30_000) % 4)[:, None] - 1
    draws = chi_square(dof, (30_000, 2), torch.empty(0), generator(1))
    assert (draws[(dof < 1)[:, 0]] == 0).all()
    for value in (1, 2):
        rows = draws[(dof == value)[:, 0]].flatten().numpy()
        assert stats.kstest(rows, stats.chi2(value).cdf).pvalue > P_VALUE
    assert (chi_square(0, (3, 2), torch.empty(0), None) == 0).all()


@pytest.mark.parametrize("k", [1.2, 2, 3.5, 8, 9, 64, 1e6])
def test_the_largest_of_the_others(k):
    draws = largest_of_others(k, torch.empty(20_000, 1), generator(2)).double().numpy()[:, 0]
    levels = np.exp((k - 1) * stats.norm.logcdf(draws))
    assert stats.kstest(levels, "uniform").pvalue > P_VALUE


def test_the_winner_costs_least():
    cost = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 4.0]])
    assert winner(cost, 1, None).tolist() == [[1], [0]]
    chosen = torch.cat([winner(cost, 2, generator(seed)) for seed in range(200)], 1)
    assert set(chosen[0].tolist()) == {1, 2}
    assert set(chosen[1].tolist()) == {0, 2}
    for row, cheapest in zip(chosen, (1, 0), strict=True):
        assert stats.binomtest(int((row == cheapest).sum()), 200).pvalue > P_VALUE

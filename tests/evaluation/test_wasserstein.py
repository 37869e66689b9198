"""The distance of point sets, against closed forms, with and without prices from a subset."""

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from immiscible_policy.evaluation import wasserstein
from immiscible_policy.evaluation.wasserstein import squared_wasserstein


def normal(n: int, dims: int, seed: int) -> torch.Tensor:
    return torch.randn(n, dims, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=[1000, 40], ids=["plain", "prices"])
def subset(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(wasserstein, "_SUBSET", request.param)
    return request.param


@pytest.mark.parametrize("dims", [1, 2, 5])
def test_the_distance_of_shifted_points_is_the_shift(dims: int, subset: int) -> None:
    points = normal(200, dims, 0)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    assert squared_wasserstein(points, points[order] + 3.0) == pytest.approx(9 * dims, rel=1e-5)
    assert squared_wasserstein(points, points[order]) == pytest.approx(0, abs=1e-12)


def test_the_distance_on_a_line_pairs_sorted_points(subset: int) -> None:
    a, b = normal(500, 1, 2), 2 * normal(500, 1, 3) + 1
    expected = float((a[:, 0].double().sort().values - b[:, 0].double().sort().values).square().mean())
    assert squared_wasserstein(a, b) == pytest.approx(expected, rel=1e-9)
    assert expected == pytest.approx(1 + 1, rel=0.2)  # squared differences of the means and of the deviations


@pytest.mark.parametrize("shift", [0.0, 4.0])
def test_the_distance_is_scipys(shift: float, subset: int) -> None:
    a, b = normal(300, 2, 4), 0.3 * normal(300, 2, 5) + shift
    cost = cdist(a.double(), b.double(), "sqeuclidean")
    assert squared_wasserstein(a, b) == pytest.approx(cost[linear_sum_assignment(cost)].mean(), rel=1e-9)


def test_row_values_and_prices_are_the_dual_of_the_optimum() -> None:
    cost = cdist(normal(60, 2, 6).double(), normal(60, 2, 7).double() + 1, "sqeuclidean")
    _, columns = linear_sum_assignment(cost)
    values = wasserstein._row_values(cost, columns)
    prices = (cost - values[:, None]).min(0)
    assert np.all(values[:, None] + prices <= cost + 1e-9)
    assert values.sum() + prices.sum() == pytest.approx(cost[np.arange(60), columns].sum())


def test_equal_points_have_distance_0(subset: int) -> None:
    assert squared_wasserstein(torch.ones(100, 2), torch.ones(100, 2)) == 0.0
    assert squared_wasserstein(torch.ones(1, 2), torch.zeros(1, 2)) == 2.0


def test_what_is_no_points_is_refused() -> None:
    for a, b in ((torch.zeros(3, 2), torch.zeros(4, 2)), (torch.zeros(3), torch.zeros(3)), (torch.zeros(0, 2),) * 2):
        with pytest.raises(ValueError, match="one shape"):
            squared_wasserstein(a, b)
    with pytest.raises(ArithmeticError, match="finite"):
        squared_wasserstein(torch.full((3, 2), torch.nan), torch.zeros(3, 2))

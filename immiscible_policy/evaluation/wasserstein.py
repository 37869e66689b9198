"""The exact Wasserstein distance of two large sets of points in few dimensions."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from torch import Tensor

_SUBSET = 1000  # points whose optimum tells the prices


def squared_wasserstein(a: Tensor, b: Tensor) -> float:
    """Squared 2-Wasserstein distance of two sets of n points (n, D) each: the mean cost of the best pairs, exactly.

    By scipy's ``linear_sum_assignment``, in O(n^2) memory (10,000 points: 0.8 GB). Where the sets lie apart its
    search is long, so the cost of each point of ``b`` is first lowered by a price that the optimum of a random subset
    gives it: a term of a column alone does not change who is paired with whom. 10,000 points in the plane take about a
    minute.

    Raises:
        ValueError: sets of different shapes. ArithmeticError: NaN or infinite points.
    """
    if a.shape != b.shape or a.ndim != 2 or not len(a):
        raise ValueError(f"a and b must be (n, D) points of one shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    if not (bool(a.isfinite().all()) and bool(b.isfinite().all())):
        raise ArithmeticError("points must be finite, got NaN or infinity")
    first, second = a.double().numpy(), b.double().numpy()
    cost = cdist(first, second, "sqeuclidean")
    if len(first) > 2 * _SUBSET:
        bound = cost.min(1).sum()
        prices = _prices(first, second)
        cost -= prices
        # Both are lower bounds of the optimum; the higher one is nearer, and its search shorter.
        if cost.min(1).sum() + prices.sum() < bound:
            cost += prices
    rows, columns = linear_sum_assignment(cost)
    return float(np.square(first[rows] - second[columns]).sum(1).mean())


def _prices(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n,) prices of the points of ``b``: the optimal ones of random subsets of both, continued to all points."""
    rng = np.random.default_rng(0)
    some_a, some_b = (points[rng.permutation(len(points))[:_SUBSET]] for points in (a, b))
    cost = cdist(some_a, some_b, "sqeuclidean")
    _, columns = linear_sum_assignment(cost)
    values = _row_values(cost, columns)
    parts = np.array_split(b, -(-len(b) // _SUBSET))
    return np.concatenate([(cdist(some_a, part, "sqeuclidean") - values[:, None]).min(0) for part in parts])


def _row_values(cost: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """(n,) row values u of an optimal assignment's dual: with prices v, u_i + v_j <= cost_ij, equal for the pairs.

    Bellman and Ford's shortest paths: column j is reached from row i, whose own column then is to be paid for.
    """
    paid = cost[np.arange(len(cost)), columns]
    extra = cost - paid[:, None]
    prices = np.zeros(len(cost))
    for _ in range(len(cost)):
        lower = np.minimum(prices, (extra + prices[columns][:, None]).min(0))
        if np.array_equal(lower, prices):
            break
        prices = lower
    return paid - prices[columns]

"""Solvers of the linear assignment problem: each datum gets a noise of its own at the least total cost."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Solver = Callable[[Tensor], Tensor]
"""``solver(cost (B, P) with P >= B, finite) -> (B,) int64``: for each row a column of its own, on cost's device."""


def exact(cost: Tensor) -> Tensor:
    """The optimum, by scipy's ``linear_sum_assignment`` on the CPU; O(B^3) in the worst case."""
    from scipy.optimize import linear_sum_assignment  # costs a quarter of a second to import

    # Rows are data and columns noise: scipy solves this orientation faster than its transpose.
    _, columns = linear_sum_assignment(cost.cpu().numpy())
    return torch.from_numpy(columns).to(cost.device)


SOLVERS: dict[str, Solver] = {"exact": exact}

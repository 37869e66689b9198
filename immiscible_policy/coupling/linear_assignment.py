"""Linear assignment: the batch's noises are dealt to its samples at the least total distance.

"Immiscible Diffusion" (Li et al., NeurIPS 2024), section 3.2, Algorithm 1, line "assign"; solved on the
CPU by scipy's ``linear_sum_assignment`` in O(B^3) worst case.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from immiscible_policy.coupling import solvers
from immiscible_policy.coupling._checks import compute_dtype, flat_mask, flat_rows
from immiscible_policy.coupling.base import Context, Coupling

_COST_DTYPES = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}
_FLOAT64_UP_TO_DIMS = 64


@dataclass(frozen=True, repr=False)
class LinearAssignment(Coupling):
    """Permutes the batch's noise so that the total distance of the pairs is least.

    The result is always a permutation of the rows of the given (or drawn) noise. As a batch it is the
    very same set of Gaussian draws, so its mean, variance and norms are untouched; what changes is who
    meets whom, and so p(noise | sample). A batch of one passes through.

    With ``mask`` the cost of a pair counts the sample's valid entries only, but whole noise rows move.
    The set of rows is still the Gaussian draw. If every sample has the same mask, so are its valid
    entries; with masks that differ between samples the draws that land on the valid entries are
    selected: large entries cost nothing under padding, so they gather there (variance 0.94 on valid and
    1.20 on padded entries at B=64, 16x2 actions of which 0 to 7 steps are padding).

    Args:
        metric: "l2" is the published cost, the unsquared Euclidean distance. "sqeuclidean" solves for
            the squared distance through the cost -<x_i, n_j> (terms of the row or the column alone do
            not change the optimum): about the same pairs' distance, several times faster. "l1" is the
            sum of absolute differences.
        cost_dtype: precision of the cost matrix. "fp32": float32 at least. "fp16" and "bf16" round as
            the published code does: data and noise are rounded to that dtype, distances are
            accumulated in float32, and the resulting cost is rounded to that dtype (bf16 keeps 8 bits,
            so that many L2 costs tie). Where costs exceed the range of fp16 they are first scaled by a
            power of two, which does not change the optimum; entries of data beyond 65504 are an error.

    Raises:
        ValueError: on construction for an unknown ``metric`` or ``cost_dtype``; on call where the cost
            is not finite.
    """

    metric: Literal["l2", "sqeuclidean", "l1"] = "l2"
    cost_dtype: Literal["fp32", "fp16", "bf16"] = "fp32"

    def __post_init__(self) -> None:
        if self.metric not in ("l2", "sqeuclidean", "l1"):
            raise ValueError(f"metric must be 'l2', 'sqeuclidean' or 'l1', got {self.metric!r}")
        if self.cost_dtype not in _COST_DTYPES:
            raise ValueError(f"cost_dtype must be 'fp32', 'fp16' or 'bf16', got {self.cost_dtype!r}")

    def _couple(self, data: Tensor, noise: Tensor | None, context: Context) -> Tensor:
        noise = self._drawn(data, noise, context)
        if data.shape[0] == 1:
            return noise
        cost = self._cost(data, noise, context.mask)
        if not bool(torch.isfinite(cost).all()):
            raise ValueError(
                f"cost of data against noise must be finite, got {int((~torch.isfinite(cost)).sum())} NaN or "
                f"infinite of {cost.numel()} entries: normalise data, or use cost_dtype='fp32' "
                f"(now {self.cost_dtype!r})"
            )
        return noise[solvers.exact(cost)]

    def _cost(self, data: Tensor, noise: Tensor, mask: Tensor | None) -> Tensor:
        """(B, B) cost of sample i (row) with noise j (column), up to what leaves the optimum alone."""
        valid = flat_mask(mask, data)
        rounded = _COST_DTYPES[self.cost_dtype]
        dtype = compute_dtype(data)
        if data[0].numel() <= _FLOAT64_UP_TO_DIMS:
            # The matmul form cancels where distances are short, as in low dimension; there this is free.
            dtype = torch.float64
        x, n = flat_rows(data, dtype), flat_rows(noise, dtype)
        if valid is not None:
            x = x.masked_fill(~valid, 0.0)
        if rounded is not None:
            x, n = x.to(rounded).to(dtype), n.to(rounded).to(dtype)
        ignored = None if valid is None else (~valid).to(dtype)
        cost = _PAIRWISE[self.metric](x, n, ignored)
        return cost if rounded is None else _round_cost(cost, rounded)


def _inner_product_cost(x: Tensor, n: Tensor, ignored: Tensor | None) -> Tensor:
    """Half the squared distance without the terms that belong to a row or a column alone."""
    cost = torch.matmul(x, n.T).neg_()
    if ignored is not None:
        # |n_j|^2 over the entries valid for sample i is no longer a term of the column alone.
        cost.addmm_(ignored, n.square().T, alpha=-0.5)
    return cost


def _l2_cost(x: Tensor, n: Tensor, ignored: Tensor | None) -> Tensor:
    squared = torch.matmul(x, n.T).mul_(-2.0)
    squared += n.square().sum(1)
    squared += x.square().sum(1, keepdim=True)
    if ignored is not None:
        squared.addmm_(ignored, n.square().T, alpha=-1.0)
    return squared.clamp_min_(0.0).sqrt_()


def _l1_cost(x: Tensor, n: Tensor, ignored: Tensor | None) -> Tensor:
    cost = torch.cdist(x, n, p=1.0)
    if ignored is not None:
        # x is 0 at ignored entries, so that each added |n| there; take it off again.
        cost.addmm_(ignored, n.abs().T, alpha=-1.0)
    return cost


_PAIRWISE = {"l2": _l2_cost, "sqeuclidean": _inner_product_cost, "l1": _l1_cost}


def _round_cost(cost: Tensor, dtype: torch.dtype) -> Tensor:
    """Round the cost to ``dtype``, kept in range by a power of two; back in float32 for scipy."""
    largest = float(cost.abs().max())
    limit = torch.finfo(dtype).max
    if np.isfinite(largest) and largest > limit:
        cost = cost * 2.0 ** -np.ceil(np.log2(largest / limit))
    return cost.to(dtype).to(torch.float32)

"""Pairwise costs of data against noise, and of conditions against conditions, without the (B, P, D) differences."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from immiscible_policy.coupling._checks import compute_dtype

METRICS = ("l2", "sqeuclidean", "l1", "inner")
CONDITION_METRICS = ("sqeuclidean", "l2", "cosine")

_FLOAT64_UP_TO_DIMS = 64
_SMALLEST_DEVIATION = 1e-6


def pairwise_cost(
    data: Tensor,
    noise: Tensor,
    metric: str,
    mask: Tensor | None = None,
    *,
    input_dtype: torch.dtype | None = None,
    drop_constants: bool = False,
) -> Tensor:
    """Cost of every sample (row) with every noise (column), over the entries valid for the sample.

    Args:
        data: (B, ...) floats; entries that do not count may hold anything.
        noise: (P, ...) floats with data's trailing shape, P >= 0.
        metric: "l2" |x - n|, "sqeuclidean" |x - n|^2, "l1" sum |x - n|, or "inner" -<x, n>.
        mask: bool, broadcastable to ``data``, True where the entry counts.
        input_dtype: half precision that data and noise are rounded to first.
        drop_constants: leave out factors and terms of a row or a column alone, which do not change an
            assignment that takes every column: "sqeuclidean" without the squared norms, halved, which
            is one matrix product. Not for P > B, where |n|^2 decides which columns are taken.

    Returns:
        (B, P) costs in float32, or float64 for float64 data and for up to 64 entries a row, where the
        matrix products would cancel at short distances and the higher precision costs nothing.
    """
    dtype = compute_dtype(data)
    if math.prod(data.shape[1:]) <= _FLOAT64_UP_TO_DIMS:
        dtype = torch.float64
    x, n = as_rows(data).to(dtype), as_rows(noise).to(dtype)
    valid = None if mask is None else as_rows(mask.expand(data.shape))
    if valid is not None:
        x = x.masked_fill(~valid, 0.0)
    if input_dtype is not None:
        x, n = x.to(input_dtype).to(dtype), n.to(input_dtype).to(dtype)
    ignored = None if valid is None else (~valid).to(dtype)
    if metric == "inner":
        return torch.matmul(x, n.T).neg_()
    if metric == "l1":
        return _l1(x, n, ignored)
    if metric == "sqeuclidean" and drop_constants:
        return _half_squared_up_to_norms(x, n, ignored)
    squared = _squared(x, n, ignored)
    return squared if metric == "sqeuclidean" else squared.sqrt_()


def round_cost(cost: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Round a cost to half precision ``dtype`` and return it in float32; None leaves it as it is.

    Costs beyond the range of ``dtype`` are scaled by a power of two for the rounding, and back.
    """
    if dtype is None or cost.numel() == 0:
        return cost
    largest = float(cost.abs().max())
    limit = torch.finfo(dtype).max
    scale = 1.0
    if math.isfinite(largest) and largest > limit:
        scale = 2.0 ** math.ceil(math.log2(largest / limit))
    return (cost / scale).to(dtype).to(torch.float32) * scale


def condition_cost(condition: Tensor, other: Tensor, metric: str) -> Tensor:
    """(B, P) cost of conditions (B, ...) against conditions (P, ...) of the same kind.

    Integer and bool conditions are labels: 0 where all entries are equal, else 1. Floats are vectors:
    "sqeuclidean" |c - c'|^2, "l2" |c - c'|, "cosine" 1 - <c, c'> / (|c| |c'|), where a vector of zeros
    has cost 1 to everything but zeros.
    """
    if not condition.dtype.is_floating_point:
        classes = class_ids(torch.cat((condition, other)))
        return (classes[: len(condition), None] != classes[None, len(condition) :]).to(torch.float32)
    if metric != "cosine":
        return pairwise_cost(condition, other, metric)
    dtype = torch.promote_types(condition.dtype, torch.float32)
    a, b = (torch.nn.functional.normalize(as_rows(c).to(dtype), dim=1) for c in (condition, other))
    both_zero = ~a.any(1)[:, None] & ~b.any(1)[None]
    return (1.0 - a @ b.T).clamp_min_(0.0).masked_fill_(both_zero, 0.0)


def class_ids(condition: Tensor) -> Tensor:
    """(B,) int64: which rows of a (B, ...) condition are equal, as numbers 0, 1, ..."""
    rows = as_rows(condition)
    if rows.numel() == 0:
        return torch.zeros(rows.shape[0], dtype=torch.int64, device=rows.device)
    if rows.shape[1] == 1:
        return torch.unique(rows[:, 0], return_inverse=True)[1]
    return torch.unique(rows, dim=0, return_inverse=True)[1]


def as_rows(tensor: Tensor) -> Tensor:
    """(B, ...) as (B, D), for any B and D down to 0."""
    return tensor.reshape(tensor.shape[0], math.prod(tensor.shape[1:]))


def moments(rows: Tensor, valid: Tensor | None = None) -> Tensor:
    """(3, D) float64: number, mean and sum of squared deviations of each coordinate of (B, D) rows."""
    rows = rows.double()
    if valid is None:
        count = torch.full(rows.shape[1:], float(rows.shape[0]), dtype=torch.float64, device=rows.device)
    else:
        rows, count = rows.masked_fill(~valid, 0.0), valid.sum(0).double()
    mean = rows.sum(0) / count.clamp_min(1.0)
    deviation = rows - mean
    if valid is not None:
        deviation.masked_fill_(~valid, 0.0)
    return torch.stack((count, mean, deviation.square_().sum(0)))


def pooled_moments(parts: Tensor) -> Tensor:
    """(3, D) moments of the rows behind all of (W, 3, D) ``parts`` together (Chan et al. 1979)."""
    counts, means, squares = parts.unbind(1)
    count = counts.sum(0)
    mean = (counts * means).sum(0) / count.clamp_min(1.0)
    return torch.stack((count, mean, (squares + counts * (means - mean).square()).sum(0)))


def standardised(rows: Tensor, of: Tensor) -> Tensor:
    """(B, D) float64 rows less the mean, over the population standard deviation (at least 1e-6) of moments ``of``."""
    count, mean, squares = of
    deviation = (squares / count.clamp_min(1.0)).sqrt_().clamp_min_(_SMALLEST_DEVIATION)
    return (rows.double() - mean) / deviation


def _half_squared_up_to_norms(x: Tensor, n: Tensor, ignored: Tensor | None) -> Tensor:
    cost = torch.matmul(x, n.T).neg_()
    if ignored is not None:
        # |n_j|^2 over the entries valid for sample i is no longer a term of the column alone.
        cost.addmm_(ignored, n.square().T, alpha=-0.5)
    return cost


def _squared(x: Tensor, n: Tensor, ignored: Tensor | None) -> Tensor:
    squared = torch.matmul(x, n.T).mul_(-2.0)
    squared += n.square().sum(1)
    squared += x.square().sum(1, keepdim=True)
    if ignored is not None:
        squared.addmm_(ignored, n.square().T, alpha=-1.0)
    return squared.clamp_min_(0.0)


def _l1(x: Tensor, n: Tensor, ignored: Tensor | None) -> Tensor:
    cost = torch.cdist(x, n, p=1.0)
    if ignored is not None:
        # x is 0 at ignored entries, so that each added |n| there; take it off again.
        cost.addmm_(ignored, n.abs().T, alpha=-1.0)
    return cost

"""Candidates drawn one after the other, the best kept in place: any cost, any source, O(B*D) memory.

Rows are worked through in blocks that stay in a processor's cache while all their candidates pass by.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from immiscible_policy.coupling._knn_rows import Rows

Metric = Callable[[Tensor, Tensor], Tensor]
"""``metric(data (b, ...), noise (b, ...)) -> (b,) cost`` for each row on its own, lower is nearer, NaN farthest."""


def nearest(
    rows: Rows,
    weight: Tensor | None,
    metric: str | Metric,
    k: int,
    pick: int,
    draw: Callable[[tuple[int, ...], Tensor], Tensor],
    generator: torch.Generator | None,
    out: Tensor | None,
) -> Tensor:
    """One of the ``pick`` best of the noise and k-1 further draws.

    Args:
        weight: (1, D) of the entries, 0 where they take no part; None where all count the same.
        draw: ``draw(shape, like)`` gives noise with dtype and device of ``like``, rows independent.
        out: (B, ...) contiguous memory of the result, which may be the noise itself; None for new memory.
    """
    noise = rows.noise
    out = torch.empty(noise.shape, dtype=noise.dtype, device=noise.device) if out is None else out
    flat = out.view(out.shape[0], -1)
    sample = tuple(noise.shape[1:])
    for block in rows.blocks_for(3 + pick):
        first, valid = rows.n(block), rows.valid(block)
        counts = _counts(valid, weight)
        x = rows.x(block) if counts is None else rows.x(block).masked_fill(~counts, 0.0)
        cost = _custom(metric, x, counts, sample) if callable(metric) else _COSTS[metric](x, _factor(valid, weight, x))
        candidates = (draw((x.shape[0], *sample), x).reshape(x.shape) for _ in range(k - 1))
        best = _best(first.to(x.dtype), cost, candidates, pick, generator)
        best = best.to(noise.dtype)
        flat[block].copy_(best if counts is None else torch.where(counts, best, first))
    return out


def _best(
    first: Tensor,
    cost: Callable[[Tensor], Tensor],
    candidates: Iterable[Tensor],
    pick: int,
    generator: torch.Generator | None,
) -> Tensor:
    """A uniformly chosen one of the ``pick`` cheapest of ``first`` (b, D) and candidates; earlier ones win ties."""
    batch = first.shape[0]
    kept = first.unsqueeze(0).repeat(pick, 1, 1)
    costs = torch.full((pick, batch), math.inf, dtype=first.dtype, device=first.device)
    costs[0] = cost(first)
    for candidate in candidates:
        candidate_cost = cost(candidate)
        if pick == 1:
            replaced = candidate_cost < costs
        else:
            dearest = costs.argmax(0, keepdim=True)
            replaced = torch.zeros_like(costs, dtype=torch.bool).scatter_(0, dearest, True)
            replaced &= candidate_cost < costs
        torch.where(replaced.unsqueeze(2), candidate, kept, out=kept)
        torch.where(replaced, candidate_cost, costs, out=costs)
    if pick == 1:
        return kept[0]
    chosen = torch.randint(pick, (batch,), generator=generator, device=first.device)
    return kept[chosen, torch.arange(batch, device=first.device)]


def _counts(valid: Tensor | None, weight: Tensor | None) -> Tensor | None:
    """(b or 1, D) bool, True where the entry takes part; None where all do."""
    if weight is None:
        return valid
    return weight > 0 if valid is None else (weight > 0) & valid


def _factor(valid: Tensor | None, weight: Tensor | None, x: Tensor) -> Tensor | None:
    """(b or 1, D) weights of the entries of x."""
    if weight is None:
        return None if valid is None else valid.to(x.dtype)
    weight = weight.to(x.dtype)
    return weight if valid is None else weight * valid


def _custom(metric: Metric, x: Tensor, counts: Tensor | None, sample: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    shaped = x.view(x.shape[0], *sample)

    def cost(candidate: Tensor) -> Tensor:
        shown = candidate if counts is None else candidate.masked_fill(~counts, 0.0)
        result = metric(shaped, shown.view(shaped.shape))
        if not isinstance(result, Tensor) or tuple(result.shape) != (x.shape[0],):
            found = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
            raise ValueError(f"metric must return one cost per row, a tensor of shape ({x.shape[0]},); got {found}")
        return result.to(x.dtype).nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf)

    return cost


def _l2(x: Tensor, factor: Tensor | None) -> Callable[[Tensor], Tensor]:
    root = None if factor is None else factor.sqrt()

    def cost(candidate: Tensor) -> Tensor:
        difference = x - candidate
        return torch.linalg.vector_norm(difference if root is None else difference.mul_(root), dim=1)

    return cost


def _l1(x: Tensor, factor: Tensor | None) -> Callable[[Tensor], Tensor]:
    def cost(candidate: Tensor) -> Tensor:
        difference = x - candidate
        return torch.linalg.vector_norm(difference if factor is None else difference.mul_(factor), ord=1, dim=1)

    return cost


def _inner(x: Tensor, factor: Tensor | None) -> Callable[[Tensor], Tensor]:
    direction = x.neg() if factor is None else -x * factor
    return lambda candidate: (direction * candidate).sum(1)


def _cosine(x: Tensor, factor: Tensor | None) -> Callable[[Tensor], Tensor]:
    root = None if factor is None else factor.sqrt()
    product = _inner(x, factor)

    def cost(candidate: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(candidate if root is None else candidate * root, dim=1)
        return product(candidate) / length.clamp_min_(torch.finfo(x.dtype).tiny)

    return cost


_COSTS = {"l2": _l2, "l1": _l1, "inner": _inner, "cosine": _cosine}

"""Exact sampling of the winner among k Gaussian candidates from one draw and k scalars.

Split a draw n along e = x/|x|,

    n = g e + r u,    g ~ N(0, 1),  r^2 ~ chi^2(D-1),  u uniform on the unit sphere orthogonal to e,

all three independent. A cost that depends on (g, r^2) alone, such as

    |x - n|^2 = |x|^2 + r^2 + g^2 - 2 |x| g    or    -<x, n> / |n| = -|x| g / sqrt(g^2 + r^2),

leaves the winner's direction u independent of the fact that it won. Hence k scalar pairs decide, and one
full draw supplies u: exact in distribution for every k and D.

With weights, split each part of equal weight on its own: the cost is a function of the parts' pairs. The
inner product needs no parts, since a weighted one is that with the weighted data.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from immiscible_policy.coupling._knn_parts import Part
from immiscible_policy.coupling._knn_rows import Rows, Split, combine, of_block, row_products, split_all
from immiscible_policy.coupling._knn_scalars import chi_square, largest_of_others, normals, winner


class Candidates(NamedTuple):
    """The pairs of one part: (B, k) each, the given noise first."""

    g: Tensor
    r_squared: Tensor


def nearest(
    rows: Rows,
    parts: tuple[Part, ...],
    metric: str,
    k: int,
    pick: int,
    correct_norm: bool,
    generator: torch.Generator | None,
    out: Tensor | None,
) -> Tensor:
    """One of the ``pick`` best of k candidates by "l2" or "cosine".

    Args:
        out: (B, ...) contiguous memory of the result, which may be the noise itself; None for new memory.
    """
    splits = [split_all(rows, part.columns) for part in parts]
    candidates = [_draw(s, k, generator) for s in splits]
    cost = (_squared_distance if metric == "l2" else _negative_cosine)(parts, splits, candidates)
    best = winner(cost, pick, generator)
    factors = []
    for s, c in zip(splits, candidates, strict=True):
        g, r_squared = c.g.gather(1, best), c.r_squared.gather(1, best)
        if correct_norm:
            # Only ever asked of unweighted noise, which has one part.
            g, r_squared = s.with_norm(g, r_squared, _chi_square_like(g, s.dims, generator))
        factors.append(s.factors(g, r_squared))
    return _write(rows, [part.columns for part in parts], factors, out)


def most_aligned(
    rows: Rows, weight: Tensor | None, k: float, pick: int, generator: torch.Generator | None, out: Tensor | None
) -> Tensor:
    """One of the ``pick`` largest <w x, n> of k candidates: only g moves. weight: (1, D) or None."""
    blocks = rows.blocks
    products, lengths = [], []
    for block in blocks:
        x = _weighted(rows.x(block), weight)
        lengths.append(row_products(x, x).sqrt_())
        products.append(row_products(x, rows.n(block).to(x.dtype)))
    norm = torch.cat(lengths)
    inverse = norm.reciprocal().masked_fill_(norm.logical_not(), 0.0)
    g = torch.cat(products).mul_(inverse)
    if pick == 1:
        step = largest_of_others(k, g, generator).sub_(g).clamp_min_(0.0)
    else:
        every = torch.cat((g, normals((g.shape[0], int(k) - 1), g, generator)), 1)
        step = every.gather(1, winner(-every, pick, generator)).sub_(g)
    step.mul_(inverse)
    out = rows.noise.clone(memory_format=torch.contiguous_format) if out is None else out
    flat = out.view(out.shape[0], -1)
    for block in blocks:
        x = _weighted(rows.x(block), weight)
        target = of_block(flat, block)
        if target.dtype == x.dtype:
            target.addcmul_(x, of_block(step, block))
        else:
            target.copy_(torch.addcmul(target.to(x.dtype), x, of_block(step, block)))
    return out


def with_fresh_norm(
    rows: Rows, columns: Tensor | None, generator: torch.Generator | None, out: Tensor | None
) -> Tensor:
    """The noise with its norm over the entries that count replaced by an independent chi draw, g kept."""
    s = split_all(rows, columns)
    squared = _chi_square_like(s.g, s.dims, generator)
    return _write(rows, [columns], [s.factors(*s.with_norm(s.g, s.r_squared, squared))], out)


def _draw(first: Split, k: int, generator: torch.Generator | None) -> Candidates:
    shape = (first.g.shape[0], k - 1)
    g = normals(shape, first.g, generator)
    if isinstance(first.dims, Tensor):
        g.mul_(first.dims > 0)
    r_squared = chi_square(first.dims - 1, shape, first.g, generator)
    return Candidates(torch.cat((first.g, g), 1), torch.cat((first.r_squared, r_squared), 1))


def _chi_square_like(g: Tensor, dims: Tensor | int, generator: torch.Generator | None) -> Tensor:
    return chi_square(dims, (g.shape[0], 1), g, generator)


def _squared_distance(parts: tuple[Part, ...], splits: list[Split], candidates: list[Candidates]) -> Tensor:
    """(B, k), without |x|^2, which is the same for all candidates."""
    total: Tensor | None = None
    for part, s, c in zip(parts, splits, candidates, strict=True):
        cost = torch.addcmul(c.r_squared, c.g, c.g - 2.0 * s.norm)
        if part.weight != 1.0:
            cost.mul_(part.weight)
        total = cost if total is None else total.add_(cost)
    assert total is not None
    return total


def _negative_cosine(parts: tuple[Part, ...], splits: list[Split], candidates: list[Candidates]) -> Tensor:
    """(B, k), without |x|."""
    product: Tensor | float = 0.0
    squared: Tensor | float = 0.0
    for part, s, c in zip(parts, splits, candidates, strict=True):
        product = product - part.weight * s.norm * c.g
        squared = squared + part.weight * (c.g.square() + c.r_squared)
    assert isinstance(product, Tensor)
    assert isinstance(squared, Tensor)
    return product * squared.clamp_min_(torch.finfo(squared.dtype).tiny).rsqrt_()


def _weighted(x: Tensor, weight: Tensor | None) -> Tensor:
    return x if weight is None else x * weight.to(x.dtype)


def _write(
    rows: Rows, columns: list[Tensor | None], factors: list[tuple[Tensor, Tensor]], out: Tensor | None
) -> Tensor:
    noise = rows.noise
    if out is None and columns[0] is None:
        out = torch.empty(noise.shape, dtype=noise.dtype, device=noise.device)
    elif out is None:
        out = noise.clone(memory_format=torch.contiguous_format)
    flat = out.view(out.shape[0], -1)
    for block in rows.blocks:
        for where, (scale, along) in zip(columns, factors, strict=True):
            x, n, valid = rows.x(block, where), rows.n(block, where), rows.valid(block, where)
            factors_of_block = of_block(scale, block), of_block(along, block)
            combine(n, x, factors_of_block, valid, of_block(flat, block), where)
    return out

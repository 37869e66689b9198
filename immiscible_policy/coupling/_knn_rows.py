"""Rows of a batch in blocks that fit a processor's cache, and the split of noise along its datum.

Working block by block keeps the memory beyond the result small whatever the dtype, mask or layout: the
float32 copies, the masked copies and the residual exist for one block at a time.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from immiscible_policy.coupling._checks import compute_dtype

# Smaller blocks would fit nearer caches, but the calls themselves begin to count.
_CACHED_ENTRIES = 2**18
# From here on g^2 is a small share of |n|^2, so that their difference keeps its digits without a residual.
_WIDE = 512
# Below this the direction of the residual is rounding noise; reached with probability < 1e-6 (D = 2).
_SMALLEST_RESIDUAL = 1e-6


class Rows:
    """Data, noise (B, ...) and mask (broadcastable to data), read as blocks of (b, D) rows.

    Attributes:
        dtype: of the computation.
        blocks: slices for splitting and combining; all rows at once where that takes no memory.
    """

    def __init__(self, data: Tensor, noise: Tensor, mask: Tensor | None, weighted: bool = False) -> None:
        """``weighted``: columns will be gathered or weighted, which copies them."""
        self.data = data
        self.noise = noise
        self.mask = mask
        self.dtype = compute_dtype(data)
        batch = data.shape[0]
        if mask is not None or weighted or data.dtype != self.dtype:
            self.blocks = self.blocks_for(copies=4)  # data, noise, residual and result
        elif data.numel() < _WIDE * batch:
            self.blocks = self.blocks_for(copies=1)  # the residual
        else:
            self.blocks = [slice(0, batch)]

    def blocks_for(self, copies: int) -> list[slice]:
        """Slices for work that makes ``copies`` float32 copies of a block, 1 MiB in all.

        Larger ones on a GPU, where launches cost more than memory.
        """
        batch, total = self.data.shape[0], self.data.numel()
        entries = _CACHED_ENTRIES // copies * (1 if self.data.device.type == "cpu" else 256)
        if total <= entries:
            return [slice(0, batch)]
        size = max(1, entries * batch // total)
        return [slice(start, min(start + size, batch)) for start in range(0, batch, size)]

    def valid(self, rows: slice, columns: Tensor | None = None) -> Tensor | None:
        """(b, d) bool, True where the entry counts; None without a mask."""
        if self.mask is None:
            return None
        return _flat(self.mask.expand(self.data.shape), rows, columns)

    def x(self, rows: slice, columns: Tensor | None = None) -> Tensor:
        """(b, d) data in the dtype of the computation, zero where masked; may share memory with the data."""
        x = _flat(self.data, rows, columns)
        valid = self.valid(rows, columns)
        return (x if valid is None else x.masked_fill(~valid, 0.0)).to(self.dtype)

    def n(self, rows: slice, columns: Tensor | None = None) -> Tensor:
        """(b, d) noise in its own dtype; may share memory with the noise."""
        return _flat(self.noise, rows, columns)


def of_block(tensor: Tensor, rows: slice) -> Tensor:
    """tensor[rows], without the cost of a view where that is all of it: small batches are one block."""
    return tensor if rows.stop - rows.start == tensor.shape[0] else tensor[rows]


def _flat(tensor: Tensor, rows: slice, columns: Tensor | None) -> Tensor:
    chosen = of_block(tensor, rows)
    flat = chosen if chosen.ndim == 2 else chosen.reshape(chosen.shape[0], -1)
    return flat if columns is None else flat.index_select(1, columns)


class Split(NamedTuple):
    """n = g x/|x| + residual, for each row; all (B, 1).

    Attributes:
        norm: |x|. no_direction: bool, x = 0. inverse: 1/|x|, and 0 where x = 0.
        g: <n, x/|x|>, and 0 where x = 0. r_squared: squared norm of the residual.
        dims: number of entries that count, an integer where it is the same for all rows.
    """

    norm: Tensor
    no_direction: Tensor
    inverse: Tensor
    g: Tensor
    r_squared: Tensor
    dims: Tensor | int

    @property
    def no_residual(self) -> Tensor:
        """(B, 1) bool: with one entry that counts the noise is the scalar g, and only rounding is left."""
        if isinstance(self.dims, Tensor):
            return (self.dims < 2) & ~self.no_direction
        return ~self.no_direction if self.dims < 2 else torch.zeros_like(self.no_direction)

    def factors(self, g: Tensor, r_squared: Tensor) -> tuple[Tensor, Tensor]:
        """(a, c), (B, 1) each, such that a n + c x is the noise with these scalars in place of its own.

        Exactly (1, 0) where they are its own. Rows with x = 0 have no direction: there only the norm
        counts, whose square is r^2 + g^2 (the residual is all of n, whose own g is 0).
        """
        reach = g.square().mul_(self.no_direction).add_(r_squared)
        scale = reach.div_(self.r_squared.clamp_min(_SMALLEST_RESIDUAL**2)).sqrt_()
        if isinstance(self.dims, Tensor) or self.dims < 2:
            scale = torch.where(self.no_residual, 1.0, scale)
        return scale, torch.addcmul(g, scale, self.g, value=-1.0).mul_(self.inverse)

    def with_norm(self, g: Tensor, r_squared: Tensor, norm_squared: Tensor) -> tuple[Tensor, Tensor]:
        """(g, r^2) of given squared norm: the same g where that is possible; all (B, 1).

        Where g alone is too long already, or there is nothing but g, the whole noise is rescaled.
        """
        left = norm_squared - g.square()
        whole = (left < 0) | self.no_residual
        shrink = norm_squared / (g.square() + r_squared.masked_fill(self.no_residual, 0.0))
        return torch.where(whole, g * shrink.sqrt(), g), torch.where(whole, r_squared * shrink, left)


def split(x: Tensor, n: Tensor, valid: Tensor | None) -> Split:
    """Split noise along data. x: (b, d), zero where not valid; n: (b, d) in any dtype."""
    n = n.to(x.dtype)
    if valid is None and x.shape[1] >= _WIDE:
        norm = row_products(x, x).sqrt_()
        product = row_products(x, n)
    else:
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        buffer = torch.mul(x, n)
        product = buffer.sum(1, keepdim=True)
    no_direction = norm.logical_not()
    inverse = norm.reciprocal().masked_fill_(no_direction, 0.0)
    g = product.mul_(inverse)
    if valid is None and x.shape[1] >= _WIDE:
        r_squared = row_products(n, n).addcmul_(g, g, value=-1.0).clamp_min_(0.0)
        return Split(norm, no_direction, inverse, g, r_squared, x.shape[1])
    # |n|^2 - g^2 would cancel in low dimension (all digits at D = 2): form the residual itself.
    residual = torch.addcmul(n, x, g * inverse, value=-1.0, out=buffer)
    if valid is not None:
        residual.mul_(valid)
    r_squared = torch.linalg.vector_norm(residual, dim=1, keepdim=True).square_()
    dims = x.shape[1] if valid is None else valid.sum(1, keepdim=True)
    return Split(norm, no_direction, inverse, g, r_squared, dims)


def row_products(a: Tensor, b: Tensor) -> Tensor:
    """<a_i, b_i> of (b, d) rows, (b, 1); of wide rows without memory for the products."""
    if a.shape[1] < _WIDE:
        return torch.mul(a, b).sum(1, keepdim=True)
    if a.device.type != "cpu" or not hasattr(np, "vecdot"):  # numpy 1 has none
        return torch.linalg.vecdot(a, b).unsqueeze(1)
    # Two to four times as fast as torch's: one pass of the BLAS dot product over each row.
    return torch.from_numpy(np.vecdot(a.detach().numpy(), b.detach().numpy())).unsqueeze(1)


def split_all(rows: Rows, columns: Tensor | None) -> Split:
    """:func:`split` for all rows."""
    splits = [
        split(rows.x(block, columns), rows.n(block, columns), rows.valid(block, columns)) for block in rows.blocks
    ]
    return splits[0] if len(splits) == 1 else _joined(splits)


def _joined(splits: list[Split]) -> Split:
    """The splits of consecutive blocks of rows as one."""
    names = ("norm", "no_direction", "inverse", "g", "r_squared")
    joined = {name: torch.cat([getattr(s, name) for s in splits]) for name in names}
    counts = [s.dims for s in splits if isinstance(s.dims, Tensor)]
    return Split(dims=torch.cat(counts) if counts else splits[0].dims, **joined)


def combine(
    n: Tensor, x: Tensor, factors: tuple[Tensor, Tensor], valid: Tensor | None, target: Tensor, columns: Tensor | None
) -> None:
    """Write a n + c x, and n itself where not valid, into (the columns of) target, which may be n."""
    scale, along = factors
    if valid is None and columns is None and n.dtype == x.dtype:
        torch.mul(n, scale, out=target).addcmul_(x, along)
        return
    chosen = torch.mul(n.to(x.dtype), scale).addcmul_(x, along).to(n.dtype)
    if valid is not None:
        chosen = torch.where(valid, chosen, n)
    if columns is None:
        target.copy_(chosen)
    else:
        target.index_copy_(1, columns, chosen)

"""Sums of kernels over all pairs, a block at a time: memory stays that of the features."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

Kernel = Callable[[Tensor, Tensor], Tensor]  # (N, dim), (M, dim) -> (N, M)

_BLOCK_VALUES = 1 << 22  # of an (N, M) block in float64: 32 MB


def row_blocks(n_rows: int, n_columns: int) -> Iterator[slice]:
    """Slices of rows that keep a (rows, n_columns) block small."""
    rows = max(1, _BLOCK_VALUES // max(1, n_columns))
    for start in range(0, n_rows, rows):
        yield slice(start, min(start + rows, n_rows))


def pair_sums(kernel: Kernel, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of the kernel over all pairs, in float64.

    Args:
        kernel: of rows.
        x, y: (N, dim) and (M, dim) features.

    Returns:
        (N,): for each row of x the sum over all rows of y; (M,): for each row of y the sum over all rows of x.
    """
    x, y = x.double(), y.double()
    over_y = []
    over_x = torch.zeros(len(y), dtype=torch.float64, device=y.device)
    for rows in row_blocks(len(x), len(y)):
        values = kernel(x[rows], y)
        over_y.append(values.sum(1))
        over_x += values.sum(0)
    return torch.cat(over_y), over_x


def check_pair(x: Tensor, y: Tensor, names: tuple[str, str] = ("generated", "reference")) -> None:
    """Refuse features that are no matrices of one width, or not finite."""
    for name, features in zip(names, (x, y), strict=True):
        if features.ndim != 2:
            raise ValueError(f"{name} must be (N, dim) features, got shape {tuple(features.shape)}")
        if not bool(torch.isfinite(features).all()):
            raise ValueError(f"{name} holds features that are NaN or infinite")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"{names[0]} and {names[1]} must have equal dims, got {x.shape[1]} and {y.shape[1]}")

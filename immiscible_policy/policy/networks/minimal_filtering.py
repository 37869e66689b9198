"""Convolution of short sequences with fewer products than taps, for CPUs.

Four outputs of a filter with k taps need k + 3 products, not 4k (Toom, 1963; Cook, 1966; Winograd, "Arithmetic
Complexity of Computations", 1980; for networks Lavin & Gray, CVPR 2016). With channels each of these is a product of
matrices: five taps take 8 of them where they took 20. A sequence of just four steps takes 7, for it is short enough to
be the filter itself, and the taps are what is filtered.

In float32 the result is off by about 1e-6 of its norm, two to four times as much as a plain convolution's. Lower
precisions would not bear the sums that the transforms take.
"""

from fractions import Fraction
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE = 4  # outputs that share their products
# Where the polynomials are evaluated, besides infinity: small, and symmetric where possible, for rounding.
_HALF = Fraction(1, 2)
_POINTS: dict[int, tuple[int | Fraction, ...]] = {
    6: (0, 1, -1, 2, -2),
    7: (0, 1, -1, 2, _HALF, -_HALF),
    8: (0, 1, -1, 2, -2, _HALF, -_HALF),
}
TAPS = (3, 5)
# Of longer sequences the transform, one matrix for all tiles, would be mostly zeros.
LENGTHS = range(TILE, 36, TILE)
_FEWEST_ROWS, _FEWEST_CHANNELS = 32, 32
_DTYPES = (torch.float32, torch.float64)


class _Transforms(NamedTuple):
    """Matrices of a convolution: ``output @ ((filter @ taps) * (data @ sequence))`` for every tile of outputs.

    data (tiles * n, T), filter (n, taps), output (4, n).
    """

    data: Tensor
    filter: Tensor
    output: Tensor


def pays(x: Tensor, weight: Tensor) -> bool:
    """Whether `convolve` is for these: whole tiles, enough rows for the transform of the weight, enough precision.

    Not in an exported program, which is one for batches of any size.
    """
    if torch.compiler.is_exporting():
        return False
    batch, length, in_channels = x.shape
    out_channels, taps, _ = weight.shape
    return (
        taps in TAPS
        and length in LENGTHS
        and batch * (length // TILE) >= _FEWEST_ROWS
        and min(in_channels, out_channels) >= _FEWEST_CHANNELS
        and x.dtype == weight.dtype
        and x.dtype in _DTYPES
    )


def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolution over time with "same" padding, as ``torch.nn.functional.conv1d`` has it (a correlation).

    Args:
        x: (B, T, in), T a multiple of 4 up to 32, float32 or float64.
        weight: (out, taps, in) with 3 or 5 taps.
        bias: (out,).

    Returns:
        (B, T, out). Differentiable once.
    """
    return _Convolution.apply(x, weight, bias)


class _Convolution(torch.autograd.Function):
    """By hand, because every product then reads its operands as they lie; derived, the weight's would be copied."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        batch, length, channels = x.shape
        out = weight.shape[0]
        matrices = _TRANSFORMS[length, weight.shape[1], x.dtype]
        n, rows = len(matrices.filter), batch * (length // TILE)
        data = torch.bmm(matrices.data.expand(batch, -1, -1), x).view(rows, n, channels).transpose(0, 1)
        filters = torch.bmm(matrices.filter.expand(out, -1, -1), weight).transpose(0, 1)
        products = torch.bmm(data, filters.transpose(1, 2))
        ctx.save_for_backward(data, filters)
        ctx.shape = (batch, length, weight.shape[1])
        outputs = torch.bmm(matrices.output.expand(rows, -1, -1), products.transpose(0, 1)).add_(bias)
        return outputs.view(batch, length, out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        data, filters = ctx.saved_tensors
        batch, length, taps = ctx.shape
        _, rows, channels = data.shape
        out = filters.shape[1]
        matrices = _TRANSFORMS[length, taps, gradient.dtype]
        tiles = gradient.contiguous().view(rows, TILE, out)
        products = torch.bmm(matrices.output.t().expand(rows, -1, -1), tiles).transpose(0, 1)
        to_x = to_weight = to_bias = None
        if ctx.needs_input_grad[0]:
            to_data = torch.bmm(products, filters).transpose(0, 1).reshape(batch, -1, channels)
            to_x = torch.bmm(matrices.data.t().expand(batch, -1, -1), to_data)
        if ctx.needs_input_grad[1]:
            to_filters = torch.bmm(products.transpose(1, 2), data).transpose(0, 1)
            to_weight = torch.bmm(matrices.filter.t().expand(out, -1, -1), to_filters)
        if ctx.needs_input_grad[2]:
            to_bias = tiles.sum(dim=(0, 1))
        return to_x, to_weight, to_bias


def _at(row: list[Fraction], index: int) -> Fraction:
    return row[index] if 0 <= index < len(row) else Fraction(0)


_Matrix = list[list[Fraction]]


@cache
def _toom_cook(taps: int) -> tuple[_Matrix, _Matrix, _Matrix]:
    """Output (4, n), filter (n, taps) and data (n, n) matrix of four outputs of a filter, n = taps + 3 products.

    A product of two polynomials is known from its values at n points. Filtering is the transpose of multiplying by the
    filter's polynomial: evaluate the filter at the points, apply the transposed interpolation to the data, and the
    transposed evaluation of four coefficients to the products.
    """
    n = taps + TILE - 1
    interpolation = _inverse(_evaluation(n, n))
    data = [list(column) for column in zip(*interpolation, strict=True)]
    # A product may be scaled on one side if it is scaled back on the other: data of about one size rounds best.
    scales = [max(abs(value) for value in row) for row in data]
    data = [[value / scale for value in row] for row, scale in zip(data, scales, strict=True)]
    filters = [[value * scale for value in row] for row, scale in zip(_evaluation(n, taps), scales, strict=True)]
    output = [list(column) for column in zip(*_evaluation(n, TILE), strict=True)]
    return output, filters, data


def _evaluation(n: int, coefficients: int) -> _Matrix:
    """A polynomial's values at n points (n, coefficients); the value at infinity is its leading coefficient."""
    finite = [[Fraction(point) ** power for power in range(coefficients)] for point in _POINTS[n]]
    return [*finite, [Fraction(0)] * (coefficients - 1) + [Fraction(1)]]


def _inverse(matrix: _Matrix) -> _Matrix:
    """By Gauss-Jordan elimination."""
    n = len(matrix)
    rows = [[*row, *(Fraction(int(i == j)) for j in range(n))] for i, row in enumerate(matrix)]
    for column in range(n):
        pivot = next(i for i in range(column, n) if rows[i][column])
        rows[column], rows[pivot] = rows[pivot], rows[column]
        rows[column] = [value / rows[column][column] for value in rows[column]]
        for i in range(n):
            if i != column:
                factor = rows[i][column]
                rows[i] = [a - factor * b for a, b in zip(rows[i], rows[column], strict=True)]
    return [row[n:] for row in rows]


@cache
def _transforms(length: int, taps: int) -> _Transforms:
    """For sequences of `length` steps, in float64: derived in exact fractions, rounded once."""
    pad = taps // 2
    if length == TILE < taps:
        # y_i = sum_j x_j w_(j - i + pad): the steps, last one first, filter the taps, last one first.
        output, steps, reach = _toom_cook(TILE)
        data = [row[::-1] for row in steps]
        filters = [[row[TILE - 1 + pad - tap] for tap in range(taps)] for row in reach]
    else:
        output, filters, reach = _toom_cook(taps)
        starts = range(-pad, length - pad, TILE)
        data = [[_at(row, step - start) for step in range(length)] for start in starts for row in reach]
    return _Transforms(*(torch.tensor(_floats(m), dtype=torch.float64) for m in (data, filters, output)))


def _floats(matrix: _Matrix) -> list[list[float]]:
    return [[float(value) for value in row] for row in matrix]


# All there are, made at import: a compiler that traces a network finds constants.
_TRANSFORMS: dict[tuple[int, int, torch.dtype], _Transforms] = {
    (length, taps, dtype): _Transforms(*(matrix.to(dtype) for matrix in _transforms(length, taps)))
    for length in LENGTHS
    for taps in TAPS
    for dtype in _DTYPES
}

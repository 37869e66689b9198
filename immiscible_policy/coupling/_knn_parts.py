"""Which entries of a sample take part in a distance, and with which weight.

``features`` and ``weights`` are given per axis of the data and multiply: the weight of entry (t, a) of a
(B, T, A) batch is weights[1][t] * weights[2][a], and 0 outside features[1] x features[2].
"""

from __future__ import annotations

import functools
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Features = tuple[tuple[int, tuple[int, ...]], ...]
"""((axis, (index, ...)), ...), sorted: what a mapping axis -> indices is kept as, to be hashable."""

Weights = tuple[tuple[int, tuple[float, ...]], ...]
"""((axis, (weight, ...)), ...), sorted."""


@dataclass(frozen=True)
class Part:
    """The columns of the flattened (B, D) data that share one weight.

    Attributes:
        weight: in (0, 1]; the largest weight of a batch is 1, since no metric changes with their scale.
        columns: (d,) int64 indices, or None for all.
    """

    weight: float
    columns: Tensor | None


def normalised_features(features: Mapping[int, Sequence[int]] | Iterable[Any] | None) -> Features | None:
    """Check ``features`` as far as is possible without data.

    Raises:
        TypeError, ValueError: naming the axis or the indices that are not allowed.
    """
    if features is None:
        return None
    result = []
    for axis, given in _axes("features", features):
        values = _listed(given)
        indices = tuple(values) if _is_sequence(values) else ()
        if not indices or not all(_is_integer(i) and i >= 0 for i in indices) or len(set(indices)) < len(indices):
            raise ValueError(f"features[{axis}] must hold distinct indices >= 0, at least one; got {values!r}")
        result.append((axis, tuple(sorted(int(i) for i in indices))))
    return tuple(sorted(result))


def normalised_weights(weights: Mapping[int, Sequence[float]] | Iterable[Any] | None) -> Weights | None:
    """Check ``weights`` as far as is possible without data.

    Raises:
        TypeError, ValueError: naming the axis or the weights that are not allowed.
    """
    if weights is None:
        return None
    result = []
    for axis, given in _axes("weights", weights):
        values = _listed(given)
        numbers_given = tuple(values) if _is_sequence(values) else ()
        if not all(_is_real(w) and 0 <= w < math.inf for w in numbers_given) or not any(w > 0 for w in numbers_given):
            raise ValueError(f"weights[{axis}] must hold finite numbers >= 0, one of them positive; got {values!r}")
        result.append((axis, tuple(float(w) for w in numbers_given)))
    return tuple(sorted(result))


@functools.lru_cache(maxsize=64)
def parts_of(
    features: Features | None, weights: Weights | None, shape: tuple[int, ...], device: torch.device
) -> tuple[Part, ...]:
    """The columns that take part in samples of ``shape`` (...), grouped by equal weight, heaviest first.

    Raises:
        ValueError: an axis, an index or a number of weights does not fit ``shape``, or no entry takes part.
    """
    if features is None and weights is None:
        return (Part(1.0, None),)
    weight = _weight_of_each_column(features, weights, shape)
    largest = float(weight.max())
    if largest == 0.0:
        raise ValueError(f"features and weights must leave an entry of data {_shown(shape)} that counts, got none")
    distinct = sorted(set(weight[weight > 0].tolist()), reverse=True)
    if len(distinct) == 1 and bool((weight > 0).all()):
        return (Part(1.0, None),)
    columns = [torch.nonzero(weight == value)[:, 0].to(device) for value in distinct]
    return tuple(Part(value / largest, where) for value, where in zip(distinct, columns, strict=True))


@functools.lru_cache(maxsize=64)
def weight_row(
    features: Features | None, weights: Weights | None, shape: tuple[int, ...], device: torch.device
) -> Tensor | None:
    """The same as one (1, D) float64 row of weights with largest entry 1; None where every entry counts the same."""
    parts = parts_of(features, weights, shape, device)
    if parts[0].columns is None:
        return None
    row = torch.zeros((1, math.prod(shape)), dtype=torch.float64, device=device)
    for part in parts:
        row[:, part.columns] = part.weight
    return row


def _weight_of_each_column(features: Features | None, weights: Weights | None, shape: tuple[int, ...]) -> Tensor:
    """(D,) float64 on the CPU, zero where a column does not take part."""
    weight = torch.ones(shape, dtype=torch.float64, device="cpu")
    for axis, indices in features or ():
        _check_axis("features", axis, shape)
        size = shape[axis - 1]
        if indices[-1] >= size:
            raise ValueError(
                f"features[{axis}] must hold indices from 0 to {size - 1} for data {_shown(shape)}, got {indices[-1]}"
            )
        selected = torch.zeros(size, dtype=torch.float64, device="cpu")
        selected[list(indices)] = 1.0
        weight *= _along(selected, axis, shape)
    for axis, values in weights or ():
        _check_axis("weights", axis, shape)
        if len(values) != shape[axis - 1]:
            raise ValueError(
                f"weights[{axis}] must hold {shape[axis - 1]} numbers, one for each entry along axis {axis} of data "
                f"{_shown(shape)}; got {len(values)}"
            )
        # Scaled axis by axis, so that no product of large or small weights leaves the range of floats.
        scaled = torch.tensor(values, dtype=torch.float64, device="cpu") / max(values)
        weight *= _along(scaled, axis, shape)
    return weight.reshape(-1)


def _along(values: Tensor, axis: int, shape: tuple[int, ...]) -> Tensor:
    """View (n,) such that it broadcasts along axis ``axis`` of (B, *shape), of which B is left out."""
    return values.view([-1 if i == axis - 1 else 1 for i in range(len(shape))])


def _axes(name: str, given: Any) -> Iterable[tuple[int, Any]]:
    if isinstance(given, Mapping):
        pairs = list(given.items())
    elif _is_sequence(given) and all(_is_sequence(pair) and len(pair) == 2 for pair in given):
        pairs = [tuple(pair) for pair in given]
    else:
        raise TypeError(f"{name} must be a mapping from axes of data to sequences, got {given!r}")
    if not pairs:
        raise ValueError(f"{name} must name at least one axis of data, got {given!r}; None stands for all entries")
    for axis, _ in pairs:
        if not _is_integer(axis) or axis < 1:
            raise ValueError(f"{name} must name axes >= 1 of data (axis 0 is the batch), got {axis!r}")
    if len({axis for axis, _ in pairs}) < len(pairs):
        raise ValueError(f"{name} must name each axis once, got {given!r}")
    return [(int(axis), values) for axis, values in pairs]


def _listed(values: Any) -> Any:
    """NumPy arrays and tensors as lists of numbers, all else as it is."""
    return values.tolist() if hasattr(values, "tolist") else values


def _check_axis(name: str, axis: int, shape: tuple[int, ...]) -> None:
    if axis > len(shape):
        raise ValueError(f"{name} names axis {axis}, but data {_shown(shape)} has axes up to {len(shape)}")


def _shown(shape: tuple[int, ...]) -> str:
    return f"({', '.join(['B', *map(str, shape)])})"


def _is_integer(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_real(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)

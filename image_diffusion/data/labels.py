"""Class labels as integers 0..n-1, whatever the data writes them as."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from image_diffusion.data.source import ImageDataError


@dataclass(frozen=True)
class Labels:
    """``values`` (N,) int64 in 0..n_classes-1; names of the classes in that order, or None where nobody named them."""

    values: Tensor
    n_classes: int
    names: tuple[str, ...] | None


def encode_labels(
    values: Sequence[Any],
    vocabulary: Iterable[Any],
    names: Sequence[str] | None,
    column: str,
    describe: Callable[[int], str],
) -> Labels:
    """Integers stay as they are; strings (and booleans) become their place in the sorted names.

    Args:
        values: N labels.
        vocabulary: the labels of all splits, so that every split numbers its classes alike.
        names: of the classes, where they are known.
        column, describe: the column's name and the n-th value's place, for errors.

    Raises:
        ImageDataError: a value that is missing, negative, out of the names' range, or of another type.
    """
    if not names and any(isinstance(value, str | bool) for value in values):
        names = sorted({str(value) for value in vocabulary if value is not None})
    number = {name: place for place, name in enumerate(names or ())}
    encoded = torch.empty(len(values), dtype=torch.int64)
    for position, value in enumerate(values):
        encoded[position] = _encoded(value, number, column, describe, position)
    if names:
        return Labels(encoded, len(names), tuple(names))
    highest = max((value for value in vocabulary if value is not None), default=-1)
    return Labels(encoded, int(highest) + 1, None)


def _encoded(value: Any, number: dict[str, int], column: str, describe: Callable[[int], str], position: int) -> int:
    place = f"{describe(position)}: column {column!r}"
    without = "(label_column=null trains without labels)"
    if value is None:
        raise ImageDataError(f"{place} is empty {without}")
    if isinstance(value, str | bool):
        if str(value) not in number:
            raise ImageDataError(f"{place} is {value!r}, which is none of class_names")
        return number[str(value)]
    if not isinstance(value, int):
        raise ImageDataError(f"{place} is {value!r}: labels must be integers or strings {without}")
    if value < 0 or (number and value >= len(number)):
        allowed = f"0 to {len(number) - 1}" if number else "0 or more"
        raise ImageDataError(f"{place} is {value}: labels must be {allowed} {without}")
    return value

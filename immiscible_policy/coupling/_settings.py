"""Checks of constructor arguments and of the functions among them; errors name the argument and what is allowed."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def require_one_of(name: str, value: object, allowed: tuple[object, ...], otherwise: str = "") -> None:
    """Raise ValueError unless ``value`` is one of ``allowed``; ``otherwise`` names what the caller allows besides."""
    # By type too, since 1 == True.
    if any(type(value) is type(option) and value == option for option in allowed):
        return
    options = [*map(repr, allowed), *([otherwise] if otherwise else [])]
    raise ValueError(f"{name} must be {', '.join(options[:-1])} or {options[-1]}, got {value!r}")


def require_number(name: str, value: Any, allowed: str, is_allowed: Callable[[Any], bool]) -> None:
    """Raise ValueError unless ``value`` is a finite real number with ``is_allowed(value)``."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not is_allowed(value):
        raise ValueError(f"{name} must be a number {allowed}, got {value!r}")


def require_count(name: str, value: object, least: int = 1) -> None:
    """Raise ValueError unless ``value`` is an integer >= ``least``."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise ValueError(f"{name} must be an integer >= {least}, got {value!r}")


def require_own_columns(columns: Any, cost: Tensor) -> None:
    """Raise TypeError or ValueError unless a solver gave each row of a (B, P) cost a column of its own."""
    rows, number = cost.shape
    if not isinstance(columns, Tensor) or columns.dtype not in (torch.int64, torch.int32):
        found = columns.dtype if isinstance(columns, Tensor) else type(columns).__name__
        raise TypeError(f"solver must return an int64 or int32 tensor of columns, got {found}")
    if tuple(columns.shape) != (rows,):
        raise ValueError(f"solver must return one column for each of {rows} rows, got shape {tuple(columns.shape)}")
    if rows and (int(columns.min()) < 0 or int(columns.max()) >= number):
        raise ValueError(
            f"solver must return columns in [0, {number}), got {int(columns.min())} to {int(columns.max())}"
        )
    repeated = rows - int(torch.unique(columns).numel())
    if repeated:
        raise ValueError(f"solver must give every row a column of its own, got {repeated} of {rows} repeated")

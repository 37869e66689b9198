"""Checks of settings that several modules make."""

import numbers
from collections.abc import Iterable
from typing import Any


def is_integer(value: Any, least: int | None = None) -> bool:
    """Whether a value is an integer (NumPy's as well; True and False are not), and at least ``least``."""
    is_one = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return is_one and (least is None or int(value) >= least)


def check_choice(name: str, value: Any, allowed: Iterable[str]) -> None:
    """Raise a ValueError that names the setting, its value and what is allowed."""
    if value not in allowed:
        raise ValueError(f"{name}={value!r}: choose one of {', '.join(allowed)}")


def check_integer(name: str, value: Any, least: int) -> None:
    """Raise a ValueError unless a setting is an integer of at least ``least``."""
    if not is_integer(value, least):
        raise ValueError(f"{name}={value!r}: must be an integer of at least {least}")


def check_seed(value: Any, name: str = "seed") -> None:
    """Raise a ValueError, which names it, unless a value is a seed that every library takes."""
    if not is_integer(value, 0) or value >= 2**32:
        raise ValueError(f"{name}={value!r}: must be an integer of at least 0 and below 2^32")

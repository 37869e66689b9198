"""Checks of settings that several modules make."""

import numbers
from collections.abc import Iterable, Mapping
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


def check_unchanged(what: str, began_with: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse other data than a run began with: what came of both would be of neither.

    Args:
        what: the data, in the plural, such as "the images at <folder>".
        began_with: as the run recorded them; what it lacks is not compared. now: the entries to compare.

    Raises:
        ValueError: names the entries that differ.
    """
    changed = [
        f"{name}={value} (began with {began_with[name]})"
        for name, value in now.items()
        if name in began_with and began_with[name] != value
    ]
    if changed:
        raise ValueError(
            f"{what} are no longer those that the run began with: {', '.join(changed)}; restore them, or start a new "
            "run"
        )

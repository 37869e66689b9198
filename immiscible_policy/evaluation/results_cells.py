"""Numbers as the cells of an experiment's tables."""

from __future__ import annotations

from typing import Any

import numpy as np

from immiscible_policy.evaluation.statistics import Interval
from immiscible_policy.evaluation.variance_components import TInterval

Rows = tuple[list[list[str]], list[dict[str, Any]]]
"""A table's rows, the head first, and the numbers behind them."""


def percent_cell(interval: TInterval | Interval) -> str:
    ends = "" if not np.isfinite(interval.low) else f" [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
    return f"{100 * interval.mean:.1f}{ends}"


def plain_cell(interval: TInterval, sign: str = "") -> str:
    """``sign``: + to show one always."""
    ends = "" if not np.isfinite(interval.low) else f" [{interval.low:{sign}.2f}, {interval.high:{sign}.2f}]"
    return f"{interval.mean:{sign}.2f}{ends}"


def points_cell(interval: TInterval | None) -> str:
    if interval is None:
        return ""
    ends = "" if not np.isfinite(interval.low) else f" [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"
    return f"{100 * interval.mean:+.1f}{ends}"


def of_seeds(shared: int, seeds: int) -> str:
    """What to say of a difference of fewer training seeds than the row's."""
    return "" if shared == seeds else f" ({shared} of {seeds} seeds)"


def p_cell(interval: TInterval | None) -> str:
    return "" if interval is None or not np.isfinite(interval.p_value) else probability_cell(interval.p_value)


def probability_cell(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"

"""Curves: intervals over training seeds at every point, one table."""

import math

import pytest

from image_diffusion.analysis.curves import DistanceCurves
from image_diffusion.metrics import Measurement, MetricRecord

RECORD = MetricRecord("pixels", False, None, "none", 100, 200, "digits")


def curves(**arms: dict[int, list[float]]) -> DistanceCurves:
    rows = {arm: {s: tuple(Measurement(v, RECORD) for v in row) for s, row in by.items()} for arm, by in arms.items()}
    n = len(next(iter(next(iter(arms.values())).values())))
    return DistanceCurves("fd_pixels_100", "sampling steps", tuple(range(10, 10 * n + 1, 10)), rows)


def test_differences_are_paired_at_every_point() -> None:
    found = curves(a={0: [1.0, 5.0], 1: [2.0, 5.0]}, b={0: [2.0, 4.0], 1: [3.0, math.nan]})
    first, second = found.comparisons()
    assert first["b"].difference is not None
    assert (first["b"].difference.low, first["b"].difference.high) == pytest.approx((1.0, 1.0))
    assert second["b"].difference is not None
    assert math.isnan(second["b"].difference.mean)
    assert "| `b` | 2 | 2.5 [-3.853, 8.853] | n/a |" in found.markdown()
    assert "| difference |  | +1 [+1, +1] | n/a |" in found.markdown()
    assert "100 images against 200 of digits" in found.markdown()


def test_a_table_shows_some_of_many_points() -> None:
    found = curves(a={0: [float(i) for i in range(100)]})
    assert "| 10 | 150 | 290 |" in found.markdown()
    assert "| 20 | 990 |" in found.markdown([20, 990])
    assert found.to_json()["points"][-1] == 1000
    assert found.to_json()["rows"][3]["point"] == 40
    with pytest.raises(ValueError, match="not in"):
        found.markdown([15])

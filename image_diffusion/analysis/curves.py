"""Distances of several arms over a range of settings, with their records: what a table and a figure are made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from image_diffusion.analysis.arms import Comparison, cell, compare, spread
from image_diffusion.metrics import Measurement
from immiscible_policy.evaluation.table_files import markdown

_SHOWN = 8  # columns of a table


@dataclass(frozen=True)
class DistanceCurves:
    """One distance, measured at the same points for every model.

    Attributes:
        key: under which all its values may be quoted, such as ``fd_digits-cnn_2000``.
        axis: what the points are, such as "sampling steps".
        points: (P,).
        measurements: arm -> training seed -> one for each point.
    """

    key: str
    axis: str
    points: tuple[int, ...]
    measurements: dict[str, dict[int, tuple[Measurement, ...]]]

    def comparisons(self) -> list[dict[str, Comparison]]:
        """For every point, arm -> mean with a t interval over training seeds, and the paired difference."""
        return [
            compare({arm: {s: [row[i].value] for s, row in rows.items()} for arm, rows in self.measurements.items()})
            for i in range(len(self.points))
        ]

    def to_json(self) -> dict[str, Any]:
        """Means with intervals, and every measurement with its record."""
        return {
            "key": self.key,
            "axis": self.axis,
            "points": list(self.points),
            "rows": [
                {"point": point, **{arm: row.to_json() for arm, row in rows.items()}}
                for point, rows in zip(self.points, self.comparisons(), strict=True)
            ],
            "measurements": {
                arm: {str(seed): [measurement.to_json() for measurement in row] for seed, row in rows.items()}
                for arm, rows in self.measurements.items()
            },
        }

    def markdown(self, points: Sequence[int] | None = None) -> str:
        """A row for every arm, and below it its difference to the first arm.

        Args:
            points: those to show; None takes at most 8, evenly spread.
        """
        places = spread(len(self.points), _SHOWN) if points is None else [self.points.index(p) for p in points]
        comparisons = self.comparisons()
        record = next(iter(next(iter(self.measurements.values())).values()))[0].record
        notes = next(iter(next(iter(self.measurements.values())).values()))[0].notes
        lines = [
            f"`{self.key}`: {record.n_generated:,} images against {record.n_reference:,} of "
            f"{record.reference or 'the data'}; mean [95% t interval over training seeds, where there are several]."
            + "".join(f" The distance is {note}." for note in notes),
            "",
        ]
        head = [f"{self.axis}:", "training seeds", *(str(self.points[i]) for i in places)]
        rows = []
        for arm in self.measurements:
            of_arm = [comparisons[i][arm] for i in places]
            rows.append([f"`{arm}`", str(len(of_arm[0].seeds)), *(cell(row.mean, ".4g") for row in of_arm)])
            if any(row.difference is not None for row in of_arm):
                rows.append(["difference", "", *(cell(row.difference, "+.3g") for row in of_arm)])
        return "\n".join([*lines, markdown([head, *rows])])

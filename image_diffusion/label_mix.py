"""Which labels images show that nobody gave any: all in turn, or as frequent as in the training data.

What is compared with the data must show the data's mix, or a distance measures the difference between the mixes, too.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

MIXES = ("turn", "data")
IN_TURN, AS_IN_DATA = "all in turn", "as frequent as in the training data"
"""How records call the two."""

# 2^64 / golden ratio: multiples of it, modulo 2^64, fill the range evenly, however many follow each other.
_STRIDE = 0x9E3779B97F4A7C15


def labels_in_turn(seeds: Sequence[int], n: int) -> list[int]:
    """Labels 0 to n - 1 in turn, by the seeds."""
    return [seed % n for seed in seeds]


def shown_in_turn(seeds: Sequence[int], n: int, counts: Sequence[int] | None) -> list[int]:
    """Those labels of 0 to n - 1 in turn, by the seeds, that the data shows; all where nobody knows ``counts``."""
    shown = [label for label, count in enumerate(counts) if count] if counts is not None else range(n)
    return [shown[place] for place in labels_in_turn(seeds, len(shown))]


def labels_as_in_data(seeds: Sequence[int], counts: Sequence[int]) -> list[int]:
    """Labels as frequent as ``counts`` says, each by its seed alone.

    Consecutive seeds are spread evenly over the labels: among any N of them a label's number differs from its share of
    N by a few, so few images show the whole range of many labels.

    Args:
        seeds: any integers of at least 0.
        counts: of the data's images with each label, see ``check_counts``.
    """
    ends = list(accumulate(counts))
    return [bisect_right(ends, (seed * _STRIDE % 2**64) * ends[-1] >> 64) for seed in seeds]


def labels_to_measure(seeds: Sequence[int], counts: Sequence[int]) -> list[int]:
    """Labels of a set of images that is measured as a whole: as frequent as ``counts`` says.

    Where labels in turn have exactly that mix, they are taken.
    """
    if len(set(counts)) == 1 and len(seeds) % len(counts) == 0:
        return labels_in_turn(seeds, len(counts))
    return labels_as_in_data(seeds, counts)


def check_counts(counts: Sequence[int] | None, n_classes: int | None) -> None:
    """Raise a ValueError unless ``counts`` is None or holds a number of images for each class, not all 0."""
    if counts is not None and (len(counts) != n_classes or min(counts) < 0 or sum(counts) < 1):
        raise ValueError(
            f"class_counts={list(counts)}: needs a number of images for each of n_classes={n_classes}, at least 0 and "
            "not all 0, or null"
        )

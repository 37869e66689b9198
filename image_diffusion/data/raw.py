"""What every reader hands over: images still encoded, with their labels and captions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from image_diffusion.data.labels import Labels

# The bytes of an image file, where one lies, or its pixels: (H, W) grey or (H, W, 3) RGB, uint8.
Encoded = bytes | Path | np.ndarray


@dataclass(frozen=True)
class RawImages:
    """Encoded images in a fixed order.

    Args:
        rows: (N,) places in the split that the images come from.
        read: encoded images of some of these places.
        describe: a place in words, for errors and the record.
        labels: of the rows, or None.
        captions: of the rows, at least one each, or None.
        record: where the images come from, JSON-able.
    """

    rows: np.ndarray
    read: Callable[[np.ndarray], Sequence[Encoded]]
    describe: Callable[[int], str]
    labels: Labels | None
    captions: list[list[str]] | None
    record: dict[str, Any]

    def __len__(self) -> int:
        return len(self.rows)

    def keep(self, positions: Sequence[int]) -> RawImages:
        """Only the images at these positions of 0..N-1."""
        chosen = torch.as_tensor(positions, dtype=torch.int64)
        labels = self.labels and replace(self.labels, values=self.labels.values[chosen])
        captions = self.captions and [self.captions[position] for position in positions]
        return replace(self, rows=self.rows[chosen.numpy()], labels=labels, captions=captions)


def chosen_rows(n: int, max_items: int | None) -> np.ndarray:
    """All of 0..n-1, or ``max_items`` of them, evenly spaced: data sets often lie sorted by class."""
    if max_items is None or max_items >= n:
        return np.arange(n)
    return evenly_spaced(n, max_items)


def evenly_spaced(n: int, count: int) -> np.ndarray:
    """``min(n, count)`` different places of 0..n-1, the first one and then one every n / count."""
    count = min(n, count)
    return np.arange(count) * n // max(count, 1)

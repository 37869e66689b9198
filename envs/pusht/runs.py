"""The runs of pixels that the agent and the block's edges cover in each row, read off pictures of them.

In a row of pixels, the picture of a body that has no dents is one run, given by its first pixel and the one
after its last. An empty run starts far to the right and stops far to the left of any window, so that the
union of runs starts at the least start and stops at the greatest stop.
"""

import math
from functools import cache
from threading import Lock

import numpy as np
import pygame
from numpy.typing import NDArray

from envs.pusht import geometry
from envs.pusht.geometry import Color
from envs.pusht.rendering import EDGE_OVERHANG, OUTSIDE, Renderer, draw_edge, lighter

Integers = NDArray[np.intp]

NOWHERE = 4 * geometry.WINDOW_SIZE
_EDGE_LENGTH = max(
    math.dist(start, end)
    for polygon in (geometry.BAR, geometry.STEM)
    for start, end in zip(polygon, polygon[1:] + polygon[:1], strict=True)
)
# Of a component of an edge's vector: both ends are rounded.
_REACH = math.ceil(_EDGE_LENGTH) + 1


class EdgeRuns:
    """Runs of the edges of the block, kept under a number for each vector (dx, dy) from start to end.

    Only vectors of integers are met, some 3,500 for edges between rounded vertices, and each is drawn once.
    All places count from the edge's start. Holds for edges that stay in the window: pygame draws others
    differently.

    Attributes: `regular` (numbers,) bool: the edge is known exactly, with one gap at most.
    """

    _MIDDLE = _REACH + EDGE_OVERHANG + 1
    _SIZE = 2 * _MIDDLE + 1

    def __init__(self) -> None:
        self._lock = Lock()
        self._surface = pygame.Surface((self._SIZE, self._SIZE), depth=32)
        self._numbers = np.full((2 * _REACH + 1, 2 * _REACH + 1), -1)
        self._count = 0
        self._runs = np.empty((2, 0, self._SIZE), np.int16)
        self._gaps = np.empty((3, 0), np.intp)
        self.regular = np.empty(0, np.bool_)

    def numbers(self, dx: Integers, dy: Integers) -> Integers:
        """The numbers of vectors, in the shape of dx and dy. Vectors not met before are drawn."""
        column, row = dx + _REACH, dy + _REACH
        numbers = self._numbers[column, row]
        new = numbers < 0
        if new.any():
            with self._lock:
                for vector in set(zip(column[new].tolist(), row[new].tolist(), strict=True)):
                    if self._numbers[vector] < 0:
                        self._add(*vector)
            numbers = self._numbers[column, row]
        return numbers

    def runs(self, numbers: Integers, rows: Integers) -> NDArray[np.int16]:
        """Starts and stops (2, ..., R) of edges (...) in rows (..., R)."""
        row = np.minimum(np.maximum(rows + self._MIDDLE, 0), self._SIZE - 1)
        return self._runs.reshape(2, -1).take(row + (numbers * self._SIZE)[..., None], axis=1)

    def gaps(self, numbers: Integers) -> Integers:
        """Row, start and stop (3, ...) of the gap that an edge may have, between its rim and the disc at its end.

        Without a gap, the row is none of the window's.
        """
        return self._gaps.take(numbers, axis=1)

    def _add(self, column: int, row: int) -> None:
        if self._count == len(self.regular):
            more = max(512, self._count)
            self._runs = np.concatenate([self._runs, np.zeros((2, more, self._SIZE), np.int16)], axis=1)
            self._gaps = np.concatenate([self._gaps, np.zeros((3, more), np.intp)], axis=1)
            self.regular = np.concatenate([self.regular, np.zeros(more, np.bool_)])
        number, middle = self._count, self._MIDDLE
        end_x, end_y = middle + column - _REACH, middle + row - _REACH
        left, top = min(middle, end_x) - EDGE_OVERHANG, min(middle, end_y) - EDGE_OVERHANG
        right, bottom = max(middle, end_x) + EDGE_OVERHANG + 1, max(middle, end_y) + EDGE_OVERHANG + 1
        self._surface.fill((0, 0, 0), (left, top, right - left, bottom - top))
        draw_edge(self._surface, (middle, middle), (end_x, end_y))
        mask = pixels_of(self._surface, geometry.BLOCK_COLOR, (slice(top, bottom), slice(left, right)))
        runs = runs_of(mask) + np.int16(left - middle)
        pixels = np.arange(left, right) - middle
        rows, gap = np.nonzero(~mask & (runs[0, :, None] <= pixels) & (pixels < runs[1, :, None]))
        self._runs[0, number], self._runs[1, number] = NOWHERE, -NOWHERE
        self._runs[:, number, top:bottom] = runs
        self._gaps[:, number] = NOWHERE, 0, 0
        if len(gap):
            self._gaps[:, number] = rows[0] + top - middle, pixels[gap[0]], pixels[gap[-1]] + 1
        self.regular[number] = len(gap) == 0 or (rows[0] == rows[-1] and len(gap) == gap[-1] + 1 - gap[0])
        self._count += 1
        # Last, so that another thread does not see the number before what it stands for.
        self._numbers[column, row] = number


@cache
def edge_runs() -> EdgeRuns:
    """The one for all of the process: every edge is drawn once."""
    return EdgeRuns()


@cache
def agent_runs() -> NDArray[np.int16]:
    """Starts and stops of the agent's inside and of all of the agent, by row: (2, 2, rows), from its centre.

    The middle row is the centre's. The first and the last are empty.
    """
    center = geometry.WINDOW_SIZE // 2
    picture = Renderer().draw((center, center), (OUTSIDE, OUTSIDE), 0.0)
    inside = pixels_of(picture, lighter(geometry.AGENT_COLOR))
    masks = np.stack([inside, inside | pixels_of(picture, geometry.AGENT_COLOR)])
    rows = np.flatnonzero(masks[1].any(axis=1))
    reach = max(center - rows[0], rows[-1] - center) + 1
    return runs_of(masks[:, center - reach : center + reach + 1]) - np.int16(center)


def pixels_of(
    surface: pygame.Surface, color: Color, part: tuple[slice, slice] = (slice(None), slice(None))
) -> NDArray[np.bool_]:
    """Where a picture, or these rows and columns of it, has this colour: (height, width)."""
    pixels: NDArray[np.uint32] = pygame.surfarray.pixels2d(surface).T[part]
    return pixels == surface.map_rgb(color)


def runs_of(masks: NDArray[np.bool_]) -> NDArray[np.int16]:
    """Start and stop of what each row covers, from its first to its last pixel: (2, ...) for masks (..., width)."""
    covered = masks.any(axis=-1)
    starts = np.where(covered, masks.argmax(axis=-1), NOWHERE)
    stops = np.where(covered, masks.shape[-1] - masks[..., ::-1].argmax(axis=-1), -NOWHERE)
    return np.stack([starts, stops]).astype(np.int16)

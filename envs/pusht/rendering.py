"""PushT's picture, as the Diffusion Policy paper's simulator draws it.

The world is drawn at 512 x 512 and then sampled down, in the original with OpenCV's bilinear `resize`: two
pixels per axis without a low-pass filter, in 11-bit fixed point. `resized` repeats that arithmetic, so that
a policy trained on the recorded images sees the same ones here. Frames of the paper's demonstrations are
met to 0.003 of 255 grey levels on average with pygame 2.1, whose polygons they show, and to 0.08 with
pygame 2.6, which moved some edges of filled polygons by one pixel of the 512. No display is needed except
for `Window`.
"""

import math
import os
from collections.abc import Sequence
from functools import lru_cache

# Before the import that would print it.
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")

import numpy as np
import pygame
from numpy.typing import NDArray

from envs.pusht import geometry
from envs.pusht.geometry import Color, Point, Polygon, Pose

Pair = Sequence[NDArray[np.int32]]
"""Two arrays, of values or of weights."""

EDGE_OVERHANG = 2
"""Pixels by which the picture of an edge of the block reaches beyond the rectangle of its ends."""
OUTSIDE = 2.0 * geometry.WINDOW_SIZE
"""Of a body at this x or y, or at minus this, nothing is in the window."""

_OUTLINE_RADIUS = 2.0
_RIM_WIDTH = 4
_CROSS_SIZE = 42
_CROSS_WIDTH = 5
_FRACTION_BITS = 11


def lighter(color: Color) -> Color:
    """A fifth brighter, at most white: the inside of the bodies, whose rims have the colour itself."""
    red, green, blue = (min(round(1.2 * channel), 255) for channel in color)
    return red, green, blue


class Renderer:
    """Draws the world on a surface of the window's size, in memory.

    Args:
        goal_pose: where the goal is drawn: x, y in pixels of the window and an angle in radians.
    """

    def __init__(self, goal_pose: Pose = geometry.GOAL_POSE) -> None:
        size = (geometry.WINDOW_SIZE, geometry.WINDOW_SIZE)
        # A depth is given because the default asks the display for its own.
        self._surface = pygame.Surface(size, depth=32)
        self._background = pygame.Surface(size, depth=32)
        self._background.fill(geometry.BACKGROUND_COLOR)
        for polygon in (geometry.BAR, geometry.STEM):
            goal = _rounded(geometry.to_world(polygon, *goal_pose))
            pygame.draw.polygon(self._background, geometry.GOAL_COLOR, goal)

    def draw(
        self,
        agent_position: Point,
        block_position: Point,
        block_angle: float,
        target: Point | None = None,
    ) -> pygame.Surface:
        """The picture of one pose, with a red cross at `target` if given. The next call draws over it."""
        surface = self._surface
        surface.blit(self._background, (0, 0))
        _draw_agent(surface, agent_position)
        for polygon in (geometry.BAR, geometry.STEM):
            _draw_polygon(surface, geometry.to_world(polygon, *block_position, block_angle))
        for start, end in geometry.WALLS:
            _draw_thick_line(surface, start, end, geometry.WALL_RADIUS, geometry.WALL_COLOR)
        if target is not None:
            _draw_cross(surface, target)
        return surface


class Window:
    """The window on the screen for `render_mode="human"`. pygame has one: several environments share it."""

    _open = 0

    def __init__(self, frames_per_second: int) -> None:
        pygame.display.init()
        pygame.display.set_caption("PushT")
        self._screen = pygame.display.set_mode((geometry.WINDOW_SIZE, geometry.WINDOW_SIZE))
        Window._open += 1
        self._clock = pygame.time.Clock()
        self._frames_per_second = frames_per_second

    def show(self, surface: pygame.Surface) -> None:
        """Shows a picture, and waits so that pictures follow each other at the given rate."""
        self._screen.blit(surface, (0, 0))
        pygame.event.pump()
        pygame.display.flip()
        self._clock.tick(self._frames_per_second)

    def close(self) -> None:
        """Takes the window off the screen, once none of the environments needs it any longer."""
        Window._open -= 1
        if not Window._open:
            pygame.display.quit()


def resized(surface: pygame.Surface, width: int, height: int) -> NDArray[np.uint8]:
    """The surface as an array (height, width, 3) uint8 RGB, sampled bilinearly in OpenCV's fixed point."""
    source_width, source_height = surface.get_size()
    if (source_width, source_height) == (width, height):
        data = pygame.image.tobytes(surface, "RGB")
        return np.frombuffer(bytearray(data), np.uint8).reshape(height, width, 3)
    columns, across = taps(source_width, width)
    rows, (above, below) = taps(source_height, height)
    # Only the pixels that count, and one colour at a time: large temporary arrays cost more than the arithmetic.
    window: NDArray[np.uint32] = pygame.surfarray.pixels2d(surface).T
    upper, lower = (
        [window.take(row, axis=0).take(column, axis=1).view(np.int32) for column in (columns[:width], columns[width:])]
        for row in (rows[:height], rows[height:])
    )
    sampled = np.empty((height, width, 3), np.uint8)
    for channel, shift in enumerate(surface.get_shifts()[:3]):
        first, second = ([(packed >> shift) & 255 for packed in pair] for pair in (upper, lower))
        sampled[:, :, channel] = bilinear(first, second, across, (above[:, None], below[:, None]))
    return sampled


def bilinear(upper: Pair, lower: Pair, across: Pair, down: Pair) -> NDArray[np.uint8]:
    """OpenCV's bilinear mixture of four int32 values in [0, 255], rounded as there.

    `upper` and `lower` are the left and right values of two rows, `across` and `down` the weights of left
    and right and of upper and lower, as `taps` gives them. All broadcast.
    """
    rows = [(left * across[0] + right * across[1]) >> 4 for left, right in (upper, lower)]
    mixed = ((rows[0] * down[0]) >> 16) + ((rows[1] * down[1]) >> 16)
    return ((mixed + 2) >> 2).astype(np.uint8)


@lru_cache(maxsize=16)
def taps(source: int, target: int) -> tuple[NDArray[np.intp], Pair]:
    """The two source pixels of each target pixel along one axis, and their weights, which sum to 2048.

    Returns indices (2 target,), all first ones before all second ones, and a pair of weights (target,).
    """
    position = np.clip((np.arange(target) + 0.5) * (source / target) - 0.5, 0, source - 1)
    first = np.floor(position).astype(np.intp)
    second = np.minimum(first + 1, source - 1)
    weight = np.rint((position - first) * (1 << _FRACTION_BITS)).astype(np.int32)
    return np.concatenate([first, second]), ((1 << _FRACTION_BITS) - weight, weight)


def _rounded(points: list[Point] | Polygon) -> list[tuple[int, int]]:
    return [(round(x), round(y)) for x, y in points]


def _draw_agent(surface: pygame.Surface, position: Point) -> None:
    center = (round(position[0]), round(position[1]))
    radius = round(geometry.AGENT_RADIUS)
    pygame.draw.circle(surface, geometry.AGENT_COLOR, center, radius)
    pygame.draw.circle(surface, lighter(geometry.AGENT_COLOR), center, radius - _RIM_WIDTH)


def _draw_polygon(surface: pygame.Surface, vertices: list[Point]) -> None:
    pygame.draw.polygon(surface, lighter(geometry.BLOCK_COLOR), _rounded(vertices))
    for start, end in zip(vertices, vertices[1:] + vertices[:1], strict=True):
        draw_edge(surface, start, end)


def draw_edge(surface: pygame.Surface, start: Point, end: Point) -> None:
    """One edge of the block's outline, `EDGE_OVERHANG` larger than the rectangle of its ends at most."""
    _draw_thick_line(surface, start, end, _OUTLINE_RADIUS, geometry.BLOCK_COLOR)


def _draw_thick_line(surface: pygame.Surface, start: Point, end: Point, radius: float, color: Color) -> None:
    (x0, y0), (x1, y1) = ends = _rounded([start, end])
    pygame.draw.line(surface, color, ends[0], ends[1], round(2 * radius))
    length = math.hypot(x1 - x0, y1 - y0)
    if length > 0:
        # Widened along the mirrored direction, not along the normal, as in the recorded images.
        u, v = round(abs(y1 - y0) * radius / length), round(abs(x1 - x0) * radius / length)
        pygame.draw.polygon(surface, color, [(x0 - u, y0 - v), (x0 + u, y0 + v), (x1 + u, y1 + v), (x1 - u, y1 - v)])
    for end in ends:
        pygame.draw.circle(surface, color, end, round(radius))


def _draw_cross(surface: pygame.Surface, position: Point) -> None:
    x, y = round(position[0]), round(position[1])
    half = _CROSS_SIZE // 2
    pygame.draw.line(surface, geometry.TARGET_COLOR, (x - half, y), (x + half, y), _CROSS_WIDTH)
    pygame.draw.line(surface, geometry.TARGET_COLOR, (x, y - half), (x, y + half), _CROSS_WIDTH)

"""The picture that a person looks at, in windows and videos: the world above, lines of text below, drawings on top.

Drawn in memory: no display is needed.
"""

import os
from collections.abc import Sequence

# Before the import that would print it.
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")

import numpy as np
import pygame
from numpy.typing import ArrayLike, NDArray

from envs.pusht import geometry
from envs.pusht.geometry import Color, Point, Pose
from envs.pusht.rendering import Renderer, resized

PLAN_COLOR: Color = (230, 110, 20)
HAND_COLOR: Color = (200, 30, 90)
FONT_SIZE = 20

_MARGIN, _LINE_HEIGHT, _PANEL_PADDING = 8, 21, 12
_TEXT_COLOR, _PANEL_COLOR = (30, 30, 30), (240, 240, 240)
_BOX_COLOR = (255, 255, 255, 225)
# The last point of a plan is drawn this faintly, and each point's disc this large.
_FAINTEST, _FIRST_RADIUS, _LAST_RADIUS = 60, 5, 3


class Picture:
    """The window's content, `surface`: 512 wide, 512 high and below that the panel.

    Args:
        n_lines: lines of text in the panel.
        goal_pose: where the goal is drawn.
    """

    def __init__(self, n_lines: int, goal_pose: Pose = geometry.GOAL_POSE) -> None:
        pygame.font.init()
        self._font = pygame.font.Font(None, FONT_SIZE)
        size = geometry.WINDOW_SIZE
        self._panel = pygame.Rect(0, size, size, _PANEL_PADDING + n_lines * _LINE_HEIGHT)
        self.surface = pygame.Surface((size, self._panel.bottom), depth=32)
        self._veil = pygame.Surface((size, size), pygame.SRCALPHA, 32)
        self.goal_pose = goal_pose

    @property
    def goal_pose(self) -> Pose:
        """Where the goal is drawn; may be set."""
        return self._goal_pose

    @goal_pose.setter
    def goal_pose(self, pose: Pose) -> None:
        self._goal_pose = pose
        self._renderer = Renderer(pose)

    def draw(self, agent: Point, block: Point, angle: float, lines: Sequence[str]) -> None:
        """Draws the world over everything, and lines of text, cut to fit, below it."""
        self.surface.blit(self._renderer.draw(agent, block, angle), (0, 0))
        self.surface.fill(_PANEL_COLOR, self._panel)
        for index, line in enumerate(lines):
            position = (_MARGIN, self._panel.top + _MARGIN + index * _LINE_HEIGHT)
            self.surface.blit(self._text(line, self._panel.width - 2 * _MARGIN), position)

    def ring(self, center: Point, radius: float, color: Color) -> None:
        """A thin circle."""
        pygame.draw.circle(self.surface, color, _rounded(center), round(radius), width=2)

    def path(self, start: Point, points: ArrayLike) -> None:
        """A path from `start` over points (n, 2) that fades from the first to the last of them."""
        way = [_rounded(start), *map(_rounded, np.asarray(points, np.float64).reshape(-1, 2).tolist())]
        faded = np.linspace(255, _FAINTEST, max(len(way) - 1, 1)).round().astype(int).tolist()
        sizes = np.linspace(_FIRST_RADIUS, _LAST_RADIUS, max(len(way) - 1, 1)).round().astype(int).tolist()
        # From the far end, so that what comes first lies on top.
        for index in range(len(way) - 1, 0, -1):
            color = (*PLAN_COLOR, faded[index - 1])
            pygame.draw.line(self._veil, color, way[index - 1], way[index], 3)
            pygame.draw.circle(self._veil, color, way[index], sizes[index - 1])
        self._lift_veil()

    def pull(self, held: Point, hand: Point) -> None:
        """The spring by which a hand holds the block."""
        pygame.draw.line(self.surface, HAND_COLOR, _rounded(held), _rounded(hand), 2)
        pygame.draw.circle(self.surface, HAND_COLOR, _rounded(held), 4)
        self.ring(hand, 8, HAND_COLOR)

    def ghost(self, block: Pose, strength: float) -> None:
        """The block's outline at another pose, between invisible (0) and strong (1)."""
        corners = [_rounded(point) for point in geometry.to_world(geometry.OUTLINE, *block)]
        pygame.draw.polygon(self._veil, (*HAND_COLOR, round(255 * strength)), corners, width=2)
        self._lift_veil()

    def box(self, rows: Sequence[tuple[str, str]]) -> None:
        """A table of two columns in the middle of the world."""
        rendered = [[self._text(cell) for cell in row] for row in rows]
        first, second = (max(cells[column].get_width() for cells in rendered) for column in (0, 1))
        area = pygame.Rect(0, 0, first + second + 5 * _MARGIN, len(rows) * _LINE_HEIGHT + 3 * _MARGIN)
        area.center = (geometry.WINDOW_SIZE // 2, geometry.WINDOW_SIZE // 2)
        pygame.draw.rect(self._veil, _BOX_COLOR, area, border_radius=_MARGIN)
        pygame.draw.rect(self._veil, geometry.WALL_COLOR, area, width=2, border_radius=_MARGIN)
        self._lift_veil()
        left = area.left + _MARGIN + _MARGIN // 2
        for index, (key, meaning) in enumerate(rendered):
            top = area.top + 2 * _MARGIN + index * _LINE_HEIGHT
            self.surface.blit(key, (left, top))
            self.surface.blit(meaning, (left + first + 2 * _MARGIN, top))

    def array(self) -> NDArray[np.uint8]:
        """A copy of the picture, (height, width, 3) uint8 RGB."""
        return resized(self.surface, *self.surface.get_size())

    def _text(self, line: str, width: int | None = None) -> pygame.Surface:
        if width is not None and self._font.size(line)[0] > width:
            while line and self._font.size(line + "...")[0] > width:
                line = line[:-1]
            line += "..."
        return self._font.render(line, True, _TEXT_COLOR)

    def _lift_veil(self) -> None:
        """Puts what was drawn translucently onto the picture."""
        self.surface.blit(self._veil, (0, 0))
        self._veil.fill((0, 0, 0, 0))


def _rounded(point: Sequence[float]) -> tuple[int, int]:
    return round(point[0]), round(point[1])

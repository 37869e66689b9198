"""Ways of the agent to the block: where it can touch it, and the shortest path there around it.

All in the block's own frame, in pixels. The block's two rectangles, widened by the agent's radius and a clearance, are
what the agent's centre keeps out of. Shortest paths around them turn at their convex corners (a visibility graph).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from envs.pusht.geometry import AGENT_RADIUS, BAR, OUTLINE, STEM

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

# Between the agent and the block on the way.
CLEARANCE = 12.0
# Between them where a push begins.
RUN_UP = 13.0
# Distance of neighbouring contact points along the outline.
CONTACT_SPACING = 2.0

_KEEP_OUT = AGENT_RADIUS + CLEARANCE
_RECTANGLES = np.array([[*np.min(polygon, axis=0), *np.max(polygon, axis=0)] for polygon in (BAR, STEM)])
_WIDENED = _RECTANGLES + _KEEP_OUT * np.array([-1.0, -1.0, 1.0, 1.0])
# Corners to turn at: a little outside the widened rectangles.
_TURN = _KEEP_OUT + 1.0
_CONVEX = ((-60.0, 0.0), (60.0, 0.0), (60.0, 30.0), (15.0, 120.0), (-15.0, 120.0), (-60.0, 30.0))


@dataclass(frozen=True)
class Contacts:
    """Points (M, 2) on the outline that the agent can touch, inward normals (M, 2), and where a push begins (M, 2)."""

    point: Floats
    inward: Floats
    start: Floats

    def __len__(self) -> int:
        return len(self.point)


def distance_to_block(points: Floats) -> Floats:
    """Distances (...) of points (..., 2) from the block; 0 inside."""
    return np.linalg.norm(points - nearest_on_block(points), axis=-1)


def nearest_on_block(points: Floats) -> Floats:
    """The block's points (..., 2) nearest to points (..., 2)."""
    nearest = np.clip(points[..., None, :], _RECTANGLES[:, :2], _RECTANGLES[:, 2:])
    best = np.linalg.norm(points[..., None, :] - nearest, axis=-1).argmin(axis=-1)
    return np.take_along_axis(nearest, best[..., None, None], axis=-2)[..., 0, :]


def blocked(start: Floats, end: Floats) -> Mask:
    """Whether segments from (..., 2) to (..., 2) pass through the widened rectangles (slab method)."""
    low, high = _WIDENED[:, :2] + 1e-6, _WIDENED[:, 2:] - 1e-6
    origin, direction = start[..., None, :], (end - start)[..., None, :]
    with np.errstate(divide="ignore", invalid="ignore"):
        first, second = (low - origin) / direction, (high - origin) / direction
    parallel = direction == 0.0
    outside = parallel & ((origin <= low) | (origin >= high))
    enter = np.where(parallel, -np.inf, np.minimum(first, second)).max(axis=-1)
    leave = np.where(parallel, np.inf, np.maximum(first, second)).min(axis=-1)
    crosses = (np.maximum(enter, 0.0) < np.minimum(leave, 1.0)) & ~outside.any(axis=-1)
    return crosses.any(axis=-1)


def _contacts() -> Contacts:
    corners = np.array(OUTLINE)
    points, inwards = [], []
    for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        length = float(np.linalg.norm(end - start))
        along = (end - start) / length
        offsets = np.arange(0.5 * CONTACT_SPACING, length, CONTACT_SPACING)
        points.append(start + offsets[:, None] * along)
        # The outline runs clockwise on the screen: its inside lies to the right.
        inwards.append(np.tile([-along[1], along[0]], (len(offsets), 1)))
    point, inward = np.concatenate(points), np.concatenate(inwards)
    start = point - (AGENT_RADIUS + RUN_UP) * inward
    # In the inner corners the agent meets the other rectangle first.
    reachable = distance_to_block(start) > AGENT_RADIUS + RUN_UP - 1e-6
    return Contacts(point[reachable], inward[reachable], start[reachable])


def _corners() -> Floats:
    center = np.array([[0.0, 15.0]] * 3 + [[0.0, 75.0]] * 2 + [[0.0, 15.0]])
    corners = np.array(_CONVEX)
    return corners + _TURN * np.sign(corners - center)


CONTACTS = _contacts()
CORNERS = _corners()
_CORNER_SEES_CORNER = ~blocked(CORNERS[:, None], CORNERS[None])
_CORNER_SEES_START = ~blocked(CORNERS[:, None], CONTACTS.start[None])


def retreat(agent: Floats) -> Floats:
    """The nearest place (2,) outside the widened rectangles, from which ways can begin."""
    if not _kept_out(agent):
        return agent
    exits = [
        np.where(np.arange(2) == axis, bound, agent)
        for rectangle in _WIDENED
        for axis, bound in ((0, rectangle[0]), (1, rectangle[1]), (0, rectangle[2]), (1, rectangle[3]))
    ]
    # The inner corners, where both rectangles end.
    exits += [np.array([x, _WIDENED[0, 3]]) for x in (_WIDENED[1, 0], _WIDENED[1, 2])]
    return min(
        (point for point in exits if not _kept_out(point)), key=lambda point: float(np.linalg.norm(point - agent))
    )


def _kept_out(point: Floats) -> bool:
    inside = (point > _WIDENED[:, :2] + 1e-9) & (point < _WIDENED[:, 2:] - 1e-9)
    return bool(inside.all(axis=1).any())


def shortest_ways(agent: Floats, usable: Mask) -> tuple[Floats, NDArray[np.intp]]:
    """Shortest paths from the agent's position (2,) to where the push at each contact begins.

    Args:
        agent: outside the widened rectangles (see `retreat`).
        usable: (6,) which corners may be turned at.

    Returns:
        lengths: (M,), infinite where there is no path.
        turns: (M, 6) the corners' numbers in order, -1 after the last.
    """
    count = len(CORNERS)
    direct = np.where(blocked(np.broadcast_to(agent, CONTACTS.start.shape), CONTACTS.start), np.inf, 0.0)
    direct = direct + np.linalg.norm(CONTACTS.start - agent, axis=1)
    sees = usable & ~blocked(np.broadcast_to(agent, CORNERS.shape), CORNERS)
    reach = np.where(sees, np.linalg.norm(CORNERS - agent, axis=1), np.inf)
    between = np.linalg.norm(CORNERS[:, None] - CORNERS[None], axis=-1)
    between = np.where(_CORNER_SEES_CORNER & usable[:, None] & usable[None], between, np.inf)
    before = np.full(count, -1)
    for _ in range(count):  # Bellman-Ford
        through = reach[:, None] + between
        best = through.argmin(axis=0)
        shorter = through[best, np.arange(count)] < reach - 1e-9
        before = np.where(shorter, best, before)
        reach = np.where(shorter, through[best, np.arange(count)], reach)
    last = np.where(_CORNER_SEES_START, np.linalg.norm(CORNERS[:, None] - CONTACTS.start[None], axis=-1), np.inf)
    around = reach[:, None] + last
    corner = around.argmin(axis=0)
    lengths = np.minimum(direct, around.min(axis=0))
    turns = np.full((len(CONTACTS), count), -1)
    for contact in np.flatnonzero(np.isfinite(lengths) & (direct > lengths)):
        chain = [corner[contact]]
        while before[chain[-1]] >= 0:
            chain.append(before[chain[-1]])
        turns[contact, : len(chain)] = chain[::-1]
    return lengths, turns

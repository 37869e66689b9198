"""Disturbing a PushT world by hand: the block is pulled by a point on it, or put somewhere else.

A pull is a spring in the physics engine, so walls and agent stop the block as they always do. It is limited in speed
and in force, which the walls are not, and the walls are thick while it lasts: however far away the hand goes, the block
stays inside.
"""

import math
from typing import Any

import numpy as np
import pymunk

from envs.pusht import geometry
from envs.pusht.geometry import Point, Pose
from envs.pusht.physics import World

GRAB_MARGIN = 5.0
"""So many pixels beside the block still take hold of it."""
MAX_SHIFT, MAX_TURN = 120.0, math.pi / 2.0
"""How far `displace` moves the block at most: pixels, radians."""

# A fifth of the distance is closed in each physics step, at 4 px a step at most: the block's parts are 30 px thick.
_PULL = 0.2
_MAX_SPEED = 400.0
# Just enough for that speed from rest. With more, the spring would outlast the iterations in which the engine
# settles who wins, spring or wall.
_MAX_FORCE = geometry.BLOCK_MASS * _MAX_SPEED / geometry.TIME_STEP

_INSIDE_START = geometry.WALLS[0][1][0] + geometry.WALL_RADIUS
_INSIDE_END = geometry.WALLS[2][0][0] - geometry.WALL_RADIUS
_THICKNESS = 200.0


def point_on_block(pose: Pose, position: Point) -> Point | None:
    """`position` (window pixels) in the frame of the block at `pose`; None if it is not on the block.

    A position within `GRAB_MARGIN` beside the block counts as the nearest point on it.
    """
    nearest, distance = _nearest_on_block(pose, position)
    return nearest if distance <= GRAB_MARGIN else None


class Drag:
    """A hand that holds the block of a world by one point, until `release`.

    Args:
        world: whose block is held. The pull acts in every physics step of this world.
        held_at: the point in the block's frame, pixels.
        hand: where the hand is, window pixels.
    """

    def __init__(self, world: World, held_at: Point, hand: Point) -> None:
        self._world = world
        self.held_at = held_at
        self._hand = pymunk.Body(body_type=pymunk.Body.KINEMATIC)
        self.move(hand)
        spring = pymunk.PivotJoint(self._hand, world.block, (0.0, 0.0), held_at)
        spring.error_bias = (1.0 - _PULL) ** geometry.PHYSICS_HZ
        spring.max_bias = _MAX_SPEED
        spring.max_force = _MAX_FORCE
        # The engine pushes a body out of a wall by the shortest way: of the world's thin ones that can be the way out.
        self._added: list[Any] = [self._hand, spring, *_thick_walls(world.space.static_body)]
        world.space.add(*self._added)

    @property
    def hand(self) -> Point:
        """Where the hand is, inside the window."""
        x, y = self._hand.position
        return x, y

    def move(self, hand: Point) -> None:
        """Moves the hand; outside the window it counts as at the nearest point inside."""
        x, y = (min(max(float(value), 0.0), float(geometry.WINDOW_SIZE)) for value in hand)
        self._hand.position = (x, y)

    def release(self) -> None:
        """Lets go: the block stays where it is."""
        self._world.space.remove(*reversed(self._added))


def hold_agent(world: World) -> None:
    """One control step (0.1 s) in which the agent stands still and only the hand moves the block."""
    agent = world.agent
    velocity, agent.velocity = agent.velocity, (0.0, 0.0)
    for _ in range(geometry.SUBSTEPS):
        world.space.step(geometry.TIME_STEP)
    agent.velocity = velocity


def displace(world: World, generator: np.random.Generator) -> Pose:
    """Shifts the block by up to `MAX_SHIFT` and turns it by up to `MAX_TURN`, uniformly; returns its new pose.

    Poses are drawn until the block touches neither a wall nor the agent. ValueError if 1,000 draws give none.
    """
    block = world.block
    (x, y), angle = block.position, block.angle
    for _ in range(1_000):
        distance = MAX_SHIFT * math.sqrt(generator.random())
        direction = generator.uniform(0.0, 2.0 * math.pi)
        turn = generator.uniform(-MAX_TURN, MAX_TURN)
        pose = (x + distance * math.cos(direction), y + distance * math.sin(direction), angle + turn)
        if _is_free(pose, world.agent.position):
            block.angle = pose[2]  # before the position, which a turn about the centre of gravity moves
            block.position = pose[:2]
            block.velocity, block.angular_velocity = (0.0, 0.0), 0.0
            world.space.reindex_shapes_for_body(block)
            return pose
    raise ValueError(f"the block at ({x:.0f}, {y:.0f}) has no room to be moved in")


def _thick_walls(body: pymunk.Body) -> list[pymunk.Segment]:
    """Walls whose inner faces are those of the world's own."""
    before, after = _INSIDE_START - _THICKNESS, _INSIDE_END + _THICKNESS
    corners = [(before, before), (after, before), (after, after), (before, after)]
    return [pymunk.Segment(body, start, corners[index - 1], _THICKNESS) for index, start in enumerate(corners)]


def _is_free(pose: Pose, agent: Point) -> bool:
    outline = geometry.to_world(geometry.OUTLINE, *pose)
    if not all(_INSIDE_START < value < _INSIDE_END for point in outline for value in point):
        return False
    return _nearest_on_block(pose, agent)[1] > geometry.AGENT_RADIUS


def _nearest_on_block(pose: Pose, position: Point) -> tuple[Point, float]:
    """The point on the block at `pose` that is nearest to a position, in the block's frame, and how far it is."""
    x, y, angle = pose
    cos, sin = math.cos(angle), math.sin(angle)
    dx, dy = position[0] - x, position[1] - y
    u, v = cos * dx + sin * dy, cos * dy - sin * dx
    candidates = []
    for (u_min, v_min), _, (u_max, v_max), _ in (geometry.BAR, geometry.STEM):
        nearest = (min(max(u, u_min), u_max), min(max(v, v_min), v_max))
        candidates.append((nearest, math.dist(nearest, (u, v))))
    return min(candidates, key=lambda candidate: candidate[1])

"""PushT's rigid bodies: an agent under position control, a block that moves only while pushed, four walls.

`World` is one of them; `envs.pusht.worlds` puts many into one space. Both are made of the same bodies and follow the
same control law, which are the free functions here. The order in which shapes are created and added is the original's,
because the contact solver's result depends on it.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pymunk
from numpy.typing import NDArray

from envs.pusht import geometry
from envs.pusht.geometry import Point

_LOWEST_TARGET, _HIGHEST_TARGET = -geometry.TARGET_MARGIN, geometry.WINDOW_SIZE + geometry.TARGET_MARGIN


class WorldState(NamedTuple):
    """Everything that moves, in pixels, radians and seconds (but not the solver's remembered impulses)."""

    agent_position: tuple[float, float]
    agent_velocity: tuple[float, float]
    block_position: tuple[float, float]
    block_angle: float
    block_velocity: tuple[float, float]
    block_angular_velocity: float


def make_space() -> pymunk.Space:
    """A space without gravity that stops every free body at each step (damping 0: quasi-static pushing)."""
    space = pymunk.Space()
    space.gravity = (0.0, 0.0)
    space.damping = 0.0
    return space


def add_walls(space: pymunk.Space, origin: Point = (0.0, 0.0)) -> None:
    """Adds the four walls. They stop the block only: the agent is kinematic and passes through them."""
    x, y = origin
    for (x0, y0), (x1, y1) in geometry.WALLS:
        ends = (x + x0, y + y0), (x + x1, y + y1)
        space.add(pymunk.Segment(space.static_body, *ends, geometry.WALL_RADIUS))


def make_agent() -> tuple[pymunk.Body, tuple[pymunk.Shape, ...]]:
    """The round agent's body and its shape, in no space yet."""
    body = pymunk.Body(body_type=pymunk.Body.KINEMATIC)
    body.position = geometry.AGENT_START
    return body, (pymunk.Circle(body, geometry.AGENT_RADIUS),)


def make_block() -> tuple[pymunk.Body, tuple[pymunk.Shape, ...]]:
    """The T's body and its two shapes, in no space yet. `body.position` is the middle of the bar's outer edge."""
    body = pymunk.Body(geometry.BLOCK_MASS, geometry.BLOCK_MOMENT)
    shapes = pymunk.Poly(body, list(geometry.BAR)), pymunk.Poly(body, list(geometry.STEM))
    body.center_of_gravity = geometry.BLOCK_CENTER_OF_GRAVITY
    body.position = geometry.BLOCK_START
    return body, shapes


def place_bodies(
    agent: pymunk.Body,
    block: pymunk.Body,
    state: Sequence[float],
    position_first: bool = False,
    origin: Point = (0.0, 0.0),
) -> None:
    """Puts agent and block at `state` = (agent x, agent y, block x, block y, block angle); both at rest.

    The block turns about its centre of gravity, not about its origin. Setting the angle first therefore
    ends exactly at `state`; `position_first=True` ends with the origin moved by that turn (the order in
    which the published evaluations of the Diffusion Policy paper set their initial states).
    """
    agent_x, agent_y, block_x, block_y, angle = (float(value) for value in state)
    x, y = origin
    agent.position = (x + agent_x, y + agent_y)
    if position_first:
        # The displacement depends on the angle before; a fresh block's is 0.
        block.angle = 0.0
        block.position = (x + block_x, y + block_y)
        block.angle = angle
    else:
        block.angle = angle
        block.position = (x + block_x, y + block_y)
    agent.velocity = block.velocity = (0.0, 0.0)
    block.angular_velocity = 0.0


def on_contact(space: Any, callback: Callable[[Any, pymunk.Space, Any], None]) -> None:
    """Calls `callback(arbiter, space, data)` after each physics step for every touching pair of shapes."""
    if hasattr(space, "on_collision"):  # pymunk 7
        space.on_collision(0, 0, post_solve=callback)
    else:  # pymunk 6
        space.add_collision_handler(0, 0).post_solve = callback


def controlled_velocity(position: float, velocity: float, target: float) -> float:
    """One axis of the agent's velocity after one physics step of the proportional-derivative control law."""
    acceleration = geometry.POSITION_GAIN * (target - position) - geometry.VELOCITY_GAIN * velocity
    return velocity + acceleration * geometry.TIME_STEP


def limited(target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Targets of any shape, at most `TARGET_MARGIN` outside the window."""
    return np.minimum(np.maximum(target, _LOWEST_TARGET), _HIGHEST_TARGET)


class World:
    """One agent, one block and the walls.

    Attributes: `space` (pymunk.Space), `agent` and `block` (pymunk.Body), `contact_points` (summed over the
    physics steps of the last control step), `target` (of the last control step, or None).

    Copies (`copy.deepcopy`, pickle) go on from the same positions and speeds. What the solver remembers of contacts is
    not copied, so that in contact a copy's further way differs by a little.
    """

    def __init__(self) -> None:
        self.contact_points = 0
        self.target: Point | None = None
        self.space = make_space()
        add_walls(self.space)
        self.agent, agent_shapes = make_agent()
        self.block, block_shapes = make_block()
        self.space.add(self.agent, *agent_shapes, self.block, *block_shapes)
        on_contact(self.space, self._count_contacts)

    def place(self, state: Sequence[float], position_first: bool = False) -> None:
        """Puts agent and block at `state`, at rest: see `place_bodies`."""
        place_bodies(self.agent, self.block, state, position_first)

    def settle(self) -> None:
        """One physics step without control, as in the original after a state is set.

        At rest nothing moves in it. A block that was placed into the agent or a wall takes up the speed
        with which it will leave in the next step: recordings that start in contact replay only with this.
        """
        self.space.step(geometry.TIME_STEP)
        self.contact_points = 0

    def advance(self, target_x: float, target_y: float) -> None:
        """One control step (0.1 s, ten physics steps) of the agent towards an absolute target, in pixels."""
        self.contact_points = 0
        agent, step, time_step = self.agent, self.space.step, geometry.TIME_STEP
        target_x = min(max(target_x, _LOWEST_TARGET), _HIGHEST_TARGET)
        target_y = min(max(target_y, _LOWEST_TARGET), _HIGHEST_TARGET)
        self.target = (target_x, target_y)
        x, y = agent.position
        velocity_x, velocity_y = agent.velocity
        for _ in range(geometry.SUBSTEPS):
            velocity_x = controlled_velocity(x, velocity_x, target_x)
            velocity_y = controlled_velocity(y, velocity_y, target_y)
            agent.velocity = (velocity_x, velocity_y)
            step(time_step)
            # Nothing pushes a kinematic body: this is the engine's own update, without the cost of asking.
            x += velocity_x * time_step
            y += velocity_y * time_step

    @property
    def mean_contacts(self) -> int:
        """Contact points per physics step of the last control step, rounded up."""
        return math.ceil(self.contact_points / geometry.SUBSTEPS)

    def state(self) -> WorldState:
        """Positions and velocities of both bodies."""
        agent, block = self.agent, self.block
        return WorldState(
            agent.position,
            agent.velocity,
            block.position,
            block.angle,
            block.velocity,
            block.angular_velocity,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {"state": self.state(), "contact_points": self.contact_points, "target": self.target}

    def __setstate__(self, saved: dict[str, Any]) -> None:
        # pymunk's own copies put a body where its centre of gravity was not yet known.
        self.__init__()  # type: ignore[misc]
        state = WorldState(*saved["state"])
        self.place((*state.agent_position, *state.block_position, state.block_angle))
        self.agent.velocity, self.block.velocity = state.agent_velocity, state.block_velocity
        self.block.angular_velocity = state.block_angular_velocity
        self.contact_points, self.target = saved["contact_points"], saved["target"]

    def _count_contacts(self, arbiter: Any, space: pymunk.Space, data: Any) -> None:
        self.contact_points += len(arbiter.contact_point_set.points)

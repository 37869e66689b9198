"""Many PushT worlds in one physics space, stepped together.

A step of the engine costs Python several microseconds to ask for, however little happens in it. All worlds therefore
stand in a row in one `pymunk.Space`, far enough apart never to meet; one `space.step` advances all of them, and
`pymunk.batch` reads and writes all bodies in one call. Nothing pushes the agent back (it is kinematic), so its path
over a control step is known before the first physics step, for all worlds at once.

A world's result equals that of `envs.pusht.physics.World` up to rounding, because the solver is made to visit its
contacts in the same order. That order follows from the engine's search tree over shapes. A post that touches nothing
stands beside each world, so far that each world's shapes form a branch of their own, which grows as the tree of a
single world does. Where an agent starts in bar and stem at once, their order in the branch, by which one of them
presses first, is made that of a single world (in one or two such starts of a hundred it then changes at another step).
Pushing is chaotic: rounding alone sends a world in a hundred visibly apart over long contact.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pymunk
from numpy.typing import ArrayLike, NDArray
from pymunk.batch import (
    ArbiterFields,
    BodyFields,
    Buffer,
    get_space_arbiters,
    get_space_bodies,
    set_space_bodies,
)

from envs.pusht import geometry, physics

# From the origin of one world to that of the next, pixels. An agent keeps within TARGET_MARGIN of its window and pushes
# its block a little farther than that.
SPACING = 2048.0
# Physics steps without touching, after which the engine has forgotten a contact (it keeps them for three).
FORGETTING = 4

Floats = NDArray[np.float64]

_POSE_FIELDS = BodyFields.POSITION | BodyFields.ANGLE
_CONTACT_FIELDS = ArbiterFields.BODY_A_ID | ArbiterFields.BODY_B_ID | ArbiterFields.CONTACT_COUNT
_SPARE_ROWS = 4
# Posts are as tall as a block ever gets, and stand away from it.
_POST = ((-700.0, -900.0), (-700.0, 1400.0))
_TOUCHES_NOTHING = pymunk.ShapeFilter(categories=0, mask=0)
_START = np.array([*geometry.AGENT_START, *geometry.BLOCK_START, 0.0])
# Agent and block where they touch nothing.
_PARKED = np.array([-100.0, -100.0, 256.0, 256.0, 0.0])


class WorldStates(NamedTuple):
    """Everything that moves in N worlds, in pixels, radians and seconds, each in its own window.

    Not part of it is what the engine remembers of contacts: impulses, their order, and how fast it is pressing
    overlapping bodies apart. From where a state is set, bodies that touch move on differently than from where it was
    taken: by hundredths of a pixel mostly, by tens after they were pressed deep into each other.
    """

    agent_position: Floats  # (N, 2)
    agent_velocity: Floats  # (N, 2)
    block_position: Floats  # (N, 2)
    block_angle: Floats  # (N,), counting full turns
    block_velocity: Floats  # (N, 2)
    block_angular_velocity: Floats  # (N,)


class Worlds:
    """N worlds of one agent, one block and four walls each.

    Attributes, to read only; calls that move bodies replace the arrays: `agent_position` (N, 2), `agent_velocity`
    (N, 2), `block_pose` (N, 3) of x, y, angle, `contact_points` (N,) summed over the physics steps of the last control
    step.

    Raises ValueError if `n_worlds` is less than 1.
    """

    def __init__(self, n_worlds: int) -> None:
        if n_worlds < 1:
            raise ValueError(f"n_worlds is {n_worlds!r}; allowed: an integer of at least 1")
        self.n_worlds = n_worlds
        self._origins: Floats = SPACING * np.stack([np.arange(n_worlds, dtype=np.float64), np.zeros(n_worlds)], axis=1)
        # The engine writes into these arrays and reads from them, without a copy in between. Two rows are those of the
        # bodies that walls and posts belong to.
        self._pairs, self._pair_buffer = _shared_array(2 * n_worlds + 2, 2)
        self._poses, self._pose_buffer = _shared_array(2 * n_worlds + 2, 3)
        self._angles, self._angle_buffer = _shared_array(2 * n_worlds + 2, 1)
        self._ids, self._contacts = Buffer(), Buffer()
        self.place_all(np.tile(_START, (n_worlds, 1)))

    # --- placing ---

    def place_all(self, states: ArrayLike, position_first: bool = False) -> None:
        """Starts all worlds afresh at states (N, 5), at rest, and lets them settle as `World.settle` does.

        In a fresh space: the engine remembers contacts, and an episode must not depend on the one before.
        """
        states = np.asarray(states, np.float64)
        self._bar_first = _where_bar_first(states, position_first)
        self._build()
        self._place(range(self.n_worlds), states, position_first)
        self.space.step(geometry.TIME_STEP)
        self.agent_position, self.agent_velocity = states[:, :2].copy(), np.zeros((self.n_worlds, 2))
        self.contact_points = np.zeros(self.n_worlds, np.int64)
        self._read_poses()

    def place(self, indices: NDArray[np.intp], states: ArrayLike, position_first: bool = False) -> None:
        """Starts some worlds afresh at states (len(indices), 5) between two control steps of the others.

        Each is taken out of the space, by which the engine forgets its contacts, settles in a space of its own, and is
        put back. What settling leaves behind travels with the bodies.
        """
        states = np.asarray(states, np.float64)
        self._bar_first[indices] = _where_bar_first(states, position_first)
        for row, index in enumerate(indices):
            agent, block, *block_shapes, circle = parts = self._parts[index]
            self.space.remove(*parts)
            # Overlap that was being pressed apart before moves a body once more: without shapes, it meets nothing.
            nowhere = physics.make_space()
            nowhere.add(agent, block)
            nowhere.step(geometry.TIME_STEP)
            nowhere.remove(agent, block)
            # As in a single world, down to the order: overlapping bodies are pressed apart by contact after contact.
            room = physics.make_space()
            physics.add_walls(room, self._origin(index))
            self._place([index], _START[None], False)
            room.add(agent, circle, block, *block_shapes)
            self._place([index], states[row : row + 1], position_first)
            room.step(geometry.TIME_STEP)
            room.remove(*parts)
            self.space.add(agent, block, *self._shapes_in_order(index))
        self._find_rows()
        self._rest(indices, states)
        self._read_poses()

    # --- stepping ---

    def advance(
        self,
        targets: Floats,
        restarted: NDArray[np.intp] | None = None,
        states: ArrayLike = (),
        position_first: bool = False,
    ) -> None:
        """One control step (0.1 s, ten physics steps) of all agents towards absolute targets (N, 2), in pixels.

        `restarted` worlds take no part in it but end it placed at `states` (len(restarted), 5) and settled, as by
        `place`, only cheaper: the last of the ten physics steps settles them, and during those before it the engine
        forgets their contacts.
        """
        offset = physics.limited(targets) - self.agent_position
        velocities = _REACTION[:, 0, None, None] * offset + _REACTION[:, 1, None, None] * self.agent_velocity
        if restarted is not None:
            starts = np.asarray(states, np.float64)
            velocities[:, restarted] = 0.0
            self._place(restarted, np.tile(_PARKED, (len(restarted), 1)), False)
            self._order_shapes(restarted, _where_bar_first(starts, position_first))
        space, step, time_step = self.space, self.space.step, geometry.TIME_STEP
        pairs, agent_rows, buffer, contacts = self._pairs, self._agent_rows, self._pair_buffer, self._contacts
        contacts.clear()
        for substep in range(geometry.SUBSTEPS):
            if restarted is not None and substep == geometry.SUBSTEPS - 1:
                self._place(restarted, starts, position_first)
            # The blocks' velocities go back as they came: the engine can only be given those of all bodies.
            buffer.clear()
            get_space_bodies(space, BodyFields.VELOCITY, buffer)
            pairs[agent_rows] = velocities[substep]
            set_space_bodies(space, BodyFields.VELOCITY, buffer)
            step(time_step)
            get_space_arbiters(space, _CONTACT_FIELDS, contacts)
        self.agent_position, self.agent_velocity = glide(self.agent_position, self.agent_velocity, targets)
        self._count_contacts()
        if restarted is not None:
            self._rest(restarted, starts)
        self._read_poses()

    def state(self) -> WorldStates:
        """Positions and velocities of all bodies."""
        self._pair_buffer.clear()
        get_space_bodies(self.space, BodyFields.VELOCITY, self._pair_buffer)
        self._angle_buffer.clear()
        get_space_bodies(self.space, BodyFields.ANGULAR_VELOCITY, self._angle_buffer)
        return WorldStates(
            self.agent_position.copy(),
            self.agent_velocity.copy(),
            self.block_pose[:, :2].copy(),
            self.block_pose[:, 2].copy(),
            self._pairs[self._block_rows].copy(),
            self._angles[self._block_rows, 0].copy(),
        )

    def set_state(self, states: WorldStates) -> None:
        """Sets all worlds to what `state` returned, here or in other worlds; quick enough to plan with.

        Every field is broadcast over the worlds: fields of one world set all of them alike.
        """
        self._write(_PARKED[:2], (0.0, 0.0), _PARKED[2:4], _PARKED[4], (0.0, 0.0), 0.0)
        for _ in range(FORGETTING):
            self.space.step(geometry.TIME_STEP)
        self._write(*states)
        self.contact_points = np.zeros(self.n_worlds, np.int64)
        self._read_poses()

    def _write(
        self,
        agent_position: ArrayLike,
        agent_velocity: ArrayLike,
        block_position: ArrayLike,
        block_angle: ArrayLike,
        block_velocity: ArrayLike,
        block_angular_velocity: ArrayLike,
    ) -> None:
        shape = (self.n_worlds, 2)
        self.agent_position = np.array(np.broadcast_to(agent_position, shape), np.float64)
        self.agent_velocity = np.array(np.broadcast_to(agent_velocity, shape), np.float64)
        # The angle first: the block turns about its centre of gravity.
        self._set_scalars(BodyFields.ANGLE, block_angle)
        block_position = self._origins + np.asarray(block_position, np.float64)
        self._set_pairs(BodyFields.POSITION, self.agent_position + self._origins, block_position)
        self._set_pairs(BodyFields.VELOCITY, self.agent_velocity, block_velocity)
        self._set_scalars(BodyFields.ANGULAR_VELOCITY, block_angular_velocity)

    def _set_pairs(self, field: BodyFields, of_agents: ArrayLike, of_blocks: ArrayLike) -> None:
        self._pair_buffer.clear()
        get_space_bodies(self.space, field, self._pair_buffer)
        self._pairs[self._agent_rows] = of_agents
        self._pairs[self._block_rows] = of_blocks
        set_space_bodies(self.space, field, self._pair_buffer)

    def _set_scalars(self, field: BodyFields, of_blocks: ArrayLike) -> None:
        self._angle_buffer.clear()
        get_space_bodies(self.space, field, self._angle_buffer)
        self._angles[self._block_rows, 0] = of_blocks
        set_space_bodies(self.space, field, self._angle_buffer)

    # --- bodies and their rows in the engine's batches ---

    def _build(self) -> None:
        agents = [physics.make_agent() for _ in range(self.n_worlds)]
        blocks = [physics.make_block() for _ in range(self.n_worlds)]
        self._agents = [body for body, _ in agents]
        self._blocks = [body for body, _ in blocks]
        if self._bar_first[0]:
            # All begin in the first world, where its shapes would join others in the tree before their own.
            for body in (*self._agents, *self._blocks):
                body.position -= (SPACING, 0.0)
        # The order in which a lone world's tree takes up shapes that have moved: bar, stem, agent.
        self._shapes = [(*block[1], *agent[1]) for agent, block in zip(agents, blocks, strict=True)]
        self._parts = [(self._agents[i], self._blocks[i], *self._shapes[i]) for i in range(self.n_worlds)]
        self.space = physics.make_space()
        self._post_body = pymunk.Body(body_type=pymunk.Body.KINEMATIC)
        # All agents before all blocks, so that their rows are contiguous; what moves before what does not, because the
        # tree takes shapes up by number, counted from the first.
        self.space.add(*self._agents, *self._blocks, self._post_body)
        order = _bit_reversed(self.n_worlds)
        for index in order:
            self.space.add(*self._shapes_in_order(index))
        for index in order:
            origin = self._origin(index)
            # Moving and resting shapes have a tree each.
            self.space.add(_post(self._post_body, origin), _post(self.space.static_body, origin))
        for index in order:
            physics.add_walls(self.space, self._origin(index))
        bodies = (*self._agents, *self._blocks, self.space.static_body)
        ids = np.array([body.id for body in bodies], np.uintp)
        by_id = np.argsort(ids)
        self._sorted_ids = ids[by_id]
        self._worlds_by_id = np.append(np.tile(np.arange(self.n_worlds), 2), -1)[by_id]
        self._find_rows()

    def _shapes_in_order(self, index: int) -> list[pymunk.Shape]:
        """A world's shapes as the tree is to take them up; of bar and stem the later one is the first to press."""
        bar, stem, circle = self._shapes[index]
        return [stem, bar, circle] if self._bar_first[index] else [bar, stem, circle]

    def _order_shapes(self, indices: NDArray[np.intp], bar_first: NDArray[np.bool_]) -> None:
        """Lets the tree take up the shapes of some worlds anew where it holds them in another order."""
        changed = indices[self._bar_first[indices] != bar_first]
        self._bar_first[indices] = bar_first
        for index in changed:
            self.space.remove(*self._shapes[index])
            self.space.add(*self._shapes_in_order(index))

    def _find_rows(self) -> None:
        """Where each agent and each block stands in the engine's list of bodies, which removals reorder."""
        self._ids.clear()
        get_space_bodies(self.space, BodyFields.BODY_ID, self._ids)
        rows = {int(body): row for row, body in enumerate(np.frombuffer(self._ids.int_buf(), np.uintp))}
        self._agent_rows = _as_slice([rows[body.id] for body in self._agents])
        self._block_rows = _as_slice([rows[body.id] for body in self._blocks])

    def _origin(self, index: int) -> geometry.Point:
        x, y = self._origins[index]
        return float(x), float(y)

    def _place(self, indices: Iterable[int], states: Floats, position_first: bool) -> None:
        for index, state in zip(indices, states, strict=True):
            physics.place_bodies(self._agents[index], self._blocks[index], state, position_first, self._origin(index))

    def _rest(self, indices: NDArray[np.intp], states: Floats) -> None:
        """What `_place` means for the arrays."""
        for name in ("agent_position", "agent_velocity", "contact_points"):
            setattr(self, name, getattr(self, name).copy())
        self.agent_position[indices] = states[:, :2]
        self.agent_velocity[indices] = 0.0
        self.contact_points[indices] = 0

    def _count_contacts(self) -> None:
        """Sums the contact points that the physics steps since `_contacts.clear()` have left behind."""
        found = np.frombuffer(self._contacts.int_buf(), np.uintp)
        rows = np.searchsorted(self._sorted_ids, found)
        # Either body of a pair names the world, unless it is the one that all walls belong to.
        worlds = np.maximum(self._worlds_by_id[rows[0::3]], self._worlds_by_id[rows[1::3]])
        self.contact_points = np.bincount(worlds, found[2::3], self.n_worlds).astype(np.int64)

    def _read_poses(self) -> None:
        self._pose_buffer.clear()
        get_space_bodies(self.space, _POSE_FIELDS, self._pose_buffer)
        self.block_pose = self._poses[self._block_rows].copy()
        self.block_pose[:, :2] -= self._origins


def _agent_reaction() -> tuple[Floats, Floats]:
    """The control law over one control step, which is linear in the agent's offset from its target and its velocity.

    Returns (SUBSTEPS, 2): velocity at each physics step per unit of (target - position, velocity) at the start, and
    (2,): the distance gone by the end per unit of the same.
    """
    velocities, distances = np.empty((geometry.SUBSTEPS, 2)), np.empty(2)
    for unit, (offset, velocity) in enumerate([(1.0, 0.0), (0.0, 1.0)]):
        position = 0.0
        for substep in range(geometry.SUBSTEPS):
            velocity = physics.controlled_velocity(position, velocity, offset)
            velocities[substep, unit] = velocity
            position += velocity * geometry.TIME_STEP
        distances[unit] = position
    return velocities, distances


_REACTION, _DISTANCE = _agent_reaction()


def glide(position: Floats, velocity: Floats, target: Floats) -> tuple[Floats, Floats]:
    """Agents' positions and velocities (N, 2) one control step later, on their way to targets (N, 2)."""
    offset = physics.limited(target) - position
    moved = position + _DISTANCE[0] * offset + _DISTANCE[1] * velocity
    return moved, _REACTION[-1, 0] * offset + _REACTION[-1, 1] * velocity


def _where_bar_first(states: Floats, position_first: bool) -> NDArray[np.bool_]:
    """Which agents, at `states` (N, 5), start in bar and stem at once and are pressed by the bar first; (N,)."""
    first = np.zeros(len(states), bool)
    # Both are within a radius of where they meet, which is not as far from what stays where the block is placed.
    fixed = states[:, 2:4] + geometry.BLOCK_CENTER_OF_GRAVITY if position_first else states[:, 2:4]
    for index in np.flatnonzero(np.abs(states[:, :2] - fixed).max(axis=1) < 4.0 * geometry.AGENT_RADIUS).tolist():
        state = states[index].tolist()
        first[index] = _is_in_both(state, position_first) and _meets_bar_first(state, position_first)
    return first


def _is_in_both(state: Sequence[float], position_first: bool) -> bool:
    agent_x, agent_y, x, y, angle = state
    cos, sin = math.cos(angle), math.sin(angle)
    u, v = agent_x - x, agent_y - y
    if position_first:  # the block turns about its centre of gravity
        center_u, center_v = geometry.BLOCK_CENTER_OF_GRAVITY
        u, v = u - center_u, v - center_v
        u, v = cos * u + sin * v + center_u, cos * v - sin * u + center_v
    else:
        u, v = cos * u + sin * v, cos * v - sin * u
    return all(
        math.hypot(max(u_min - u, 0.0, u - u_max), max(v_min - v, 0.0, v - v_max)) <= geometry.AGENT_RADIUS
        for (u_min, v_min), _, (u_max, v_max), _ in (geometry.BAR, geometry.STEM)
    )


def _meets_bar_first(state: Sequence[float], position_first: bool) -> bool:
    """Whether a lone world takes up the agent's contact with the bar before that with the stem."""
    space = physics.make_space()
    physics.add_walls(space)
    agent, (circle,) = physics.make_agent()
    block, (bar, stem) = physics.make_block()
    space.add(agent, circle, block, bar, stem)
    physics.place_bodies(agent, block, state, position_first)
    touched: list[pymunk.Shape] = []
    physics.on_contact(space, lambda arbiter, space, data: touched.extend(arbiter.shapes))
    space.step(geometry.TIME_STEP)
    met = [other for shape, other in zip(touched[0::2], touched[1::2], strict=True) if shape is circle]
    return met == [bar, stem]


def _post(body: pymunk.Body, origin: geometry.Point) -> pymunk.Shape:
    x, y = origin
    (x0, y0), (x1, y1) = _POST
    post = pymunk.Segment(body, (x + x0, y + y0), (x + x1, y + y1), geometry.WALL_RADIUS)
    post.filter = _TOUCHES_NOTHING
    return post


def _bit_reversed(count: int) -> list[int]:
    """0..count - 1 such that a tree that takes them up in this order is balanced."""
    bits = max(1, (count - 1).bit_length())
    return sorted(range(count), key=lambda index: int(f"{index:0{bits}b}"[::-1], 2))


def _shared_array(rows: int, columns: int) -> tuple[Floats, Buffer]:
    # The engine moves a full array elsewhere, and some versions count an array as full that has an entry or two left.
    array = np.zeros((rows + _SPARE_ROWS, columns))
    buffer = Buffer()
    buffer.set_float_buf(array)
    return array[:rows], buffer


def _as_slice(rows: list[int]) -> slice | NDArray[np.intp]:
    """Contiguous rows as a slice, which is several times faster to assign to."""
    first = rows[0]
    if rows == list(range(first, first + len(rows))):
        return slice(first, first + len(rows))
    return np.array(rows)

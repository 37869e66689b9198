"""Which way round the block the agent goes: the two modes of PushT, and starts from which they are equally good.

Chi et al. (2023), figure 3, begin with it: from a start that is its own mirror image, demonstrations go left or right
around the T, and a policy should do both. The task's symmetry is the reflection in the goal's axis (the line that the
goal's T is symmetric about), which maps the window onto itself and a T onto a T.

Windings are positive counter-clockwise as seen on the screen, where y points down. Faces and sides are named in the
block's own frame: the T upright, its bar on top.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from envs.pusht import geometry, ways
from envs.pusht.geometry import AGENT_RADIUS, GOAL_POSE, OUTLINE, Pose
from envs.pusht.vertices import BLOCK_VERTICES, points_in_world

Floats = NDArray[np.float64]

MODES = ("clockwise", "counter_clockwise", "direct", "none")
FACES = (
    "bar top",
    "bar end, right",
    "bar underside, right",
    "stem, right",
    "stem end",
    "stem, left",
    "bar underside, left",
    "bar end, left",
)
"""Edges of `geometry.OUTLINE`, in its order."""
SIDES = ("top", "right", "right", "right", "stem end", "left", "left", "left")
"""Which side of the T each of `FACES` is on."""

CENTER: Floats = np.array([0.0, 60.0])
"""What the agent winds about, in the block's frame: the middle of the outline's bounding box. It lies inside the
block, where the agent cannot be before it touches, so the winding is well defined. From the centroid, 19 px nearer to
the bar, 4 of 189 human first ways would be classed otherwise."""
CENTER.setflags(write=False)

DIRECT = math.pi / 4
"""Windings up to this are `direct`. Seen from `CENTER`, the corners of the bar's top lie 45 degrees to either side of
the T's axis: an agent that starts on the axis before the bar has wound no farther just if it touches the top. Trained
policies agree: from symmetric starts their windings gather in 15 to 45 and in 105 to 195 degrees, with 7 to 10% in
between. From random starts there is no gap, but the split hardly depends on the value: 52 to 54% of the human first
ways are clockwise for any from 20 to 90 degrees, 50 to 52% of the demonstrator's."""

# How far from the block the straight line between two samples may pass where the agent, whose path is bent, touched it.
_NEAR = 10.0
# What counts as moved, in pixels and radians: recordings are float32.
_STILL = np.array([1e-3, 1e-3, 1e-5])
_CORNERS = np.array(OUTLINE)
_EDGES = np.roll(_CORNERS, -1, axis=0) - _CORNERS
# The outline runs clockwise on the screen: its outside lies to the left.
_NORMALS = np.stack([_EDGES[:, 1], -_EDGES[:, 0]], axis=1) / np.linalg.norm(_EDGES, axis=1, keepdims=True)

# Symmetric starts: pixels between the agent and the block, how far the block's centre is from the goal's, and the least
# room between block and walls: the agent's diameter and a little.
_GAPS = (20.0, 120.0)
_DISPLACEMENTS = (40.0, 200.0)
_ROOM = 36.0
# From where `task.initial_state` draws: so that starts are such as the task itself could begin with.
_AGENT_RANGE = (50.0, 450.0)
_BLOCK_RANGE = (100.0, 400.0)
_TRIES = 1000


@dataclass(frozen=True)
class FirstWay:
    """How an episode's agent came to the block.

    Attributes:
        contact: index of the first sample by which it had touched; None if it never did.
        winding: radians swept about the block until then (or until the end), counter-clockwise positive.
        face: one of `FACES`, touched first; None without contact.
        side: `left`, `right`, `top` or `stem end`; None without contact.
        mode: one of `MODES`.
    """

    contact: int | None
    winding: float
    face: str | None
    side: str | None
    mode: str


def first_way(agent: ArrayLike, pose: ArrayLike, contacts: ArrayLike | None = None, direct: float = DIRECT) -> FirstWay:
    """The first way of one trajectory; see `first_contact` for the arguments, `DIRECT` for `direct` (radians)."""
    if not 0.0 <= direct < math.inf:
        raise ValueError(f"direct is {direct!r}; allowed: an angle in radians of at least 0")
    agent, pose = _checked(agent, pose)
    contact = first_contact(agent, pose, contacts)
    if contact is None:
        return FirstWay(None, float(winding(agent, pose)[-1]), None, None, "none")
    swept = float(winding(agent[: contact + 1], pose[: contact + 1])[-1])
    face = nearest_face(agent[contact], pose[contact])
    mode = "direct" if abs(swept) <= direct else "clockwise" if swept < 0 else "counter_clockwise"
    return FirstWay(contact, swept, FACES[face], SIDES[face], mode)


def winding(agent: ArrayLike, pose: ArrayLike) -> Floats:
    """Angle swept since the first sample, (T,) radians, counter-clockwise on the screen positive.

    About `CENTER`, in the block's frame: it does not count as going round that the block turns with the agent. Between
    samples the agent is taken to move straight, which fixes the angle as long as the line misses the centre.
    """
    agent, pose = _checked(agent, pose)
    u, v = (in_block_frame(agent, pose) - CENTER).T
    steps = np.arctan2(u[:-1] * v[1:] - v[:-1] * u[1:], u[:-1] * u[1:] + v[:-1] * v[1:])
    # On a screen, where y points down, angles grow clockwise.
    return -np.concatenate([[0.0], np.cumsum(steps)])


def first_contact(agent: ArrayLike, pose: ArrayLike, contacts: ArrayLike | None = None) -> int | None:
    """Index of the first sample at which the agent has touched the block; None if it does not.

    It has where it lies within its radius of the block, or where the block has moved while it passed near: nothing but
    the agent and the walls moves the block.

    Args:
        agent: (T, 2) positions in pixels, a sample a control step.
        pose: (T, 3) of the block: x, y and an angle in radians that need not count full turns.
        contacts: (T,) the simulation's `n_contacts`, that of the step which ended at each sample. It counts the walls'
            contacts as well and none at a reset, so it can only rule contacts out, after the first sample: those where
            a wall moves the block while the agent passes near. Not that of the human recording, which is a step
            ahead in half of the episodes.

    Raises:
        ValueError: other shapes, no sample, or numbers that are not finite.
    """
    agent, pose = _checked(agent, pose)
    before = np.concatenate([pose[:1], pose[:-1]])
    start = in_block_frame(np.concatenate([agent[:1], agent[:-1]]), before)
    line = start[:, None] + np.linspace(0.0, 1.0, 9)[:, None] * (in_block_frame(agent, before) - start)[:, None]
    near = ways.distance_to_block(line).min(axis=1) < AGENT_RADIUS + _NEAR
    touched = near & (np.abs(pose - before) > _STILL).any(axis=1)
    touched |= ways.distance_to_block(in_block_frame(agent, pose)) < AGENT_RADIUS
    if contacts is not None:
        counted = np.asarray(contacts)
        if counted.shape != (len(agent),):
            raise ValueError(f"contacts has shape {counted.shape}; allowed: ({len(agent)},), as many as agent has")
        touched[1:] &= counted[1:] > 0
    return int(touched.argmax()) if touched.any() else None


def nearest_face(agent: ArrayLike, pose: ArrayLike) -> int:
    """The face (index into `FACES`) nearest to an agent at (2,) of a block at pose (3,).

    Of two that meet in the nearest corner, the one that the agent stands more squarely before.
    """
    agents, poses = _checked(np.asarray(agent)[None], np.asarray(pose)[None])
    point = in_block_frame(agents, poses)[0]
    along = ((point - _CORNERS) * _EDGES).sum(axis=1) / (_EDGES**2).sum(axis=1)
    offset = point - (_CORNERS + np.clip(along, 0.0, 1.0)[:, None] * _EDGES)
    distance = np.linalg.norm(offset, axis=1)
    squarely = np.where(distance < distance.min() + 1e-6, (offset * _NORMALS).sum(axis=1), -np.inf)
    return int(squarely.argmax())


def in_block_frame(agent: Floats, pose: Floats) -> Floats:
    """Positions (..., 2) of the window in the frames of blocks at poses (..., 3)."""
    x, y = np.moveaxis(agent - pose[..., :2], -1, 0)
    cos, sin = np.cos(pose[..., 2]), np.sin(pose[..., 2])
    return np.stack([cos * x + sin * y, cos * y - sin * x], axis=-1)


# --- the task's mirror symmetry ---


def mirror_action(action: ArrayLike, goal_pose: Pose = GOAL_POSE) -> Floats:
    """Positions (..., 2), or actions, reflected in the goal's axis; for the standard goal (512 - y, 512 - x)."""
    points = np.asarray(action, np.float64)
    normal = np.array([math.cos(goal_pose[2]), math.sin(goal_pose[2])])
    return points - 2.0 * ((points - goal_pose[:2]) @ normal)[..., None] * normal


def mirror(state: ArrayLike, goal_pose: Pose = GOAL_POSE) -> Floats:
    """States (..., 5) of agent x, y, block x, y, angle, reflected in the goal's axis.

    A block's mirror image is the block at angle 2 goal_angle - angle. The angle is not wrapped.
    """
    states = np.asarray(state, np.float64)
    angle = 2.0 * goal_pose[2] - states[..., 4:]
    return np.concatenate(
        [mirror_action(states[..., :2], goal_pose), mirror_action(states[..., 2:4], goal_pose), angle], axis=-1
    )


def asymmetry(state: ArrayLike, goal_pose: Pose = GOAL_POSE) -> tuple[Floats, Floats]:
    """How far states (..., 5) are from being their own mirror images: both 0 where they are.

    Returns:
        distance: (...,) pixels, the larger of the agent's and the block's centre's from the goal's axis.
        angle: (...,) radians in [0, pi / 2], of the block's axis from the goal's.
    """
    states = np.asarray(state, np.float64)
    rows = states.reshape(-1, 5)
    center = points_in_world(CENTER[None], rows[:, 2:])[:, 0]
    normal = np.array([math.cos(goal_pose[2]), math.sin(goal_pose[2])])
    away = np.abs((np.stack([rows[:, :2], center]) - goal_pose[:2]) @ normal).max(axis=0)
    turn = np.abs(_wrapped(rows[:, 4] - goal_pose[2]))
    return away.reshape(states.shape[:-1]), np.minimum(turn, math.pi - turn).reshape(states.shape[:-1])


def symmetric_starts(n: int, seed: int, goal_pose: Pose = GOAL_POSE) -> Floats:
    """Initial states (n, 5) that are their own mirror images, so that both ways round the block are equally good.

    The block stands on the goal's axis, in the goal's orientation or the opposite one, 40 to 200 px before or behind
    the goal; start i is the (i mod 4)-th of these four kinds. The agent stands on the axis as well, on the side to
    which the block has to move: it must go round. All are states that the task itself could begin with, and the
    block is so far from the walls that the agent fits in between. The first n are the same however many are asked for.

    States are those in which an episode is to begin, as `reset(options={"state": ...})` takes them with `legacy=False`;
    for `legacy=True` pass `reset_states(states, True)`.

    Args:
        n: at least 1.
        seed: at least 0.
        goal_pose: with a goal whose axis is not a symmetry axis of the window, starts are symmetric but for the walls.

    Raises:
        ValueError: n or seed out of range, or a goal too near to a wall for such starts.
    """
    for name, value, least in (("n", n, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise ValueError(f"{name} is {value!r}; allowed: an integer of at least {least}")
    return np.array([_symmetric_start(int(seed), index, goal_pose) for index in range(n)])


def reset_states(states: ArrayLike, legacy: bool) -> Floats:
    """What `reset(options={"state": ...})` has to be given, (..., 5), for episodes to begin in `states`.

    With `legacy` the block is turned about its centre of gravity after it has been placed, which moves it.
    """
    states = np.array(states, np.float64)
    if legacy:
        u, v = geometry.BLOCK_CENTER_OF_GRAVITY
        cos, sin = np.cos(states[..., 4]), np.sin(states[..., 4])
        states[..., 2] += cos * u - sin * v - u
        states[..., 3] += sin * u + cos * v - v
    return states


def _symmetric_start(seed: int, index: int, goal_pose: Pose) -> Floats:
    random = np.random.default_rng([seed, index])
    turned, toward_stem = index % 2 == 1, index // 2 % 2 == 0
    x, y, angle = goal_pose
    axis = np.array([-math.sin(angle), math.cos(angle)])
    # Along the axis from the goal's origin, towards its stem. The block's centre is displaced by `moved`; it reaches 60
    # pixels to either side of its centre.
    moved = random.uniform(*_DISPLACEMENTS, _TRIES) * (1.0 if toward_stem else -1.0)
    center = CENTER[1] + moved
    agent = center - np.sign(moved) * (CENTER[1] + AGENT_RADIUS + random.uniform(*_GAPS, _TRIES))
    origin = center + CENTER[1] * (1.0 if turned else -1.0)
    places = [at[:, None] * axis + (x, y) for at in (agent, origin)]
    states = np.column_stack([*places, np.full(_TRIES, angle + (math.pi if turned else 0.0))])
    valid = np.flatnonzero(_can_begin(states))
    if not len(valid):
        raise ValueError(f"goal_pose is {goal_pose}; allowed: one with room for symmetric starts on both sides of it")
    return states[valid[0]]


def _can_begin(states: Floats) -> NDArray[np.bool_]:
    """Whether the task could draw `states` (N, 5), and the agent fits between the block and the walls."""
    drawn = reset_states(states, legacy=True)
    vertices = points_in_world(BLOCK_VERTICES, states[:, 2:])
    low = min(min(start) for start, _ in geometry.WALLS) + geometry.WALL_RADIUS + _ROOM
    high = max(max(end) for _, end in geometry.WALLS) - geometry.WALL_RADIUS - _ROOM
    inside = np.asarray(((vertices >= low) & (vertices <= high)).all(axis=(1, 2)))
    for values, (least, most) in ((drawn[:, :2], _AGENT_RANGE), (drawn[:, 2:4], _BLOCK_RANGE)):
        inside &= ((values >= least) & (values <= most)).all(axis=1)
    return inside


def _wrapped(angle: Floats) -> Floats:
    """Angles in [-pi, pi)."""
    return np.mod(angle + math.pi, 2.0 * math.pi) - math.pi


def _checked(agent: ArrayLike, pose: ArrayLike) -> tuple[Floats, Floats]:
    agents, poses = np.asarray(agent, np.float64), np.asarray(pose, np.float64)
    if agents.ndim != 2 or agents.shape[1] != 2 or not len(agents):
        raise ValueError(f"agent has shape {agents.shape}; allowed: (T, 2) with T of at least 1")
    if poses.shape != (len(agents), 3):
        raise ValueError(f"pose has shape {poses.shape}; allowed: ({len(agents)}, 3), as many as agent has")
    for name, values in (("agent", agents), ("pose", poses)):
        if not np.isfinite(values).all():
            raise ValueError(f"{name} has {int((~np.isfinite(values)).sum())} numbers that are NaN or infinite")
    return agents, poses

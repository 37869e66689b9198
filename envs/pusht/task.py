"""What PushT is as a task: spaces, goal, rewards, initial states. The single and the vector environment share it."""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from envs.pusht import geometry
from envs.pusht.geometry import WINDOW_SIZE
from envs.pusht.keypoints import BLOCK_KEYPOINTS, KEYPOINT_REACH
from envs.pusht.vertices import BLOCK_VERTICES

OBSERVATION_TYPES = ("state", "keypoints", "environment_state_agent_pos", "pixels", "pixels_agent_pos")
MAX_SEED = 2**32 - 1
# The agent is stronger than the walls and can press the block through them, as far as it reaches itself.
BLOCK_MARGIN = 160.0
FULL_TURN = 2.0 * math.pi


@dataclass(frozen=True)
class Task:
    """The settings that both environments take, checked.

    Args:
        obs_type: one of `OBSERVATION_TYPES`.
        legacy: set the block's position before its angle, at every reset. The block turns about its centre of
            gravity, so it starts up to 90 px away from the drawn or given position. The published
            evaluations do this, and the human demonstrations began so (the i-th from seed i); replaying one
            from its recorded first state needs False.
        success_threshold: coverage in (0, 1] that ends the episode and earns the full reward.
        goal_pose: x and y in [0, 512] and angle in radians of the block where it belongs.
        observation_size, visualization_size: (width, height) of the `pixels` observation and of rendered frames.

    Raises ValueError, with the argument, its value and what is allowed, for anything else.
    """

    obs_type: str = "state"
    legacy: bool = False
    success_threshold: float = geometry.SUCCESS_COVERAGE
    goal_pose: geometry.Pose = geometry.GOAL_POSE
    observation_size: tuple[int, int] = (96, 96)
    visualization_size: tuple[int, int] = (WINDOW_SIZE, WINDOW_SIZE)

    def __post_init__(self) -> None:
        require_choice("obs_type", self.obs_type, OBSERVATION_TYPES)
        if not (_is_number(self.success_threshold) and 0.0 < self.success_threshold <= 1.0):
            raise ValueError(f"success_threshold is {self.success_threshold!r}; allowed: a number in (0, 1]")
        if not isinstance(self.legacy, bool | np.bool_):
            raise ValueError(f"legacy is {self.legacy!r}; allowed: True, False")
        object.__setattr__(self, "goal_pose", checked_goal(self.goal_pose))
        object.__setattr__(self, "legacy", bool(self.legacy))
        object.__setattr__(self, "success_threshold", float(self.success_threshold))
        for kind in ("observation", "visualization"):
            for name, value in zip(("width", "height"), getattr(self, f"{kind}_size"), strict=True):
                require_positive(f"{kind}_{name}", value)

    @property
    def action_space(self) -> spaces.Space[Any]:
        return spaces.Box(0.0, WINDOW_SIZE, (2,), np.float32)

    @property
    def observation_space(self) -> spaces.Space[Any]:
        width, height = self.observation_size
        position = spaces.Box(0.0, WINDOW_SIZE, (2,), np.float64)
        pixels = spaces.Box(0, 255, (height, width, 3), np.uint8)
        if self.obs_type == "state":
            low = np.array([0.0, 0.0, -BLOCK_MARGIN, -BLOCK_MARGIN, 0.0])
            return spaces.Box(low, np.array([*(WINDOW_SIZE - low[:4]), FULL_TURN]), dtype=np.float64)
        if self.obs_type == "keypoints":
            low = np.array([-BLOCK_MARGIN - KEYPOINT_REACH] * BLOCK_KEYPOINTS.size + [0.0, 0.0])
            return spaces.Box(low, WINDOW_SIZE - low, dtype=np.float64)
        if self.obs_type == "environment_state_agent_pos":
            low = np.full(BLOCK_VERTICES.size, -BLOCK_MARGIN - math.ceil(geometry.BLOCK_REACH))
            vertices = spaces.Box(low, WINDOW_SIZE - low, dtype=np.float64)
            return spaces.Dict({"environment_state": vertices, "agent_pos": position})
        if self.obs_type == "pixels":
            return pixels
        return spaces.Dict({"pixels": pixels, "agent_pos": position})


def initial_state(seed: int) -> NDArray[np.float64]:
    """The original's random state for a seed: agent x, y, block x, y, block angle (not wrapped), shape (5,).

    The published evaluations use seeds 100000, 100001, ... The generator and the order of the draws are the
    original's, so that the same seed means the same episode.
    """
    random = np.random.RandomState(seed)
    agent = [random.randint(50, 450), random.randint(50, 450)]
    block = [random.randint(100, 400), random.randint(100, 400)]
    return np.array([*agent, *block, random.randn() * 2 * np.pi - np.pi])


def drawn_state(generator: np.random.Generator) -> NDArray[np.float64]:
    """An initial state of a seed drawn from `generator`."""
    return initial_state(int(generator.integers(MAX_SEED, endpoint=True)))


def wrapped(angle: ArrayLike) -> NDArray[np.float64]:
    """Angles in [0, 2 pi)."""
    remainder = np.mod(angle, FULL_TURN)
    # The remainder of a tiny negative angle rounds up to a full turn.
    return np.where(remainder < FULL_TURN, remainder, 0.0)


def checked_seed(seed: object) -> int | None:
    """None, or a seed as an int."""
    try:
        value = None if seed is None or isinstance(seed, bool) else operator.index(seed)  # type: ignore[arg-type]
    except TypeError:
        value = -1
    if isinstance(seed, bool) or (value is not None and not 0 <= value <= MAX_SEED):
        raise ValueError(f"seed is {seed!r}; allowed: None or an integer from 0 to {MAX_SEED}")
    return value


def checked_state(state: ArrayLike) -> list[float]:
    """A state for `options["state"]` as five floats."""
    allowed = f"five finite numbers (agent x, y, block x, y in [0, {WINDOW_SIZE}], block angle in radians)"
    return checked_row("options['state']", state, 5, allowed, positions=4)


def checked_row(name: str, values: ArrayLike, count: int, allowed: str, positions: int) -> list[float]:
    """`count` finite numbers as floats; the first `positions` of them lie in the window."""
    try:
        row = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} is {values!r}; allowed: {allowed}") from None
    if row.shape != (count,) or not np.isfinite(row).all():
        raise ValueError(f"{name} is {values!r}, shape {row.shape}; allowed: {allowed}")
    if (row[:positions] < 0).any() or (row[:positions] > WINDOW_SIZE).any():
        raise ValueError(f"{name} is {row.tolist()}; allowed: {allowed}")
    return [float(value) for value in row]


def checked_goal(goal_pose: ArrayLike, name: str = "goal_pose") -> geometry.Pose:
    """A goal that lies in the window, as floats."""
    x, y, angle = checked_row(name, goal_pose, 3, "x and y in [0, 512] and an angle in radians", positions=2)
    return x, y, angle


def checked_options(options: dict[str, Any] | None, allowed: Sequence[str]) -> dict[str, Any]:
    """Options of a reset, of which only the named ones are known."""
    names = ", ".join(map(repr, allowed))
    if options is not None and not isinstance(options, dict):
        raise ValueError(f"options is {options!r}; allowed: None or a dict with {names}")
    unknown = sorted(set(options or {}) - set(allowed), key=repr)
    if unknown:
        raise ValueError(f"options has {unknown}; allowed: {names}")
    return options or {}


def require_choice(name: str, value: object, allowed: Sequence[object]) -> None:
    """Raises ValueError unless `value` is one of `allowed`."""
    # Not `in`, which an array answers with an array.
    if not any(isinstance(value, type(choice)) and value == choice for choice in allowed):
        raise ValueError(f"{name} is {value!r}; allowed: {', '.join(repr(choice) for choice in allowed)}")


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def require_positive(name: str, value: object) -> None:
    """Raises ValueError unless `value` is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < 1:
        raise ValueError(f"{name} is {value!r}; allowed: an integer of at least 1")

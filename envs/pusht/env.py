"""PushT as a Gymnasium environment: the task of the Diffusion Policy paper (Chi et al. 2023, section 5)."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from envs.pusht import geometry
from envs.pusht.geometry import WINDOW_SIZE
from envs.pusht.keypoints import BLOCK_KEYPOINTS, KEYPOINT_REACH, keypoints_in_world
from envs.pusht.physics import World, WorldState

if TYPE_CHECKING:
    from envs.pusht.rendering import Renderer, Window

OBSERVATION_TYPES = ("state", "keypoints", "pixels", "pixels_agent_pos")
RENDER_MODES = ("human", "rgb_array")
FULL_TURN = 2.0 * math.pi
# The agent is stronger than the walls and can press the block through them, as far as it reaches itself.
BLOCK_MARGIN = 160.0
_MAX_SEED = 2**32 - 1

Observation = Any
"""An array, or for `pixels_agent_pos` a dict of arrays."""


class PushTEnv(gymnasium.Env[Observation, NDArray[np.float32]]):
    """Push a T-shaped block onto its outline at (256, 256, pi/4) with a round agent, at 10 actions a second.

    Action: Box(0, 512, (2,)): the absolute position, in window pixels, that the agent's controller heads for.
    Values outside the box are followed, not clipped, as in the original.

    Observation, by `obs_type` (pixels of the 512 x 512 window, radians):

    - `state`: Box (5,) float64: agent x, y, block x, y, block angle in [0, 2 pi). The agent stays in the
      window; the block's bounds are wider by 160 px, because a hard push can press it through a wall.
    - `keypoints`: Box (20,) float64: nine points on the block as x, y pairs, then agent x, y.
    - `pixels`: Box (observation_height, observation_width, 3) uint8.
    - `pixels_agent_pos`: Dict of `pixels` and `agent_pos`, Box (2,) float64.

    Reward: min(coverage / success_threshold, 1); coverage is the share of the goal that the block lies on.
    Terminates when coverage > success_threshold. The published score of an episode is its largest reward.

    Info, at reset and at every step: `coverage`, `max_coverage` (largest since and including the reset),
    `is_success`, `block_pose` (3,), `goal_pose` (3,), `pos_agent` (2,), `vel_agent` (2,), `n_contacts`
    (contact points per physics step, rounded up). The angle in `block_pose` counts full turns; the one in the
    observation does not.

    Reset: `reset(seed=s)` starts at the state that the original draws for seed s. Without a seed, a fresh
    one is drawn from `np_random`, so a sequence of resets is fixed by the first seed. With
    `reset(options={"state": (agent x, agent y, block x, block y, block angle)})` the episode starts at that
    state, at rest: with `legacy=False` the observation equals it, and a recorded episode replays from it.

    Args:
        obs_type: one of `OBSERVATION_TYPES`.
        render_mode: None, `"rgb_array"` (`render()` returns an array, no display needed) or `"human"`.
        legacy: set the block's position before its angle, at every reset. The block turns about its centre of
            gravity, so it starts up to 90 px away from the drawn or given position. The published
            evaluations do this; the demonstrations do not.
        success_threshold: coverage in (0, 1] that ends the episode and earns the full reward.
        observation_width, observation_height: size of the `pixels` observation.
        visualization_width, visualization_height: size of the frames that `render()` returns.

    Raises ValueError, with the argument, its value and what is allowed, for anything else.

    Attributes of `env.unwrapped`: `world` (envs.pusht.physics.World), `goal_pose` (3,), `max_coverage`,
    `legacy`, `success_threshold`, `obs_type`, `render_mode`. Methods besides Gymnasium's: `coverage()`,
    `get_state()`.
    """

    metadata = {"render_modes": list(RENDER_MODES), "render_fps": geometry.CONTROL_HZ}  # noqa: RUF012

    def __init__(
        self,
        obs_type: str = "state",
        render_mode: str | None = None,
        legacy: bool = False,
        success_threshold: float = geometry.SUCCESS_COVERAGE,
        observation_width: int = 96,
        observation_height: int = 96,
        visualization_width: int = WINDOW_SIZE,
        visualization_height: int = WINDOW_SIZE,
    ) -> None:
        _require_choice("obs_type", obs_type, OBSERVATION_TYPES)
        if render_mode is not None:
            _require_choice("render_mode", render_mode, (None, *RENDER_MODES))
        if not 0.0 < success_threshold <= 1.0:
            raise ValueError(f"success_threshold is {success_threshold!r}; allowed: a number in (0, 1]")
        self.observation_size = (
            _positive_int("observation_width", observation_width),
            _positive_int("observation_height", observation_height),
        )
        self.visualization_size = (
            _positive_int("visualization_width", visualization_width),
            _positive_int("visualization_height", visualization_height),
        )
        self.obs_type = obs_type
        self.render_mode = render_mode
        self.legacy = bool(legacy)
        self.success_threshold = float(success_threshold)
        self.goal_pose = np.array(geometry.GOAL_POSE)
        self.goal_pose.setflags(write=False)
        self.world = World()
        self.max_coverage = 0.0
        self.action_space = spaces.Box(0.0, WINDOW_SIZE, (2,), np.float32)
        self.observation_space = _observation_space(obs_type, *self.observation_size)
        self._observe: Callable[[], Observation] = getattr(self, f"_observe_{obs_type}")
        self._target: tuple[float, float] | None = None
        self._renderer_cache: Renderer | None = None
        self._window: Window | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts an episode (see the class). ValueError for an unknown option, a bad seed or a bad state."""
        if seed is not None and not (isinstance(seed, int) and 0 <= seed <= _MAX_SEED):
            raise ValueError(f"seed is {seed!r}; allowed: None or an integer from 0 to {_MAX_SEED}")
        unknown = sorted(set(options or {}) - {"state"})
        if unknown:
            raise ValueError(f"options has {unknown}; allowed: 'state'")
        given = (options or {}).get("state")
        state = None if given is None else _checked_state(given)
        super().reset(seed=seed)

        # A fresh world: the solver remembers contacts, and an episode must not depend on the one before.
        self.world = World()
        if state is None:
            drawn = seed if seed is not None else int(self.np_random.integers(_MAX_SEED, endpoint=True))
            state = initial_state(drawn).tolist()
        self.world.place(state, position_first=self.legacy)
        self.world.settle()
        self._target = None
        self.max_coverage = coverage = self.coverage()
        if self.render_mode == "human":
            self.render()
        return self._observe(), self._info(coverage)

    def step(self, action: ArrayLike) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """One control step (0.1 s). ValueError for an action that is not two finite numbers.

        Never truncates by itself: `gymnasium.make` adds the limit of 300 steps.
        """
        self._target = target = _checked_action(action)
        self.world.advance(*target)
        coverage = self.coverage()
        self.max_coverage = max(self.max_coverage, coverage)
        if self.render_mode == "human":
            self.render()
        reward = min(coverage / self.success_threshold, 1.0)
        return self._observe(), reward, coverage > self.success_threshold, False, self._info(coverage)

    def coverage(self) -> float:
        """Share of the goal, in [0, 1], that the block lies on now."""
        block = self.world.block
        x, y = block.position
        return geometry.coverage(x, y, block.angle)

    def get_state(self) -> WorldState:
        """Positions and velocities of agent and block; the block's angle counts full turns."""
        return self.world.state()

    def render(self) -> NDArray[np.uint8] | None:
        """The window with a cross at the last action: an array (height, width, 3) uint8, or on the screen."""
        if self.render_mode is None:
            gymnasium.logger.warn("render() does nothing: this environment was made with render_mode=None")
            return None
        from envs.pusht.rendering import Window, resized

        surface = self._renderer.draw(*self._pose(), target=self._target)
        if self.render_mode == "rgb_array":
            return resized(surface, *self.visualization_size)
        if self._window is None:
            self._window = Window(self.metadata["render_fps"])
        self._window.show(surface)
        return None

    def close(self) -> None:
        """Closes the window, if there is one."""
        if self._window is not None:
            self._window.close()
            self._window = None

    @property
    def _renderer(self) -> "Renderer":
        if self._renderer_cache is None:
            # Imported late: state observations need no pygame, and it takes longer to import than all the
            # rest.
            from envs.pusht.rendering import Renderer

            self._renderer_cache = Renderer()
        return self._renderer_cache

    def _pose(self) -> tuple[tuple[float, float], tuple[float, float], float]:
        return self.world.agent.position, self.world.block.position, self.world.block.angle

    def _observe_state(self) -> Observation:
        (agent_x, agent_y), (x, y), angle = self._pose()
        angle %= FULL_TURN
        # The remainder of a tiny negative angle rounds up to a full turn.
        return np.array((agent_x, agent_y, x, y, angle if angle < FULL_TURN else 0.0))

    def _observe_keypoints(self) -> Observation:
        agent_position, (x, y), angle = self._pose()
        observation = np.empty(2 * len(BLOCK_KEYPOINTS) + 2)
        observation[:-2] = keypoints_in_world(x, y, angle).reshape(-1)
        observation[-2:] = agent_position
        return observation

    def _observe_pixels(self) -> Observation:
        from envs.pusht.rendering import resized

        return resized(self._renderer.draw(*self._pose()), *self.observation_size)

    def _observe_pixels_agent_pos(self) -> Observation:
        return {"pixels": self._observe_pixels(), "agent_pos": np.array(self.world.agent.position)}

    def _info(self, coverage: float) -> dict[str, Any]:
        agent, block = self.world.agent, self.world.block
        return {
            "coverage": coverage,
            "max_coverage": self.max_coverage,
            "is_success": coverage > self.success_threshold,
            "block_pose": np.array((*block.position, block.angle)),
            "goal_pose": self.goal_pose.copy(),
            "pos_agent": np.array(agent.position),
            "vel_agent": np.array(agent.velocity),
            "n_contacts": self.world.mean_contacts,
        }


def initial_state(seed: int) -> NDArray[np.float64]:
    """The original's random state for a seed: agent x, y, block x, y, block angle (not wrapped), shape (5,).

    The published evaluations use seeds 100000, 100001, ... The generator and the order of the draws are the
    original's, so that the same seed means the same episode.
    """
    random = np.random.RandomState(seed)
    agent = [random.randint(50, 450), random.randint(50, 450)]
    block = [random.randint(100, 400), random.randint(100, 400)]
    return np.array([*agent, *block, random.randn() * 2 * np.pi - np.pi])


def _observation_space(obs_type: str, width: int, height: int) -> spaces.Space[Any]:
    position = spaces.Box(0.0, WINDOW_SIZE, (2,), np.float64)
    pixels = spaces.Box(0, 255, (height, width, 3), np.uint8)
    if obs_type == "state":
        low = np.array([0.0, 0.0, -BLOCK_MARGIN, -BLOCK_MARGIN, 0.0])
        return spaces.Box(low, np.array([*(WINDOW_SIZE - low[:4]), FULL_TURN]), dtype=np.float64)
    if obs_type == "keypoints":
        low = np.array([-BLOCK_MARGIN - KEYPOINT_REACH] * (2 * len(BLOCK_KEYPOINTS)) + [0.0, 0.0])
        return spaces.Box(low, WINDOW_SIZE - low, dtype=np.float64)
    if obs_type == "pixels":
        return pixels
    return spaces.Dict({"pixels": pixels, "agent_pos": position})


def _checked_action(action: ArrayLike) -> tuple[float, float]:
    """The action as two floats; scalar checks, because they run at every step."""
    try:
        x, y = map(float, action)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ValueError(f"action is {action!r}; allowed: two numbers, the target's x and y in pixels") from None
    if not (math.isfinite(x) and math.isfinite(y)):
        raise ValueError(f"action is {action!r}; allowed: finite numbers")
    return x, y


def _checked_state(state: ArrayLike) -> Sequence[float]:
    allowed = f"five finite numbers (agent x, y, block x, y in [0, {WINDOW_SIZE}], block angle in radians)"
    try:
        values = np.asarray(state, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"options['state'] is {state!r}; allowed: {allowed}") from None
    if values.shape != (5,) or not np.isfinite(values).all():
        raise ValueError(f"options['state'] is {state!r}, shape {values.shape}; allowed: {allowed}")
    if (values[:4] < 0).any() or (values[:4] > WINDOW_SIZE).any():
        raise ValueError(f"options['state'] is {values.tolist()}; allowed: {allowed}")
    return [float(value) for value in values]


def _require_choice(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed: {', '.join(repr(choice) for choice in allowed)}")


def _positive_int(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}; allowed: an integer of at least 1")
    return value

"""PushT as a Gymnasium environment: the task of the Diffusion Policy paper (Chi et al. 2023, section 5)."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from numpy.typing import ArrayLike, NDArray

from envs.pusht import geometry
from envs.pusht.geometry import WINDOW_SIZE
from envs.pusht.keypoints import BLOCK_KEYPOINTS, keypoints_in_world
from envs.pusht.physics import World, WorldState
from envs.pusht.task import (
    FULL_TURN,
    Task,
    checked_options,
    checked_seed,
    checked_state,
    drawn_state,
    initial_state,
    require_choice,
)
from envs.pusht.vertices import vertices_in_world

if TYPE_CHECKING:
    from envs.pusht.pixels import PixelObserver
    from envs.pusht.rendering import Renderer, Window

RENDER_MODES = ("human", "rgb_array")

Observation = Any
"""An array, or for `pixels_agent_pos` a dict of arrays."""


class PushTEnv(gymnasium.Env[Observation, NDArray[np.float32]]):
    """Push a T-shaped block onto its outline at (256, 256, pi/4) with a round agent, at 10 actions a second.

    Action: Box(0, 512, (2,)): the absolute position, in window pixels, that the agent's controller heads for.
    Values outside the box are followed, as in the original, up to half a window away from it (clipped to
    [-256, 768]); what is not two finite numbers is a ValueError.

    Observation, by `obs_type` (pixels of the 512 x 512 window, radians):

    - `state`: Box (5,) float64: agent x, y, block x, y, block angle in [0, 2 pi). The agent stays in the
      window; the block's bounds are wider by 160 px, because a hard push can press it through a wall.
    - `keypoints`: Box (20,) float64: nine points on the block as x, y pairs, then agent x, y.
    - `environment_state_agent_pos`: Dict of `environment_state`, Box (16,) float64: the eight vertices of the
      block's two rectangles as x, y pairs, and `agent_pos`, Box (2,) float64, as gym-pusht and LeRobot have them.
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
        render_mode: None, `"rgb_array"` (`render()` returns an array, no display needed) or `"human"`.
        goal_pose: where the block belongs, (x, y, angle), in pixels and radians.
        obs_type, legacy, success_threshold: see `envs.pusht.task.Task`.
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
        goal_pose: geometry.Pose = geometry.GOAL_POSE,
    ) -> None:
        self.task = Task(
            obs_type,
            legacy,
            success_threshold,
            goal_pose,
            (observation_width, observation_height),
            (visualization_width, visualization_height),
        )
        if render_mode is not None:
            require_choice("render_mode", render_mode, (None, *RENDER_MODES))
        self.obs_type = obs_type
        self.render_mode = render_mode
        self.legacy = self.task.legacy
        self.success_threshold = self.task.success_threshold
        self.goal_pose = np.array(self.task.goal_pose)
        self.goal_pose.setflags(write=False)
        self.world = World()
        self.max_coverage = 0.0
        self.action_space = self.task.action_space
        self.observation_space = self.task.observation_space
        self._observe: Callable[[], Observation] = getattr(self, f"_observe_{obs_type}")
        self._renderer_cache: Renderer | None = None
        self._pixels_cache: PixelObserver | None = None
        self._window: Window | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts an episode (see the class). ValueError for an unknown option, a bad seed or a bad state."""
        seed = checked_seed(seed)
        given = checked_options(options, ("state",)).get("state")
        state = None if given is None else checked_state(given)
        super().reset(seed=seed)

        # A fresh world: the solver remembers contacts, and an episode must not depend on the one before.
        self.world = World()
        if state is None:
            state = (drawn_state(self.np_random) if seed is None else initial_state(seed)).tolist()
        self.world.place(state, position_first=self.legacy)
        self.world.settle()
        self.max_coverage = coverage = self.coverage()
        if self.render_mode == "human":
            self.render()
        return self._observe(), self._info(coverage)

    def step(self, action: ArrayLike) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """One control step (0.1 s). ValueError for an action that is not two finite numbers.

        Never truncates by itself: `gymnasium.make` adds the limit of 300 steps.
        """
        self.world.advance(*_checked_action(action))
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
        return geometry.coverage(x, y, block.angle, self.task.goal_pose)

    def get_state(self) -> WorldState:
        """Positions and velocities of agent and block; the block's angle counts full turns."""
        return self.world.state()

    def render(self) -> NDArray[np.uint8] | None:
        """The window with a cross at the last action: an array (height, width, 3) uint8, or on the screen."""
        if self.render_mode is None:
            gymnasium.logger.warn("render() does nothing: this environment was made with render_mode=None")
            return None
        from envs.pusht.rendering import Window, resized

        surface = self._renderer.draw(*self._pose(), target=self.world.target)
        if self.render_mode == "rgb_array":
            return resized(surface, *self.task.visualization_size)
        if self._window is None:
            self._window = Window(self.metadata["render_fps"])
        self._window.show(surface)
        return None

    def close(self) -> None:
        """Closes the window, if there is one."""
        if self._window is not None:
            self._window.close()
            self._window = None

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles hold: not what draws, which pygame cannot copy; they make their own when asked."""
        return {**self.__dict__, "_renderer_cache": None, "_pixels_cache": None, "_window": None}

    @property
    def _renderer(self) -> "Renderer":
        if self._renderer_cache is None:
            # Imported late: state observations need no pygame, and it takes longer to import than all the
            # rest.
            from envs.pusht.rendering import Renderer

            self._renderer_cache = Renderer(self.task.goal_pose)
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

    def _observe_environment_state_agent_pos(self) -> Observation:
        agent_position, (x, y), angle = self._pose()
        return {
            "environment_state": vertices_in_world(np.array([[x, y, angle]]))[0],
            "agent_pos": np.array(agent_position),
        }

    def _observe_pixels(self) -> Observation:
        if self._pixels_cache is None:
            from envs.pusht.pixels import PixelObserver

            self._pixels_cache = PixelObserver(*self.task.observation_size, self.task.goal_pose)
        agent_position, block_position, angle = self._pose()
        return self._pixels_cache(np.array([agent_position]), np.array([[*block_position, angle]]))[0]

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


def _checked_action(action: ArrayLike) -> tuple[float, float]:
    """The action as two floats; scalar checks, because they run at every step."""
    try:
        x, y = map(float, action)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"action is {action!r}; allowed: two numbers, the target's x and y in pixels") from None
    if not (math.isfinite(x) and math.isfinite(y)):
        raise ValueError(f"action is {action!r}; allowed: finite numbers")
    return x, y

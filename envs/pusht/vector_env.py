"""Many PushT environments stepped as one: `gymnasium.make_vec("envs:immiscible/PushT-v0", num_envs=64)`."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, iterate
from numpy.typing import ArrayLike, NDArray

from envs.pusht import geometry, physics
from envs.pusht.geometry import WINDOW_SIZE
from envs.pusht.keypoints import BLOCK_KEYPOINTS
from envs.pusht.task import (
    Task,
    checked_options,
    checked_seed,
    checked_state,
    drawn_state,
    initial_state,
    require_choice,
    require_positive,
    wrapped,
)
from envs.pusht.vertices import points_in_world, vertices_in_world
from envs.pusht.worlds import Worlds, WorldStates

if TYPE_CHECKING:
    from envs.pusht.pixels import PixelObserver
    from envs.pusht.rendering import Renderer

Mask = NDArray[np.bool_]
Indices = NDArray[np.intp]

# What `set_state` takes: width, least and largest value of each field. Agents and blocks stay within it by themselves;
# from farther away, or faster, they would meet those of the next world.
_STATE_FIELDS: dict[str, tuple[tuple[int, ...], float, float]] = {
    "agent_position": ((2,), -WINDOW_SIZE, 2 * WINDOW_SIZE),
    "agent_velocity": ((2,), -5e3, 5e3),
    "block_position": ((2,), -WINDOW_SIZE, 2 * WINDOW_SIZE),
    "block_angle": ((), -math.inf, math.inf),
    "block_velocity": ((2,), -2e4, 2e4),
    "block_angular_velocity": ((), -1e4, 1e4),
}


class PushTVectorEnv(VectorEnv[Any, NDArray[np.float32], NDArray[Any]]):
    """`num_envs` worlds of `envs.pusht.env.PushTEnv`: the same task, observations, rewards, seeds and info.

    All worlds stand in one physics space (`envs.pusht.worlds`), and rewards and observations are computed for all at
    once; 64 of them take a step over twenty times as fast as one by one in gym-pusht. A world's episode equals that
    of the single environment up to rounding.

    Observations, rewards (N,), terminations (N,) and truncations (N,) are fresh arrays at every step. Info holds the
    single environment's entries as arrays over the worlds, and under `_<name>` which worlds have them.

    Reset: `reset(seed=s)` gives world i the seed s + i; a sequence gives each its own, None where it should go on with
    its generator. `options={"state": ...}` starts all worlds at one state (5,) or each at its own (N, 5);
    `options={"reset_mask": mask}` (N,) bool resets only those.

    Args:
        num_envs: number of worlds.
        max_episode_steps: an episode is truncated after so many steps; None or -1 for never. `make_vec` passes the
            registered 300.
        autoreset_mode: `gymnasium.vector.AutoresetMode` or its value. `NextStep` (the default): the step after a
            world's last one resets it, ignores its action and gives reward 0. `SameStep`: a world's last step returns
            the next episode's first observation, and `final_obs` and `final_info` in info. `Disabled`: finished worlds
            must be reset with `reset_mask` before the next step.
        render_mode: None or `"rgb_array"`: `render()` returns a tuple of frames.
        obs_type, legacy, success_threshold, goal_pose: see `envs.pusht.task.Task`.
        observation_width, observation_height: size of the `pixels` observation.
        visualization_width, visualization_height: size of the frames that `render()` returns.

    Raises ValueError, with the argument, its value and what is allowed, for anything else.

    It cannot be copied or pickled: make another one, and take the worlds over with `get_state()` and `set_state(...)`.
    """

    def __init__(
        self,
        num_envs: int = 1,
        obs_type: str = "state",
        render_mode: str | None = None,
        legacy: bool = False,
        success_threshold: float = geometry.SUCCESS_COVERAGE,
        observation_width: int = 96,
        observation_height: int = 96,
        visualization_width: int = WINDOW_SIZE,
        visualization_height: int = WINDOW_SIZE,
        goal_pose: geometry.Pose = geometry.GOAL_POSE,
        max_episode_steps: int | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    ) -> None:
        require_positive("num_envs", num_envs)
        require_choice("render_mode", render_mode, (None, "rgb_array"))
        if not isinstance(autoreset_mode, AutoresetMode):
            require_choice("autoreset_mode", autoreset_mode, tuple(mode.value for mode in AutoresetMode))
        if max_episode_steps is not None and not (isinstance(max_episode_steps, int) and max_episode_steps == -1):
            require_positive("max_episode_steps", max_episode_steps)
        self.task = Task(
            obs_type,
            legacy,
            success_threshold,
            goal_pose,
            (observation_width, observation_height),
            (visualization_width, visualization_height),
        )
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.max_episode_steps = None if max_episode_steps == -1 else max_episode_steps
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {
            "render_modes": ["rgb_array"],
            "render_fps": geometry.CONTROL_HZ,
            "autoreset_mode": self.autoreset_mode,
        }
        self.single_action_space = self.task.action_space
        self.single_observation_space = self.task.observation_space
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.worlds = Worlds(num_envs)
        self._generators: list[np.random.Generator | None] = [None] * num_envs
        self._seeds: list[int | None] = [None] * num_envs
        self._started = np.zeros(num_envs, bool)
        self._finished = np.zeros(num_envs, bool)
        self._elapsed = np.zeros(num_envs, np.int64)
        self.max_coverage = np.zeros(num_envs)
        self._covered_poses, self._coverages = np.full((num_envs, 3), np.nan), np.zeros(num_envs)
        self._targets = np.full((num_envs, 2), np.nan)
        self._pixels_cache: PixelObserver | None = None
        self._renderer_cache: Renderer | None = None

    # --- Gymnasium's calls ---

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Starts episodes in all worlds or those of `reset_mask` (see the class). ValueError for bad arguments."""
        options = checked_options(options, ("state", "reset_mask"))
        seeds = self._checked_seeds(seed)
        mask = self._checked_mask(options.get("reset_mask"))
        given = self._checked_states(options.get("state"))
        chosen = np.flatnonzero(mask)
        for index in chosen:
            if seeds[index] is not None:
                self._seeds[index], self._generators[index] = seeds[index], None
        states = self._initial_states(chosen, seeds) if given is None else given[chosen]
        if mask.all():
            self.worlds.place_all(states, self.task.legacy)
        else:
            self.worlds.place(chosen, states, self.task.legacy)
        self._begin(chosen)
        coverage = self._coverage()
        self.max_coverage = np.where(mask, coverage, self.max_coverage)
        return self._observe(), self._info(coverage, mask)

    def step(self, actions: ArrayLike) -> tuple[Any, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """One control step (0.1 s) of all worlds.

        Args:
            actions: (N, 2), each agent's target in window pixels, clipped to [-256, 768] as in the single environment.

        Raises ValueError for actions of another shape or that are not finite (nothing has moved then), and
        `gymnasium.error.ResetNeeded` before the first reset, or where finished worlds must be reset.
        """
        if not self._started.all():
            raise gymnasium.error.ResetNeeded("call reset() before step()")
        targets = self._checked_actions(actions)
        finished = np.flatnonzero(self._finished)
        if not len(finished):
            self.worlds.advance(targets)
        elif self.autoreset_mode == AutoresetMode.NEXT_STEP:
            states = self._initial_states(finished, self._no_seeds)
            self.worlds.advance(targets, finished, states, self.task.legacy)
        else:
            raise gymnasium.error.ResetNeeded(
                f"worlds {finished.tolist()} have finished: reset them with options={{'reset_mask': ...}}"
            )
        self._elapsed += 1
        self._targets = physics.limited(targets)
        coverage = self._coverage()
        self.max_coverage = np.maximum(self.max_coverage, coverage)
        rewards = np.minimum(coverage / self.task.success_threshold, 1.0)
        terminations = coverage > self.task.success_threshold
        truncations = np.zeros(self.num_envs, bool)
        if self.max_episode_steps is not None:
            truncations = self._elapsed >= self.max_episode_steps
        if len(finished):
            self._begin(finished)
            self.max_coverage[finished] = coverage[finished]
            rewards[finished], terminations[finished], truncations[finished] = 0.0, False, False
        self._finished = terminations | truncations
        if self.autoreset_mode == AutoresetMode.SAME_STEP and self._finished.any():
            observations, info = self._restart(coverage)
        else:
            observations, info = self._observe(), self._info(coverage)
        return observations, rewards, terminations, truncations, info

    def render(self, indices: Sequence[int] | None = None) -> tuple[NDArray[np.uint8], ...] | None:
        """Pictures (height, width, 3) uint8 of all worlds or the given ones, with a cross at the last action."""
        if self.render_mode is None:
            gymnasium.logger.warn("render() does nothing: this environment was made with render_mode=None")
            return None
        from envs.pusht.rendering import Renderer, resized

        if self._renderer_cache is None:
            self._renderer_cache = Renderer(self.task.goal_pose)
        frames = []
        for index in range(self.num_envs) if indices is None else indices:
            x, y, angle = self.worlds.block_pose[index].tolist()
            target = None if np.isnan(self._targets[index, 0]) else tuple(self._targets[index].tolist())
            agent = tuple(self.worlds.agent_position[index].tolist())
            surface = self._renderer_cache.draw(agent, (x, y), angle, target=target)
            frames.append(resized(surface, *self.task.visualization_size))
        return tuple(frames)

    # --- beyond Gymnasium's ---

    def get_state(self) -> WorldStates:
        """Positions and velocities of all agents and blocks; the blocks' angles count full turns."""
        return self.worlds.state()

    def set_state(self, states: WorldStates) -> None:
        """Puts all worlds where `get_state` found them, or, given the fields of one world, all where that one was.

        Episodes go on: steps made, the largest coverage and whether a world has finished stay as they are.
        ValueError for fields that do not fit, are not finite or lie beyond what a world can reach.
        """
        if not self._started.all():
            raise gymnasium.error.ResetNeeded("call reset() before set_state()")
        self.worlds.set_state(self._checked_world_states(states))

    @property
    def np_random_seed(self) -> tuple[int | None, ...]:  # type: ignore[override]
        """Each world's seed; None where it has not been reset with one."""
        return tuple(self._seeds)

    @property  # type: ignore[misc]
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """Each world's generator, of which resets without a seed draw."""
        return tuple(self._generator(index) for index in range(self.num_envs))

    # --- resets ---

    @property
    def _no_seeds(self) -> list[int | None]:
        return [None] * self.num_envs

    def _generator(self, index: int) -> np.random.Generator:
        generator = self._generators[index]
        if generator is None:
            generator, self._seeds[index] = seeding.np_random(self._seeds[index])
            self._generators[index] = generator
        return generator

    def _initial_states(self, indices: Indices, seeds: Sequence[int | None]) -> NDArray[np.float64]:
        states = []
        for index in indices:
            seed = seeds[index]
            states.append(drawn_state(self._generator(index)) if seed is None else initial_state(seed))
        return np.array(states)

    def _begin(self, indices: Indices) -> None:
        self._started[indices], self._finished[indices], self._elapsed[indices] = True, False, 0
        self._targets = self._targets.copy()
        self._targets[indices] = np.nan

    def _restart(self, coverage: NDArray[np.float64]) -> tuple[Any, dict[str, Any]]:
        """Resets the finished worlds in the step that finished them."""
        mask, last = self._finished.copy(), self._observe()
        final = np.full(self.num_envs, None, dtype=object)
        for index, observation in enumerate(iterate(self.observation_space, last)):
            if mask[index]:
                final[index] = observation
        final_info = self._info(coverage, mask)
        chosen = np.flatnonzero(mask)
        self.worlds.place(chosen, self._initial_states(chosen, self._no_seeds), self.task.legacy)
        self._begin(chosen)
        coverage = self._coverage()
        self.max_coverage = np.where(mask, coverage, self.max_coverage)
        info = self._info(coverage)
        info |= {"final_obs": final, "_final_obs": mask.copy(), "final_info": final_info, "_final_info": mask.copy()}
        return self._observe(), info

    # --- what a step returns ---

    def _coverage(self) -> NDArray[np.float64]:
        """Coverage (N,), computed anew only where the block has moved."""
        poses = self.worlds.block_pose
        moved = np.flatnonzero((poses != self._covered_poses).any(axis=1))
        if len(moved):
            self._covered_poses, self._coverages = poses, self._coverages.copy()
            self._coverages[moved] = geometry.coverage_batch(poses[moved], self.task.goal_pose)
        return self._coverages.copy()

    def _observe(self) -> Any:
        agent, pose = self.worlds.agent_position, self.worlds.block_pose
        kind = self.task.obs_type
        if kind == "state":
            return np.concatenate([agent, pose[:, :2], wrapped(pose[:, 2:])], axis=1)
        if kind == "keypoints":
            return np.concatenate([points_in_world(BLOCK_KEYPOINTS, pose).reshape(self.num_envs, -1), agent], axis=1)
        if kind == "environment_state_agent_pos":
            return {"environment_state": vertices_in_world(pose), "agent_pos": agent.copy()}
        if self._pixels_cache is None:
            from envs.pusht.pixels import PixelObserver

            self._pixels_cache = PixelObserver(*self.task.observation_size, self.task.goal_pose)
        pixels = self._pixels_cache(agent, pose)
        return pixels if kind == "pixels" else {"pixels": pixels, "agent_pos": agent.copy()}

    def _info(self, coverage: NDArray[np.float64], mask: Mask | None = None) -> dict[str, Any]:
        """The single environment's entries; zero, as Gymnasium's vector environments have it, where `mask` is not."""
        entries: dict[str, NDArray[Any]] = {
            "coverage": coverage,
            "max_coverage": self.max_coverage.copy(),
            "is_success": coverage > self.task.success_threshold,
            "block_pose": self.worlds.block_pose.copy(),
            "goal_pose": np.broadcast_to(self.task.goal_pose, (self.num_envs, 3)).copy(),
            "pos_agent": self.worlds.agent_position.copy(),
            "vel_agent": self.worlds.agent_velocity.copy(),
            # Rounded up, in integers.
            "n_contacts": -(-self.worlds.contact_points // geometry.SUBSTEPS),
        }
        info: dict[str, Any] = {}
        for name, values in entries.items():
            if mask is not None:
                values = np.where(mask.reshape(-1, *[1] * (values.ndim - 1)), values, np.zeros((), values.dtype))
            info[name] = values
            info[f"_{name}"] = np.ones(self.num_envs, bool) if mask is None else mask.copy()
        return info

    # --- arguments ---

    def _checked_seeds(self, seed: int | Sequence[int | None] | None) -> list[int | None]:
        if seed is None:
            return self._no_seeds
        if isinstance(seed, np.ndarray):
            seed = seed.tolist()
        if isinstance(seed, Sequence) and not isinstance(seed, str | bytes):
            if len(seed) != self.num_envs:
                raise ValueError(
                    f"seed has {len(seed)} entries; allowed: an integer, or one for each of {self.num_envs}"
                )
            return [checked_seed(entry) for entry in seed]
        first = checked_seed(seed)
        assert first is not None
        return [checked_seed(first + index) for index in range(self.num_envs)]

    def _checked_mask(self, mask: object) -> Mask:
        if mask is None:
            return np.ones(self.num_envs, bool)
        try:
            array = np.asarray(mask)
        except ValueError:
            array = np.array(None)
        if array.shape != (self.num_envs,) or array.dtype != bool or not array.any():
            raise ValueError(
                f"options['reset_mask'] is {mask!r}; allowed: a boolean array of shape ({self.num_envs},) with a True"
            )
        return array

    def _checked_states(self, state: ArrayLike | None) -> NDArray[np.float64] | None:
        if state is None:
            return None
        rows = np.asarray(state, object)
        if rows.ndim == 2:
            if len(rows) != self.num_envs:
                raise ValueError(
                    f"options['state'] has shape {rows.shape}; allowed: (5,) for all worlds or ({self.num_envs}, 5)"
                )
            return np.array([checked_state(row) for row in rows])
        return np.tile(checked_state(state), (self.num_envs, 1))

    def _checked_world_states(self, states: WorldStates) -> WorldStates:
        if not isinstance(states, tuple | list) or len(states) != len(_STATE_FIELDS):
            raise ValueError(f"states is {states!r}; allowed: {', '.join(_STATE_FIELDS)}")
        checked = []
        for (name, (width, low, high)), field in zip(_STATE_FIELDS.items(), states, strict=True):
            shape = (self.num_envs, *width)
            allowed = f"finite numbers of shape {shape} or {width}, from {low:g} to {high:g}"
            try:
                values = np.asarray(field).astype(np.float64, casting="same_kind")
            except (TypeError, ValueError):
                raise ValueError(f"{name} is {field!r}; allowed: {allowed}") from None
            if values.shape not in (shape, width):
                raise ValueError(f"{name} has shape {values.shape}; allowed: {allowed}")
            bad = values[~(np.isfinite(values) & (values >= low) & (values <= high))]
            if bad.size:
                raise ValueError(f"{name} contains {float(bad[0])!r}; allowed: {allowed}")
            checked.append(values)
        return WorldStates(*checked)

    def _checked_actions(self, actions: ArrayLike) -> NDArray[np.float64]:
        try:
            targets = np.asarray(actions).astype(np.float64, casting="same_kind")
        except (TypeError, ValueError):
            raise ValueError(f"actions is {actions!r}; allowed: numbers of shape ({self.num_envs}, 2)") from None
        if targets.shape != (self.num_envs, 2):
            raise ValueError(f"actions has shape {targets.shape}; allowed: ({self.num_envs}, 2)")
        finite = np.isfinite(targets).all(axis=1)
        if not finite.all():
            bad = int(np.argmin(finite))
            raise ValueError(f"actions[{bad}] is {targets[bad].tolist()}; allowed: finite numbers")
        return targets

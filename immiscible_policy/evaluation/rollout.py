"""Rollouts of a policy: many episodes at once, in one vector environment, with batched inference."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv

from immiscible_policy.evaluation.history import ObservationHistory
from immiscible_policy.policy import DiffusionPolicy, InferenceCoupling, Planner
from immiscible_policy.training.precision import autocast


@dataclass(frozen=True)
class Episode:
    """One episode's outcome, from the first step on: the initial state itself does not count.

    ``max_reward`` is the published score: the largest coverage / 0.95, clipped to 1. ``max_coverage`` and
    ``final_coverage`` are raw shares of the goal's area. ``success`` means that coverage passed 0.95. ``length`` is in
    environment steps.
    """

    seed: int
    max_reward: float
    max_coverage: float
    final_coverage: float
    success: bool
    length: int


@dataclass(frozen=True)
class Recording:
    """Frames (H, W, 3) uint8 of an episode, one a step and the first before it, and the coverage at each."""

    seed: int
    frames: list[np.ndarray]
    coverages: list[float]


@dataclass(frozen=True)
class Rollout:
    """Episodes in the order of their seeds, recordings in that of the recorded seeds, and where the seconds went."""

    episodes: list[Episode]
    recordings: list[Recording]
    policy_seconds: float
    simulator_seconds: float


def _check_observation(policy: DiffusionPolicy, history: ObservationHistory) -> None:
    """A ValueError if the environment does not show what the policy was trained on."""
    name, pictures = ("agent_pos", "pictures and ") if policy.encoder is not None else ("observation", "")
    shape = history.shapes.get(name)
    if history.has_pictures != (policy.encoder is not None) or shape != (policy.observation_dim,):
        found = history.shapes if history.has_pictures else history.shapes["observation"]
        raise ValueError(
            f"the environment's observation has shape {found}, the policy was trained on {pictures}"
            f"({policy.observation_dim},): use the policy's own observation type"
        )


class _Episodes:
    """What has happened so far in each of the environment's worlds."""

    def __init__(
        self, policy: DiffusionPolicy, env: VectorEnv, seeds: Sequence[int], record_seeds: Sequence[int]
    ) -> None:
        self.env, self.seeds = env, list(seeds)
        observation, info = env.reset(seed=self.seeds)  # type: ignore[arg-type]
        self.history = ObservationHistory(observation, policy.n_obs_steps)
        _check_observation(policy, self.history)
        self.done = np.zeros(len(seeds), bool)
        self.success = np.zeros(len(seeds), bool)
        self.max_reward = np.full(len(seeds), -np.inf)
        self.max_coverage = np.full(len(seeds), -np.inf)
        self.final_coverage = np.zeros(len(seeds))
        self.length = np.zeros(len(seeds), np.int64)
        self.recorded = [self.seeds.index(seed) for seed in record_seeds]
        self.coverages = {index: [float(info["coverage"][index])] for index in self.recorded}
        self.frames: dict[int, list[np.ndarray]] = {index: [] for index in self.recorded}
        self._record()

    def step(self, actions: np.ndarray) -> None:
        """One step of all worlds; those that are done are not looked at."""
        observation, reward, terminated, truncated, info = self.env.step(actions)
        running = ~self.done
        self.history.push(observation)
        self.length[running] += 1
        self.max_reward[running] = np.maximum(self.max_reward, reward)[running]
        self.max_coverage[running] = np.maximum(self.max_coverage, info["coverage"])[running]
        self.final_coverage[running] = info["coverage"][running]
        self.success |= running & info["is_success"]
        for index in self.recorded:
            if running[index]:
                self.coverages[index].append(float(info["coverage"][index]))
        self._record()
        self.done |= terminated | truncated

    def _record(self) -> None:
        indices = [index for index in self.recorded if not self.done[index]]
        if indices:
            # Gymnasium's own vector environments can only draw all of their worlds.
            frames: Any = self.env.render(indices)  # type: ignore[call-arg]
            for index, frame in zip(indices, frames, strict=True):
                self.frames[index].append(np.asarray(frame))

    def results(self) -> tuple[list[Episode], list[Recording]]:
        episodes = [
            Episode(
                seed=seed,
                max_reward=float(self.max_reward[index]),
                max_coverage=float(self.max_coverage[index]),
                final_coverage=float(self.final_coverage[index]),
                success=bool(self.success[index]),
                length=int(self.length[index]),
            )
            for index, seed in enumerate(self.seeds)
        ]
        return episodes, [Recording(self.seeds[i], self.frames[i], self.coverages[i]) for i in self.recorded]


def rollout(
    policy: DiffusionPolicy,
    make_env: Callable[[int, bool], VectorEnv],
    seeds: Sequence[int],
    *,
    num_inference_steps: int | None = None,
    noise_seed: int = 0,
    record_seeds: Sequence[int] = (),
    precision: str = "fp32",
    inference_coupling: InferenceCoupling | str = "none",
    on_step: Callable[[int, int], Any] | None = None,
) -> Rollout:
    """Run one episode for each seed, all at once, until every one has terminated or been truncated.

    The policy predicts a chunk of ``n_action_steps`` actions for all unfinished episodes in one batch; they are
    executed before it predicts again. An episode's initial noises come from a stream of its own, (noise_seed, seed),
    so beyond rounding its result does not depend on which other episodes ran beside it (an ancestral sampler's later
    noises do).

    Args:
        policy: in evaluation mode, on any device.
        make_env: (number of worlds, record) -> a fresh vector environment that resets finished worlds by itself;
            ``record`` asks for one that renders.
        seeds: initial states, passed to ``env.reset(seed=...)``.
        num_inference_steps: network calls for a chunk; default the policy's.
        noise_seed: of the policy's noise.
        record_seeds: those of ``seeds`` to record.
        precision: fp32, bf16 or fp16 for the network.
        inference_coupling: how the initial noise of a chunk is chosen, see :class:`Planner`.
        on_step: called with (finished episodes, steps made) after every chunk.
    """
    if not seeds:
        raise ValueError("seeds is empty: give at least one initial state")
    planner = Planner(
        policy,
        seeds,
        noise_seed=noise_seed,
        num_inference_steps=num_inference_steps,
        inference_coupling=inference_coupling,
    )
    env = make_env(len(seeds), bool(record_seeds))
    try:
        return _rollout(planner, env, seeds, record_seeds, precision, on_step)
    finally:
        env.close()


def _rollout(
    planner: Planner,
    env: VectorEnv,
    seeds: Sequence[int],
    record_seeds: Sequence[int],
    precision: str,
    on_step: Callable[[int, int], Any] | None,
) -> Rollout:
    policy = planner.policy
    episodes = _Episodes(policy, env, seeds, record_seeds)
    policy_seconds = simulator_seconds = 0.0
    while not episodes.done.all():
        started = time.perf_counter()
        active = np.flatnonzero(~episodes.done)
        with autocast(precision, str(policy.device)):
            chunk = planner.act(episodes.history.rows(active, policy.device), active.tolist())
        # Nobody looks at what worlds do that are done.
        actions = np.zeros((len(seeds), *chunk.shape[1:]), np.float32)
        actions[active] = chunk.float().cpu().numpy()
        predicted = time.perf_counter()
        for step in range(actions.shape[1]):
            episodes.step(actions[:, step])
            if episodes.done.all():
                break
        policy_seconds += predicted - started
        simulator_seconds += time.perf_counter() - predicted
        if on_step is not None:
            on_step(int(episodes.done.sum()), int(episodes.length.max()))
    return Rollout(*episodes.results(), policy_seconds, simulator_seconds)

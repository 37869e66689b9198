"""Rollouts of a policy: many episodes at once, batched inference, receding horizon."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from immiscible_policy.policy import DiffusionPolicy
from immiscible_policy.training.precision import autocast


@dataclass(frozen=True)
class Episode:
    """One episode's outcome.

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


@dataclass
class _Running:
    """An episode in progress."""

    env: gym.Env
    seed: int
    history: list[np.ndarray]
    noise: np.random.Generator
    record: bool
    rewards: list[float] = field(default_factory=list)
    coverages: list[float] = field(default_factory=list)
    success: bool = False
    frames: list[np.ndarray] = field(default_factory=list)
    done: bool = False

    def step(self, action: np.ndarray) -> None:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.history.append(np.asarray(observation, np.float32))
        del self.history[0]
        self.rewards.append(float(reward))
        self.coverages.append(float(info["coverage"]))
        self.success = self.success or bool(info["is_success"])
        self.done = terminated or truncated
        if self.record:
            self.frames.append(np.asarray(self.env.render()))

    def result(self) -> Episode:
        return Episode(
            seed=self.seed,
            max_reward=max(self.rewards),
            max_coverage=max(self.coverages),
            final_coverage=self.coverages[-1],
            success=self.success,
            length=len(self.rewards),
        )


@dataclass(frozen=True)
class Recording:
    """Frames (H, W, 3) uint8 of an episode, one a step and the first before it, and the coverage at each."""

    seed: int
    frames: list[np.ndarray]
    coverages: list[float]


def rollout(
    policy: DiffusionPolicy,
    make_env: Callable[[bool], gym.Env],
    seeds: Sequence[int],
    *,
    num_inference_steps: int | None = None,
    noise_seed: int = 0,
    record_seeds: Sequence[int] = (),
    precision: str = "fp32",
    on_step: Callable[[int, int], Any] | None = None,
) -> tuple[list[Episode], list[Recording]]:
    """Run one episode for each seed, all at once, until every one has terminated or been truncated.

    The policy predicts a chunk of ``n_action_steps`` actions for all unfinished episodes in one batch; they are
    executed before it predicts again. An episode's initial noises come from a stream of its own, (noise_seed, seed),
    so beyond rounding its result does not depend on which other episodes ran beside it (an ancestral sampler's later
    noises do).

    Args:
        policy: in evaluation mode, on any device.
        make_env: record -> a fresh environment; ``record`` asks for one that renders.
        seeds: initial states, passed to ``env.reset(seed=...)``.
        num_inference_steps: network calls for a chunk; default the policy's.
        noise_seed: of the policy's noise.
        record_seeds: those of ``seeds`` to record.
        precision: fp32, bf16 or fp16 for the network.
        on_step: called with (finished episodes, largest number of steps made) after every chunk.

    Returns:
        Episodes in the order of ``seeds``, and recordings in the order of ``record_seeds``.
    """
    if not seeds:
        raise ValueError("seeds is empty: give at least one initial state")
    running = [_start(policy, make_env(seed in record_seeds), seed, noise_seed, seed in record_seeds) for seed in seeds]
    generator = torch.Generator(policy.device).manual_seed(noise_seed)
    shape = (policy.horizon, policy.action_dim)
    while active := [episode for episode in running if not episode.done]:
        observation = torch.from_numpy(np.stack([np.stack(e.history) for e in active])).to(policy.device)
        noise = torch.from_numpy(np.stack([e.noise.standard_normal(shape, np.float32) for e in active]))
        with autocast(precision, str(policy.device)):
            actions = policy.predict_action(observation, generator, num_inference_steps, noise.to(policy.device))
        for episode, chunk in zip(active, actions.float().cpu().numpy(), strict=True):
            for action in chunk:
                episode.step(action)
                if episode.done:
                    break
        if on_step is not None:
            on_step(sum(e.done for e in running), max(len(e.rewards) for e in running))
    for episode in running:
        episode.env.close()
    recorded = {e.seed: Recording(e.seed, e.frames, [e.coverages[0], *e.coverages]) for e in running if e.record}
    return [episode.result() for episode in running], [recorded[seed] for seed in record_seeds]


def _start(policy: DiffusionPolicy, env: gym.Env, seed: int, noise_seed: int, record: bool) -> _Running:
    observation, _ = env.reset(seed=seed)
    first = np.asarray(observation, np.float32)
    if first.shape != (policy.observation_dim,):
        raise ValueError(
            f"the environment's observation has shape {first.shape}, the policy was trained on "
            f"({policy.observation_dim},): use the policy's own observation type"
        )
    episode = _Running(env, seed, [first] * policy.n_obs_steps, np.random.default_rng([noise_seed, seed]), record)
    if record:
        episode.frames.append(np.asarray(env.render()))
    return episode

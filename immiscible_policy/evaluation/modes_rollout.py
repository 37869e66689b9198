"""Episodes from given starts until the agent first touches the block, for ``modes.count_modes``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from envs.pusht.geometry import WINDOW_SIZE
from envs.pusht.modes import first_contact, reset_states
from immiscible_policy.evaluation.evaluate import environment_factory
from immiscible_policy.evaluation.history import ObservationHistory
from immiscible_policy.evaluation.modes import Trajectories
from immiscible_policy.policy import DiffusionPolicy, InferenceCoupling, Planner
from immiscible_policy.training.precision import autocast

Act = Callable[[Tensor | dict[str, Tensor], NDArray[np.intp]], NDArray[Any]]
"""(observations (N, n_obs_steps, ...) on the CPU, their worlds' numbers (N,)) -> (N, n_action_steps, 2) in pixels."""


def roll_from_states(
    act: Act, env: VectorEnv, states: ArrayLike, n_steps: int = 100, n_obs_steps: int = 2
) -> Trajectories:
    """Episodes from given states until the agent has touched the block, or for ``n_steps``.

    World i begins in state i // n_repeats, where n_repeats is the number of worlds for each state; the block stands
    as given whatever the environment's ``legacy``. ``act`` is asked for the worlds that have not touched, until none is
    left, and what it answers is executed to the end.

    Args:
        act: see ``Act``. The first observations repeat the episode's first.
        env: a vector environment of PushT that resets finished worlds in the next step.
        states: (n_starts, 5); the number of worlds is a multiple of n_starts.
        n_steps: control steps, fewer than end an episode.

    Raises:
        ValueError: an argument out of range, or actions of another shape.
    """
    starts, n_worlds = np.asarray(states, np.float64), env.num_envs
    limit = getattr(env.unwrapped, "max_episode_steps", None)
    if starts.ndim != 2 or starts.shape[1] != 5 or not len(starts) or n_worlds % len(starts):
        raise ValueError(f"states has shape {starts.shape}; allowed: (n, 5), n a divisor of the {n_worlds} worlds")
    if n_steps < 1 or (limit is not None and n_steps > limit):
        raise ValueError(f"n_steps is {n_steps}; allowed: 1 to the {limit or 'any number of'} steps of an episode")
    if env.metadata.get("autoreset_mode") != AutoresetMode.NEXT_STEP:
        raise ValueError(f"env has autoreset_mode {env.metadata.get('autoreset_mode')}; allowed: NextStep")
    begin = np.repeat(starts, n_worlds // len(starts), axis=0)
    legacy: bool = env.unwrapped.task.legacy  # type: ignore[attr-defined]
    observation, info = env.reset(options={"state": reset_states(begin, legacy)})
    history = ObservationHistory(observation, n_obs_steps)
    samples, contacts = [_state(info)], [np.asarray(info["n_contacts"])]
    lengths, active = np.full(n_worlds, n_steps + 1), np.ones(n_worlds, bool)
    while active.any() and len(samples) <= n_steps:
        asked = np.flatnonzero(active)
        chunk = np.asarray(act(history.rows(asked), asked), np.float64)
        if chunk.ndim != 3 or chunk.shape[::2] != (len(asked), 2) or not chunk.shape[1]:
            raise ValueError(f"act gave actions of shape {chunk.shape}; allowed: ({len(asked)}, n_action_steps, 2)")
        for step in range(min(chunk.shape[1], n_steps + 1 - len(samples))):
            actions = samples[-1][:, :2].clip(0.0, WINDOW_SIZE)  # those that have touched stay where they are
            actions[asked] = chunk[:, step]
            observation, _, terminated, truncated, info = env.step(actions)
            history.push(observation)
            samples.append(_state(info))
            contacts.append(np.asarray(info["n_contacts"]))
            ended = active & (terminated | truncated) & (lengths > len(samples))
            lengths[ended] = len(samples)
        paths, counted = np.stack(samples, axis=1), np.stack(contacts, axis=1)
        for world in asked:
            path = paths[world, : lengths[world]]
            contact = first_contact(path[:, :2], path[:, 2:], counted[world, : len(path)])
            if contact is not None:
                lengths[world] = contact + 1
        active &= lengths > len(samples)
    lengths = np.minimum(lengths, len(samples))
    shape = (len(starts), n_worlds // len(starts))
    return Trajectories(
        paths.reshape(*shape, -1, 5), lengths.reshape(shape), counted.astype(np.int64).reshape(*shape, -1)
    )


def policy_act(
    policy: DiffusionPolicy,
    n_worlds: int,
    noise_seed: int = 0,
    num_inference_steps: int | None = None,
    precision: str = "fp32",
    inference_coupling: InferenceCoupling | str = "none",
) -> Act:
    """``policy`` as ``roll_from_states`` asks it; world i's initial noises are a stream of its own, (noise_seed, i)."""
    planner = Planner(
        policy,
        range(n_worlds),
        noise_seed=noise_seed,
        num_inference_steps=num_inference_steps,
        inference_coupling=inference_coupling,
    )

    def act(history: Tensor | dict[str, Tensor], worlds: NDArray[np.intp]) -> NDArray[Any]:
        device = policy.device
        seen = {k: v.to(device) for k, v in history.items()} if isinstance(history, dict) else history.to(device)
        with autocast(precision, str(device)):
            chunk = planner.act(seen, worlds.tolist())
        return chunk.float().cpu().numpy()

    return act


def roll_policy(
    policy: DiffusionPolicy,
    states: ArrayLike,
    n_repeats: int = 16,
    n_steps: int = 100,
    noise_seed: int = 0,
    num_inference_steps: int | None = None,
    precision: str = "fp32",
    inference_coupling: InferenceCoupling | str = "none",
) -> Trajectories:
    """``roll_from_states`` of a policy in the environment that it was trained for, every state ``n_repeats`` times."""
    if n_repeats < 1:
        raise ValueError(f"n_repeats is {n_repeats}; allowed: at least 1")
    n_worlds = len(np.asarray(states)) * n_repeats
    env = environment_factory(policy)(n_worlds, False)
    try:
        act = policy_act(policy, n_worlds, noise_seed, num_inference_steps, precision, inference_coupling)
        return roll_from_states(act, env, states, n_steps, policy.n_obs_steps)
    finally:
        env.close()


def _state(info: dict[str, Any]) -> NDArray[np.float64]:
    return np.concatenate([info["pos_agent"], info["block_pose"]], axis=1)

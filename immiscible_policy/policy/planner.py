"""A policy at work: chunk after chunk of many episodes, each with its own noise and its own previous plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from immiscible_policy.policy.diffusion_policy import DiffusionPolicy, Observation
from immiscible_policy.policy.inference_coupling import InferenceCoupling, selection_for


class Planner:
    """Asks a policy for the next actions of the episodes that need some.

    The initial noises of an episode come from a stream of its own, (noise_seed, seed), so beyond rounding its actions
    do not depend on which other episodes run beside it (an ancestral sampler's later noises do).

    >>> planner = Planner(policy, seeds=[100_000], inference_coupling="warm")
    >>> actions = planner.act(observation)  # (1, n_obs_steps, D) -> (1, n_action_steps, action_dim)

    Args:
        policy: in evaluation mode, on any device.
        seeds: one for each episode.
        noise_seed: of the noise of all of them.
        num_inference_steps: network calls of a sample; default the policy's.
        inference_coupling: how initial noise is chosen, or the mode's name: ``none``, ``warm`` or ``two_pass``.

    Raises:
        ValueError: what ``InferenceCoupling`` refuses for this policy.
    """

    def __init__(
        self,
        policy: DiffusionPolicy,
        seeds: Sequence[int],
        *,
        noise_seed: int = 0,
        num_inference_steps: int | None = None,
        inference_coupling: InferenceCoupling | str = "none",
    ) -> None:
        if isinstance(inference_coupling, str):
            inference_coupling = InferenceCoupling(inference_coupling)
        self.policy, self.settings, self.num_inference_steps = policy, inference_coupling, num_inference_steps
        self._streams = [np.random.default_rng([noise_seed, seed]) for seed in seeds]
        chosen = [int(np.random.SeedSequence([noise_seed, seed, 1]).generate_state(1)[0]) for seed in seeds]
        self._select = selection_for(policy, inference_coupling, chosen)
        self._generator = torch.Generator(policy.device).manual_seed(noise_seed)
        self._plans = torch.full((len(seeds), policy.horizon, policy.action_dim), torch.nan)
        self._has_plan = np.zeros(len(seeds), bool)
        self.network_calls = np.zeros(len(seeds), np.int64)
        """Network calls that each episode has taken; those of a batch count for all in it."""

    def reset(self, rows: Sequence[int] | None = None) -> None:
        """Forget the previous plans of these episodes, or of all; their noise goes on."""
        forgotten = slice(None) if rows is None else list(rows)
        self._has_plan[forgotten], self._plans[forgotten] = False, torch.nan

    @torch.no_grad()
    def act(self, observation: Observation, rows: Sequence[int] | None = None) -> Tensor:
        """The next actions.

        Args:
            observation: (n, n_obs_steps, ...), or a dictionary, as ``DiffusionPolicy.encode`` takes it.
            rows: (n,) which episodes these are; all in order if None.

        Returns:
            (n, n_action_steps, action_dim) in their own units, on the policy's device.
        """
        episodes = list(range(len(self._streams))) if rows is None else [int(row) for row in rows]
        condition = self.policy.encode(observation, training=False)
        plan = self._plan(condition, self._seen(observation), episodes)
        self._plans[episodes] = plan.float().cpu()
        self._has_plan[episodes] = True
        return self.policy.executed(plan)

    def last_plan(self, rows: Sequence[int] | None = None) -> Tensor:
        """The whole last plans (n, horizon, action_dim), in the actions' own units, on the CPU; NaN without one."""
        plans = self._plans if rows is None else self._plans[list(rows)]
        return self.policy.action_normalizer.denormalize(plans.to(self.policy.device)).cpu()

    def _plan(self, condition: Tensor, seen: Tensor, episodes: list[int]) -> Tensor:
        if self._select is None:
            return self._sample(condition, self._independent(episodes), episodes)
        reference = self._remainder(episodes)
        fresh = [i for i, episode in enumerate(episodes) if self._is_fresh(episode)]
        unknown = fresh if self.settings.first_chunk == "two_pass" or self.settings.mode == "two_pass" else []
        mask = None
        if self.settings.mode == "warm" and self.settings.known_only:
            kept = self.policy.horizon - self.policy.n_action_steps
            mask = (torch.arange(self.policy.horizon) < kept).view(1, -1, 1)
        noise = torch.empty_like(reference)
        if unknown:
            rows = [episodes[i] for i in unknown]
            first = self._sample(condition[unknown], self._independent(rows), rows)
            noise[unknown] = self._select(first, seen[unknown], rows, None)
        elif fresh:
            noise[fresh] = self._independent([episodes[i] for i in fresh])
        known = sorted(set(range(len(episodes))) - set(fresh))
        if known:
            noise[known] = self._select(reference[known], seen[known], [episodes[i] for i in known], mask)
        return self._sample(condition, noise, episodes)

    def _is_fresh(self, episode: int) -> bool:
        return self.settings.mode == "two_pass" or not self._has_plan[episode]

    def _remainder(self, episodes: list[int]) -> Tensor:
        """What is left of the previous plans, moved to where it now belongs, with the last action repeated."""
        plans, done = self._plans[episodes], self.policy.n_action_steps
        return torch.cat([plans[:, done:], plans[:, -1:].expand(-1, done, -1)], dim=1)

    def _sample(self, condition: Tensor, noise: Tensor, episodes: list[int]) -> Tensor:
        noise = noise.to(self.policy.device) * self.settings.noise_scale
        with self._counted(episodes):
            return self.policy.plan(condition, self._generator, self.num_inference_steps, noise)

    @contextmanager
    def _counted(self, episodes: list[int]) -> Iterator[None]:
        """Count the network's calls: samplers differ in how many they make of so many steps."""

        def count(*_: object) -> None:
            self.network_calls[episodes] += 1

        handle = self.policy.network.register_forward_pre_hook(count)
        try:
            yield
        finally:
            handle.remove()

    def _independent(self, episodes: list[int]) -> Tensor:
        shape = (self.policy.horizon, self.policy.action_dim)
        return torch.from_numpy(np.stack([self._streams[e].standard_normal(shape, np.float32) for e in episodes]))

    def _seen(self, observation: Observation) -> Tensor:
        """What the coupling would have seen of the observations in training."""
        flat = observation["agent_pos"] if isinstance(observation, Mapping) else observation
        return self.policy.observation_normalizer.normalize(flat)

"""Rollouts, on an environment whose outcomes are known."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import SyncVectorEnv
from torch import Tensor

from immiscible_policy.evaluation.rollout import rollout
from immiscible_policy.policy import DiffusionPolicy


class Track(gym.Env):
    """One number that each action is added to; coverage is a tenth of it; ends above 9.5."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,))
    action_space = gym.spaces.Box(-np.inf, np.inf, (1,))
    closed = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        self.position = float(seed or 0)
        return np.array([self.position]), {"coverage": self.position / 10}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.position += float(action[0])
        coverage = self.position / 10
        done = coverage > 0.95
        return (
            np.array([self.position]),
            min(coverage / 0.95, 1.0),
            done,
            False,
            {"coverage": coverage, "is_success": done},
        )

    def render(self) -> np.ndarray:  # type: ignore[override]
        return np.full((4, 4, 3), int(self.position), np.uint8)

    def close(self) -> None:
        Track.closed += 1


class Constant(DiffusionPolicy):
    """Chunks of two steps of +1; remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__(1, 1, horizon=4, n_action_steps=2, network={"name": "mlp", "width": 8, "n_blocks": 1})
        unit = torch.tensor([[-1.0], [1.0]])  # in which normalised actions are the actions
        self.fit_normalizers(unit, unit)
        self.seen: list[Tensor] = []
        self.noises: list[Tensor] = []

    def encode(self, observation: Any, training: bool | None = None, generator: Any = None) -> Tensor:
        self.seen.append(observation.clone())
        return observation

    def plan(self, condition: Tensor, generator: Any = None, steps: Any = None, noise: Any = None) -> Tensor:
        self.noises.append(noise)
        return torch.ones(len(condition), 4, 1)


class Tracks(SyncVectorEnv):
    """Draws the worlds that are asked for."""

    def render(self, indices: list[int]) -> Any:  # type: ignore[override]
        return [self.envs[index].render() for index in indices]


def make_env(n_worlds: int, record: bool) -> SyncVectorEnv:
    return Tracks([lambda: gym.wrappers.TimeLimit(Track(), 5)] * n_worlds)


def test_outcomes_lengths_and_receding_horizon() -> None:
    policy, Track.closed = Constant(), 0
    result = rollout(policy, make_env, [8, 0, 6], record_seeds=[6])
    episodes, recordings = result.episodes, result.recordings
    by_seed = {episode.seed: episode for episode in episodes}
    assert [episode.seed for episode in episodes] == [8, 0, 6]
    assert (by_seed[8].length, by_seed[8].success, by_seed[8].max_reward) == (2, True, 1.0)
    assert (by_seed[0].length, by_seed[0].success) == (5, False)
    assert by_seed[0].max_coverage == pytest.approx(0.5)
    assert by_seed[0].max_reward == pytest.approx(0.5 / 0.95)
    assert (by_seed[6].length, by_seed[6].final_coverage) == (4, 1.0)
    # All three start; the finished ones leave the batch; the history is padded with the first observation.
    assert [len(seen) for seen in policy.seen] == [3, 2, 1]
    assert policy.seen[0][:, :, 0].tolist() == [[8, 8], [0, 0], [6, 6]]
    assert policy.seen[1][:, :, 0].tolist() == [[1, 2], [7, 8]]
    assert Track.closed == 3
    assert result.policy_seconds > 0
    assert result.simulator_seconds > 0
    assert len(recordings) == 1
    assert [int(frame[0, 0, 0]) for frame in recordings[0].frames] == [6, 7, 8, 9, 10]
    assert len(recordings[0].coverages) == len(recordings[0].frames)


def test_an_episode_keeps_its_noise_whatever_runs_beside_it() -> None:
    together, alone, other = Constant(), Constant(), Constant()
    rollout(together, make_env, [3, 0], noise_seed=5)
    rollout(alone, make_env, [0], noise_seed=5)
    rollout(other, make_env, [0], noise_seed=6)
    assert torch.equal(together.noises[0][1], alone.noises[0][0])
    assert torch.equal(together.noises[1][1], alone.noises[1][0])
    assert not torch.equal(alone.noises[0], alone.noises[1])
    assert not torch.equal(alone.noises[0], other.noises[0])


def test_progress_is_reported() -> None:
    reports: list[tuple[int, int]] = []
    rollout(Constant(), make_env, [8, 0], on_step=lambda finished, steps: reports.append((finished, steps)))
    assert reports == [(1, 2), (1, 4), (2, 5)]


def test_wrong_observation_and_no_seeds_are_named() -> None:
    with pytest.raises(ValueError, match="seeds is empty"):
        rollout(Constant(), make_env, [])
    policy = DiffusionPolicy(3, 1, horizon=4, n_action_steps=2, network={"name": "mlp", "width": 8, "n_blocks": 1})
    with pytest.raises(ValueError, match=r"observation has shape \(1,\), the policy was trained on \(3,\)"):
        rollout(policy, make_env, [0])

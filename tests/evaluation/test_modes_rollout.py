"""Episodes from given starts, with scripted policies whose ways are known, in the real environment."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from torch import Tensor

from envs.pusht.modes import CENTER, symmetric_starts
from envs.pusht.vector_env import PushTVectorEnv
from envs.pusht.vertices import points_in_world
from immiscible_policy.evaluation.modes import count_modes, plug_in_entropy
from immiscible_policy.evaluation.modes_rollout import Act, policy_act, roll_from_states, roll_policy
from immiscible_policy.policy import DiffusionPolicy

Floats = NDArray[np.float64]


def goes_round(starts: Floats, n_repeats: int, clockwise: Callable[[int], bool]) -> Act:
    """Circles the block's centre half a turn at 170 px, in the direction drawn for each world, then heads for it."""
    begin = np.repeat(starts, n_repeats, axis=0)
    center = points_in_world(CENTER[None], begin[:, 2:])[:, 0]
    way = np.array([1.0 if clockwise(world) else -1.0 for world in range(len(begin))])
    first = np.arctan2(*(begin[:, :2] - center).T[::-1])
    made = np.zeros(len(begin), int)

    def act(history: Tensor, worlds: NDArray[np.intp]) -> Floats:
        step = made[worlds, None] + np.arange(1, 5)
        made[worlds] += 4
        angle = first[worlds, None] + way[worlds, None] * np.minimum(step / 30.0, 1.0) * math.pi
        radius = np.where(step <= 34, 170.0, 0.0)
        around = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
        return center[worlds, None] + radius[..., None] * around

    return act


def test_a_policy_that_goes_clockwise_with_probability_p() -> None:
    starts, random = symmetric_starts(8, 0), np.random.default_rng(3)
    drawn = random.random((8, 8)) < 0.75
    for legacy in (False, True):
        env = PushTVectorEnv(64, legacy=legacy)
        act = goes_round(starts, 8, lambda world: bool(drawn.flat[world]))
        trajectories = roll_from_states(act, env, starts, n_steps=60)
        np.testing.assert_allclose(trajectories.states[:, :, 0], np.repeat(starts[:, None], 8, axis=1), atol=1e-9)
        result = count_modes(trajectories)
        np.testing.assert_array_equal(result.counts[:, 0], drawn.sum(axis=1))
        np.testing.assert_array_equal(result.counts[:, 1], 8 - drawn.sum(axis=1))
        expected = plug_in_entropy(drawn.sum(axis=1), 8).mean()
        assert result.entropy_plug_in == pytest.approx(float(expected))


def test_it_stops_when_all_have_touched_and_asks_for_the_others_only() -> None:
    starts = symmetric_starts(2, 0)
    block = points_in_world(CENTER[None], starts[:, 2:])[:, 0]
    asked: list[list[int]] = []
    histories: list[Tensor] = []

    def act(history: Tensor, worlds: NDArray[np.intp]) -> Floats:
        asked.append(worlds.tolist())
        histories.append(history)
        # Worlds 0 and 1 head for their block at once, 2 and 3 first away from it for two chunks.
        away = 1.2 * starts[worlds // 2, :2] - 0.2 * block[worlds // 2]
        target = np.where((worlds < 2)[:, None] | (len(asked) > 2), block[worlds // 2], away)
        return np.repeat(target[:, None], 3, axis=1)

    result = roll_from_states(act, PushTVectorEnv(4), starts, n_steps=200, n_obs_steps=3)
    assert asked[:2] == [[0, 1, 2, 3], [0, 1, 2, 3]] or asked[:2] == [[0, 1, 2, 3], [2, 3]]
    assert asked[-1] == [2, 3]
    assert len(asked) < 8
    lengths = result.lengths
    assert lengths.shape == (2, 2)
    assert (lengths[1] > lengths[0]).all()
    assert result.states.shape == (2, 2, 3 * len(asked) + 1, 5)
    assert result.contacts is not None
    for start in range(2):
        for repeat in range(2):
            way = result.first_way(start, repeat)
            assert way.contact == lengths[start, repeat] - 1
            assert result.contacts[start, repeat, way.contact] > 0
    # The first observations repeat the first; later ones are the last three, oldest first.
    first = histories[0]
    assert first.dtype == torch.float32
    np.testing.assert_array_equal(first[:, 0], first[:, 2])
    np.testing.assert_allclose(first[:, 0, :4], np.repeat(starts[:, :4], 2, axis=0), rtol=1e-6)
    states = result.states.reshape(4, -1, 5)[asked[1]]
    np.testing.assert_allclose(histories[1][:, :, :4], states[:, 1:4, :4], rtol=1e-6)


def test_without_a_contact_it_makes_n_steps() -> None:
    starts = symmetric_starts(3, 0)

    def stays(history: Tensor, worlds: NDArray[np.intp]) -> Floats:
        return np.repeat(starts[worlds, None, :2], 8, axis=1)

    result = roll_from_states(stays, PushTVectorEnv(3), starts, n_steps=13)
    assert result.states.shape == (3, 1, 14, 5)
    assert (result.lengths == 14).all()
    assert count_modes(result).none.mean == 1.0


def test_what_follows_an_episodes_end_does_not_count() -> None:
    """The block stands at the goal, so the first step ends the episode, and the next resets it."""
    state = np.array([[100.0, 400.0, 256.0, 256.0, math.pi / 4]])

    def stays(history: Tensor, worlds: NDArray[np.intp]) -> Floats:
        return np.full((1, 4, 2), (100.0, 400.0))

    env = PushTVectorEnv(1)
    env.reset(seed=0)
    result = roll_from_states(stays, env, state, n_steps=30)
    assert result.lengths.tolist() == [[2]]
    assert count_modes(result).counts.tolist() == [[0, 0, 0, 1]]


class Noisy(DiffusionPolicy):
    """Heads for where its noise says, and remembers it."""

    def __init__(self) -> None:
        super().__init__(20, 2, horizon=8, n_action_steps=4, network={"name": "mlp", "width": 8, "n_blocks": 1})
        self.fit_normalizers(torch.tensor([[0.0], [1.0]]).expand(2, 20), torch.tensor([[156.0], [356.0]]).expand(2, 2))
        self.noises: list[Tensor] = []
        self.task = {"env_id": "envs:immiscible/PushT-v0", "obs_type": "keypoints", "legacy": True, "max_steps": 30}

    def plan(self, condition: Tensor, generator: Any = None, steps: Any = None, noise: Any = None) -> Tensor:
        assert condition.shape[1:] == (2, 20)
        self.noises.append(noise)
        return noise


def test_each_world_of_a_policy_keeps_its_noise() -> None:
    together, alone, other = Noisy(), Noisy(), Noisy()
    history = torch.zeros(3, 2, 20)
    act = policy_act(together, 3, noise_seed=5)
    act(history, np.array([0, 1, 2]))
    act(history[:1], np.array([2]))
    single = policy_act(alone, 3, noise_seed=5)
    single(history[:1], np.array([2]))
    single(history[:1], np.array([2]))
    policy_act(other, 3, noise_seed=6)(history, np.array([0, 1, 2]))
    assert torch.equal(together.noises[0][2], alone.noises[0][0])
    assert torch.equal(together.noises[1], alone.noises[1])
    assert not torch.equal(together.noises[0][0], together.noises[0][1])
    assert not torch.equal(together.noises[0], other.noises[0])


def test_rolling_a_policy_in_its_own_environment() -> None:
    starts = symmetric_starts(4, 0)
    first, again = (roll_policy(Noisy(), starts, n_repeats=2, n_steps=16) for _ in range(2))
    assert first.states.shape[:2] == (4, 2)
    np.testing.assert_array_equal(first.states, again.states)
    np.testing.assert_allclose(first.states[:, 1, 0], starts, atol=1e-9)
    assert not np.array_equal(first.states[:, 0], first.states[:, 1])
    with pytest.raises(ValueError, match="n_repeats is 0"):
        roll_policy(Noisy(), starts, n_repeats=0)
    with pytest.raises(ValueError, match="n_steps is 31; allowed: 1 to the 30 steps"):
        roll_policy(Noisy(), starts, n_steps=31)


def test_wrong_arguments_are_named() -> None:
    starts, env = symmetric_starts(3, 0), PushTVectorEnv(4)
    with pytest.raises(ValueError, match=r"states has shape \(3, 5\); allowed: \(n, 5\), n a divisor of the 4 worlds"):
        roll_from_states(lambda history, worlds: history, env, starts)
    with pytest.raises(ValueError, match="n_steps is 0"):
        roll_from_states(lambda history, worlds: history, env, starts[:2], n_steps=0)
    with pytest.raises(ValueError, match=r"act gave actions of shape \(4, 2, 5\); allowed: \(4, n_action_steps, 2\)"):
        roll_from_states(lambda history, worlds: history, env, starts[:2])
    same = PushTVectorEnv(4, autoreset_mode=AutoresetMode.SAME_STEP)
    with pytest.raises(ValueError, match="env has autoreset_mode"):
        roll_from_states(lambda history, worlds: history, same, starts[:2])

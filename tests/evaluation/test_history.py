"""Histories of observations: order, copies, and pictures that stay pictures."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from immiscible_policy.evaluation.history import ObservationHistory


@settings(max_examples=25, deadline=None)
@given(n_obs_steps=st.integers(1, 4), n_steps=st.integers(0, 6), n_worlds=st.integers(1, 4), seed=st.integers(0, 1000))
def test_flat_histories_equal_the_last_observations(n_obs_steps: int, n_steps: int, n_worlds: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    seen = [rng.normal(size=(n_worlds, 3)) for _ in range(n_steps + 1)]
    history = ObservationHistory(seen[0], n_obs_steps)
    for observation in seen[1:]:
        history.push(observation)
    padded = [seen[0]] * n_obs_steps + seen[1:]
    expected = np.stack(padded[-n_obs_steps:], axis=1).astype(np.float32)
    chosen = rng.permutation(n_worlds)[: rng.integers(1, n_worlds + 1)]
    rows = history.rows(chosen)
    assert isinstance(rows, torch.Tensor)
    assert rows.dtype == torch.float32
    np.testing.assert_array_equal(rows, expected[chosen])


def picture_observation(step: int) -> dict[str, np.ndarray]:
    return {
        "pixels": np.stack([np.full((4, 5, 3), 10 * world + step, np.uint8) for world in range(3)]),
        "agent_pos": np.array([[world, step + 0.5] for world in range(3)]),
    }


def test_pictures_stay_uint8_beside_their_positions() -> None:
    history = ObservationHistory(picture_observation(0), 2)
    assert history.has_pictures
    assert history.shapes == {"pixels": (4, 5, 3), "agent_pos": (2,)}
    for step in (1, 2, 3):
        history.push(picture_observation(step))
    rows = history.rows(np.array([2, 0]))
    assert isinstance(rows, dict)
    assert rows["pixels"].dtype == torch.uint8
    assert rows["pixels"].shape == (2, 2, 4, 5, 3)
    assert rows["pixels"][:, :, 3, 4, 2].tolist() == [[22, 23], [2, 3]]
    assert rows["agent_pos"].dtype == torch.float32
    assert rows["agent_pos"].tolist() == [[[2, 2.5], [2, 3.5]], [[0, 2.5], [0, 3.5]]]


def test_rows_are_copies_and_take_masks() -> None:
    observation = picture_observation(0)
    history = ObservationHistory(observation, 2)
    rows = history.rows(np.array([True, False, True]))
    assert isinstance(rows, dict)
    observation["pixels"][:] = 99
    history.push(picture_observation(7))
    assert rows["pixels"][:, 1, 0, 0, 0].tolist() == [0, 20]
    assert history.rows([1])["pixels"][0, :, 0, 0, 0].tolist() == [10, 17]  # type: ignore[index]


def test_numbers_in_a_dictionary_become_one_row() -> None:
    observation = {"agent_pos": np.ones((2, 2)), "environment_state": np.zeros((2, 16))}
    history = ObservationHistory(observation, 3)
    assert not history.has_pictures
    assert history.shapes == {"observation": (18,)}
    assert history.rows([0])[0, 2].tolist() == [0.0] * 16 + [1.0] * 2  # type: ignore[index]


def test_an_empty_history_is_refused() -> None:
    with pytest.raises(ValueError, match="n_obs_steps=0: must be at least 1"):
        ObservationHistory(np.zeros((1, 2)), 0)

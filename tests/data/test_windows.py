"""Action windows, episode splits and observations."""

from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from immiscible_policy.data.replay import DataError, ReplayData, load_replay, open_store
from immiscible_policy.data.windows import ActionWindows, flat_observation, observations_from_replay, split_episodes


def numbered_windows(lengths, horizon, n_obs_steps, n_action_steps, **options):
    """Windows whose observation is the step's row and whose action is (row, 10 * row)."""
    n = sum(lengths)
    rows = np.arange(n, dtype=np.float32)
    return ActionWindows(
        rows[:, None],
        np.stack([rows, 10 * rows], axis=1),
        np.cumsum(lengths),
        horizon,
        n_obs_steps,
        n_action_steps,
        **options,
    )


def padded_windows(lengths, horizon, n_obs_steps, n_action_steps):
    """Rows of every window, one entry at a time: pad each episode as a list, then slide over it."""
    windows, begin = [], 0
    for length in lengths:
        rows = list(range(begin, begin + length))
        before, after = [rows[0]] * (n_obs_steps - 1), [rows[-1]] * (n_action_steps - 1)
        line = before + rows + after
        flags = [True] * len(before) + [False] * length + [True] * len(after)
        for start in range(len(line) - horizon + 1):
            windows.append((line[start : start + horizon], flags[start : start + horizon]))
        begin += length
    return windows


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 25), min_size=1, max_size=4),
    horizon=st.integers(1, 12),
    data=st.data(),
)
def test_every_window_is_a_slide_over_the_padded_episode(lengths, horizon, data):
    n_obs_steps = data.draw(st.integers(1, horizon))
    n_action_steps = data.draw(st.integers(1, horizon - n_obs_steps + 1))
    expected = padded_windows(lengths, horizon, n_obs_steps, n_action_steps)
    if not expected:
        with pytest.raises(ValueError, match="no windows"):
            numbered_windows(lengths, horizon, n_obs_steps, n_action_steps)
        return
    windows = numbered_windows(lengths, horizon, n_obs_steps, n_action_steps)
    assert len(windows) == len(expected)
    batch = windows.batch(torch.arange(len(windows)))
    rows = torch.tensor([row for row, _ in expected], dtype=torch.float32)
    assert torch.equal(batch["action"], torch.stack([rows, 10 * rows], dim=-1))
    assert torch.equal(batch["observation"], rows[:, :n_obs_steps, None])
    assert torch.equal(batch["action_is_pad"], torch.tensor([flags for _, flags in expected]))


def test_the_papers_window_of_one_episode():
    windows = numbered_windows([20], horizon=16, n_obs_steps=2, n_action_steps=8)
    assert len(windows) == 20 - 7
    batch = windows.batch(torch.tensor([0, 12]))
    assert batch["observation"][:, :, 0].tolist() == [[0, 0], [11, 12]]
    assert batch["action"][0, :, 0].tolist() == [0, *range(15)]
    assert batch["action"][1, :, 0].tolist() == [*range(11, 20), *[19] * 7]
    assert batch["action_is_pad"][0].tolist() == [True] + [False] * 15
    assert batch["action_is_pad"][1].tolist() == [False] * 9 + [True] * 7


@pytest.mark.parametrize(("length", "expected"), [(8, 1), (9, 2), (16, 9)])
def test_short_episodes(length, expected):
    assert len(numbered_windows([length], 16, 2, 8)) == expected


def test_an_episode_too_short_for_a_window_gives_none():
    windows = numbered_windows([7, 20, 3], 16, 2, 8)
    assert len(windows) == 13
    assert windows.step_index.min() == 7
    assert windows.step_index.max() == 26
    with pytest.raises(ValueError, match="horizon 16 needs an episode of at least 8 steps among the 1 selected"):
        numbered_windows([7], 16, 2, 8)


def test_windows_come_from_the_selected_episodes_only():
    windows = numbered_windows([20, 30, 40], 16, 2, 8, episodes=np.array([True, False, True]))
    assert len(windows) == 13 + 33
    rows = windows.batch(torch.arange(len(windows)))["action"][..., 0]
    assert not ((rows >= 20) & (rows < 50)).any()


def test_batches_are_float32_in_the_order_asked_for():
    windows = numbered_windows([20, 20], 8, 2, 4)
    batch = windows.batch(torch.tensor([5, 0, 5]))
    assert batch["observation"].shape == (3, 2, 1)
    assert batch["action"].shape == (3, 8, 2)
    assert {key: value.dtype for key, value in batch.items()} == {
        "observation": torch.float32,
        "action": torch.float32,
        "action_is_pad": torch.bool,
    }
    assert torch.equal(batch["action"][0], batch["action"][2])
    assert batch["action"][1, 1, 0] == 0


def test_float64_input_becomes_float32():
    windows = ActionWindows(np.zeros((5, 3)), torch.zeros(5, 2, dtype=torch.float64), np.array([5]), 2, 1, 1)
    assert windows.observation.dtype == windows.action.dtype == torch.float32


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ((0, 1, 1), "horizon must be at least 1, got 0"),
        ((8, 0, 1), r"n_obs_steps must be in 1\.\.horizon=8, got 0"),
        ((8, 9, 1), r"n_obs_steps must be in 1\.\.horizon=8, got 9"),
        ((8, 2, 0), r"n_action_steps must be in .* = 7, got 0"),
        ((8, 2, 8), r"n_action_steps must be in .* = 7, got 8"),
    ],
)
def test_steps_out_of_range(steps, message):
    with pytest.raises(ValueError, match=message):
        numbered_windows([20], *steps)


def test_mismatched_lengths_and_masks():
    good = np.zeros((10, 2), np.float32)
    with pytest.raises(ValueError, match=r"observation must have shape \(10, D\).* got \(9, 2\)"):
        ActionWindows(good[:9], good, np.array([10]), 4, 1, 2)
    with pytest.raises(ValueError, match=r"action must have shape \(10, D\).* got \(10, 2, 1\)"):
        ActionWindows(good, good[..., None], np.array([10]), 4, 1, 2)
    with pytest.raises(ValueError, match="episode_ends must be 1-D, positive and increasing"):
        ActionWindows(good, good, np.array([5, 5, 10]), 4, 1, 2)
    for episodes in (np.array([True]), np.array([0, 1])):
        with pytest.raises(ValueError, match=r"episodes must be a bool mask of shape \(2,\)"):
            ActionWindows(good, good, np.array([5, 10]), 4, 1, 2, episodes=episodes)


def test_window_count_of_the_human_demonstrations(pusht_demonstrations):
    replay = load_replay(pusht_demonstrations)
    observation = observations_from_replay(replay, "keypoints")
    assert observation.shape == (25_650, 20)
    windows = ActionWindows(observation, replay.arrays["action"], replay.episode_ends, 16, 2, 8)
    assert len(windows) == 24_208
    # One padded entry in the first window and 7 + 6 + ... + 1 in the last seven of each episode.
    assert int(windows.is_pad.sum()) == 206 * (1 + 28)


@settings(max_examples=100, deadline=None)
@given(
    n=st.integers(2, 300),
    ratio=st.floats(0, 0.999),
    seed=st.integers(0, 2**31),
    limit=st.none() | st.integers(1, 400),
)
def test_split_is_disjoint_and_has_the_promised_sizes(n, ratio, seed, limit):
    train, val = split_episodes(n, ratio, seed, limit)
    assert train.shape == val.shape == (n,)
    assert not (train & val).any()
    expected_val = 0 if ratio == 0 else min(max(1, round(n * ratio)), n - 1)
    assert val.sum() == expected_val
    assert train.sum() == min(n - expected_val, limit if limit is not None else n)
    assert train.sum() >= 1


def test_split_follows_its_seed():
    first, again = split_episodes(206, 0.02, 42, 90), split_episodes(206, 0.02, 42, 90)
    other = split_episodes(206, 0.02, 43, 90)
    assert (first[0] == again[0]).all()
    assert (first[1] == again[1]).all()
    assert (first[0] != other[0]).any()
    assert (first[1] != other[1]).any()
    assert first[0].sum() == 90
    # The held-out episodes do not depend on how many of the others are trained on.
    assert (split_episodes(206, 0.02, 42)[1] == first[1]).all()
    # The draw that the reference implementation makes for its low-dimensional PushT configuration.
    assert set(np.flatnonzero(first[1])) == set(np.random.default_rng(42).choice(206, 4, replace=False))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0.1, 0), "n_episodes must be at least 1, got 0"),
        ((10, -0.1, 0), r"val_ratio must be in \[0, 1\), got -0.1"),
        ((10, 1.0, 0), r"val_ratio must be in \[0, 1\), got 1.0"),
        ((10, float("nan"), 0), r"val_ratio must be in \[0, 1\), got nan"),
        ((10, 0.1, 0, 0), "max_train_episodes must be at least 1 or None, got 0"),
        ((1, 0.1, 0), "val_ratio 0.1 needs at least 2 episodes, got 1: hold none out with dataset.val_ratio=0"),
    ],
)
def test_split_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        split_episodes(*arguments)


def replay_with(**arrays: np.ndarray) -> ReplayData:
    n = len(next(iter(arrays.values())))
    return ReplayData(arrays=arrays, episode_ends=np.array([n]), source=Path("made-up"))


def test_state_observation_wraps_the_angle():
    below_two_pi = np.nextafter(2 * np.pi, 0)  # rounds to float32(2 pi), which lies above 2 pi
    angles = np.array([0.5, -0.5, 7.0, -1e-12, below_two_pi, 4 * np.pi])
    state = np.concatenate([np.tile([1.0, 2.0, 3.0, 4.0], (6, 1)), angles[:, None]], axis=1)
    observation = observations_from_replay(replay_with(state=state), "state")
    assert observation.dtype == np.float32
    assert (observation[:, :4] == [1, 2, 3, 4]).all()
    assert (observation[:, 4] >= 0).all()
    assert (observation[:, 4].astype(np.float64) < 2 * np.pi).all()
    np.testing.assert_allclose(observation[:3, 4], [0.5, 2 * np.pi - 0.5, 7 - 2 * np.pi], rtol=1e-6)
    np.testing.assert_allclose(np.cos(observation[:, 4]), np.cos(angles), atol=1e-6)
    assert (state[:, 4] == angles).all()


def test_keypoint_observation_is_keypoints_then_agent():
    state = np.array([[100.0, 200, 0, 0, 0], [101, 201, 0, 0, 0]], np.float32)
    keypoint = np.arange(36, dtype=np.float32).reshape(2, 9, 2)
    observation = observations_from_replay(replay_with(state=state, keypoint=keypoint), "keypoints")
    assert observation.tolist() == [[*range(18), 100, 200], [*range(18, 36), 101, 201]]
    assert observation.dtype == np.float32


def test_observations_that_cannot_be_made():
    allowed = "state, keypoints, environment_state_agent_pos, pixels_agent_pos"
    with pytest.raises(ValueError, match=f"obs_type must be one of {allowed}, got 'pixels'"):
        observations_from_replay(replay_with(state=np.zeros((2, 5))), "pixels")
    with pytest.raises(DataError, match=r"array 'keypoint' was not loaded from made-up; loaded: \['state'\]"):
        observations_from_replay(replay_with(state=np.zeros((2, 5))), "keypoints")


def test_vertices_observation_is_the_environments():
    env = gymnasium.make("envs:immiscible/PushT-v0", obs_type="environment_state_agent_pos")
    states = [[100.0, 200, 300, 250, 1.0], [50, 400, 200, 300, 0.1]]
    seen = [env.reset(options={"state": state})[0] for state in states]
    batched = {name: np.stack([observation[name] for observation in seen]) for name in seen[0]}
    # Some laboratories record angles that count full turns.
    turned = np.array(states)
    turned[:, 4] -= 4 * np.pi
    observation = observations_from_replay(replay_with(state=turned), "environment_state_agent_pos")
    assert observation.shape == (2, 18)
    assert observation.dtype == np.float32
    np.testing.assert_allclose(observation, flat_observation(batched), rtol=1e-6)
    np.testing.assert_allclose(observation[:, 16:], [[100, 200], [50, 400]])


def test_a_data_set_without_the_blocks_pose_says_so():
    replay = replay_with(action=np.zeros((2, 2)), agent_pos=np.zeros((2, 2)))
    with pytest.raises(DataError, match=r"array 'state' was not loaded .* holds no block pose"):
        observations_from_replay(replay, "state")


def test_image_windows_keep_pictures_as_they_are():
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (9, 6, 5, 3), dtype=np.uint8)
    position, action = rng.normal(size=(9, 2)), rng.normal(size=(9, 2))
    windows = ActionWindows({"pixels": pictures, "agent_pos": position}, action, np.array([4, 9]), 4, 2, 2)
    assert windows.observation["pixels"].data_ptr() == pictures.ctypes.data  # shared, not copied
    flat = ActionWindows(np.concatenate([position, position], axis=1), action, np.array([4, 9]), 4, 2, 2)
    indices = torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))
    batch, reference = windows.batch(indices), flat.batch(indices)
    assert set(batch) == {"observation.pixels", "observation.agent_pos", "action", "action_is_pad"}
    assert batch["observation.pixels"].dtype == torch.uint8
    assert batch["observation.agent_pos"].dtype == torch.float32
    torch.testing.assert_close(batch["observation.agent_pos"], reference["observation"][..., :2])
    assert torch.equal(batch["action"], reference["action"])
    for i, index in enumerate(indices.tolist()):
        for t in range(2):
            row = int(windows.step_index[index, t])
            assert torch.equal(batch["observation.pixels"][i, t], torch.from_numpy(pictures[row]))


def test_parts_of_a_dictionary_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"observation pixels must have shape \(5, D\).* got \(4, 6, 6, 3\)"):
        ActionWindows(
            {"pixels": np.zeros((4, 6, 6, 3), np.uint8), "agent_pos": np.zeros((5, 2))}, np.zeros((5, 2)), [5], 4, 2, 2
        )
    with pytest.raises(ValueError, match=r"observation agent_pos must have shape"):
        ActionWindows({"agent_pos": np.zeros((5, 2, 2))}, np.zeros((5, 2)), [5], 4, 2, 2)


def test_image_observations_are_the_recorded_pictures_and_positions():
    state = np.arange(10.0).reshape(2, 5)
    pictures = np.arange(2 * 96 * 96 * 3).astype(np.uint8).reshape(2, 96, 96, 3)
    observation = observations_from_replay(replay_with(state=state, img=pictures), "pixels_agent_pos")
    assert observation["pixels"] is pictures
    assert observation["agent_pos"].dtype == np.float32
    assert observation["agent_pos"].tolist() == [[0, 1], [5, 6]]


def test_recorded_pictures_are_what_the_environment_shows(pusht_demonstrations):
    replay = load_replay(pusht_demonstrations, ("state",))
    with open_store(pusht_demonstrations) as group:
        recorded = np.asarray(group["data/img"][40:72])
    env = gymnasium.make("envs:immiscible/PushT-v0", obs_type="pixels_agent_pos")
    for step in (40, 71):
        shown, _ = env.reset(options={"state": replay.arrays["state"][step].astype(float)})
        difference = np.abs(shown["pixels"].astype(float) - recorded[step - 40])
        assert difference.mean() < 1.0
        # Another order of channels would be far off: the goal is light green, the block grey-blue.
        assert np.abs(shown["pixels"][..., ::-1].astype(float) - recorded[step - 40]).mean() > 4 * difference.mean()


def test_a_store_without_pictures_names_them(tmp_path, make_store):
    make_store(tmp_path / "store.zarr", img=None)
    with pytest.raises(DataError, match=r"data/img is missing; data/ holds: action.*`dataset=demonstrator`"):
        load_replay(tmp_path / "store.zarr", ("action", "state", "img"))
    with pytest.raises(DataError, match=r"array 'img' was not loaded .* it holds no pictures"):
        observations_from_replay(replay_with(state=np.zeros((2, 5)), agent_pos=np.zeros((2, 2))), "pixels_agent_pos")


def test_the_first_episodes():
    replay = ReplayData({"state": np.arange(10.0)[:, None]}, np.array([3, 7, 10]), Path("made-up"))
    assert replay.first(2).arrays["state"][:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert replay.first(2).episode_ends.tolist() == [3, 7]
    assert replay.first(9).n_episodes == 3

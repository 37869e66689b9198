"""The vector environment against Gymnasium's `SyncVectorEnv` over single environments, call for call."""

import gc
import math
import os
import tracemalloc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import vector as wrappers
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from numpy.typing import NDArray
from scipy.stats import ks_2samp

from envs.pusht import PushTEnv, geometry
from envs.pusht.task import OBSERVATION_TYPES, initial_state
from envs.pusht.vector_env import PushTVectorEnv
from envs.pusht.worlds import WorldStates

ENV_ID = "envs:immiscible/PushT-v0"
AT_GOAL = [50.0, 50.0, *geometry.GOAL_POSE]
AWAY = [60.0, 60.0, 350.0, 350.0, 0.0]
TOLERANCE = 1e-6
QUICK = settings(max_examples=150, derandomize=True, deadline=None)

Floats = NDArray[np.float64]


def make_both(num_envs: int, mode: AutoresetMode = AutoresetMode.NEXT_STEP, **arguments: Any) -> tuple[Any, Any]:
    """The vector environment, and as many single ones that Gymnasium steps one by one."""
    ours = gymnasium.make_vec(
        ENV_ID, num_envs, vectorization_mode="vector_entry_point", autoreset_mode=mode, **arguments
    )
    theirs = gymnasium.make_vec(
        ENV_ID, num_envs, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode}, **arguments
    )
    assert isinstance(ours, PushTVectorEnv)
    return ours, theirs


def assert_alike(ours: Any, theirs: Any, name: str = "") -> None:
    """Equal in structure, types and shapes; numbers up to rounding."""
    assert type(ours) is type(theirs), name
    if isinstance(ours, dict):
        assert set(ours) == set(theirs), name
        for key in ours:
            assert_alike(ours[key], theirs[key], f"{name}[{key!r}]")
    elif isinstance(ours, tuple):
        assert len(ours) == len(theirs), name
        for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            assert_alike(one, other, f"{name}[{index}]")
    elif isinstance(ours, np.ndarray):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), name
        if ours.dtype == object:
            for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
                assert_alike(one, other, f"{name}[{index}]")
        elif ours.dtype.kind == "f":
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE, err_msg=name)
        else:
            np.testing.assert_array_equal(ours, theirs, err_msg=name)
    else:
        assert ours == theirs, name


def arrays_in(value: Any) -> Iterator[NDArray[Any]]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, np.ndarray) and value.dtype != object:
        yield value
    elif isinstance(value, list | tuple | np.ndarray):
        for entry in value:
            yield from arrays_in(entry)


def around_the_blocks(env: PushTVectorEnv, random: np.random.Generator) -> NDArray[np.float32]:
    targets = env.worlds.block_pose[:, :2] + random.normal(0, 70, (env.num_envs, 2))
    return np.clip(targets, 0, 512).astype(np.float32)


# --- the same as one by one ---


def run_both(ours: Any, theirs: Any, mode: AutoresetMode, steps: int, seed: int = 11) -> tuple[int, int]:
    """Compares every result of both over a run; numbers of terminations and truncations."""
    random = np.random.default_rng(seed)
    assert_alike(ours.reset(seed=seed), theirs.reset(seed=seed), "reset")
    ends = [0, 0]
    for step in range(steps):
        actions = around_the_blocks(ours, random)
        result = ours.step(actions)
        assert_alike(result, theirs.step(actions), f"step {step}: ")
        assert result[0] in ours.observation_space
        ends[0] += int(result[2].sum())
        ends[1] += int(result[3].sum())
        done = result[2] | result[3]
        if mode == AutoresetMode.DISABLED and done.any():
            again = [env.reset(options={"reset_mask": done.copy()}) for env in (ours, theirs)]
            assert_alike(*again, f"reset after step {step}: ")
    return ends[0], ends[1]


@pytest.mark.parametrize(
    ("mode", "obs_type", "legacy"),
    [
        (AutoresetMode.NEXT_STEP, "state", False),
        (AutoresetMode.NEXT_STEP, "keypoints", True),
        (AutoresetMode.NEXT_STEP, "pixels", False),
        (AutoresetMode.NEXT_STEP, "environment_state_agent_pos", False),
        (AutoresetMode.SAME_STEP, "state", True),
        (AutoresetMode.SAME_STEP, "keypoints", False),
        (AutoresetMode.SAME_STEP, "environment_state_agent_pos", False),
        (AutoresetMode.SAME_STEP, "pixels_agent_pos", False),
        (AutoresetMode.DISABLED, "state", False),
        (AutoresetMode.DISABLED, "environment_state_agent_pos", True),
    ],
)
def test_every_result_is_that_of_single_environments(mode: AutoresetMode, obs_type: str, legacy: bool) -> None:
    ours, theirs = make_both(
        6,
        mode,
        obs_type=obs_type,
        legacy=legacy,
        success_threshold=0.15,
        max_episode_steps=13,
        goal_pose=(250, 260, 0.5),
    )
    assert ours.num_envs == theirs.num_envs == 6
    for space in ("observation_space", "action_space", "single_observation_space", "single_action_space"):
        assert getattr(ours, space) == getattr(theirs, space)
    assert ours.metadata["autoreset_mode"] is theirs.metadata["autoreset_mode"] is mode
    assert ours.metadata["render_fps"] == theirs.metadata["render_fps"] == 10
    terminations, truncations = run_both(ours, theirs, mode, steps=60)
    assert terminations >= 3
    assert truncations >= 6


def test_termination_and_truncation_may_fall_together() -> None:
    for mode in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP):
        ours, theirs = make_both(2, mode, max_episode_steps=1)
        for env in (ours, theirs):
            env.reset(seed=0, options={"state": AT_GOAL})
        for _ in range(3):
            assert_alike(ours.step(np.full((2, 2), 50.0)), theirs.step(np.full((2, 2), 50.0)))
        ours.reset(options={"state": AT_GOAL})
        _, rewards, terminations, truncations, _ = ours.step(np.full((2, 2), 50.0))
        assert rewards.tolist() == [1.0, 1.0]
        assert terminations.all()
        assert truncations.all()


def test_success_is_more_than_the_threshold() -> None:
    state = [60.0, 60.0, 256.0, 240.0, math.pi / 4]
    _, info = PushTVectorEnv(1).reset(options={"state": state})
    covered = float(info["coverage"][0])
    for threshold, success in ((covered, False), (covered * 0.999, True)):
        env = PushTVectorEnv(1, success_threshold=threshold)
        env.reset(options={"state": state})
        _, rewards, terminations, _, info = env.step([[60.0, 60.0]])
        assert info["coverage"] == covered
        assert rewards == 1.0
        assert terminations == info["is_success"] == success


def test_coverage_follows_every_coordinate() -> None:
    env = PushTVectorEnv(4)
    env.reset(options={"state": AT_GOAL})
    poses = np.tile(geometry.GOAL_POSE, (4, 1)) + np.vstack([np.zeros(3), np.diag([20.0, 20.0, 0.3])])
    env.set_state(env.get_state()._replace(block_position=poses[:, :2], block_angle=poses[:, 2]))
    info = env.step(np.full((4, 2), 50.0))[4]
    np.testing.assert_allclose(info["coverage"], geometry.coverage_batch(poses), rtol=0, atol=1e-9)
    assert (info["coverage"][1:] < 0.9).all()


@pytest.mark.parametrize("num_envs", [1, 2, 3, 5])
def test_any_number_of_worlds(num_envs: int) -> None:
    ours, theirs = make_both(num_envs, obs_type="keypoints", max_episode_steps=9)
    run_both(ours, theirs, AutoresetMode.NEXT_STEP, steps=25)


def test_registered_limit_and_no_limit() -> None:
    limits = {"registered": {}, "none": {"max_episode_steps": None}, "minus one": {"max_episode_steps": -1}}
    for name, arguments in limits.items():
        env = gymnasium.make_vec(ENV_ID, num_envs=2, **arguments)
        env.reset(seed=0, options={"state": AWAY})
        truncations = np.array([env.step(np.full((2, 2), 60.0))[3] for _ in range(302)])
        expected = [299] if name == "registered" else []
        assert np.flatnonzero(truncations.all(axis=1)).tolist() == np.flatnonzero(truncations.any(axis=1)).tolist()
        assert np.flatnonzero(truncations[:, 0]).tolist() == expected


def test_step_after_the_last_one_resets_and_ignores_its_action() -> None:
    env = PushTVectorEnv(3, max_episode_steps=4)
    env.reset(seed=0, options={"state": [AWAY, AT_GOAL, AWAY]})
    _, rewards, terminations, _, _ = env.step(np.full((3, 2), 60.0))
    assert terminations.tolist() == [False, True, False]
    assert rewards[1] == 1.0
    observation, rewards, terminations, truncations, info = env.step(np.full((3, 2), 400.0))
    drawn = PushTEnv()
    drawn.reset(seed=1)
    np.testing.assert_allclose(observation[1], drawn.reset()[0], rtol=0, atol=TOLERANCE)
    assert rewards[1] == 0.0
    assert not terminations.any()
    assert not truncations.any()
    assert info["max_coverage"][1] == info["coverage"][1] < 0.95
    # The worlds beside it have gone on, and the new episode counts its own steps.
    assert np.linalg.norm(observation[0, :2] - 60.0) > 50
    ends = [env.step(np.full((3, 2), 60.0))[3].tolist() for _ in range(4)]
    assert ends == [[False] * 3, [True, False, True], [False] * 3, [False, True, False]]


def test_finished_worlds_must_be_reset_where_resets_are_the_callers() -> None:
    env = PushTVectorEnv(3, autoreset_mode="Disabled")
    env.reset(options={"state": [AWAY, AT_GOAL, AWAY]})
    observation, _, terminations, _, _ = env.step(np.full((3, 2), 60.0))
    assert terminations.tolist() == [False, True, False]
    with pytest.raises(gymnasium.error.ResetNeeded, match=r"worlds \[1\] have finished"):
        env.step(np.full((3, 2), 60.0))
    assert np.array_equal(env.get_state().agent_position, observation[:, :2])
    env.reset(options={"reset_mask": terminations})
    env.step(np.full((3, 2), 60.0))


def test_step_before_reset_is_refused() -> None:
    env = PushTVectorEnv(3)
    with pytest.raises(gymnasium.error.ResetNeeded, match="call reset"):
        env.step(np.zeros((3, 2)))
    env.reset(options={"reset_mask": np.array([True, False, True])})
    with pytest.raises(gymnasium.error.ResetNeeded, match="call reset"):
        env.step(np.zeros((3, 2)))
    with pytest.raises(gymnasium.error.ResetNeeded, match="call reset"):
        env.set_state(env.get_state())
    env.reset(options={"reset_mask": np.array([False, True, False])})
    env.step(np.zeros((3, 2)))


# --- seeds ---


def test_seeds_mean_what_they_mean_one_by_one() -> None:
    ours, theirs = make_both(4, legacy=True)
    calls: list[dict[str, Any]] = [
        {"seed": 100000},
        {},
        {"seed": [7, None, 9, None]},
        {},
        {"options": {"state": AWAY}},
        {"seed": [1, 2, 3, 4], "options": {"state": AWAY}},
        {},
    ]
    for call in calls:
        assert_alike(ours.reset(**call), theirs.reset(**call), str(call))
    partly = np.array([True, False, False, True])
    for seed in (3, None, [None, 5, 6, 7]):
        again = [env.reset(seed=seed, options={"reset_mask": partly.copy()}) for env in (ours, theirs)]
        assert_alike(*again, f"partly with seed {seed}")
    assert_alike(ours.reset(), theirs.reset())
    assert ours.np_random_seed == theirs.np_random_seed == (3, 2, 3, 7)
    drawn = [[generator.integers(10**9) for generator in env.np_random] for env in (ours, theirs)]
    assert drawn[0] == drawn[1]


def test_seed_of_a_world_is_the_first_plus_its_index() -> None:
    observation, _ = PushTVectorEnv(3).reset(seed=100000)
    assert np.array_equal(observation[:, :4], [initial_state(seed)[:4] for seed in (100000, 100001, 100002)])
    for seed in ([5, 6, 7], (5, 6, 7), np.array([5, 6, 7]), np.int64(5), np.array(5), range(5, 8)):
        assert np.array_equal(PushTVectorEnv(3).reset(seed=seed)[0], PushTVectorEnv(3).reset(seed=5)[0])


def test_a_new_environment_without_a_seed_starts_anywhere() -> None:
    first, second = (PushTVectorEnv(2).reset()[0] for _ in range(2))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first[0], first[1])
    assert PushTVectorEnv(2).np_random_seed == (None, None)


@pytest.mark.parametrize("mode", list(AutoresetMode)[:2])
def test_the_same_seeds_twice_are_the_same_to_the_last_bit(mode: AutoresetMode) -> None:
    def run(env: PushTVectorEnv) -> list[bytes]:
        random = np.random.default_rng(0)
        results = [env.reset(seed=3)]
        for _ in range(60):
            results.append(env.step(around_the_blocks(env, random)))
        return [array.tobytes() for array in arrays_in(results)]

    used = PushTVectorEnv(9, success_threshold=0.4, max_episode_steps=20, autoreset_mode=mode)
    first, again = run(used), run(used)
    fresh = run(PushTVectorEnv(9, success_threshold=0.4, max_episode_steps=20, autoreset_mode=mode))
    assert first == again == fresh


# --- options ---


@pytest.mark.parametrize("legacy", [False, True])
def test_given_states(legacy: bool) -> None:
    env = PushTVectorEnv(3, legacy=legacy)
    rows = np.array([initial_state(seed) for seed in range(3)])
    for states in (rows[1], rows, rows.tolist()):
        observation, info = env.reset(options={"state": states})
        for index in range(3):
            row = np.broadcast_to(states, (3, 5))[index]
            expected, expected_info = PushTEnv(legacy=legacy).reset(options={"state": row})
            np.testing.assert_allclose(observation[index], expected, rtol=0, atol=TOLERANCE)
            assert info["coverage"][index] == pytest.approx(expected_info["coverage"], abs=TOLERANCE)


def test_a_partial_reset_leaves_the_other_worlds_alone() -> None:
    env, undisturbed = PushTVectorEnv(5), PushTVectorEnv(5)
    random, mask = np.random.default_rng(0), np.array([False, True, False, False, True])
    rows = np.array([initial_state(50 + index) for index in range(5)])
    for one in (env, undisturbed):
        one.reset(seed=1)
    for step in range(30):
        actions = around_the_blocks(undisturbed, random)
        expected = undisturbed.step(actions)
        results = env.step(actions)
        for one, other in zip(results[:4], expected[:4], strict=True):
            assert np.array_equal(one[~mask], other[~mask])
        for name in results[4]:
            assert np.array_equal(results[4][name][~mask], expected[4][name][~mask])
        if step == 12:
            observation, info = env.reset(options={"reset_mask": mask, "state": rows})
            assert np.array_equal(observation[~mask], results[0][~mask])
            np.testing.assert_allclose(observation[mask, :4], rows[mask, :4], rtol=0, atol=1e-9)
            for name in ("coverage", "max_coverage", "block_pose", "vel_agent", "n_contacts"):
                assert np.array_equal(info[f"_{name}"], mask)
                assert not info[name][~mask].any()
    assert mask.tolist() == [False, True, False, False, True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "seed is -1; allowed"),
        ({"seed": 2**32 - 1}, "seed is 4294967296; allowed"),
        ({"seed": [1, 2]}, "seed has 2 entries; allowed: an integer, or one for each of 3"),
        ({"seed": [1, 2.5, 3]}, "seed is 2.5; allowed"),
        ({"seed": [[1], [2], [3]]}, r"seed is \[1\]; allowed"),
        ({"seed": "abc"}, "seed is 'abc'; allowed"),
        ({"seed": b"abc"}, "seed is b'abc'; allowed"),
        ({"seed": True}, "seed is True; allowed"),
        ({"seed": math.nan}, "seed is nan; allowed"),
        ({"options": 5}, "options is 5; allowed"),
        ({"options": {"stat": 1}}, r"options has \['stat'\]; allowed: 'state', 'reset_mask'"),
        ({"options": {1: 2, "x": 3}}, r"options has \['x', 1\]; allowed: 'state', 'reset_mask'"),
        ({"options": {"state": [1, 2, 3, 4]}}, r"options\['state'\] is .*five finite numbers"),
        ({"options": {"state": np.zeros((2, 5))}}, r"options\['state'\] has shape \(2, 5\); allowed: .*\(3, 5\)"),
        ({"options": {"state": np.full((3, 5), np.nan)}}, r"options\['state'\] is .*five finite numbers"),
        ({"options": {"state": np.full((3, 5), 513)}}, r"options\['state'\] is .*\[0, 512\]"),
        ({"options": {"state": [[1, 2, 3, 4, 5], [1, 2], [3]]}}, r"options\['state'\] is .*five finite numbers"),
        ({"options": {"state": [1, 2, 3, 4, 10**400]}}, r"options\['state'\] is .*five finite numbers"),
        ({"options": {"state": "here"}}, r"options\['state'\] is 'here'; allowed"),
        ({"options": {"reset_mask": np.zeros(3, bool)}}, r"options\['reset_mask'\] is .*; allowed: a boolean"),
        ({"options": {"reset_mask": np.ones(2, bool)}}, r"options\['reset_mask'\] is .*; allowed: a boolean"),
        ({"options": {"reset_mask": np.ones(3)}}, r"options\['reset_mask'\] is .*; allowed: a boolean"),
        ({"options": {"reset_mask": [[True], [True, False]]}}, r"options\['reset_mask'\] is .*; allowed: a boolean"),
        ({"options": {"reset_mask": True}}, r"options\['reset_mask'\] is True; allowed: a boolean"),
    ],
)
def test_bad_resets_are_refused(arguments: dict[str, Any], message: str) -> None:
    env = PushTVectorEnv(3)
    env.reset(seed=5)
    before = snapshot(env)
    with pytest.raises(ValueError, match=message):
        env.reset(**arguments)
    assert snapshot(env) == before


# --- states of the worlds ---


def test_a_state_that_is_set_is_the_state() -> None:
    env, random = PushTVectorEnv(6), np.random.default_rng(0)
    env.reset(seed=0)
    for _ in range(20):
        env.step(around_the_blocks(env, random))
    state, plans = env.get_state(), random.uniform(100, 400, (15, 6, 2))
    paths = []
    for _ in range(2):
        env.set_state(state)
        for before, after in zip(state, env.get_state(), strict=True):
            assert np.array_equal(before, after)
        paths.append([env.step(actions)[0] for actions in plans])
    assert np.array_equal(paths[0], paths[1])
    assert not np.array_equal(paths[0][0], paths[0][-1])


def test_one_world_is_copied_into_many_to_plan_with() -> None:
    single, planner = PushTEnv(), PushTVectorEnv(8)
    single.reset(seed=4)
    planner.reset(seed=0)
    for target in ([100.0, 100.0], [300.0, 200.0]):
        single.step(target)
    planner.set_state(single.get_state())
    targets = np.random.default_rng(0).uniform(0, 512, (8, 2))
    observation, rewards, _, _, info = planner.step(targets)
    for index in range(8):
        planner_of_one = PushTVectorEnv(1)
        planner_of_one.reset()
        planner_of_one.set_state(single.get_state())
        expected, reward, *_ = planner_of_one.step(targets[index : index + 1])
        np.testing.assert_allclose(observation[index], expected[0], rtol=0, atol=TOLERANCE)
        assert rewards[index] == pytest.approx(reward[0], abs=TOLERANCE)
    assert info["coverage"].shape == (8,)


def test_episodes_go_on_from_a_state() -> None:
    env = PushTVectorEnv(2, max_episode_steps=5)
    env.reset(options={"state": [AWAY, [60.0, 60.0, 256.0, 240.0, math.pi / 4]]})
    state = env.get_state()
    for _ in range(2):
        info = env.step(np.full((2, 2), 60.0))[4]
    env.set_state(env.get_state()._replace(block_position=np.full((2, 2), 400.0)))
    after = env.step(np.full((2, 2), 60.0))[4]
    assert after["coverage"].tolist() == [0.0, 0.0]
    assert np.array_equal(after["max_coverage"], info["max_coverage"])
    assert after["max_coverage"][1] > 0.3
    env.set_state(state)
    assert [env.step(np.full((2, 2), 60.0))[3].any() for _ in range(2)] == [False, True]


# --- what the caller gets is the caller's ---


@pytest.mark.parametrize("mode", list(AutoresetMode)[:2])
@pytest.mark.parametrize("obs_type", ["state", "keypoints", "environment_state_agent_pos", "pixels_agent_pos"])
def test_changing_what_was_returned_changes_nothing(mode: AutoresetMode, obs_type: str) -> None:
    arguments = {"obs_type": obs_type, "success_threshold": 0.3, "max_episode_steps": 5, "autoreset_mode": mode}
    kept, spoilt = PushTVectorEnv(4, **arguments), PushTVectorEnv(4, **arguments)
    random, states = np.random.default_rng(0), np.array([initial_state(seed) for seed in range(4)])
    given = states.copy()
    expected, result = (env.reset(seed=0, options={"state": rows}) for env, rows in ((kept, states), (spoilt, given)))
    for _ in range(14):
        assert_alike(expected, result)
        # A value that was returned before stays what it was.
        copies = [array.copy() for array in arrays_in(expected)]
        spoil([result, given, spoilt.get_state()])
        assert_alike(kept.get_state(), spoilt.get_state())
        given = actions = around_the_blocks(kept, random)
        previous, expected, result = expected, kept.step(actions.copy()), spoilt.step(actions)
        assert all(np.array_equal(*pair) for pair in zip(arrays_in(previous), copies, strict=True))
        shared = [np.shares_memory(one, other) for one in arrays_in(expected[:4]) for other in arrays_in(expected[4])]
        assert not any(shared)


def spoil(values: Any) -> None:
    for array in arrays_in(values):
        array[...] = 1 if array.dtype == bool else 77


# --- pictures ---


def test_pictures_are_those_of_single_environments() -> None:
    arguments = {"render_mode": "rgb_array", "visualization_width": 120, "visualization_height": 90}
    ours, theirs = make_both(3, goal_pose=(200, 300, 1.0), **arguments)
    for env in (ours, theirs):
        env.reset(seed=0)
    assert_alike(ours.render(), theirs.render())
    for actions in np.random.default_rng(0).uniform(0, 512, (3, 3, 2)):
        ours.step(actions)
        theirs.step(actions)
    frames = ours.render()
    assert_alike(frames, theirs.render())
    assert frames[0].shape == (90, 120, 3)
    assert frames[0].dtype == np.uint8
    chosen = ours.render([2, 0])
    assert np.array_equal(chosen, [frames[2], frames[0]])
    frames[0][:] = 0
    assert ours.render()[0].any()


def test_a_picture_shows_the_last_action_until_the_next_episode() -> None:
    env = PushTVectorEnv(2, render_mode="rgb_array", max_episode_steps=1)

    def crosses() -> list[bool]:
        return [bool((frame == geometry.TARGET_COLOR).all(axis=-1).any()) for frame in env.render()]

    env.reset(options={"state": [AWAY, AWAY]})
    assert crosses() == [False, False]
    env.step(np.full((2, 2), 300.0))
    assert crosses() == [True, True]
    env.reset(options={"reset_mask": np.array([True, False])})
    assert crosses() == [False, True]
    env.step(np.full((2, 2), 300.0))
    assert crosses() == [True, False]
    env.step(np.full((2, 2), 1e308))
    env.render()


def test_without_a_render_mode_there_is_no_picture() -> None:
    env = PushTVectorEnv(2)
    env.reset()
    with pytest.warns(UserWarning, match="render_mode=None"):
        assert env.render() is None


# --- Gymnasium's surroundings ---


def test_making_warns_of_nothing_and_keeps_the_specification() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make_vec(ENV_ID, num_envs=3, obs_type="keypoints", goal_pose=(200, 300, 1.0))
        env.reset(seed=0)
        env.step(env.action_space.sample())
    assert isinstance(env.unwrapped, PushTVectorEnv)
    assert env.spec.id == "immiscible/PushT-v0"
    assert repr(env) == "PushTVectorEnv(immiscible/PushT-v0, num_envs=3)"
    again = gymnasium.make_vec(env.spec)
    assert_alike(env.reset(seed=5), again.reset(seed=5))
    assert again.max_episode_steps == 300
    assert again.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    env.close()
    assert env.closed


def test_modes_may_be_given_by_name() -> None:
    for mode in AutoresetMode:
        env = PushTVectorEnv(1, autoreset_mode=mode.value)
        assert env.autoreset_mode is env.metadata["autoreset_mode"] is mode


@pytest.mark.parametrize("mode", list(AutoresetMode)[:2])
def test_gymnasium_counts_episodes(mode: AutoresetMode) -> None:
    arguments = {"success_threshold": 0.3, "max_episode_steps": 7}
    counted = []
    for env in make_both(4, mode, **arguments):
        statistics = wrappers.RecordEpisodeStatistics(env)
        statistics.reset(seed=2)
        random = np.random.default_rng(0)
        for actions in random.uniform(100, 400, (40, 4, 2)):
            info = statistics.step(actions)[4]
            if "episode" in info:
                counted.append((info["episode"]["r"], info["episode"]["l"], info["_episode"]))
    half = len(counted) // 2
    assert half >= 4
    for ours, theirs in zip(counted[:half], counted[half:], strict=True):
        np.testing.assert_allclose(ours[0], theirs[0], rtol=0, atol=TOLERANCE)
        assert np.array_equal(ours[1:], theirs[1:])


def test_gymnasium_wraps_it() -> None:
    env: Any = PushTVectorEnv(3, obs_type="environment_state_agent_pos")
    env = wrappers.RescaleAction(wrappers.FlattenObservation(env), np.float32(-1), np.float32(1))
    env = wrappers.DictInfoToList(wrappers.ClipReward(env, 0.0, 0.5))
    plain = PushTVectorEnv(3, obs_type="environment_state_agent_pos")
    observation, info = env.reset(seed=0)
    assert observation.shape == (3, 18)
    assert len(info) == 3
    expected, _ = plain.reset(seed=0)
    assert np.array_equal(observation, np.hstack([expected["agent_pos"], expected["environment_state"]]))
    observation, *_, info = env.step(np.zeros((3, 2), np.float32))
    expected, *_, expected_info = plain.step(np.full((3, 2), 256.0))
    assert info[2]["coverage"] == expected_info["coverage"][2]
    assert np.array_equal(observation, np.hstack([expected["agent_pos"], expected["environment_state"]]))


@pytest.mark.parametrize("obs_type", OBSERVATION_TYPES)
def test_what_is_returned_fits_the_spaces(obs_type: str) -> None:
    env = PushTVectorEnv(5, obs_type=obs_type, observation_width=48, observation_height=40)
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    for step in range(6):
        env.action_space.seed(step)
        observation, rewards, terminations, truncations, info = env.step(env.action_space.sample())
        assert env.observation_space.contains(observation)
        assert (rewards.shape, rewards.dtype) == ((5,), np.float64)
        assert (terminations.shape, terminations.dtype) == ((5,), bool)
        assert (truncations.shape, truncations.dtype) == ((5,), bool)
        assert all(len(array) == 5 for array in info.values())
        assert np.array_equal(info["is_success"], terminations)
    if obs_type == "pixels":
        assert observation.shape == (5, 40, 48, 3)


# --- a policy scores the same in both ---

GOAL_CENTER = np.array(geometry.to_world([geometry.BLOCK_CENTER_OF_GRAVITY], *geometry.GOAL_POSE)[0])


def push_to_the_goal(states: Floats) -> Floats:
    """A simple feedback policy: go round the block, then push its centre of gravity towards the goal's."""
    agent, angle = states[:, :2], states[:, 4]
    center = states[:, 2:4] + 45.0 * np.stack([-np.sin(angle), np.cos(angle)], axis=1)
    way = GOAL_CENTER - center
    distance = np.linalg.norm(way, axis=1, keepdims=True)
    ahead = way / np.maximum(distance, 1e-9)
    aside = np.stack([-ahead[:, 1], ahead[:, 0]], axis=1)
    along, across = (((agent - center) * axis).sum(axis=1, keepdims=True) for axis in (ahead, aside))
    side = np.where(across < 0, -1.0, 1.0)
    push = agent + ahead * np.minimum(distance + 20.0, 40.0)
    behind = center - 110.0 * ahead
    around = center + 120.0 * side * aside - 30.0 * ahead
    return np.where((along < -40.0) & (np.abs(across) < 25.0), push, np.where(along < -20.0, behind, around))


def final_coverage(env: PushTVectorEnv, steps: int) -> Floats:
    observation, _ = env.reset(seed=0)
    for _ in range(steps):
        observation, *_, info = env.step(push_to_the_goal(observation))
    return np.asarray(info["coverage"])


def final_coverage_one_by_one(envs: list[PushTEnv], steps: int) -> Floats:
    observations = np.array([env.reset(seed=seed)[0] for seed, env in enumerate(envs)])
    for _ in range(steps):
        targets = push_to_the_goal(observations)
        observations = np.array([env.step(target)[0] for env, target in zip(envs, targets, strict=True)])
    return np.array([env.coverage() for env in envs])


def test_a_policy_covers_as_much_as_in_single_environments() -> None:
    # With a threshold of 1 no episode ends before the last step.
    reached, wrong = (
        final_coverage(PushTVectorEnv(500, success_threshold=1.0, legacy=legacy), 40) for legacy in (False, True)
    )
    expected = final_coverage_one_by_one([PushTEnv() for _ in range(500)], 40)
    # Measured: 0.191, 100% equal, and p = 0.004 for the wrong initial states.
    assert expected.mean() > 0.15
    assert ks_2samp(reached, expected).pvalue > 0.01
    assert (np.abs(reached - expected) < TOLERANCE).mean() > 0.97
    assert ks_2samp(wrong, expected).pvalue < 0.01


# --- arguments of any kind ---


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_envs", 0),
        ("num_envs", 2.0),
        ("num_envs", True),
        ("num_envs", None),
        ("obs_type", "environment_state"),
        ("obs_type", np.array(["state", "pixels"])),
        ("render_mode", "human"),
        ("legacy", "no"),
        ("success_threshold", 0.0),
        ("success_threshold", "0.5"),
        ("observation_width", 0),
        ("visualization_height", 1.5),
        ("goal_pose", (600, 0, 0)),
        ("max_episode_steps", 0),
        ("max_episode_steps", -2),
        ("max_episode_steps", 2.5),
        ("max_episode_steps", True),
        ("max_episode_steps", np.array([1, 2])),
        ("autoreset_mode", "next_step"),
        ("autoreset_mode", None),
        ("autoreset_mode", np.array(["NextStep", "SameStep"])),
    ],
)
def test_bad_constructor_arguments_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"{name} is .*; allowed: "):
        PushTVectorEnv(**{"num_envs": 2, name: value})


ODD_NUMBERS = [1e308, -1e308, 10**400, np.float16(7.5), np.int8(3), None, "a", "1", b"b", 1j, object(), [1, 2]]
NUMBERS = st.one_of(st.floats(), st.floats(0, 512), st.integers(), st.booleans(), st.sampled_from(ODD_NUMBERS))
DTYPES = st.sampled_from([np.float16, np.float32, np.int8, np.uint64, np.bool_, np.complex64, "U3", "M8[s]"])


def junk(shape: tuple[int, ...]) -> st.SearchStrategy[Any]:
    """What may be passed for an array of that shape, right or wrong."""
    nested: st.SearchStrategy[Any] = NUMBERS
    for length in reversed(shape):
        nested = st.lists(nested, min_size=length, max_size=length) | st.lists(nested, max_size=3)
    shapes = st.just(shape) | st_numpy.array_shapes(min_dims=0, max_dims=3, max_side=3)
    return st.one_of(
        nested,
        NUMBERS,
        st_numpy.arrays(np.float64, shape),
        st_numpy.arrays(np.float64, shape, elements=st.floats(-1000, 1000)),
        st_numpy.arrays(DTYPES, shapes),
        st_numpy.arrays(object, shapes, elements=NUMBERS),
        st.text(max_size=3),
        st.dictionaries(st.integers(), st.integers(), max_size=2),
    )


def snapshot(env: PushTVectorEnv) -> list[Any]:
    """All that a refused call must leave as it was."""
    arrays = [*env.get_state(), env.max_coverage, env._elapsed, env._finished, env._started, env._targets]
    generators = [generator.bit_generator.state for generator in env.np_random]
    return [env.np_random_seed, generators, [array.tobytes() for array in arrays]]


@contextmanager
def refused(env: PushTVectorEnv, *names: str) -> Iterator[list[bool]]:
    """The call in it may be refused, if the message says what was wrong and nothing has changed."""
    before, message = snapshot(env), None
    accepted = [True]
    try:
        yield accepted
    except ValueError as error:
        accepted[0], message = False, str(error)
    if message is not None:
        assert message.startswith(names), message
        assert "; allowed: " in message
        assert snapshot(env) == before
    assert all(np.isfinite(field).all() for field in env.get_state())


@pytest.fixture(scope="module")
def odd_env() -> PushTVectorEnv:
    env = PushTVectorEnv(3, max_episode_steps=50, render_mode="rgb_array")
    env.reset(seed=0)
    return env


@QUICK
@given(actions=junk((3, 2)))
def test_odd_actions_are_refused_or_followed(odd_env: PushTVectorEnv, actions: Any) -> None:
    with refused(odd_env, "actions") as accepted:
        observation, rewards, *_ = odd_env.step(actions)
    if accepted[0]:
        assert np.shape(actions) == (3, 2)
        assert np.isfinite(observation).all()
        assert ((rewards >= 0) & (rewards <= 1)).all()
        odd_env.render([0])


@QUICK
@given(seed=junk((3,)) | st.lists(st.none() | st.integers(-2, 2**33), min_size=3, max_size=3))
def test_odd_seeds_are_refused_or_used(odd_env: PushTVectorEnv, seed: Any) -> None:
    with refused(odd_env, "seed"):
        odd_env.reset(seed=seed)


@QUICK
@given(state=junk((5,)) | junk((3, 5)), mask=st.none() | junk((3,)))
def test_odd_options_are_refused_or_used(odd_env: PushTVectorEnv, state: Any, mask: Any) -> None:
    options = {"state": state} | ({} if mask is None else {"reset_mask": mask})
    with refused(odd_env, "options['state']", "options['reset_mask']") as accepted:
        odd_env.reset(options=options)
    if accepted[0]:
        with refused(odd_env) as accepted:
            odd_env.step(np.full((3, 2), 256.0))


FIELDS = WorldStates._fields
SHAPES = {name: ((3,) if name in ("block_angle", "block_angular_velocity") else (3, 2)) for name in FIELDS}


@QUICK
@given(st.sampled_from(FIELDS).flatmap(lambda name: st.tuples(st.just(name), junk(SHAPES[name]))))
def test_odd_states_are_refused_or_set(odd_env: PushTVectorEnv, field: tuple[str, Any]) -> None:
    name, value = field
    with refused(odd_env, name) as accepted:
        odd_env.set_state(odd_env.get_state()._replace(**{name: value}))
    if accepted[0]:
        for target in (256.0, 300.0):
            with refused(odd_env):
                odd_env.step(np.full((3, 2), target))
        odd_env.reset(seed=0)


@pytest.mark.parametrize("states", [None, 5, "states", (), {}, [np.zeros((3, 2))] * 5])
def test_states_without_all_fields_are_refused(odd_env: PushTVectorEnv, states: Any) -> None:
    with pytest.raises(ValueError, match=r"(?s)states is .*; allowed: agent_position, agent_velocity, block_position"):
        odd_env.set_state(states)


@pytest.mark.parametrize(
    ("name", "value"),
    [("agent_position", 2048.0 + 256.0), ("agent_velocity", 1e300), ("block_position", 1e7), ("block_velocity", 1e5)],
)
def test_no_world_can_be_put_into_another(name: str, value: float) -> None:
    env = PushTVectorEnv(2)
    env.reset(options={"state": AWAY})
    field = np.zeros((2, 2))
    field[0, 0] = value
    with refused(env, name) as accepted:
        env.set_state(env.get_state()._replace(**{name: field}))
    assert not accepted[0]


def test_every_state_that_worlds_reach_can_be_set() -> None:
    env, random = PushTVectorEnv(16), np.random.default_rng(0)
    env.reset(seed=0)
    fastest = 0.0
    for _ in range(150):
        away = env.worlds.block_pose[:, :2] + random.normal(0, 300, (16, 2))
        env.step(np.where(random.random((16, 1)) < 0.5, away, random.choice([-1e9, 1e9], (16, 2))))
        state = env.get_state()
        fastest = max(fastest, np.abs(state.block_velocity).max())
        env._checked_world_states(state)
    assert fastest > 1000


# --- long runs ---


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def run_for(env: PushTVectorEnv, steps: int, random: np.random.Generator) -> int:
    """Steps with random actions, now and then around the blocks; number of episodes that ended."""
    ended = 0
    for step in range(steps):
        wild = random.uniform(-100, 612, (env.num_envs, 2))
        result = env.step(around_the_blocks(env, random) if step % 4 else wild)
        ended += int((result[2] | result[3]).sum())
        assert np.isfinite(result[0]).all()
        assert np.isfinite(result[1]).all()
    return ended


def make_busy(mode: AutoresetMode) -> PushTVectorEnv:
    env = PushTVectorEnv(64, obs_type="keypoints", success_threshold=0.6, max_episode_steps=60, autoreset_mode=mode)
    env.reset(seed=0)
    return env


@pytest.mark.parametrize("mode", list(AutoresetMode)[:2])
def test_memory_of_python_does_not_grow(mode: AutoresetMode) -> None:
    env, random = make_busy(mode), np.random.default_rng(0)
    run_for(env, 70, random)
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        assert run_for(env, 170, random) >= 128
        gc.collect()
        growth = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    # A world that was not let go would be 10 kB, a step's results 20 kB.
    assert growth < 200_000


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize("mode", list(AutoresetMode)[:2])
def test_half_a_million_steps(mode: AutoresetMode) -> None:
    env, random = make_busy(mode), np.random.default_rng(0)
    sizes = []
    for part in range(8):
        run_for(env, 500_000 // 64 // 8 + 1, random)
        env.reset(seed=part)
        gc.collect()
        sizes.append(resident_bytes())
    print(f"{mode.value}: resident MiB {[round(size / 2**20, 1) for size in sizes]}")
    # The first part fills pools and caches.
    assert sizes[-1] - sizes[1] < 2 * 2**20

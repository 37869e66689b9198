"""The PushT environment's contract: Gymnasium's API, seeds, rewards, info, errors."""

import copy
import math
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

import envs
from envs.pusht import PushTEnv, keypoints_in_world
from envs.pusht.geometry import GOAL_COLOR, GOAL_POSE
from envs.pusht.task import OBSERVATION_TYPES, initial_state
from envs.pusht.vertices import vertices_in_world

ENV_ID = "immiscible/PushT-v0"
INFO_KEYS = {
    "coverage",
    "max_coverage",
    "is_success",
    "block_pose",
    "goal_pose",
    "pos_agent",
    "vel_agent",
    "n_contacts",
}
AT_GOAL = [50.0, 50.0, *GOAL_POSE]


def random_actions(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 512, size=(count, 2)).astype(np.float32)


@pytest.mark.parametrize("obs_type", OBSERVATION_TYPES)
def test_passes_the_checker_of_gymnasium(obs_type: str) -> None:
    env = gymnasium.make(ENV_ID, obs_type=obs_type, render_mode="rgb_array").unwrapped
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(env)
    # Targets are window pixels, as recorded; that the checker would rather have [-1, 1] is its only remark.
    assert all("symmetric and normalized space" in str(warning.message) for warning in caught)


@pytest.mark.parametrize("obs_type", OBSERVATION_TYPES)
@pytest.mark.parametrize("legacy", [False, True])
def test_observations_lie_in_their_space(obs_type: str, legacy: bool) -> None:
    env = PushTEnv(obs_type=obs_type, legacy=legacy)
    for seed in range(4):
        observation, _ = env.reset(seed=seed)
        assert env.observation_space.contains(observation)
        for action in random_actions(15, seed):
            assert env.observation_space.contains(env.step(action)[0])


def test_observations_stay_in_their_space_when_the_block_is_pressed_through_a_wall() -> None:
    state_env, keypoint_env = PushTEnv(), PushTEnv(obs_type="keypoints")
    outside = 0
    for seed in range(10):
        observation, _ = state_env.reset(seed=seed)
        keypoint_env.reset(seed=seed)
        for step in range(60):
            corner = np.where(observation[2:4] < 256, 0.0, 512.0)
            away = observation[2:4] - corner
            behind = observation[2:4] + 40 * away / np.linalg.norm(away)
            action = np.clip(behind if step % 6 < 3 else corner, 0, 512)
            observation, *_ = state_env.step(action)
            assert state_env.observation_space.contains(observation)
            assert keypoint_env.observation_space.contains(keypoint_env.step(action)[0])
            outside += bool((observation[2:4] < 0).any() or (observation[2:4] > 512).any())
    assert outside > 0


def test_observation_types_describe_the_same_world() -> None:
    made = {obs_type: PushTEnv(obs_type=obs_type) for obs_type in OBSERVATION_TYPES}
    for env in made.values():
        env.reset(seed=3)
    for action in random_actions(10):
        seen = {obs_type: env.step(action)[0] for obs_type, env in made.items()}
    state, keypoints, dictionary = seen["state"], seen["keypoints"], seen["pixels_agent_pos"]
    assert state.shape == (5,)
    assert keypoints.shape == (20,)
    assert np.allclose(keypoints[:18].reshape(9, 2), keypoints_in_world(*state[2:]), rtol=0, atol=1e-9)
    assert np.array_equal(keypoints[18:], state[:2])
    assert np.array_equal(dictionary["agent_pos"], state[:2])
    assert np.array_equal(dictionary["pixels"], seen["pixels"])
    vertices = seen["environment_state_agent_pos"]
    assert set(vertices) == {"environment_state", "agent_pos"}
    assert np.allclose(vertices["environment_state"], vertices_in_world([state[2:]])[0], rtol=0, atol=1e-9)
    assert np.array_equal(vertices["agent_pos"], state[:2])
    assert seen["pixels"].shape == (96, 96, 3)
    assert seen["pixels"].dtype == np.uint8


def test_seed_100000_starts_where_the_original_does() -> None:
    expected = [235, 124, 335, 128, -0.904927]
    assert initial_state(100000) == pytest.approx(expected, abs=1e-6)
    observation, _ = PushTEnv().reset(seed=100000)
    assert observation == pytest.approx([*expected[:4], expected[4] + 2 * math.pi], abs=1e-6)
    observation, _ = PushTEnv(legacy=True).reset(seed=100000)
    assert observation == pytest.approx([235, 124, 299.6129, 145.2016, 5.37826], abs=5e-5)


@pytest.mark.parametrize("seed", [0, 1, 42, 100049, 2**32 - 1])
def test_initial_states_are_drawn_in_the_original_order(seed: int) -> None:
    random = np.random.RandomState(seed)
    agent_and_block = [random.randint(*bounds) for bounds in ((50, 450), (50, 450), (100, 400), (100, 400))]
    assert initial_state(seed).tolist() == [*agent_and_block, random.randn() * 2 * np.pi - np.pi]


def test_legacy_moves_a_given_state_as_the_original_does() -> None:
    _, info = PushTEnv(legacy=True).reset(options={"state": AT_GOAL})
    assert info["block_pose"] == pytest.approx([287.82, 269.18, math.pi / 4], abs=0.005)
    assert info["coverage"] == pytest.approx(0.298, abs=5e-4)


@pytest.mark.parametrize("angle", [0.0, 2.0, -0.5, 7.0, -1e-17])
def test_a_given_state_is_the_first_observation(angle: float) -> None:
    observation, _ = PushTEnv().reset(options={"state": (100.0, 120.5, 300.25, 210.0, angle)})
    assert observation[:4] == pytest.approx([100.0, 120.5, 300.25, 210.0], abs=1e-9)
    assert observation[4] == angle % (2 * math.pi) % (2 * math.pi)
    assert 0 <= observation[4] < 2 * math.pi


def test_same_seed_same_trajectory() -> None:
    def trajectory(env: PushTEnv) -> np.ndarray:
        env.reset(seed=7)
        return np.array([env.step(action)[0] for action in random_actions(60)])

    used = PushTEnv()
    used.reset(seed=1)
    for action in random_actions(40, seed=1):
        used.step(action)
    first = trajectory(PushTEnv())
    assert np.array_equal(first, trajectory(PushTEnv()))
    assert np.array_equal(first, trajectory(used))


def test_resets_without_a_seed_are_fixed_by_the_first_seed() -> None:
    def starts(env: PushTEnv) -> np.ndarray:
        return np.array([env.reset(seed=1)[0], env.reset()[0], env.reset()[0]])

    once, again = starts(PushTEnv()), starts(PushTEnv())
    assert np.array_equal(once, again)
    assert len(np.unique(once[:, 0])) == 3
    assert not np.array_equal(PushTEnv().reset()[0], PushTEnv().reset()[0])


def test_reward_termination_and_info_at_the_goal() -> None:
    env = PushTEnv()
    _, info = env.reset(options={"state": AT_GOAL})
    assert set(info) == INFO_KEYS
    assert info["coverage"] == pytest.approx(1.0, abs=1e-9)
    assert info["is_success"] is True
    _, reward, terminated, truncated, info = env.step([50.0, 50.0])
    assert (reward, terminated, truncated) == (1.0, True, False)
    assert set(info) == INFO_KEYS
    assert info["is_success"] is True
    assert info["goal_pose"].tolist() == list(GOAL_POSE)


def test_reward_is_coverage_over_the_threshold() -> None:
    state = [50.0, 50.0, GOAL_POSE[0] + 10.0, GOAL_POSE[1], GOAL_POSE[2]]
    for threshold in (0.5, 0.95, 1.0):
        env = PushTEnv(success_threshold=threshold)
        env.reset(options={"state": state})
        _, reward, terminated, _, info = env.step([50.0, 50.0])
        assert 0.6 < info["coverage"] < 0.9
        assert reward == min(info["coverage"] / threshold, 1.0)
        assert terminated is info["is_success"] is (info["coverage"] > threshold)


def test_max_coverage_is_the_largest_since_the_reset() -> None:
    env = PushTEnv()
    _, info = env.reset(options={"state": [256.0, 200.0, 256.0, 240.0, math.pi / 4]})
    seen = [info["coverage"]]
    assert info["max_coverage"] == seen[0] > 0
    for target in ([256.0, 300.0], [256.0, 360.0], [256.0, 420.0]):
        _, _, _, _, info = env.step(target)
        seen.append(info["coverage"])
        assert info["max_coverage"] == env.max_coverage == max(seen)
    assert info["coverage"] < max(seen)
    _, info = env.reset(options={"state": [50.0, 50.0, 400.0, 400.0, 0.0]})
    assert info["max_coverage"] == info["coverage"] == 0.0


def test_info_and_get_state_report_the_bodies() -> None:
    env = PushTEnv()
    env.reset(options={"state": [256.0, 200.0, 256.0, 240.0, -0.5]})
    observation, _, _, _, info = env.step([256.0, 300.0])
    state = env.get_state()
    assert info["pos_agent"].tolist() == list(state.agent_position) == observation[:2].tolist()
    assert info["vel_agent"].tolist() == list(state.agent_velocity)
    assert info["block_pose"].tolist() == [*state.block_position, state.block_angle]
    assert state.block_velocity != (0.0, 0.0)
    assert info["n_contacts"] in (1, 2)
    assert env.coverage() == info["coverage"]


def test_goal_pose_in_info_is_a_copy() -> None:
    env = PushTEnv()
    _, info = env.reset(seed=0)
    info["goal_pose"][:] = 0.0
    assert env.goal_pose.tolist() == list(GOAL_POSE)
    assert env.step([100.0, 100.0])[4]["goal_pose"].tolist() == list(GOAL_POSE)


def test_actions_outside_the_box_are_followed_not_clipped() -> None:
    env = PushTEnv()
    env.reset(options={"state": [500.0, 60.0, 200.0, 300.0, 0.0]})
    for _ in range(20):
        observation, *_ = env.step([540.0, 60.0])
    assert observation[0] == pytest.approx(540.0, abs=1e-2)


@pytest.mark.parametrize(
    "action", [None, 5.0, [1.0], [1.0, 2.0, 3.0], [[1.0, 2.0]], ["a", "b"], [np.nan, 1.0], [1.0, np.inf]]
)
def test_bad_actions_are_refused(action: Any) -> None:
    env = PushTEnv()
    env.reset(seed=0)
    before = env.get_state()
    with pytest.raises(ValueError, match=r"action is .*; allowed: "):
        env.step(action)
    assert env.get_state() == before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("obs_type", "environment_state"),
        ("render_mode", "ansi"),
        ("success_threshold", 0.0),
        ("success_threshold", 1.5),
        ("success_threshold", math.nan),
        ("observation_width", 0),
        ("observation_height", 9.5),
        ("visualization_width", -1),
        ("visualization_height", True),
        ("success_threshold", "0.5"),
        ("legacy", "no"),
        ("goal_pose", (256.0, 256.0)),
        ("goal_pose", (256.0, 513.0, 0.0)),
        ("goal_pose", (256.0, 256.0, math.nan)),
        ("goal_pose", "here"),
    ],
)
def test_bad_constructor_arguments_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"{name} is .*; allowed: "):
        PushTEnv(**{name: value})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "seed is -1; allowed"),
        ({"seed": 2**32}, "seed is 4294967296; allowed"),
        ({"seed": 1.5}, "seed is 1.5; allowed"),
        ({"options": {"stat": [1, 2, 3, 4, 5]}}, r"options has \['stat'\]; allowed: 'state'"),
        ({"options": {"state": [1, 2, 3, 4]}}, r"options\['state'\] is .*five finite numbers"),
        ({"options": {"state": "here"}}, r"options\['state'\] is 'here'; allowed"),
        ({"options": {"state": [1, 2, 3, 4, math.nan]}}, r"options\['state'\] is .*five finite numbers"),
        ({"options": {"state": [1, 2, 3, 600, 0]}}, r"options\['state'\] is .*\[0, 512\]"),
    ],
)
def test_bad_resets_are_refused(arguments: dict[str, Any], message: str) -> None:
    env = PushTEnv()
    observation, _ = env.reset(seed=5)
    with pytest.raises(ValueError, match=message):
        env.reset(**arguments)
    assert np.array_equal(env._observe(), observation)


@pytest.mark.parametrize("obs_type", ["environment_state_agent_pos", "pixels_agent_pos"])
def test_changing_an_observation_changes_nothing(obs_type: str) -> None:
    env, spoilt = PushTEnv(obs_type=obs_type), PushTEnv(obs_type=obs_type)
    expected, observation = env.reset(seed=0)[0], spoilt.reset(seed=0)[0]
    for action in random_actions(8):
        for name in expected:
            assert np.array_equal(expected[name], observation[name])
            observation[name][:] = 7
        expected, observation = env.step(action)[0], spoilt.step(action)[0]


# --- another goal ---


def test_coverage_and_reward_are_those_of_the_given_goal() -> None:
    goal = (180.0, 300.5, -2.0)
    env = PushTEnv(goal_pose=goal)
    _, info = env.reset(options={"state": [50.0, 50.0, *goal]})
    assert info["coverage"] == pytest.approx(1.0, abs=1e-9)
    assert info["goal_pose"].tolist() == list(goal)
    assert env.goal_pose.tolist() == list(goal)
    assert env.step([50.0, 50.0])[1:3] == (1.0, True)
    _, info = env.reset(options={"state": AT_GOAL})
    assert info["coverage"] < 0.5


def test_pictures_show_the_given_goal() -> None:
    far_from_both = [30.0, 480.0, 420.0, 420.0, 0.0]
    shown = []
    for goal in (GOAL_POSE, (100.0, 100.0, 0.0)):
        env = PushTEnv(goal_pose=goal, render_mode="rgb_array", obs_type="pixels")
        pixels, _ = env.reset(options={"state": far_from_both})
        frame = env.render()
        assert isinstance(frame, np.ndarray)
        for picture in (frame, pixels):
            rows, columns = np.nonzero((picture == GOAL_COLOR).all(axis=-1))
            shown.append(np.array([columns.mean(), rows.mean()]) * 512 / picture.shape[0])
    # The middle of the T's area, in the window.
    [middle] = [np.array([0.0, (3600 * 15.0 + 2700 * 75.0) / 6300])]
    for place, (x, y, angle) in zip(shown, [GOAL_POSE] * 2 + [(100.0, 100.0, 0.0)] * 2, strict=True):
        expected = (x - math.sin(angle) * middle[1], y + math.cos(angle) * middle[1])
        assert place == pytest.approx(expected, abs=4.0)


# --- actions of any kind ---


def test_targets_far_outside_are_those_at_the_margin() -> None:
    def path(targets: list[list[float]]) -> np.ndarray:
        env = PushTEnv()
        env.reset(seed=3)
        return np.array([env.step(target)[0] for target in targets])

    corners = [[-256.0, 768.0], [768.0, -256.0], [768.0, 768.0]]
    expected = path(corners)
    assert np.array_equal(path([[-1e308, 769.0], [1e308, -1e308], [768.0, 1e9]]), expected)
    assert np.array_equal(path([[-257.0, 1e9], [1e300, -256.5], [800.0, 768.1]]), expected)
    assert not np.array_equal(path([[-250.0, 760.0], *corners[1:]]), expected)


NUMBERS = st.one_of(
    st.floats(),
    st.floats(0, 512),
    st.integers(-(10**300), 10**300),
    st.booleans(),
    st.sampled_from([np.float16(7.5), np.int8(-3), None, "a", b"b", 1j, [1.0], object()]),
)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.lists(NUMBERS, min_size=2, max_size=2) | st.lists(NUMBERS, max_size=4) | NUMBERS | st.text(max_size=3))
def test_odd_actions_are_refused_or_followed(action: Any) -> None:
    env = PushTEnv()
    env.reset(seed=0)
    before = env.get_state()
    try:
        observation, reward, *_ = env.step(action)
    except ValueError as error:
        message = str(error)
    else:
        assert np.isfinite(observation).all()
        assert 0.0 <= reward <= 1.0
        return
    assert message.startswith("action is ")
    assert "; allowed: " in message
    assert env.get_state() == before


def test_integers_beyond_the_floats_are_refused() -> None:
    env = PushTEnv()
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"action is .*; allowed: "):
        env.step([10**400, 1.0])


def test_a_picture_after_a_far_target() -> None:
    env = PushTEnv(render_mode="rgb_array")
    env.reset(seed=0)
    env.step([1e308, 0.0])
    assert env.render() is not None


def test_registered_environment_ends_after_300_steps() -> None:
    env = gymnasium.make(ENV_ID)
    assert envs.__name__ == "envs"
    env.reset(seed=0)
    ends = [env.step([300.0, 30.0])[2:4] for _ in range(300)]
    assert ends[:-1] == [(False, False)] * 299
    assert ends[-1] == (False, True)


def test_vector_environment_has_the_same_face() -> None:
    vector = gymnasium.make_vec(ENV_ID, num_envs=3, vectorization_mode="sync", obs_type="keypoints", legacy=True)
    single = [PushTEnv(obs_type="keypoints", legacy=True) for _ in range(3)]
    observations, infos = vector.reset(seed=100000)
    expected = np.array([env.reset(seed=100000 + i)[0] for i, env in enumerate(single)])
    assert np.array_equal(observations, expected)
    for actions in random_actions(30).reshape(10, 3, 2):
        observations, rewards, _, _, infos = vector.step(actions)
        stepped = [env.step(action) for env, action in zip(single, actions, strict=True)]
        assert np.array_equal(observations, np.array([step[0] for step in stepped]))
        assert rewards.tolist() == [step[1] for step in stepped]
        assert infos["coverage"].tolist() == [step[4]["coverage"] for step in stepped]
    vector.close()


def run_python(code: str) -> str:
    """Output of code in a fresh interpreter at the project's root, where no display is configured."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).resolve().parents[2],
        env={"PYTHONPATH": ".", "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_module_prefix_registers_without_import_and_state_needs_no_pygame() -> None:
    code = (
        "import gymnasium, sys; env = gymnasium.make('envs:immiscible/PushT-v0'); env.reset(seed=0);"
        "env.step([1.0, 2.0]); loaded = [name in sys.modules for name in ('pygame', 'torch', 'shapely')];"
        "print(env.spec.max_episode_steps, any(loaded))"
    )
    assert run_python(code) == "300 False"


def test_rgb_array_needs_no_display() -> None:
    code = (
        "import os; from envs.pusht import PushTEnv; import pygame;"
        "env = PushTEnv(obs_type='pixels', render_mode='rgb_array'); env.reset(seed=0);"
        "print(env.render().shape, pygame.display.get_init(), os.environ.get('SDL_VIDEODRIVER'))"
    )
    assert run_python(code).splitlines()[-1] == "(512, 512, 3) False None"


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_copies_go_on_as_the_original(copied):
    """pymunk's own copy of a turned block has its origin elsewhere."""
    env = PushTEnv()
    env.reset(options={"state": (400, 400, 256, 256, math.pi / 4)})
    assert copied(env).step((400, 400))[1] == env.step((400, 400))[1] == pytest.approx(1.0)
    env.reset(seed=3)
    for _ in range(10):
        env.step((300, 300))
    twin = copied(env)
    for _ in range(5):
        ours, theirs = env.step((320, 200)), twin.step((320, 200))
        np.testing.assert_allclose(theirs[0], ours[0], atol=1.0)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_copies_draw_what_the_original_has_drawn(copied):
    """Surfaces of pygame cannot be copied."""
    env = PushTEnv(obs_type="pixels", render_mode="rgb_array", goal_pose=(200, 300, 0.5))
    observation, _ = env.reset(seed=3)
    frame = env.render()
    env._window = object()  # type: ignore[assignment]  # of the screen that the original is shown on
    twin = copied(env)
    assert twin._window is None
    env._window = None
    np.testing.assert_array_equal(twin._observe(), observation)
    np.testing.assert_array_equal(twin.render(), frame)
    np.testing.assert_array_equal(twin.step((300, 300))[0], env.step((300, 300))[0])

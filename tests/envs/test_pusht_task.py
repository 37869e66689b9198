"""Settings and argument checks that the single and the vector environment share."""

import math
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.pusht import geometry
from envs.pusht.task import (
    MAX_SEED,
    OBSERVATION_TYPES,
    Task,
    checked_options,
    checked_row,
    checked_seed,
    checked_state,
    drawn_state,
    initial_state,
    require_choice,
    require_positive,
    wrapped,
)

QUICK = settings(max_examples=200, derandomize=True, deadline=None)
ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=4),
    st.binary(max_size=3),
    st.lists(st.floats() | st.text(max_size=2), max_size=4),
    st.sampled_from([1j, 10**400, np.array([1.0, 2.0]), np.array(["state"]), np.float32(0.5), np.True_, {}, object()]),
)


def test_defaults_are_those_of_the_paper() -> None:
    task = Task()
    assert (task.obs_type, task.legacy, task.success_threshold) == ("state", False, 0.95)
    assert task.goal_pose == (256.0, 256.0, math.pi / 4)
    assert task.observation_size == (96, 96)
    assert task.visualization_size == (512, 512)
    assert task.action_space == spaces.Box(0.0, 512.0, (2,), np.float32)


def test_settings_are_plain_numbers_and_cannot_be_changed() -> None:
    task = Task(legacy=np.True_, success_threshold=np.float32(0.5), goal_pose=np.array([1, 2, 3]))
    assert task.legacy is True
    assert type(task.success_threshold) is float
    assert task.goal_pose == (1.0, 2.0, 3.0)
    assert all(type(value) is float for value in task.goal_pose)
    with pytest.raises(AttributeError):
        task.legacy = False  # type: ignore[misc]


SHAPES = {
    "state": (5,),
    "keypoints": (20,),
    "pixels": (40, 64, 3),
    "environment_state_agent_pos": {"environment_state": (16,), "agent_pos": (2,)},
    "pixels_agent_pos": {"pixels": (40, 64, 3), "agent_pos": (2,)},
}


@pytest.mark.parametrize("obs_type", OBSERVATION_TYPES)
def test_observation_spaces(obs_type: str) -> None:
    space = Task(obs_type, observation_size=(64, 40)).observation_space
    boxes = dict(space.spaces) if isinstance(space, spaces.Dict) else {"": space}
    expected = SHAPES[obs_type] if isinstance(SHAPES[obs_type], dict) else {"": SHAPES[obs_type]}
    assert {name: box.shape for name, box in boxes.items()} == expected
    for name, box in boxes.items():
        assert isinstance(box, spaces.Box)
        assert box.dtype == (np.uint8 if "pixels" in (name, obs_type) else np.float64)
    if "agent_pos" in boxes:
        assert boxes["agent_pos"] == spaces.Box(0.0, 512.0, (2,), np.float64)


def test_every_part_of_a_block_in_its_bounds_is_in_its_bounds() -> None:
    """The farthest a vertex gets from the block's origin is no farther than its bounds from the origin's."""
    low = Task("environment_state_agent_pos").observation_space["environment_state"].low
    origin = Task("state").observation_space.low[2]
    assert (low <= origin - geometry.BLOCK_REACH).all()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("obs_type", "environment_state"),
        ("obs_type", None),
        ("obs_type", ["state"]),
        ("obs_type", np.array(["state", "pixels"])),
        ("legacy", "no"),
        ("legacy", None),
        ("legacy", 1),
        ("success_threshold", 0.0),
        ("success_threshold", 1.0000001),
        ("success_threshold", math.nan),
        ("success_threshold", "0.5"),
        ("success_threshold", None),
        ("success_threshold", True),
        ("success_threshold", 0.5j),
        ("success_threshold", np.array([0.5, 0.6])),
        ("goal_pose", None),
        ("goal_pose", (1.0, 2.0)),
        ("goal_pose", (-0.1, 2.0, 0.0)),
        ("goal_pose", (1.0, 512.1, 0.0)),
        ("goal_pose", (1.0, 2.0, math.inf)),
        ("goal_pose", (10**400, 2.0, 0.0)),
        ("goal_pose", [[1.0], [2.0, 3.0]]),
    ],
)
def test_bad_settings_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"{name} is .*; allowed: "):
        Task(**{name: value})


@pytest.mark.parametrize(
    ("size", "name"),
    [
        ({"observation_size": (0, 96)}, "observation_width is 0"),
        ({"observation_size": (96, 9.5)}, "observation_height is 9.5"),
        ({"visualization_size": (True, 96)}, "visualization_width is True"),
        ({"visualization_size": (96, "96")}, "visualization_height is '96'"),
    ],
)
def test_bad_sizes_are_refused(size: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}; allowed: an integer of at least 1"):
        Task(**size)


@QUICK
@given(st.sampled_from(["obs_type", "legacy", "success_threshold", "goal_pose"]), ANYTHING)
def test_any_setting_is_refused_by_name_or_taken(name: str, value: Any) -> None:
    try:
        task = Task(**{name: value})
    except ValueError as error:
        message = str(error)
    else:
        assert getattr(task, name) == value
        return
    assert message.startswith(f"{name} is ")
    assert "; allowed: " in message


# --- initial states ---


def test_drawn_states_are_initial_states_of_drawn_seeds() -> None:
    first, second = np.random.default_rng(3), np.random.default_rng(3)
    for _ in range(3):
        seed = int(second.integers(MAX_SEED, endpoint=True))
        assert np.array_equal(drawn_state(first), initial_state(seed))


def test_initial_states_leave_numpys_generator_alone() -> None:
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    initial_state(5)
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002


# --- angles ---


@QUICK
@given(st.floats(-1e6, 1e6))
def test_wrapped_angles_are_the_same_direction_below_a_turn(angle: float) -> None:
    value = float(wrapped(angle))
    assert 0.0 <= value < 2 * math.pi
    assert math.remainder(value - angle, 2 * math.pi) == pytest.approx(0.0, abs=1e-9)


def test_wrapped_angles_of_the_borders() -> None:
    tiny = np.array([-1e-17, -0.0, 0.0, 2 * math.pi, -2 * math.pi, 1e-300])
    assert wrapped(tiny).tolist() == [0.0, 0.0, 0.0, 0.0, 0.0, 1e-300]
    assert wrapped(np.zeros((2, 3))).shape == (2, 3)


# --- checks ---


@pytest.mark.parametrize("seed", [None, 0, 5, MAX_SEED, np.int64(7), np.uint32(7), np.array(7)])
def test_seeds_are_taken(seed: Any) -> None:
    value = checked_seed(seed)
    assert value == seed
    assert value is None or type(value) is int


@pytest.mark.parametrize("seed", [-1, MAX_SEED + 1, 10**400, 1.0, "1", True, [1], np.array([1]), math.nan, object()])
def test_bad_seeds_are_refused(seed: Any) -> None:
    with pytest.raises(ValueError, match=r"seed is .*; allowed: None or an integer from 0 to 4294967295"):
        checked_seed(seed)


def test_states_are_taken_as_floats() -> None:
    state = checked_state(np.array([0, 512, 3, 4, -100]))
    assert state == [0.0, 512.0, 3.0, 4.0, -100.0]
    assert all(type(value) is float for value in state)


@pytest.mark.parametrize(
    "state",
    [
        None,
        5,
        "state",
        [1, 2, 3, 4],
        [1, 2, 3, 4, 5, 6],
        [[1, 2, 3, 4, 5]],
        [1, 2, 3, 4, math.nan],
        [1, 2, 3, 4, 10**400],
        [-0.001, 2, 3, 4, 5],
        [1, 2, 3, 512.001, 5],
        [1, 2, [3], 4, 5],
    ],
)
def test_bad_states_are_refused(state: Any) -> None:
    with pytest.raises(ValueError, match=r"options\['state'\] is .*; allowed: five finite numbers"):
        checked_state(state)


def test_only_the_first_numbers_of_a_row_are_positions() -> None:
    assert checked_row("row", (1, 2, 1e9), 3, "three numbers", positions=2) == [1.0, 2.0, 1e9]
    with pytest.raises(ValueError, match=r"row is \[1.0, 600.0, 0.0\]; allowed: three numbers"):
        checked_row("row", (1, 600, 0), 3, "three numbers", positions=2)


def test_options() -> None:
    assert checked_options(None, ("state",)) == {}
    assert checked_options({"state": 1}, ("state", "reset_mask")) == {"state": 1}
    for bad in ({"mask": 1}, {1: 2, "x": 3}, {None: 1}):
        with pytest.raises(ValueError, match=r"options has \[.*\]; allowed: 'state'"):
            checked_options(bad, ("state",))  # type: ignore[arg-type]
    for bad in (5, "state", ["state"]):
        with pytest.raises(ValueError, match=r"options is .*; allowed: None or a dict with 'state'"):
            checked_options(bad, ("state",))  # type: ignore[arg-type]


def test_choices() -> None:
    require_choice("mode", "a", ("a", None))
    require_choice("mode", None, ("a", None))
    for bad in ("b", 0, True, np.array(["a", "b"]), ["a"], ""):
        with pytest.raises(ValueError, match=r"mode is .*; allowed: 'a', None"):
            require_choice("mode", bad, ("a", None))


def test_positive_integers() -> None:
    require_positive("count", 1)
    for bad in (0, -3, 1.0, True, None, "1", math.nan, np.array([1, 2])):
        with pytest.raises(ValueError, match=r"count is .*; allowed: an integer of at least 1"):
            require_positive("count", bad)

"""An environment whose world is changed between steps."""

from typing import Any

import numpy as np
import pytest

from envs.pusht.playground import PlaygroundEnv
from envs.pusht.task import OBSERVATION_TYPES


def assert_equal(first: Any, second: Any) -> None:
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for name in first:
            np.testing.assert_array_equal(first[name], second[name])
    else:
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("obs_type", OBSERVATION_TYPES)
def test_it_sees_what_another_one_would_see_in_its_world(obs_type: str) -> None:
    env, other = PlaygroundEnv(obs_type), PlaygroundEnv("state")
    first, _ = env.reset(seed=3)
    assert_equal(env.observation(), first)
    other.reset(seed=4)
    env.take_over(other)
    state = other.step([256, 256])[0]
    fresh = PlaygroundEnv(obs_type)
    expected, _ = fresh.reset(options={"state": state})
    assert_equal(env.observation(), expected)
    (agent_x, agent_y), (x, y, angle) = env.pose()
    np.testing.assert_allclose([agent_x, agent_y, x, y, angle % (2 * np.pi)], state)


def test_max_coverage_goes_on_with_the_same_goal_only() -> None:
    goal = (256.0, 256.0, np.pi / 4)
    first, same, elsewhere = PlaygroundEnv(), PlaygroundEnv(), PlaygroundEnv(goal_pose=(100.0, 100.0, 0.0))
    for env in (same, elsewhere):
        env.reset(seed=0)
    first.reset(options={"state": (20, 20, *goal)})
    first.world.place((20, 20, 110, 110, 0))
    same.take_over(first)
    elsewhere.take_over(first)
    assert same.max_coverage == pytest.approx(1.0)
    assert same.coverage() < 0.1
    assert elsewhere.max_coverage == elsewhere.coverage() < 0.9
    assert elsewhere.coverage() > 0.5

"""The demonstrator solves the task, and what it records is what the environment does with its actions."""

import math
from functools import cache

import numpy as np
import pytest

from envs.pusht import PushTEnv
from envs.pusht.demonstrator import Demonstration, Demonstrator
from envs.pusht.geometry import GOAL_POSE, SUCCESS_COVERAGE, WINDOW_SIZE, Pose
from envs.pusht.pushes import DemonstratorConfig
from envs.pusht.task import initial_state, wrapped

ELSEWHERE = (356.0, 356.0, math.pi / 4)
DEFAULT = DemonstratorConfig()
# Enough to solve what is asked of it here, and enough for what is not about solving.
SMALL = DemonstratorConfig(n_candidates=64)
FEW = DemonstratorConfig(n_candidates=16, n_copies=4)
TASKS = ((0, GOAL_POSE, DEFAULT), (1, GOAL_POSE, SMALL), (2, GOAL_POSE, SMALL), (3, ELSEWHERE, SMALL))


@cache
def demonstration(seed: int, goal_pose: Pose, config: DemonstratorConfig) -> Demonstration:
    return Demonstrator(config, goal_pose).demonstrate(initial_state(seed), legacy=True)


def assert_equal(one: Demonstration, other: Demonstration) -> None:
    for name in ("states", "actions", "n_contacts"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert (one.coverage, one.solved) == (other.coverage, other.solved)


def assert_replays(made: Demonstration, seed: int, goal_pose: Pose, dtype: type, tolerance: float) -> None:
    env = PushTEnv(legacy=True, goal_pose=goal_pose)
    observation, info = env.reset(seed=seed)
    for state, action, n_contacts in zip(made.states, made.actions, made.n_contacts, strict=True):
        np.testing.assert_allclose(observation[:4], state[:4], rtol=0.0, atol=tolerance)
        assert abs(observation[4] - wrapped(state[4])) <= tolerance
        if tolerance == 0.0:
            assert info["n_contacts"] == n_contacts
        observation, *_, info = env.step(action.astype(dtype))
    assert info["coverage"] == pytest.approx(made.coverage, abs=0.01 * tolerance)
    assert info["is_success"]


@pytest.mark.parametrize(("seed", "goal_pose", "config"), TASKS)
def test_it_solves_the_task_and_its_actions_replay(seed: int, goal_pose: Pose, config: DemonstratorConfig) -> None:
    made = demonstration(seed, goal_pose, config)
    length = len(made.actions)
    assert made.solved
    assert made.coverage > SUCCESS_COVERAGE
    assert 20 < length < 300
    assert made.states.shape == (length, 5)
    assert made.actions.shape == (length, 2)
    assert made.n_contacts.shape == (length,)
    assert made.n_contacts.dtype == np.int64
    assert_replays(made, seed, goal_pose, np.float64, 0.0)
    # As they are stored, and as a policy returns them.
    assert_replays(made, seed, goal_pose, np.float32, 0.1)


@pytest.mark.parametrize(("seed", "goal_pose", "config"), TASKS)
def test_targets_go_on_from_the_last_or_from_the_agent(seed: int, goal_pose: Pose, config: DemonstratorConfig) -> None:
    made = demonstration(seed, goal_pose, config)
    assert np.isfinite(made.actions).all()
    assert ((made.actions >= 0.0) & (made.actions <= WINDOW_SIZE)).all()
    fastest = max(config.way_speed, config.push_speed)
    from_agent = np.linalg.norm(made.actions - made.states[:, :2], axis=1)
    from_last = np.linalg.norm(np.diff(made.actions, axis=0), axis=1)
    assert from_agent[0] <= fastest + 1e-9
    # The agent trails its target. A new push begins at the agent, everything else where the target is.
    assert (np.minimum(from_last, from_agent[1:]) <= fastest + 1e-9).all()
    assert (from_last <= fastest + 1e-9).mean() > 0.9
    assert made.n_contacts[0] == 0
    assert (made.n_contacts > 0).any()


def test_the_same_state_has_the_same_demonstration() -> None:
    demonstrator = Demonstrator(SMALL)
    state = initial_state(1)
    before = state.copy()
    demonstrator.demonstrate(initial_state(9), legacy=True, max_steps=10)
    assert_equal(demonstrator.demonstrate(state, legacy=True), demonstration(1, GOAL_POSE, SMALL))
    np.testing.assert_array_equal(state, before)


def test_it_stops_after_max_steps_and_says_that_it_solved_nothing() -> None:
    whole = demonstration(2, GOAL_POSE, SMALL)
    for max_steps in (1, 13):
        part = Demonstrator(SMALL).demonstrate(initial_state(2), legacy=True, max_steps=max_steps)
        np.testing.assert_array_equal(part.actions, whole.actions[:max_steps])
        np.testing.assert_array_equal(part.states, whole.states[:max_steps])
        assert not part.solved
        assert part.coverage < SUCCESS_COVERAGE


def test_how_the_block_is_placed_makes_two_tasks() -> None:
    state = initial_state(4)
    legacy, plain = (Demonstrator(FEW).demonstrate(state, legacy=legacy, max_steps=1) for legacy in (True, False))
    np.testing.assert_array_equal(plain.states[0], state)
    np.testing.assert_array_equal(legacy.states[0][[0, 1, 4]], state[[0, 1, 4]])
    assert np.linalg.norm(legacy.states[0][2:4] - state[2:4]) > 1.0


@pytest.mark.parametrize("goal_pose", [GOAL_POSE, ELSEWHERE])
def test_where_the_block_is_at_its_goal_nothing_is_done(goal_pose: Pose) -> None:
    made = Demonstrator(FEW, goal_pose).demonstrate(np.array([60.0, 60.0, *goal_pose]))
    assert made.actions.shape == (0, 2)
    assert made.states.shape == (0, 5)
    assert made.n_contacts.shape == (0,)
    assert (made.solved, made.coverage) == (True, 1.0)
    x, y, angle = goal_pose
    turned = np.array([60.0, 60.0, x, y, angle + 2.0 * math.pi])
    assert len(Demonstrator(FEW, goal_pose).demonstrate(turned).actions) == 0


@pytest.mark.parametrize(
    "state",
    [
        (256.0, 256.0, 8.0, 8.0, 3.0 * math.pi / 4),  # pressed into a corner
        (20.0, 20.0, 100.0, 8.0, math.pi / 2),
        (500.0, 500.0, 480.0, 440.0, -math.pi / 4),
        (30.0, 256.0, 10.0, 200.0, -math.pi / 2),  # against a wall, the agent between
        (256.0, 300.0, 256.0, 256.0, 0.3),  # the agent on the block
        (256.0, 256.0, 256.0, 256.0, 0.0),  # on its edge
        (0.0, 512.0, 512.0, 0.0, 40.0),  # both half outside
        (256.0, 256.0, -40.0, -40.0, 2.0),
    ],
)
def test_it_acts_wherever_agent_and_block_are(state: tuple[float, ...]) -> None:
    made = Demonstrator(FEW).demonstrate(np.array(state), max_steps=12)
    assert 1 <= len(made.actions) <= 12
    assert np.isfinite(made.actions).all()
    assert ((made.actions >= 0.0) & (made.actions <= WINDOW_SIZE)).all()
    assert np.isfinite(made.states).all()

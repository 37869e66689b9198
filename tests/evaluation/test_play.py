"""A session with policies and a person, without a window."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from envs.pusht import PushTEnv, geometry
from envs.pusht.task import MAX_SEED
from immiscible_policy.evaluation.evaluate import environment_factory
from immiscible_policy.evaluation.play import GHOST_STEPS, MESSAGE_STEPS, Command, PlaySession
from immiscible_policy.evaluation.play_policies import NamedPolicy
from immiscible_policy.evaluation.rollout import rollout
from immiscible_policy.policy import DiffusionPolicy, InferenceCoupling

DIMENSIONS = {"state": 5, "keypoints": 20, "environment_state_agent_pos": 18}


def tiny(name: str = "tiny", obs_type: str = "keypoints", torch_seed: int = 0, **options: Any) -> NamedPolicy:
    """A random policy for PushT."""
    torch.manual_seed(torch_seed)
    task = {"env_id": "envs:immiscible/PushT-v0", "obs_type": obs_type, "legacy": False, "max_steps": 40}
    task |= options.pop("task", {})
    network = {"name": "mlp", "width": 8, "n_blocks": 1}
    settings = {"coupling": "KNN(k=2)", "network": network} | options
    policy = DiffusionPolicy(DIMENSIONS[obs_type], 2, task=task, **settings)
    policy.fit_normalizers(512 * torch.rand(50, DIMENSIONS[obs_type]), 512 * torch.rand(50, 2))
    return NamedPolicy(name, policy.eval())


Seen = list[tuple[np.ndarray, int | None]]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """What policies are shown when they plan, a history (n_obs_steps, D), and with how many network calls they do."""
    plan, encode = DiffusionPolicy.plan, DiffusionPolicy.encode
    seen: Seen = []
    shown: list[np.ndarray] = []

    def encode_seen(self: DiffusionPolicy, observation: Tensor, *args: Any, **keywords: Any) -> Tensor:
        shown.append(observation[0].numpy().copy())
        return encode(self, observation, *args, **keywords)

    def plan_seen(self: DiffusionPolicy, condition: Tensor, generator: Any, steps: int, *rest: Any) -> Tensor:
        seen.append((shown[-1], steps))
        return plan(self, condition, generator, steps, *rest)

    monkeypatch.setattr(DiffusionPolicy, "encode", encode_seen)
    monkeypatch.setattr(DiffusionPolicy, "plan", plan_seen)
    return seen


def steps(session: PlaySession, n_steps: int) -> np.ndarray:
    """Makes steps; returns the poses (n_steps, 5) after each."""
    poses = []
    for _ in range(n_steps):
        session.step()
        poses.append(pose(session))
    return np.array(poses)


def pose(session: PlaySession, fraction: float = 1.0) -> np.ndarray:
    agent, block = session.pose(fraction)
    return np.array([*agent, *block])


def on_block(session: PlaySession, u: float = 0.0, v: float = 15.0) -> tuple[float, float]:
    """A point of the block's frame in the window."""
    return geometry.to_world([(u, v)], *session.pose(1.0)[1])[0]


def drag(session: PlaySession, dx: float, dy: float, n_steps: int) -> None:
    x, y = on_block(session)
    assert session.press((x, y))
    session.move((x + dx, y + dy))
    steps(session, n_steps)


# --- what the policy does ---


@pytest.mark.parametrize("obs_type", DIMENSIONS)
@pytest.mark.parametrize(("coupling", "scale"), [("none", 1.0), ("warm", 1.0), ("none", 0.5)])
def test_left_alone_an_episode_is_that_of_an_evaluation(obs_type: str, coupling: str, scale: float) -> None:
    named = tiny(obs_type=obs_type)
    session = PlaySession([named], seed=100_003, num_inference_steps=3, inference_coupling=coupling, noise_scale=scale)
    largest = 0.0
    for _ in range(40):
        session.step()
        largest = max(largest, session.coverage)
    result = rollout(
        named.policy,
        environment_factory(named.policy),
        [100_003],
        num_inference_steps=3,
        record_seeds=[100_003],
        inference_coupling=InferenceCoupling(coupling, noise_scale=scale),
    )
    (episode,) = result.episodes
    assert session.n_steps == episode.length == 40
    assert (session.coverage, session.max_coverage) == pytest.approx((episode.final_coverage, largest), abs=1e-5)
    assert session.max_coverage == pytest.approx(episode.max_coverage, abs=1e-5)
    assert session.max_coverage == pytest.approx(max(result.recordings[0].coverages[1:]), abs=1e-5)
    assert session.success_step is None


def test_the_plan_is_followed_to_its_end_and_shown_from_the_action_that_is_on(seen: Seen) -> None:
    session = PlaySession([tiny()], num_inference_steps=2)
    env = PushTEnv("keypoints")
    observation, _ = env.reset(seed=session.seed)
    assert len(session.plan) == 0
    observations = [observation, observation]
    for chunk in range(3):
        session.step()
        plan = session.plan
        assert plan.shape == (8, 2)
        assert len(seen) == chunk + 1
        np.testing.assert_allclose(seen[-1][0], observations[-2:], rtol=1e-6)
        for index in range(8):
            if index > 0:
                session.step()
            np.testing.assert_array_equal(session.plan, plan[index:])
            observations.append(env.step(plan[index])[0])
            np.testing.assert_allclose(pose(session)[:2], env.world.agent.position, atol=1e-9)
    assert session.n_steps == 24


@pytest.mark.parametrize("legacy", [None, True, False])
def test_seeds_are_set_up_as_in_the_task_or_as_asked(legacy: bool | None) -> None:
    for in_task in (True, False):
        session = PlaySession([tiny(task={"legacy": in_task})], seed=9, legacy=legacy)
        expected, _ = PushTEnv(legacy=in_task if legacy is None else legacy).reset(seed=9)
        np.testing.assert_allclose(pose(session)[:4], expected[:4])


def test_success_does_not_end_the_episode() -> None:
    goal = tuple(PushTEnv().reset(seed=5)[0][2:])
    session = PlaySession([tiny(task={"goal_pose": goal})], seed=5)
    assert session.goal_pose == pytest.approx(goal)
    steps(session, 3)
    assert (session.n_steps, session.success_step) == (3, 1)
    session.handle(Command.SAME_SEED)
    assert (session.n_steps, session.success_step) == (0, None)


def test_the_initial_state_does_not_count_as_in_evaluations() -> None:
    goal = tuple(PushTEnv().reset(seed=5)[0][2:])
    session = PlaySession([tiny(task={"goal_pose": goal})], seed=5)
    assert session.max_coverage == session.coverage == pytest.approx(1.0)
    session.disturb()
    steps(session, 1)
    assert session.max_coverage == session.coverage < 0.99
    steps(session, 3)
    session.handle(Command.SAME_SEED)
    assert session.max_coverage == session.coverage == pytest.approx(1.0)


def test_another_goal_is_still_to_be_reached() -> None:
    goal = tuple(PushTEnv().reset(seed=5)[0][2:])
    session = PlaySession([tiny(task={"goal_pose": goal}), tiny(task={"goal_pose": goal}), tiny()], seed=5)
    steps(session, 1)
    session.switch(1)
    assert session.success_step == 1
    session.switch(2)
    assert session.success_step is None


# --- keys ---


def test_seeds(seen: Seen) -> None:
    session = PlaySession([tiny()], seed=MAX_SEED - 1, num_inference_steps=1)
    first, start = steps(session, 10), session.pose(0.0)
    session.handle(Command.SAME_SEED)
    assert (session.seed, session.n_steps, len(session.plan)) == (MAX_SEED - 1, 0, 0)
    np.testing.assert_array_equal(pose(session, 0.0), pose(session))
    np.testing.assert_array_equal(steps(session, 10), first)
    assert session.pose(0.0) == start
    session.handle(Command.NEXT_SEED)
    expected, _ = PushTEnv().reset(seed=MAX_SEED)
    np.testing.assert_allclose(pose(session)[:4], expected[:4])
    assert session.message == f"seed {MAX_SEED}"
    session.handle(Command.NEXT_SEED)
    assert session.seed == 0


def test_a_pause_and_single_steps() -> None:
    session, other = (PlaySession([tiny()], num_inference_steps=1) for _ in range(2))
    session.handle(Command.SINGLE_STEP)
    assert session.n_steps == 0, "only when paused"
    session.handle(Command.PAUSE)
    np.testing.assert_array_equal(steps(session, 3)[-1], pose(session, 0.0))
    assert (session.n_steps, session.paused) == (0, True)
    for _ in range(10):
        session.handle(Command.SINGLE_STEP)
    assert session.n_steps == 10
    assert (pose(session, 0.0) != pose(session, 1.0)).any()
    session.handle(Command.PAUSE)
    np.testing.assert_array_equal(steps(session, 3), steps(other, 13)[10:])


@pytest.mark.parametrize("obs_types", [("keypoints", "keypoints"), ("state", "environment_state_agent_pos")])
def test_switching_keeps_the_scene(seen: Seen, obs_types: tuple[str, str]) -> None:
    policies = [tiny(str(index), obs_type, index) for index, obs_type in enumerate(obs_types)]
    session = PlaySession([*policies, policies[0]], num_inference_steps=1)
    steps(session, 13)
    scene, coverage = pose(session), (session.coverage, session.max_coverage)
    session.handle(Command.NEXT_POLICY)
    assert (session.index, session.name, len(session.plan)) == (1, "1", 0)
    assert session.message == "policy 2: 1"
    np.testing.assert_array_equal(pose(session), scene)
    assert (session.coverage, session.max_coverage, session.n_steps) == (*coverage, 13)
    session.step()
    history = seen[-1][0]
    assert history.shape == (2, DIMENSIONS[obs_types[1]])
    np.testing.assert_array_equal(history[0], history[1])
    np.testing.assert_allclose(history[0][-2:] if history.shape[1] > 5 else history[0][:2], scene[:2], rtol=1e-6)
    moved = pose(session)
    assert (moved != scene).any()
    for index in (1, 3, -1):
        session.switch(index)
        assert (session.index, len(session.plan)) == (1, 8)
    session.handle(Command.PREVIOUS_POLICY)
    session.handle(Command.PREVIOUS_POLICY)
    assert session.index == 2
    np.testing.assert_array_equal(pose(session), moved)


def test_the_block_stays_in_the_hand_over_a_switch() -> None:
    session = PlaySession([tiny(), tiny(torch_seed=1)], num_inference_steps=1)
    drag(session, 60, 0, 1)
    session.handle(Command.NEXT_POLICY)
    held = session.pull(1.0)
    steps(session, 12)
    (x, y), hand = session.pull(1.0) or pytest.fail("let go")
    assert held is not None
    assert hand == held[1]
    assert math.dist((x, y), hand) < math.dist(*held)


def test_inference_steps(seen: Seen) -> None:
    objective = {"name": "ddpm", "num_train_timesteps": 14}
    session = PlaySession([tiny(objective=objective), tiny()], num_inference_steps=10)
    session.step()
    taken = []
    for command in [Command.MORE_STEPS] * 3 + [Command.FEWER_STEPS] * 14:
        session.handle(command)
        taken.append(session.num_inference_steps)
    assert taken == [12, 14, 14, 12, 10, 8, 6, 5, 4, 3, 2, 1, 1, 1, 1, 1, 1]
    assert session.message == "inference steps from the next plan on: 1"
    assert len(session.plan) == 8
    steps(session, 8)
    assert [count for _, count in seen] == [10, 1]


def test_after_quitting_nothing_happens() -> None:
    session = PlaySession([tiny(), tiny()])
    session.handle(Command.QUIT)
    assert session.finished
    start = pose(session)
    session.handle(Command.NEXT_SEED)
    session.handle(Command.NEXT_POLICY)
    assert not session.press(on_block(session))
    session.step()
    np.testing.assert_array_equal(pose(session), start)
    assert (session.seed, session.index, session.n_steps) == (100_000, 0, 0)


def test_messages_grow_old() -> None:
    session = PlaySession([tiny()])
    session.handle(Command.PAUSE)
    session.say("hello")
    steps(session, MESSAGE_STEPS - 1)
    assert session.message == "hello"
    session.step()
    assert session.message == ""


# --- the mouse ---


def test_a_drag_moves_the_block_and_the_policy_plans_from_what_it_sees(seen: Seen) -> None:
    session = PlaySession([tiny()], num_inference_steps=1)
    steps(session, 3)
    start = pose(session)
    x, y = on_block(session)
    assert session.pull(1.0) is None
    assert session.press((x, y))
    assert not session.press((x, y)), "there is one hand"
    np.testing.assert_allclose(session.pull(1.0), [(x, y), (x, y)])
    assert (len(session.plan), len(seen)) == (0, 1)
    session.move((x + 80, y + 60))
    steps(session, 3)
    assert len(seen) == 2
    moved = pose(session)[2:4] - start[2:4]
    assert moved @ [0.8, 0.6] > 40
    held = session.pull(1.0)
    assert held is not None
    assert held[1] == (x + 80, y + 60)
    assert math.dist(*held) < 60
    session.release()
    assert (session.pull(1.0), len(session.plan)) == (None, 0)
    session.step()
    assert len(seen) == 3
    before, newest = seen[-1][0]
    np.testing.assert_allclose(newest[-2:], pose(session, 0.0)[:2], rtol=1e-6)
    assert np.abs(newest - before).max() > 1


def test_pressing_beside_the_block_does_nothing() -> None:
    session = PlaySession([tiny()], num_inference_steps=1)
    steps(session, 2)
    for position in geometry.to_world([(-50.0, 80.0), (0.0, -20.0)], *session.pose(1.0)[1]):
        assert not session.press(position)
    session.move((10, 10))
    session.release()
    assert len(session.plan) == 7
    assert session.pull(1.0) is None


def test_the_block_is_pressed_where_it_is_shown() -> None:
    session = PlaySession([tiny()], num_inference_steps=1)
    drag(session, 150, 150, 3)
    session.release()
    shown = geometry.to_world([(0.0, 110.0)], *session.pose(0.0)[1])[0]
    really = geometry.to_world([(0.0, 110.0)], *session.pose(1.0)[1])[0]
    assert math.dist(shown, really) > 20
    assert session.press(shown, 0.0)
    np.testing.assert_allclose(session.pull(0.0), [shown, shown])


def test_no_drag_goes_through_a_wall() -> None:
    session = PlaySession([tiny()], seed=100_001, num_inference_steps=1)
    for target in ((-500, 250), (250, 900), (1000, 1000), (600, -300)):
        session.press(on_block(session))
        session.move(target)
        for now in steps(session, 15):
            center = geometry.to_world([geometry.BLOCK_CENTER_OF_GRAVITY], *now[2:])[0]
            assert all(10 < value < 500 for value in center)
        session.release()


def test_while_paused_the_block_can_be_put_elsewhere(seen: Seen) -> None:
    session = PlaySession([tiny()], num_inference_steps=1)
    steps(session, 4)
    agent, coverage = pose(session)[:2], session.max_coverage
    session.handle(Command.PAUSE)
    x, y = on_block(session, *geometry.BLOCK_CENTER_OF_GRAVITY)
    session.press((x, y))
    session.move((256 - 45 * math.sin(math.pi / 4), 256 + 45 * math.cos(math.pi / 4)))
    steps(session, 12)
    best = session.coverage
    session.move((400, 400))
    steps(session, 8)
    session.release()
    assert session.n_steps == 4
    np.testing.assert_array_equal(pose(session)[:2], agent)
    assert session.coverage < best
    assert session.max_coverage >= best > coverage
    put = pose(session)
    session.handle(Command.PAUSE)
    session.step()
    before, newest = seen[-1][0]
    env = PushTEnv("keypoints")
    expected, _ = env.reset(options={"state": put})
    np.testing.assert_allclose(newest, expected, rtol=1e-5)
    assert np.abs(before - newest).max() > 5, "it also sees where the block was"


@pytest.mark.parametrize("command", [Command.NEXT_SEED, Command.SAME_SEED])
def test_a_new_episode_takes_the_block_out_of_the_hand(command: Command) -> None:
    session = PlaySession([tiny()], num_inference_steps=1)
    drag(session, 50, 50, 2)
    session.handle(command)
    assert session.pull(1.0) is None
    session.move((0, 0))
    session.release()
    other = PlaySession([tiny()], seed=session.seed, num_inference_steps=1)
    np.testing.assert_array_equal(steps(session, 10), steps(other, 10))


@pytest.mark.parametrize("coupling", ["warm", "two_pass"])
def test_coupled_inference_does_not_take_an_interrupted_plan_as_executed(seen: Seen, coupling: str) -> None:
    session = PlaySession([tiny()], num_inference_steps=1, inference_coupling=coupling)
    counts = []
    for n_steps in (8, 8, 3):
        steps(session, n_steps)
        counts.append(len(seen))
    # Where nothing is known of the plan, a first attempt is sampled.
    assert counts == ([2, 3, 4] if coupling == "warm" else [2, 4, 6])
    session.disturb()
    session.step()
    assert len(seen) == counts[-1] + 2


# --- disturbances ---


def test_disturbances_are_drawn_from_the_seed_and_jump(seen: Seen) -> None:
    poses, messages = [], []
    session = PlaySession([tiny()], num_inference_steps=1)
    for seed in (0, 0, 1):
        if seed:
            session.handle(Command.NEXT_SEED)
        else:
            session.handle(Command.SAME_SEED)
        steps(session, 5)
        before = pose(session)
        session.handle(Command.DISTURB)
        after = pose(session)
        np.testing.assert_array_equal(pose(session, 0.0), after)
        np.testing.assert_array_equal(before[:2], after[:2])
        assert len(session.plan) == 0
        poses.append(after - before)
        messages.append(session.message)
    np.testing.assert_array_equal(poses[0], poses[1])
    assert (poses[0] != poses[2]).any()
    shift, turn = math.hypot(*poses[0][2:4]), math.degrees(poses[0][4])
    assert messages[0] == f"disturbed: the block was shifted by {shift:.0f} px and turned by {turn:+.0f} degrees"
    session.step()
    assert np.abs(np.diff(seen[-1][0], axis=0)).max() > 5
    np.testing.assert_allclose(seen[-1][0][-1][-2:], before[:2], rtol=1e-6)


def test_a_ghost_stays_for_a_while_where_the_block_was() -> None:
    session = PlaySession([tiny()], num_inference_steps=1)
    assert session.ghost is None
    before = session.pose(1.0)[1]
    session.disturb()
    strengths: list[float] = []
    for _ in range(GHOST_STEPS):
        assert session.ghost is not None
        assert session.ghost[0] == before
        strengths.append(session.ghost[1])
        session.step()
    assert session.ghost is None
    assert strengths[0] == 1
    assert (np.diff(strengths) < 0).all()
    session.disturb()
    session.handle(Command.SAME_SEED)
    assert session.ghost is None


def test_a_block_without_room_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    session = PlaySession([tiny()], num_inference_steps=1)
    session.step()
    session._env.world.block.position = (-900, 0)
    session.disturb()
    assert session.message == "the block at (-900, 0) has no room to be moved in"
    assert session.ghost is None


# --- what is refused ---


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PlaySession([]), "policies is empty"),
        (lambda: PlaySession([tiny()], seed=-1), "seed is -1; allowed: 0 to 4294967295"),
        (lambda: PlaySession([tiny()], num_inference_steps=0), "num_inference_steps is 0; allowed: 1 to 100"),
        (lambda: PlaySession([tiny()], num_inference_steps=101), "num_inference_steps is 101; allowed: 1 to 100"),
        (lambda: PlaySession([tiny()], inference_coupling="hot"), "inference_coupling='hot'"),
        (lambda: PlaySession([tiny()], noise_scale=-1), "noise_scale=-1: must be 0 or more"),
        (lambda: PlaySession([tiny(), tiny(coupling=None)], inference_coupling="warm"), "does not say which coupling"),
        (
            lambda: PlaySession([tiny(task={"env_id": "Ant-v5"})]),
            "tiny: its task is .*Ant-v5.*; this is for policies of",
        ),
    ],
)
def test_what_is_refused(make: Callable[[], PlaySession], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()

"""Candidate pushes: where they begin, how fast the target moves, and that the way to them touches nothing."""

from dataclasses import fields

import numpy as np
import pytest
import shapely

from envs.pusht import ways
from envs.pusht.geometry import AGENT_RADIUS, OUTLINE, WINDOW_SIZE, to_world
from envs.pusht.physics import World, WorldState
from envs.pusht.pushes import DemonstratorConfig, Pushes, Scene

CONFIG = DemonstratorConfig()
COUNT = 300
# The agent free of the block, far from it, at its bar, and at its stem.
STATES = (
    (120.0, 400.0, 256.0, 256.0, 0.3),
    (450.0, 60.0, 300.0, 200.0, -40.0),
    (256.0, 239.0, 256.0, 256.0, 0.0),
    (288.0, 320.0, 256.0, 256.0, 0.0),
)


def world_state(state: tuple[float, ...]) -> WorldState:
    world = World()
    world.place(state)
    return world.state()


def drawn(state: tuple[float, ...], config: DemonstratorConfig = CONFIG) -> tuple[Scene, Pushes]:
    scene = Scene(world_state(state), config)
    return scene, scene.draw(np.random.default_rng(1), COUNT)


def lengths(points: np.ndarray) -> np.ndarray:
    return np.linalg.norm(np.diff(points, axis=0), axis=1)


@pytest.mark.parametrize("state", STATES)
def test_targets_go_to_the_contact_push_and_rest(state: tuple[float, ...]) -> None:
    scene, pushes = drawn(state)
    targets, steps, ways_steps = scene.targets(pushes)
    assert targets.shape == (COUNT, steps.max(), 2)
    assert ((targets >= 0.0) & (targets <= WINDOW_SIZE)).all()
    starts = np.array(to_world(ways.CONTACTS.start.tolist(), *state[2:]))
    checked = 0
    for row in range(COUNT):
        count, on_the_way, whole = steps[row], ways_steps[row], targets[row]
        assert (whole[count:] == whole[count - 1]).all()
        assert (whole[count - CONFIG.hold_steps - 1 : count] == whole[count - 1]).all()
        if (whole[:count] == 0.0).any() or (whole[:count] == WINDOW_SIZE).any():
            continue  # cut off at the window's edge
        checked += 1
        line = np.vstack([state[:2], whole[:count]])
        contact = pushes.contact[row]
        if contact >= 0:
            np.testing.assert_allclose(line[on_the_way], starts[contact], atol=1e-9)
        else:
            assert on_the_way == 0
        assert (lengths(line[: on_the_way + 1]) <= CONFIG.way_speed + 1e-9).all()
        push = lengths(line[on_the_way : count - CONFIG.hold_steps + 1])
        assert (push <= CONFIG.push_speed + 1e-9).all()
        assert push.sum() == pytest.approx(pushes.length[row] + (ways.RUN_UP if contact >= 0 else 0.0))
    assert checked > COUNT / 2


@pytest.mark.parametrize("state", STATES)
def test_a_push_begins_against_the_outline_and_turns_evenly(state: tuple[float, ...]) -> None:
    scene, pushes = drawn(state)
    targets, steps, ways_steps = scene.targets(pushes)
    inward = np.array(to_world(ways.CONTACTS.inward.tolist(), 0.0, 0.0, state[4]))
    for row in np.flatnonzero(pushes.contact >= 0):
        push = targets[row, ways_steps[row] - 1 : steps[row] - CONFIG.hold_steps]
        if ((push <= 0.0) | (push >= WINDOW_SIZE)).any():
            continue
        x, y = np.diff(push, axis=0).T
        normal = inward[pushes.contact[row]]
        off = np.arctan2(normal[0] * y[0] - normal[1] * x[0], normal @ [x[0], y[0]])
        assert off == pytest.approx(pushes.angle[row], abs=1e-6)
        turns = np.diff(np.unwrap(np.arctan2(y, x)))
        np.testing.assert_allclose(turns, pushes.turn[row], atol=1e-6)
    assert (np.abs(pushes.turn) <= CONFIG.max_turn).all()
    assert ((pushes.length >= CONFIG.min_length) & (pushes.length <= CONFIG.max_length)).all()


@pytest.mark.parametrize("state", STATES)
def test_ways_keep_clear_of_the_block_and_of_the_windows_edge(state: tuple[float, ...]) -> None:
    scene, pushes = drawn(state)
    targets, _, ways_steps = scene.targets(pushes)
    block = shapely.Polygon(to_world(OUTLINE, *state[2:]))
    at_first = shapely.distance(block, shapely.Point(state[:2]))
    least = min(at_first, AGENT_RADIUS + ways.CLEARANCE)
    for row in np.flatnonzero(ways_steps):
        way = targets[row, : ways_steps[row]]
        assert shapely.distance(block, shapely.points(way)).min() >= least - 1e-6
        assert ((way[1:] >= CONFIG.margin) & (way[1:] <= WINDOW_SIZE - CONFIG.margin)).all()


def test_only_at_the_block_it_pushes_on() -> None:
    for state, at_block in zip(STATES, (False, False, True, True), strict=True):
        _, pushes = drawn(state)
        assert (pushes.contact < 0).any() == at_block
        assert (pushes.contact >= 0).any()


def test_where_the_margin_leaves_no_way_it_is_left() -> None:
    scene, pushes = drawn(STATES[0], DemonstratorConfig(margin=300.0))
    assert (pushes.contact >= 0).all()
    targets, _, _ = scene.targets(pushes)
    assert np.isfinite(targets).all()


def test_exact_copies_stay_and_others_vary() -> None:
    scene, pushes = drawn(STATES[2])
    exact = np.arange(COUNT) % 4 == 0
    copies = scene.perturb(pushes, np.random.default_rng(2), exact)
    varied = scene.vary(pushes, np.random.default_rng(2))
    for field in fields(Pushes):
        before, after = getattr(pushes, field.name), getattr(copies, field.name)
        np.testing.assert_allclose(after[exact], before[exact])
        if field.name != "turn":
            assert (after[~exact] != before[~exact]).mean() > 0.5
        assert (getattr(varied, field.name) != before).mean() > 0.5
    # Pushes on the spot stay there, and contacts stay such that can be reached.
    for others in (copies, varied):
        np.testing.assert_array_equal(others.contact < 0, pushes.contact < 0)
        assert np.isin(others.contact[others.contact >= 0], scene.draw(np.random.default_rng(3), 20_000).contact).all()
    assert (np.abs(varied.turn) <= CONFIG.max_turn).all()
    assert (varied.length > 0.0).all()
    assert len(pushes.take(np.array([3, 3, 5])).angle) == 3


@pytest.mark.parametrize("numbers", [(4, 8), (0, 0)])
def test_numbers_of_pushes_that_leave_none_are_refused(numbers):
    with pytest.raises(ValueError, match=r"n_candidates=.*needs 1 <= n_copies <= n_candidates"):
        DemonstratorConfig(n_candidates=numbers[0], n_copies=numbers[1])

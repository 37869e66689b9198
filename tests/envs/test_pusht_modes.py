"""Ways round the block on paths of known winding, contacts against the simulation's, and the mirror symmetry."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from envs.pusht import modes, ways
from envs.pusht.geometry import AGENT_RADIUS, GOAL_POSE, OUTLINE, coverage_batch
from envs.pusht.modes import CENTER, FACES, SIDES, first_contact, first_way, winding
from envs.pusht.physics import World
from envs.pusht.vector_env import PushTVectorEnv
from envs.pusht.vertices import points_in_world, vertices_in_world

Floats = NDArray[np.float64]

UPRIGHT = np.array([256.0, 200.0, 0.0])
SEEDS = st.integers(0, 10_000)


def in_window(local: Floats, poses: Floats) -> Floats:
    """Positions (T, 2) in the frames of blocks at poses (T, 3), in the window."""
    return np.stack([points_in_world(point[None], pose[None])[0, 0] for point, pose in zip(local, poses, strict=True)])


def circle(turns: float, radius: float = 180.0, begin: float = 0.3, count: int = 60) -> Floats:
    """Positions about the block's centre, in its frame, counter-clockwise on the screen for positive `turns`."""
    angle = begin - 2.0 * math.pi * turns * np.linspace(0.0, 1.0, count)
    return CENTER + radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def random_scene(seed: int, count: int = 30) -> tuple[Floats, Floats]:
    """A wandering agent and a block that wanders and turns as well: paths (count, 2) and (count, 3)."""
    random = np.random.default_rng(seed)
    agent = random.uniform(50, 450, 2) + np.cumsum(random.normal(0, 15, (count, 2)), axis=0)
    pose = random.uniform((150, 150, -3), (350, 350, 3)) + np.cumsum(random.normal(0, (2, 2, 0.05), (count, 3)), axis=0)
    return agent, pose


def touching_at_the_end(seed: int) -> tuple[Floats, Floats]:
    """A way of 20 samples around a block at rest in a random pose and straight at it from there."""
    random = np.random.default_rng(seed)
    contact = int(random.integers(len(ways.CONTACTS)))
    touching = ways.CONTACTS.point[contact] - (AGENT_RADIUS - 0.5) * ways.CONTACTS.inward[contact]
    local = np.concatenate([circle(random.uniform(-1.5, 1.5), begin=random.uniform(0, 6), count=20), touching[None]])
    poses = np.tile(random.uniform((150, 150, -3), (350, 350, 3)), (len(local), 1))
    return in_window(local, poses), poses


def turned_and_moved(agent: Floats, pose: Floats, angle: float, shift: Floats) -> tuple[Floats, Floats]:
    frame = np.array([[*shift, angle]])
    positions = points_in_world(pose[:, :2], frame)[0]
    return points_in_world(agent, frame)[0], np.column_stack([positions, pose[:, 2] + angle])


# --- winding ---


@pytest.mark.parametrize("turns", [-2.5, -1.0, -0.3, 0.0, 0.25, 0.5, 1.0, 1.7])
def test_winding_of_circles_about_a_block_that_moves_and_turns(turns: float) -> None:
    _, poses = random_scene(3, 60)
    local = circle(turns)
    for pose in (np.tile(UPRIGHT, (60, 1)), poses):
        swept = winding(in_window(local, pose), pose)
        np.testing.assert_allclose(swept, 2.0 * math.pi * turns * np.linspace(0.0, 1.0, 60), atol=1e-9)


def test_positive_is_counter_clockwise_on_the_screen() -> None:
    """From the right of the block to above it, where y is smaller."""
    center = UPRIGHT[:2] + CENTER
    agent = center + np.array([[150.0, 0.0], [0.0, -150.0]])
    np.testing.assert_allclose(winding(agent, np.tile(UPRIGHT, (2, 1))), [0.0, math.pi / 2])


@pytest.mark.parametrize("count", [8, 400])
def test_winding_hardly_depends_on_how_often_the_path_is_sampled(count: int) -> None:
    pose = np.tile(UPRIGHT, (count, 1))
    assert winding(in_window(circle(1.4, count=count), pose), pose)[-1] == pytest.approx(2.8 * math.pi)


@given(SEEDS, st.floats(-7, 7), st.floats(-300, 300), st.floats(-300, 300))
@settings(max_examples=60, deadline=None)
def test_ways_do_not_depend_on_where_the_scene_lies(seed: int, angle: float, x: float, y: float) -> None:
    for scene in (random_scene(seed), touching_at_the_end(seed)):
        before, after = first_way(*scene), first_way(*turned_and_moved(*scene, angle, np.array([x, y])))
        assert after.winding == pytest.approx(before.winding, abs=1e-9)
        assert (after.contact, after.face, after.side) == (before.contact, before.face, before.side)
        assert after.mode == before.mode


@given(SEEDS)
@settings(max_examples=60, deadline=None)
def test_mirroring_turns_ways_round(seed: int) -> None:
    opposite = {"left": "right", "right": "left", "clockwise": "counter_clockwise", "counter_clockwise": "clockwise"}
    for scene in (random_scene(seed), touching_at_the_end(seed)):
        mirrored = modes.mirror(np.concatenate(scene, axis=1))
        before, after = first_way(*scene), first_way(mirrored[:, :2], mirrored[:, 2:])
        assert after.winding == pytest.approx(-before.winding, abs=1e-9)
        assert after.contact == before.contact
        assert after.side == opposite.get(str(before.side), before.side)
        assert after.mode == opposite.get(before.mode, before.mode)


def test_a_way_of_every_mode() -> None:
    touching = np.array([[0.0, 120.0 + AGENT_RADIUS - 0.5]])
    for turns, mode in ((0.0, "direct"), (0.1, "direct"), (0.3, "counter_clockwise"), (-1.2, "clockwise")):
        # Ends below the stem, after `turns`.
        local = np.concatenate([circle(turns, begin=math.pi / 2 + 2.0 * math.pi * turns), touching])
        way = first_way(in_window(local, np.tile(UPRIGHT, (61, 1))), np.tile(UPRIGHT, (61, 1)))
        assert (way.mode, way.face, way.side, way.contact) == (mode, "stem end", "stem end", 60)
        assert way.winding == pytest.approx(2.0 * math.pi * turns)
    away = circle(0.9)
    pose = np.tile(UPRIGHT, (60, 1))
    way = first_way(in_window(away, pose), pose)
    assert (way.mode, way.face, way.side, way.contact) == ("none", None, None, None)
    assert way.winding == pytest.approx(1.8 * math.pi)
    some = np.concatenate([circle(0.3, begin=math.pi / 2 + 0.6 * math.pi), touching])
    assert first_way(in_window(some, np.tile(UPRIGHT, (61, 1))), np.tile(UPRIGHT, (61, 1)), direct=2.0).mode == "direct"


def test_the_way_ends_at_the_first_contact() -> None:
    """Going on around afterwards changes nothing."""
    agent, pose = touching_at_the_end(11)
    longer = np.concatenate([agent, in_window(circle(2.0), np.tile(pose[:1], (60, 1)))])
    assert first_way(longer, np.tile(pose[:1], (81, 1))) == first_way(agent, pose)


def test_from_the_axis_direct_is_touching_the_top_of_the_bar() -> None:
    outline = np.array(OUTLINE)
    for face, (start, end) in enumerate(zip(outline, np.roll(outline, -1, axis=0), strict=True)):
        normal = np.array([end[1] - start[1], start[0] - end[0]]) / np.linalg.norm(end - start)
        for along in (0.01, 0.3, 0.7, 0.99):
            touching = start + along * (end - start) + (AGENT_RADIUS - 1e-3) * normal
            if ways.distance_to_block(touching) < AGENT_RADIUS - 2e-3:
                continue  # in an inner corner
            below = touching[1] > 60.0
            around = [[math.copysign(150.0, touching[0]), touching[1]]] * bool(below or abs(touching[0]) < 60.0)
            local = np.array([[0.0, -120.0], *([] if face == 0 else around), touching])
            pose = np.tile(UPRIGHT, (len(local), 1))
            way = first_way(in_window(local, pose), pose)
            assert way.contact == len(local) - 1
            assert way.face == FACES[face]
            assert (way.mode == "direct") == (SIDES[face] == "top")


# --- contacts and faces ---


def test_faces_and_sides_are_those_of_the_upright_block() -> None:
    outline = np.array(OUTLINE)
    middles = (outline + np.roll(outline, -1, axis=0)) / 2.0
    left = {side: middles[[s == side for s in SIDES], 0] for side in set(SIDES)}
    assert (left["left"] < 0).all()
    assert (left["right"] > 0).all()
    assert not left["top"].any()
    assert not left["stem end"].any()
    for face, point in enumerate(middles):
        assert modes.nearest_face(UPRIGHT[:2] + point, UPRIGHT) == face
    # Diagonally beyond a corner, a little more to one side and to the other.
    for u, v, face_name in (
        (70.0, -11.0, "bar top"),
        (71.0, -10.0, "bar end, right"),
        (-71.0, -10.0, "bar end, left"),
        (-20.0, 128.0, "stem end"),
    ):
        assert FACES[modes.nearest_face(UPRIGHT[:2] + np.array([u, v]), UPRIGHT)] == face_name


def wandering(starts: Floats, steps: int, seed: int) -> Floats:
    """Actions (N, steps, 2) that spiral towards the block, with noise."""
    random, count = np.random.default_rng(seed), len(starts)
    center = points_in_world(CENTER[None], starts[:, 2:])[:, 0]
    x, y = (starts[:, :2] - center).T
    angle = np.arctan2(y, x)[:, None] + random.uniform(-0.25, 0.25, (count, 1)) * np.arange(1, steps + 1)
    radius = np.hypot(x, y)[:, None] * (1.0 - random.uniform(0.0, 0.06, (count, 1)) * np.arange(1, steps + 1))
    around = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    return center[:, None] + np.maximum(radius, 5.0)[..., None] * around + random.normal(0, 10, (count, steps, 2))


def simulated(states: Floats, actions: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """States (N, steps + 1, 5) and contact counts (N, steps + 1)."""
    env = PushTVectorEnv(len(states))
    _, info = env.reset(options={"state": states})
    infos: list[dict[str, Any]] = [info]
    for step in range(actions.shape[1]):
        infos.append(env.step(actions[:, step])[-1])
    paths = [np.concatenate([info["pos_agent"], info["block_pose"]], axis=1) for info in infos]
    return np.stack(paths, axis=1), np.stack([info["n_contacts"] for info in infos], axis=1)


def test_first_contact_is_the_simulations() -> None:
    states = modes.symmetric_starts(64, 1)
    paths, counts = simulated(states, wandering(states, 40, 0))
    expected = [int((count > 0).argmax()) if count.any() else None for count in counts]
    assert 5 < expected.count(None) < 30
    for path, count, index in zip(paths, counts, expected, strict=True):
        assert first_contact(path[:, :2], path[:, 2:]) == index
        assert first_contact(path[:, :2], path[:, 2:], count) == index


def test_contacts_with_a_wall_are_not_the_agents() -> None:
    """The stem stands in the right wall, which moves the block while the agent passes the bar."""
    start = np.array([[300.0, 200.0, 400.0, 250.0, -math.pi / 2]])
    paths, counts = simulated(start, np.array([[[300.0, 200.0], [370.0, 170.0], [370.0, 330.0], [420.0, 300.0]]]))
    path, count = paths[0], counts[0]
    assert count[1] > 0
    assert not np.array_equal(path[0, 2:], path[1, 2:])
    contact = first_contact(path[:, :2], path[:, 2:], count)
    assert contact is not None
    assert contact > 1
    silent = np.where(np.arange(len(count)) == contact, 0, count)
    assert first_contact(path[:, :2], path[:, 2:], silent) != contact


def test_an_agent_that_begins_in_the_block_has_touched() -> None:
    agent, pose = np.tile([256.0, 210.0], (3, 1)), np.tile(UPRIGHT, (3, 1))
    assert first_contact(agent, pose) == 0
    assert first_contact(agent, pose, np.zeros(3)) == 0
    assert first_way(agent, pose).mode == "direct"


def test_first_contacts_of_human_demonstrations_are_those_of_their_replay(pusht_demonstrations: Path) -> None:
    store = zarr.open_group(str(pusht_demonstrations), mode="r")
    states: Any = store["data/state"]
    actions: Any = store["data/action"]
    ends: Any = store["meta/episode_ends"]
    begins = [0, *ends[:40]]
    checked = 0
    for begin, end in pairwise(begins):
        recorded = np.asarray(states[begin : min(end, begin + 80)], np.float64)
        world = World()
        world.place(recorded[0].tolist())
        world.settle()
        counts = [0]
        for action in actions[begin : begin + len(recorded) - 1]:
            world.advance(*action.tolist())
            counts.append(world.contact_points)
        expected = int(np.flatnonzero(counts)[0])
        assert first_contact(recorded[:, :2], recorded[:, 2:]) == expected
        checked += 1
    assert checked == 40


@pytest.mark.parametrize(
    ("agent", "pose", "contacts", "message"),
    [
        (np.zeros((0, 2)), np.zeros((0, 3)), None, r"agent has shape \(0, 2\)"),
        (np.zeros((4, 3)), np.zeros((4, 3)), None, r"agent has shape \(4, 3\)"),
        (np.zeros((4, 2)), np.zeros((3, 3)), None, r"pose has shape \(3, 3\); allowed: \(4, 3\)"),
        (np.full((4, 2), np.nan), np.zeros((4, 3)), None, "agent has 8 numbers that are NaN"),
        (np.full((4, 2), 400.0), np.zeros((4, 3)), np.zeros(3), r"contacts has shape \(3,\); allowed: \(4,\)"),
    ],
)
def test_wrong_arguments_are_named(agent: Floats, pose: Floats, contacts: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        first_contact(agent, pose, contacts)
    with pytest.raises(ValueError, match="direct is -1"):
        first_way(np.zeros((1, 2)), np.zeros((1, 3)), direct=-1.0)


# --- symmetry ---


def test_the_mirror_of_the_standard_goal() -> None:
    np.testing.assert_allclose(modes.mirror_action([100.0, 30.0]), [482.0, 412.0])
    state = np.array([100.0, 30.0, 200.0, 250.0, 0.4])
    expected = [482.0, 412.0, 262.0, 312.0, math.pi / 2 - 0.4]
    np.testing.assert_allclose(modes.mirror(state), expected)
    np.testing.assert_allclose(modes.mirror(modes.mirror(state)), state)


@given(SEEDS)
@settings(max_examples=40, deadline=None)
def test_a_mirrored_block_is_the_mirror_image_of_the_block_and_covers_as_much(seed: int) -> None:
    random = np.random.default_rng(seed)
    goal = tuple(random.uniform((200, 200, -4), (300, 300, 4)))
    state = np.concatenate([random.uniform(0, 512, 2), random.uniform((180, 180, -4), (320, 320, 4))])
    image = modes.mirror(state, goal)
    images = modes.mirror_action(vertices_in_world(state[None, 2:]).reshape(-1, 2), goal)
    found = vertices_in_world(image[None, 2:]).reshape(-1, 2)
    assert np.linalg.norm(images[:, None] - found, axis=-1).min(axis=1).max() < 1e-9
    here, there = coverage_batch([state[2:], image[2:]], goal)
    assert there == pytest.approx(here, abs=1e-9)
    np.testing.assert_allclose(modes.asymmetry(image, goal), modes.asymmetry(state, goal), atol=1e-9)


def test_symmetric_starts_are_their_own_mirror_images() -> None:
    for goal in (GOAL_POSE, (240.0, 270.0, -0.5)):
        starts = modes.symmetric_starts(32, 5, goal)
        difference = modes.mirror(starts, goal) - starts
        assert np.abs(difference[:, :4]).max() < 1e-9
        assert np.abs(np.sin(difference[:, 4] / 2)).max() < 1e-9
        distance, angle = modes.asymmetry(starts, goal)
        assert max(distance.max(), angle.max()) < 1e-9


def test_asymmetry_of_displaced_and_turned_states() -> None:
    [start] = modes.symmetric_starts(1, 0)
    across = np.array([1.0, 1.0]) / math.sqrt(2.0)
    for agent, block in ((7.0, 0.0), (0.0, -9.0), (3.0, 4.0)):
        state = start + np.concatenate([agent * across, block * across, [0.0]])
        distance, angle = modes.asymmetry(state)
        assert distance == pytest.approx(max(abs(agent), abs(block)))
        assert angle == pytest.approx(0.0, abs=1e-9)
    # About its centre, so that only the angle changes.
    for turn in (0.2, -0.2, math.pi + 0.2, 3.0 * math.pi - 0.2):
        center = points_in_world(CENTER[None], start[None, 2:])[0, 0]
        moved = start.copy()
        moved[4] += turn
        moved[2:4] += center - points_in_world(CENTER[None], moved[None, 2:])[0, 0]
        distance, angle = modes.asymmetry(moved)
        assert distance == pytest.approx(0.0, abs=1e-9)
        assert angle == pytest.approx(0.2)


def test_symmetric_starts_are_valid_and_the_agent_has_to_go_round() -> None:
    starts = modes.symmetric_starts(200, 0)
    local = modes.in_block_frame(starts[:, :2], starts[:, 2:])
    gap = ways.distance_to_block(local) - AGENT_RADIUS
    assert gap.min() >= 20.0
    assert gap.max() <= 120.0
    assert ((starts[:, :2] >= 50.0) & (starts[:, :2] <= 450.0)).all()
    vertices = vertices_in_world(starts[:, 2:])
    assert vertices.min() >= 7.0 + 2.0 * AGENT_RADIUS
    assert vertices.max() <= 504.0 - 2.0 * AGENT_RADIUS
    center = points_in_world(CENTER[None], starts[:, 2:])[:, 0]
    to_goal = points_in_world(CENTER[None], [GOAL_POSE])[0, 0] - center
    moved = np.linalg.norm(to_goal, axis=1)
    assert moved.min() >= 40.0
    # The agent is where the block has to go, and the block between it and the place to push from.
    to_agent = starts[:, :2] - center
    np.testing.assert_allclose((to_goal * to_agent).sum(axis=1), moved * np.linalg.norm(to_agent, axis=1))
    behind = modes.in_block_frame(center - 100.0 * to_goal / moved[:, None], starts[:, 2:])
    assert ways.distance_to_block(behind).min() > AGENT_RADIUS
    assert ways.blocked(local, behind).all()
    assert coverage_batch(starts[:, 2:]).max() < 0.8


def test_symmetric_starts_are_of_four_kinds_and_fixed_by_their_seed() -> None:
    starts = modes.symmetric_starts(40, 3)
    np.testing.assert_array_equal(starts[:7], modes.symmetric_starts(7, 3))
    assert not np.array_equal(starts, modes.symmetric_starts(40, 4))
    assert len(np.unique(starts, axis=0)) == 40
    turned = np.abs(np.cos(starts[:, 4]) - math.cos(GOAL_POSE[2])) > 1.0
    center = points_in_world(CENTER[None], starts[:, 2:])[:, 0]
    lower_left = center[:, 0] < points_in_world(CENTER[None], [GOAL_POSE])[0, 0, 0]
    np.testing.assert_array_equal(turned, np.arange(40) % 2 == 1)
    np.testing.assert_array_equal(lower_left, np.arange(40) // 2 % 2 == 0)


@pytest.mark.parametrize("legacy", [False, True])
def test_episodes_begin_in_symmetric_starts(legacy: bool) -> None:
    starts = modes.symmetric_starts(16, 2)
    given = modes.reset_states(starts, legacy)
    assert np.array_equal(given, starts) is not legacy
    assert ((given[:, 2:4] >= 100.0) & (given[:, 2:4] <= 400.0)).all() or not legacy
    env = PushTVectorEnv(16, legacy=legacy)
    _, info = env.reset(options={"state": given})
    np.testing.assert_allclose(info["pos_agent"], starts[:, :2], atol=1e-9)
    np.testing.assert_allclose(info["block_pose"], starts[:, 2:], atol=1e-9)
    assert not info["n_contacts"].any()


def test_mirrored_actions_give_the_mirrored_trajectory() -> None:
    starts = modes.symmetric_starts(32, 1)
    actions = wandering(starts, 40, 0)
    paths, counts = simulated(starts, actions)
    images, _ = simulated(modes.mirror(starts), modes.mirror_action(actions))
    assert (counts > 0).any(axis=1).sum() > 20
    difference = np.abs(images - modes.mirror(paths)).max(axis=(1, 2))
    # Rounding, which long contact can amplify.
    assert np.quantile(difference, 0.8) < 1e-8
    untouched = np.cumsum(counts > 0, axis=1) == 0
    assert np.abs(images - modes.mirror(paths))[untouched].max() < 1e-9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0), "n is 0; allowed: an integer of at least 1"),
        ((2.0, 0), "n is 2.0"),
        ((1, -1), "seed is -1; allowed: an integer of at least 0"),
        ((4, 0, (10.0, 10.0, 0.0)), r"goal_pose is \(10.0, 10.0, 0.0\); allowed: one with room"),
    ],
)
def test_impossible_starts_are_named(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        modes.symmetric_starts(*arguments)

"""Pulling the block by hand and putting it elsewhere: where it goes, and where it must not go."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import Point, Polygon

from envs.pusht import PushTEnv, geometry
from envs.pusht.dragging import GRAB_MARGIN, MAX_SHIFT, MAX_TURN, Drag, displace, hold_agent, point_on_block
from envs.pusht.physics import World

INSIDE = 7.0, 504.0


def world(*state: float) -> World:
    env = PushTEnv()
    env.reset(options={"state": state})
    return env.world


def block_pose(world: World) -> tuple[float, float, float]:
    return (*world.block.position, world.block.angle)


def beyond_walls(world: World) -> float:
    outline = np.array(geometry.to_world(geometry.OUTLINE, *block_pose(world)))
    return float(max(INSIDE[0] - outline.min(), outline.max() - INSIDE[1], 0.0))


def center(world: World) -> np.ndarray:
    return np.array(world.block.local_to_world(world.block.center_of_gravity))


@settings(max_examples=200, deadline=None)
@given(st.floats(0, 512), st.floats(0, 512), st.floats(-7, 7), st.floats(-150, 150), st.floats(-150, 150))
def test_the_block_is_held_where_it_is_pressed(x: float, y: float, angle: float, dx: float, dy: float) -> None:
    outline = Polygon(geometry.to_world(geometry.OUTLINE, x, y, angle))
    position = (x + dx, y + dy)
    distance = outline.distance(Point(position))
    held = point_on_block((x, y, angle), position)
    if abs(distance - GRAB_MARGIN) > 1e-6:
        assert (held is not None) == (distance < GRAB_MARGIN)
    if held is not None:
        ((held_x, held_y),) = geometry.to_world([held], x, y, angle)
        assert math.dist((held_x, held_y), position) == pytest.approx(distance, abs=1e-6)


@pytest.mark.parametrize("held", [(0.0, 45.0), (-55.0, 10.0), (0.0, 118.0)])
def test_what_is_held_follows_the_hand_and_stays_when_released(held: tuple[float, float]) -> None:
    there = world(20, 20, 256, 200, 0.3)
    start = there.block.local_to_world(held)
    drag = Drag(there, held, start)
    hand = (start[0] + 70, start[1] + 60)
    drag.move(hand)
    before = 92.2
    for _ in range(8):
        hold_agent(there)
        left = math.dist(there.block.local_to_world(held), hand)
        assert left < max(before, 0.1)
        before = left
    assert before < 0.1
    drag.release()
    pose = block_pose(there)
    for _ in range(3):
        there.advance(20, 20)
    np.testing.assert_allclose(block_pose(there), pose, atol=1e-6)


def test_pulled_at_an_end_the_block_turns_towards_the_hand() -> None:
    there = world(20, 20, 256, 256, 0.0)
    drag = Drag(there, (55.0, 15.0), (311.0, 271.0))
    drag.move((311.0, 371.0))
    for _ in range(10):
        hold_agent(there)
    assert there.block.angle > 0.5


def test_the_hand_stays_in_the_window() -> None:
    drag = Drag(world(20, 20, 256, 256, 0.0), (0.0, 0.0), (256, 256))
    drag.move((-40, 700))
    assert drag.hand == (0, 512)


def test_hold_agent_moves_nothing_but_what_is_held() -> None:
    there = world(100, 100, 300, 300, 0.0)
    there.advance(200, 180)
    agent, velocity, pose = there.agent.position, there.agent.velocity, block_pose(there)
    assert abs(velocity) > 100
    hold_agent(there)
    assert (there.agent.position, there.agent.velocity, block_pose(there)) == (agent, velocity, pose)
    Drag(there, (0.0, 45.0), (300, 300))
    hold_agent(there)
    assert block_pose(there) != pose
    assert (there.agent.position, there.agent.velocity) == (agent, velocity)


def test_no_hand_pulls_the_block_through_a_wall() -> None:
    random = np.random.default_rng(0)
    deepest = 0.0
    for _ in range(40):
        there = world(0, 0, *random.uniform(200, 300, 2), random.uniform(0, 6.3))
        there.agent.position = (-900, -900)  # out of the way
        there.space.reindex_shapes_for_body(there.agent)
        held = (
            (random.uniform(-60, 60), random.uniform(0, 30)) if random.random() < 0.5 else (0, random.uniform(30, 120))
        )
        drag = Drag(there, held, (256, 256))
        for _ in range(6):
            drag.move(tuple(random.uniform(-400, 900, 2)))
            for _ in range(5):
                hold_agent(there)
                deepest = max(deepest, beyond_walls(there))
        drag.release()
        there.advance(-200, -200)
    # The walls are drawn 4 px wide; what the block is pressed in, it comes out again.
    assert deepest < 6


def test_a_block_that_was_pressed_through_a_wall_can_be_pulled_back() -> None:
    there = world(20, 20, 512, 256, math.pi / 2)
    there.block.position = (560, 256)  # the agent can press it so far: bar and centre of gravity are outside
    there.space.reindex_shapes_for_body(there.block)
    assert center(there)[0] > 512
    assert beyond_walls(there) == pytest.approx(56)
    drag = Drag(there, (0.0, 110.0), (450, 256))
    drag.move((300, 256))
    for _ in range(15):
        there.advance(20, 20)
    assert beyond_walls(there) == 0
    assert math.dist(there.block.local_to_world(drag.held_at), (300, 256)) < 0.1


def test_after_a_drag_the_world_has_its_own_walls_again() -> None:
    there = world(20, 20, 256, 256, 0.0)
    shapes, bodies = set(there.space.shapes), set(there.space.bodies)
    drag = Drag(there, (0.0, 0.0), (256, 256))
    assert set(there.space.shapes) > shapes
    drag.release()
    assert (set(there.space.shapes), set(there.space.bodies), list(there.space.constraints)) == (shapes, bodies, [])
    # What the walls did before, they do again: the agent pushes the block against one and it stays.
    untouched = world(20, 20, 256, 256, 0.0)
    for target in ([256, 20], [256, 430], [256, 460]):
        for _ in range(12):
            there.advance(*target)
            untouched.advance(*target)
    np.testing.assert_allclose(block_pose(there), block_pose(untouched), atol=1e-6)


def test_displaced_blocks_touch_nothing_and_move_no_farther_than_allowed() -> None:
    shifts, turns = [], []
    for seed in range(200):
        there = world(230, 250, 150, 200, 1.0)
        pose = displace(there, np.random.default_rng(seed))
        assert block_pose(there) == pytest.approx(pose)
        assert beyond_walls(there) == 0
        shifts.append(math.dist(pose[:2], (150, 200)))
        turns.append(pose[2] - 1.0)
        there.settle()
        there.advance(230, 250)
        assert there.contact_points == 0
        assert block_pose(there) == pytest.approx(pose)
    assert MAX_SHIFT * 0.9 < max(shifts) <= MAX_SHIFT
    assert MAX_TURN * 0.9 < max(np.abs(turns)) <= MAX_TURN
    assert min(turns) < -1.2
    again = displace(world(230, 250, 150, 200, 1.0), np.random.default_rng(3))
    assert again == displace(world(230, 250, 150, 200, 1.0), np.random.default_rng(3))


def test_no_room_is_said() -> None:
    there = world(20, 20, 256, 256, 0.0)
    there.block.position = (-400, 256)
    with pytest.raises(ValueError, match=r"the block at \(-400, 256\) has no room"):
        displace(there, np.random.default_rng(0))

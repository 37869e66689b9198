"""The control law, placing of states, contact counting, and the collision callbacks of pymunk 6 and 7."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pymunk
import pytest

from envs.pusht import geometry
from envs.pusht.physics import (
    World,
    add_walls,
    controlled_velocity,
    limited,
    make_agent,
    make_block,
    make_space,
    on_contact,
    place_bodies,
)

FAR_FROM_BLOCK = (60.0, 60.0, 350.0, 350.0, 0.0)


def closed_form(start: float, target: float, substeps: int) -> float:
    """Position after `substeps` from rest: the error and velocity follow a constant 2 x 2 matrix."""
    dt = geometry.TIME_STEP
    gain, damping = geometry.POSITION_GAIN * dt, geometry.VELOCITY_GAIN * dt
    update = np.array([[1 - gain * dt, -(1 - damping) * dt], [gain, 1 - damping]])
    error, _ = np.linalg.matrix_power(update, substeps) @ (target - start, 0.0)
    return target - error


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_agent_follows_the_closed_form_of_the_control_law(steps: int) -> None:
    world = World()
    world.place(FAR_FROM_BLOCK)
    for _ in range(steps):
        world.advance(180.0, 30.0)
    x, y = world.agent.position
    assert x == pytest.approx(closed_form(60.0, 180.0, 10 * steps), abs=1e-9)
    assert y == pytest.approx(closed_form(60.0, 30.0, 10 * steps), abs=1e-9)


def test_agent_moves_as_if_its_position_was_read_at_every_physics_step() -> None:
    world, plain = World(), World()
    state = (200.0, 200.0, 256.0, 256.0, 0.3)
    world.place(state)
    plain.place(state)
    for target in np.random.default_rng(0).uniform(150, 350, size=(40, 2)).tolist():
        world.advance(*target)
        for _ in range(10):
            velocity = [
                controlled_velocity(*axis)
                for axis in zip(plain.agent.position, plain.agent.velocity, target, strict=True)
            ]
            plain.agent.velocity = tuple(velocity)
            plain.space.step(0.01)
    assert np.allclose(world.agent.position, plain.agent.position, rtol=0, atol=1e-9)
    assert np.allclose(world.block.position, plain.block.position, rtol=0, atol=1e-6)
    assert world.block.position != (256.0, 256.0)


def test_agent_never_overshoots_an_absolute_target() -> None:
    world = World()
    world.place(FAR_FROM_BLOCK)
    positions = [60.0]
    for _ in range(30):
        world.advance(300.0, 60.0)
        positions.append(world.agent.position.x)
    assert all(before < after < 300.0 for before, after in pairwise(positions))


@pytest.mark.parametrize("angle", [0.0, 1.0, -2.5, 9.0])
def test_angle_first_ends_exactly_at_the_state(angle: float) -> None:
    world = World()
    world.place((100.0, 110.0, 300.0, 250.0, angle))
    world.settle()
    assert world.agent.position == (100.0, 110.0)
    assert world.block.position == pytest.approx((300.0, 250.0), abs=1e-9)
    assert world.block.angle == angle


@pytest.mark.parametrize("angle", [0.0, 1.0, -2.5])
def test_position_first_turns_the_block_about_its_center_of_gravity(angle: float) -> None:
    world = World()
    world.place((100.0, 110.0, 300.0, 250.0, angle), position_first=True)
    # The centre of gravity, 45 px below the origin, stays where the upright block had it.
    expected = (300.0 + 45.0 * math.sin(angle), 250.0 + 45.0 - 45.0 * math.cos(angle))
    assert world.block.position == pytest.approx(expected, abs=1e-9)


def test_position_first_moves_even_the_goal_pose() -> None:
    world = World()
    world.place((0.0, 0.0, *geometry.GOAL_POSE), position_first=True)
    x, y = world.block.position
    assert (x, y) == pytest.approx((287.82, 269.18), abs=0.005)
    assert geometry.coverage(x, y, world.block.angle) == pytest.approx(0.298, abs=5e-4)


def test_block_stops_when_it_is_no_longer_pushed() -> None:
    world = World()
    world.place((256.0, 200.0, 256.0, 256.0, 0.0))
    for _ in range(5):
        world.advance(256.0, 300.0)
    assert world.block.position.y > 256.0
    for _ in range(5):
        world.advance(256.0, 100.0)
    resting = world.state()
    world.advance(256.0, 100.0)
    assert world.state().block_position == resting.block_position
    assert resting.block_velocity == (0.0, 0.0)
    assert resting.block_angular_velocity == 0.0


def test_walls_push_the_block_back_inside() -> None:
    world = World()
    # The stem's end, 120 px below the origin, starts 3 px inside the wall, whose face is at 506 - 2.
    world.place((60.0, 60.0, 256.0, 387.0, 0.0))
    for _ in range(200):
        world.space.step(0.01)
    # The engine leaves an overlap of 0.1 px, its collision slop, and turns nothing: the push is central.
    assert world.block.position.y + 120.0 == pytest.approx(504.1, abs=0.02)
    assert world.block.position.x == pytest.approx(256.0, abs=1e-3)
    assert world.block.angle == pytest.approx(0.0, abs=1e-3)


def test_agent_passes_through_walls() -> None:
    world = World()
    world.place(FAR_FROM_BLOCK)
    for _ in range(30):
        world.advance(-100.0, 60.0)
    assert world.agent.position.x == pytest.approx(-100.0, abs=1e-3)


def test_targets_are_limited_to_half_a_window_around_it() -> None:
    targets = np.array([[-1e308, 1e308], [-256.0, 768.0], [-255.9, 767.9], [0.0, 512.0], [-np.inf, np.inf]])
    expected = [[-256.0, 768.0], [-256.0, 768.0], [-255.9, 767.9], [0.0, 512.0], [-256.0, 768.0]]
    assert limited(targets).tolist() == expected
    assert limited(np.float64(900.0)) == 768.0
    assert targets[0, 0] == -1e308


@pytest.mark.parametrize(("far", "near"), [(1e308, 768.0), (-1e9, -256.0), (768.001, 768.0)])
def test_agent_goes_no_farther_than_the_limit(far: float, near: float) -> None:
    worlds = World(), World()
    for world, target in zip(worlds, (far, near), strict=True):
        world.place(FAR_FROM_BLOCK)
        for _ in range(40):
            world.advance(target, 60.0)
    assert worlds[0].state() == worlds[1].state()
    assert worlds[0].agent.position.x == pytest.approx(near, abs=1e-3)


@pytest.mark.parametrize("position_first", [False, True])
def test_a_used_world_is_placed_like_a_fresh_one(position_first: bool) -> None:
    state = (100.0, 110.0, 300.0, 250.0, -2.5)
    used, fresh = World(), World()
    used.place((256.0, 200.0, 256.0, 240.0, 0.3))
    for _ in range(5):
        used.advance(256.0, 300.0)
    for world in (used, fresh):
        world.place(state, position_first)
    for found, expected in zip(used.state(), fresh.state(), strict=True):
        assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("position_first", [False, True])
def test_bodies_at_another_origin_move_as_at_the_first(position_first: bool) -> None:
    """All about one world, moved as a whole."""
    poses = []
    for origin in ((0.0, 0.0), (4096.0, -300.0)):
        space = make_space()
        add_walls(space, origin)
        (agent, agent_shapes), (block, block_shapes) = make_agent(), make_block()
        space.add(agent, *agent_shapes, block, *block_shapes)
        place_bodies(agent, block, (440.0, 300.0, 400.0, 320.0, 1.0), position_first, origin)
        for _ in range(60):
            agent.velocity = (-150.0, 70.0)
            space.step(geometry.TIME_STEP)
        places = np.array([agent.position, block.position]) - origin
        poses.append([*places.ravel().tolist(), block.angle])
    assert poses[1] == pytest.approx(poses[0], abs=1e-6)
    assert abs(poses[0][4] - 1.0) > 0.01


def test_contacts_are_points_per_physics_step_rounded_up() -> None:
    world = World()
    world.place(FAR_FROM_BLOCK)
    world.advance(70.0, 70.0)
    assert (world.contact_points, world.mean_contacts) == (0, 0)
    world.place((256.0, 240.0, 256.0, 256.0, 0.0))
    world.advance(256.0, 300.0)
    assert 0 < world.contact_points <= 20
    assert world.mean_contacts == -(-world.contact_points // 10)
    world.contact_points = 1
    assert world.mean_contacts == 1
    world.contact_points = 11
    assert world.mean_contacts == 2


def test_space_is_quasi_static() -> None:
    space = make_space()
    assert space.damping == 0.0
    assert tuple(space.gravity) == (0.0, 0.0)


class Pymunk6Space:
    """The part of pymunk 6's Space that `on_contact` needs."""

    def __init__(self) -> None:
        self.handler = type("Handler", (), {"post_solve": None})()
        self.types: tuple[int, int] | None = None

    def add_collision_handler(self, first: int, second: int) -> Any:
        self.types = (first, second)
        return self.handler


def test_contact_callback_is_attached_in_pymunk_6_and_7() -> None:
    def callback(arbiter: Any, space: Any, data: Any) -> None:
        called.append(arbiter)

    called: list[Any] = []
    old = Pymunk6Space()
    on_contact(old, callback)
    assert old.types == (0, 0)
    assert old.handler.post_solve is callback

    space = pymunk.Space()
    for x in (0.0, 5.0):
        body = pymunk.Body(1, 1)
        body.position = (x, 0.0)
        space.add(body, pymunk.Circle(body, 10))
    on_contact(space, callback)
    space.step(0.01)
    assert len(called) == 1

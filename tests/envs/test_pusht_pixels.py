"""The pictures of many worlds: equal to the drawn ones for any pose, size and goal, and free of memory."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.pusht import geometry, pixels
from envs.pusht.pixels import PixelObserver
from envs.pusht.rendering import Renderer, resized
from envs.pusht.runs import EdgeRuns

GOAL_ELSEWHERE = (130.0, 380.0, -2.0)


def drawn(agents: np.ndarray, blocks: np.ndarray, width: int = 96, height: int = 96, **goal: object) -> np.ndarray:
    """The same pictures, drawn world by world at the window's size and sampled down."""
    renderer = Renderer(**goal)  # type: ignore[arg-type]
    frames = [
        resized(renderer.draw((agent_x, agent_y), (x, y), angle), width, height)
        for (agent_x, agent_y), (x, y, angle) in zip(agents.tolist(), blocks.tolist(), strict=True)
    ]
    return np.stack(frames)


def random_worlds(number: int, low: float, high: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    blocks = np.column_stack([random.uniform(low, high, (number, 2)), random.uniform(-7.0, 7.0, number)])
    return random.uniform(-20.0, 532.0, (number, 2)), blocks


def agent_on(blocks: np.ndarray) -> np.ndarray:
    """Agents on the middle of the stem's top edge, half under the block."""
    return np.array([geometry.to_world([(15.0, 40.0)], *block)[0] for block in blocks.tolist()])


@pytest.fixture(scope="module")
def observer() -> PixelObserver:
    return PixelObserver()


@pytest.mark.parametrize(
    ("number", "low", "high"),
    [pytest.param(600, 130.0, 382.0, id="inside"), pytest.param(300, -150.0, 662.0, id="through the window's edge")],
)
def test_pictures_are_the_drawn_ones(observer: PixelObserver, number: int, low: float, high: float) -> None:
    agents, blocks = random_worlds(number, low, high)
    agents[::2] = agent_on(blocks[::2])
    assert np.array_equal(observer(agents, blocks), drawn(agents, blocks))


@pytest.mark.parametrize("offset", [0.0, 0.5, 0.49999999999, -0.5])
def test_upright_and_diagonal_blocks_on_and_between_pixels(observer: PixelObserver, offset: float) -> None:
    angles = [k * math.pi / 4 + tilt for k in range(-4, 5) for tilt in (0.0, 1e-9, 0.004, -0.004)]
    blocks = np.array([(256.0 + offset, 200.0 - offset, angle) for angle in angles])
    agents = np.full((len(blocks), 2), 240.0) + offset
    assert np.array_equal(observer(agents, blocks), drawn(agents, blocks))


def test_blocks_one_pixel_at_a_time_over_each_wall(observer: PixelObserver) -> None:
    near = np.arange(-4.0, 12.0)
    upright = [(60.0 + x, 200.0, 0.0) for x in near] + [(512.0 - 60.0 - x, 200.0, 0.0) for x in near]
    upright += [(300.0, y, 0.0) for y in near] + [(300.0, 512.0 - 120.0 - y, 0.0) for y in near]
    blocks = np.array([*upright, *((x, y, angle + 0.3) for x, y, angle in upright)])
    agents = np.full((len(blocks), 2), 100.0)
    assert np.array_equal(observer(agents, blocks), drawn(agents, blocks))


def test_agents_over_the_walls_and_the_corners(observer: PixelObserver) -> None:
    near = [-40.0, -15.5, -15.0, -14.0, -1.0, 0.0, 2.5, 7.0, 256.0, 500.0, 511.0, 512.0, 526.0, 527.0, 528.0, 600.0]
    agents = np.array([(x, y) for x in near for y in near])
    blocks = np.tile([250.0, 300.0, 0.7], (len(agents), 1))
    assert np.array_equal(observer(agents, blocks), drawn(agents, blocks))


@settings(max_examples=150, deadline=None)
@given(
    agent=st.tuples(*[st.floats(-256.0, 768.0)] * 2),
    block=st.tuples(*[st.floats(-300.0, 800.0)] * 2, st.floats(-1e4, 1e4)),
)
def test_any_pose_gives_the_drawn_picture(
    observer: PixelObserver, agent: tuple[float, float], block: tuple[float, float, float]
) -> None:
    agents, blocks = np.array([agent]), np.array([block])
    assert np.array_equal(observer(agents, blocks), drawn(agents, blocks))


@pytest.mark.parametrize(
    ("width", "height"),
    [
        (84, 84),
        (64, 48),
        (128, 96),
        (256, 255),
        (256, 256),
        (3, 5),
        (1, 1),
        (97, 96),
        (100, 100),
        (300, 200),
        (512, 512),
    ],
)
def test_any_size(width: int, height: int) -> None:
    agents, blocks = random_worlds(24, 60.0, 452.0)
    pictures = PixelObserver(width, height)(agents, blocks)
    assert pictures.shape == (24, height, width, 3)
    assert np.array_equal(pictures, drawn(agents, blocks, width, height))


@pytest.mark.parametrize("size", [(1024, 2), (2, 1100), (96, 1), (256, 1)])
def test_narrow_sizes(size: tuple[int, int]) -> None:
    agents, blocks = random_worlds(2, 200.0, 300.0)
    assert np.array_equal(PixelObserver(*size)(agents, blocks), drawn(agents, blocks, *size))


def test_goal_elsewhere(observer: PixelObserver) -> None:
    agents, blocks = random_worlds(100, 80.0, 432.0)
    pictures = PixelObserver(goal_pose=GOAL_ELSEWHERE)(agents, blocks)
    assert np.array_equal(pictures, drawn(agents, blocks, goal_pose=GOAL_ELSEWHERE))
    assert not np.array_equal(pictures, observer(agents, blocks))


@pytest.mark.parametrize("goal_pose", [(10.0, 500.0, 1.0), (-40.0, 256.0, 0.0), (5000.0, 0.0, 0.0)])
def test_goal_under_a_wall_or_out_of_sight(goal_pose: tuple[float, float, float]) -> None:
    agents, blocks = random_worlds(30, 0.0, 512.0)
    assert np.array_equal(
        PixelObserver(goal_pose=goal_pose)(agents, blocks), drawn(agents, blocks, goal_pose=goal_pose)
    )


def test_a_world_looks_the_same_in_any_company(observer: PixelObserver) -> None:
    agents, blocks = random_worlds(75, 0.0, 512.0)
    together = observer(agents, blocks)
    assert together.shape == (75, 96, 96, 3)
    assert together.dtype == np.uint8
    for world in range(75):
        assert np.array_equal(observer(agents[world : world + 1], blocks[world : world + 1])[0], together[world])
    assert np.array_equal(observer(agents[::-1], blocks[::-1]), together[::-1])


@pytest.mark.parametrize("size", [(96, 96), (300, 300)])
def test_no_worlds(size: tuple[int, int]) -> None:
    pictures = PixelObserver(*size)(np.empty((0, 2)), np.empty((0, 3)))
    assert pictures.shape == (0, size[1], size[0], 3)
    assert pictures.dtype == np.uint8


def test_pictures_are_new_and_the_callers_own(observer: PixelObserver) -> None:
    agents, blocks = random_worlds(5, 0.0, 512.0)
    given_agents, given_blocks = agents.copy(), blocks.copy()
    first = observer(agents, blocks)
    kept = first.copy()
    first[:] = 0
    second = observer(agents, blocks)
    assert np.array_equal(second, kept)
    observer(*random_worlds(5, 0.0, 512.0, seed=1))
    assert np.array_equal(second, kept)
    assert second.flags.writeable
    assert second.flags.c_contiguous
    assert np.array_equal(agents, given_agents)
    assert np.array_equal(blocks, given_blocks)


def test_worlds_in_the_window_are_painted_without_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    agents, blocks = random_worlds(50, 130.0, 382.0)
    blocks[::10, 0] = 900.0  # out of sight
    expected = drawn(agents, blocks)
    observer = PixelObserver()
    monkeypatch.setattr(observer, "_renderer", None)
    assert np.array_equal(observer(agents, blocks), expected)


def test_edges_that_runs_cannot_describe_are_drawn(observer: PixelObserver, monkeypatch: pytest.MonkeyPatch) -> None:
    class Irregular(EdgeRuns):
        def _add(self, column: int, row: int) -> None:
            super()._add(column, row)
            number = self._numbers[column, row]
            if number % 3 == 0:
                self.regular[number] = False
                self._runs[:, number] = 0

    edges = Irregular()
    monkeypatch.setattr(pixels, "edge_runs", lambda: edges)
    agents, blocks = random_worlds(60, 130.0, 382.0)
    assert np.array_equal(observer(agents, blocks), drawn(agents, blocks))


@pytest.mark.parametrize("far", [2500.0, -2000.0, 1e12, -1e300])
def test_bodies_far_outside_are_not_seen(observer: PixelObserver, far: float) -> None:
    nothing = drawn(np.array([[-50.0, -50.0]]), np.array([[-300.0, -300.0, 0.0]]))
    assert np.array_equal(observer(np.array([[far, 256.0]]), np.array([[256.0, far, far]])), nothing)
    assert np.array_equal(observer(np.array([[far, far]]), np.array([[far, far, 0.0]])), nothing)


@pytest.mark.parametrize(
    ("agents", "blocks", "message"),
    [
        (np.zeros(2), np.zeros((1, 3)), r"agent_positions has shape \(2,\); allowed: \(N, 2\)"),
        (np.zeros((4, 2)), np.zeros((4, 2)), r"block_poses has shape \(4, 2\); allowed: \(N, 3\)"),
        (np.zeros((4, 2)), np.zeros((3, 3)), "block_poses has 3 rows; allowed: 4"),
        (np.array([[np.nan, 0.0]]), np.zeros((1, 3)), "agent_positions has values that are not finite"),
        (np.zeros((1, 2)), np.array([[0.0, 0.0, np.inf]]), "block_poses has values that are not finite"),
    ],
)
def test_bad_worlds(observer: PixelObserver, agents: np.ndarray, blocks: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        observer(agents, blocks)


def test_sizes_may_be_integers_of_numpy() -> None:
    agents, blocks = np.full((1, 2), 100.0), np.full((1, 3), 250.0)
    pictures = PixelObserver(np.int64(24), np.int32(12))(agents, blocks)  # type: ignore[arg-type]
    assert np.array_equal(pictures, PixelObserver(24, 12)(agents, blocks))


@pytest.mark.parametrize(("width", "height", "name"), [(0, 96, "width"), (96, -5, "height"), (True, 96, "width")])
def test_bad_sizes(width: int, height: int, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is .*; allowed: an integer of at least 1"):
        PixelObserver(width, height)

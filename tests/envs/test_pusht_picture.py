"""What is drawn around and over the world."""

import numpy as np
import pytest

from envs.pusht import geometry
from envs.pusht.picture import HAND_COLOR, PLAN_COLOR, Picture
from envs.pusht.rendering import Renderer, resized

AGENT, BLOCK, ANGLE = (80.0, 430.0), (380.0, 120.0), 0.5


@pytest.fixture
def picture() -> Picture:
    picture = Picture(n_lines=2)
    picture.draw(AGENT, BLOCK, ANGLE, ["one line"])
    return picture


def color(picture: Picture, x: float, y: float) -> list[int]:
    return picture.array()[round(y), round(x)].tolist()


def ink(picture: Picture) -> int:
    return int((picture.array()[geometry.WINDOW_SIZE :] < 100).sum())


def test_the_world_is_the_renderers_and_the_text_is_below(picture: Picture) -> None:
    frame = picture.array()
    assert frame.shape == (geometry.WINDOW_SIZE + 54, geometry.WINDOW_SIZE, 3)
    world = resized(Renderer().draw(AGENT, BLOCK, ANGLE), geometry.WINDOW_SIZE, geometry.WINDOW_SIZE)
    np.testing.assert_array_equal(frame[: geometry.WINDOW_SIZE], world)
    one = ink(picture)
    picture.draw(AGENT, BLOCK, ANGLE, ["one line", "one line"])
    assert ink(picture) == 2 * one > 0
    # The next picture is drawn over all of it.
    picture.draw(AGENT, BLOCK, ANGLE, ["one line"])
    np.testing.assert_array_equal(picture.array(), frame)


def test_lines_that_are_too_long_are_cut(picture: Picture) -> None:
    picture.draw(AGENT, BLOCK, ANGLE, ["word " * 100])
    panel = picture.array()[geometry.WINDOW_SIZE :]
    columns = np.flatnonzero((panel < 100).any(axis=(0, 2)))
    assert 450 < columns.max() < geometry.WINDOW_SIZE - 8
    # Three dots, on the line that letters stand on, are the last that is drawn.
    assert np.ptp(np.flatnonzero((panel[:, columns.max() - 9 :] < 100).any(axis=(1, 2)))) < 4


def test_the_goal_can_be_elsewhere(picture: Picture) -> None:
    x, y = 100, 100
    assert color(picture, x, y + 15) == [255, 255, 255]
    picture.goal_pose = (x, y, 0.0)
    picture.draw(AGENT, BLOCK, ANGLE, [])
    assert color(picture, x, y + 15) == list(geometry.GOAL_COLOR)


def test_a_path_fades_along_its_points(picture: Picture) -> None:
    points = [(150 + 50 * index, 430.0) for index in range(4)]
    picture.path(AGENT, points)
    shades = np.array([color(picture, x, y) for x, y in points])
    np.testing.assert_allclose(shades[0], PLAN_COLOR, atol=2)
    assert (np.diff(shades.sum(axis=1)) > 50).all()
    assert (shades[-1] < 250).any()
    between = [color(picture, 125 + 50 * index, 430) for index in range(4)]
    np.testing.assert_allclose(between, shades, atol=2)


@pytest.mark.parametrize("points", [np.empty((0, 2)), np.array([[80.0, 430.0]])])
def test_paths_of_no_or_one_point(picture: Picture, points: np.ndarray) -> None:
    before = picture.array()
    picture.path(AGENT, points)
    assert (picture.array() != before).any() == (len(points) > 0)


def test_hand_and_ghost(picture: Picture) -> None:
    picture.pull((150, 400), (250, 400))
    assert color(picture, 200, 400) == color(picture, 150, 400) == list(HAND_COLOR)
    assert color(picture, 257, 400) == list(HAND_COLOR)
    strong, faint = Picture(1), Picture(1)
    for other, strength in ((strong, 1.0), (faint, 0.2)):
        other.draw(AGENT, BLOCK, ANGLE, [])
        other.ghost((150.0, 300.0, 0.0), strength)
    np.testing.assert_allclose(color(strong, 150, 300), HAND_COLOR, atol=2)
    assert sum(color(strong, 150, 300)) < sum(color(faint, 150, 300)) < 3 * 255
    assert color(strong, 150, 310) == [255, 255, 255]


def test_a_box_covers_the_middle_only(picture: Picture) -> None:
    before = picture.array().astype(int)
    picture.box([("a", "first"), ("b", "second")])
    changed = np.argwhere((picture.array() != before).any(axis=2))
    middle = (changed.min(axis=0) + changed.max(axis=0)) / 2
    assert np.abs(middle - geometry.WINDOW_SIZE / 2).max() < 40
    assert np.ptp(changed, axis=0).max() < 300

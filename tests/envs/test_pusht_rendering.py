"""Pictures: sampling, colours, sizes, the action's cross, and the window."""

import numpy as np
import pygame
import pytest

from envs.pusht import PushTEnv, geometry
from envs.pusht.rendering import OUTSIDE, Renderer, lighter, resized
from envs.pusht.rendering import bilinear as bilinear_mixture

STATE = (100.0, 400.0, 350.0, 120.0, 0.0)


def bilinear(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Plain float bilinear sampling at pixel centres, edges repeated, of an image (height, width, 3)."""

    def axis(source: int, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        position = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
        first = np.floor(position).astype(int)
        return first, np.minimum(first + 1, source - 1), position - first

    top, bottom, down = axis(image.shape[0], height)
    left, right, across = axis(image.shape[1], width)
    image = image.astype(float)
    rows = image[top] * (1 - down)[:, None, None] + image[bottom] * down[:, None, None]
    return rows[:, left] * (1 - across)[:, None] + rows[:, right] * across[:, None]


@pytest.mark.parametrize(("width", "height"), [(96, 96), (84, 60), (512, 512), (680, 700), (1, 1)])
def test_sampling_is_bilinear(width: int, height: int) -> None:
    random = np.random.default_rng(0).integers(0, 256, size=(512, 512, 3)).astype(np.uint8)
    surface = pygame.Surface((512, 512), depth=32)
    pygame.surfarray.blit_array(surface, random.transpose(1, 0, 2))
    sampled = resized(surface, width, height)
    assert sampled.shape == (height, width, 3)
    assert sampled.dtype == np.uint8
    assert np.abs(sampled - bilinear(random, width, height)).max() <= 1.0


def test_sampling_of_one_colour_is_that_colour() -> None:
    surface = pygame.Surface((512, 512), depth=32)
    surface.fill((1, 128, 255))
    assert (resized(surface, 96, 96) == (1, 128, 255)).all()


def test_mixture_of_four_values() -> None:
    def mixed(corners: list[int], right: int, below: int) -> int:
        upper, lower = np.array(corners, np.int32).reshape(2, 2, 1)
        across, down = (np.array([[2048 - weight], [weight]], np.int32) for weight in (right, below))
        return int(bilinear_mixture(tuple(upper), tuple(lower), tuple(across), tuple(down))[0])

    corners = [7, 255, 0, 130]
    assert [mixed(corners, right, below) for below in (0, 2048) for right in (0, 2048)] == corners
    assert mixed(corners, 1024, 1024) == 98
    assert mixed(corners, 512, 0) == 69
    assert mixed([255, 255, 255, 255], 341, 1707) == 255


def frame(**arguments: object) -> np.ndarray:
    env = PushTEnv(render_mode="rgb_array", **arguments)  # type: ignore[arg-type]
    env.reset(options={"state": STATE})
    picture = env.render()
    assert picture is not None
    return picture


def test_every_body_has_the_colour_of_the_original() -> None:
    picture = frame()
    assert picture.shape == (512, 512, 3)
    assert picture.dtype == np.uint8
    assert picture.flags.writeable

    def colour(x: float, y: float) -> tuple[int, ...]:
        return tuple(picture[round(y), round(x)].tolist())

    assert colour(30, 30) == (255, 255, 255)
    [(x, y)] = geometry.to_world([(0.0, 60.0)], *geometry.GOAL_POSE)
    assert colour(x, y) == geometry.GOAL_COLOR
    assert colour(100, 400) == lighter(geometry.AGENT_COLOR) == (78, 126, 255)
    assert colour(113, 400) == geometry.AGENT_COLOR
    assert colour(350, 200) == lighter(geometry.BLOCK_COLOR) == (143, 163, 184)
    assert colour(350, 120) == geometry.BLOCK_COLOR
    assert colour(5, 250) == colour(506, 250) == colour(250, 5) == colour(250, 506) == geometry.WALL_COLOR


@pytest.mark.parametrize(
    ("color", "name"),
    [
        (geometry.GOAL_COLOR, "LightGreen"),
        (geometry.AGENT_COLOR, "RoyalBlue"),
        (geometry.BLOCK_COLOR, "LightSlateGray"),
        (geometry.WALL_COLOR, "LightGray"),
        (geometry.BACKGROUND_COLOR, "White"),
    ],
)
def test_colours_are_the_named_ones(color: tuple[int, int, int], name: str) -> None:
    assert pygame.Color(*color) == pygame.Color(name)


def test_frames_have_the_asked_size() -> None:
    assert frame(visualization_width=64, visualization_height=48).shape == (48, 64, 3)
    env = PushTEnv(obs_type="pixels", observation_width=40, observation_height=24)
    observation, _ = env.reset(seed=0)
    assert observation.shape == env.observation_space.shape == (24, 40, 3)


def test_cross_marks_the_last_action_in_frames_but_not_in_observations() -> None:
    env = PushTEnv(obs_type="pixels", render_mode="rgb_array")
    env.reset(options={"state": STATE})

    def red_at_target() -> bool:
        picture = env.render()
        assert picture is not None
        return picture[450, 60].tolist() == list(geometry.TARGET_COLOR)

    assert not red_at_target()
    observation, *_ = env.step([60.0, 450.0])
    assert red_at_target()
    assert not (observation == geometry.TARGET_COLOR).all(axis=-1).any()
    env.reset(options={"state": STATE})
    assert not red_at_target()


def test_frames_do_not_change_after_they_are_returned() -> None:
    env = PushTEnv(render_mode="rgb_array")
    env.reset(options={"state": STATE})
    first = env.render()
    assert first is not None
    copy = first.copy()
    env.step([300.0, 300.0])
    second = env.render()
    assert np.array_equal(first, copy)
    assert not np.array_equal(first, second)


def test_drawing_is_not_affected_by_what_was_drawn_before() -> None:
    fresh, used = Renderer(), Renderer()
    used.draw((300.0, 300.0), (200.0, 200.0), 1.0, target=(50.0, 60.0))
    pose = ((100.0, 100.0), (250.0, 300.0), 0.4)
    assert np.array_equal(resized(fresh.draw(*pose), 96, 96), resized(used.draw(*pose), 96, 96))


def test_goal_is_drawn_where_it_is_told() -> None:
    pose = (130.0, 380.0, -2.0)
    surface = Renderer(goal_pose=pose).draw((400.0, 100.0), (400.0, 200.0), 0.0)
    inside, at_the_default = (geometry.to_world([(0.0, 60.0)], *goal)[0] for goal in (pose, geometry.GOAL_POSE))
    assert tuple(surface.get_at((round(inside[0]), round(inside[1]))))[:3] == geometry.GOAL_COLOR
    assert tuple(surface.get_at((round(at_the_default[0]), round(at_the_default[1]))))[:3] == geometry.BACKGROUND_COLOR


@pytest.mark.parametrize("place", [(OUTSIDE, 256.0), (256.0, -OUTSIDE)])
def test_nothing_of_a_body_outside_is_seen(place: tuple[float, float]) -> None:
    picture = resized(Renderer().draw(place, place, 1.0), 512, 512)
    colours = {tuple(colour) for colour in np.unique(picture.reshape(-1, 3), axis=0).tolist()}
    assert colours == {geometry.BACKGROUND_COLOR, geometry.GOAL_COLOR, geometry.WALL_COLOR}


def test_human_mode_shows_a_window_and_closes_it() -> None:
    env = PushTEnv(render_mode="human")
    env.reset(options={"state": STATE})
    env.step([100.0, 390.0])
    assert env.render() is None
    shown = pygame.display.get_surface()
    assert shown.get_size() == (512, 512)
    assert tuple(shown.get_at((350, 200)))[:3] == lighter(geometry.BLOCK_COLOR)
    env.close()
    assert not pygame.display.get_init()
    env.close()


def test_render_without_a_mode_warns() -> None:
    env = PushTEnv()
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="render_mode=None"):
        assert env.render() is None


def test_environments_that_share_the_window_close_it_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    first, second = (PushTEnv(render_mode="human") for _ in range(2))
    for env in (first, second):
        env.reset(seed=0)
    first.close()
    second.step((256, 256))
    second.close()
    assert not pygame.display.get_init()

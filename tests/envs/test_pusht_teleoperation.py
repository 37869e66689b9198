"""Recording with the mouse: the session by itself, and in a window that gets scripted mouse and key events."""

import math
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import pygame
import pytest
import zarr

from envs.pusht import PushTEnv, geometry, keypoints_in_world
from envs.pusht.teleoperation import CONFIRMING_STEPS, START_DISTANCE, Command, Phase, Teleoperation
from envs.pusht.teleoperation_window import NoDisplayError, TeleoperationWindow, run

Episode = dict[str, np.ndarray]
# The agent of this seed stands so that a straight push moves the block onto half of the goal.
SEED = 2


class Memory:
    """A store of episodes in memory, whose disk can be full."""

    def __init__(self) -> None:
        self.episodes: list[Episode] = []
        self.full = self.stays_dirty = False

    @property
    def n_episodes(self) -> int:
        return len(self.episodes)

    def append(self, episode: Episode) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        self.episodes.append(episode)

    def drop_last(self) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        self.episodes.pop()
        if self.stays_dirty:
            raise OSError(5, "Input/output error")


@pytest.fixture
def store() -> Memory:
    return Memory()


def agent_of(session: Teleoperation) -> np.ndarray:
    return np.array(session.pose(1.0)[0])


def moved(position: Any, x: float, y: float) -> tuple[float, float]:
    return float(position[0] + x), float(position[1] + y)


def follow(session: Teleoperation, n_steps: int = 5) -> list[tuple[float, float]]:
    """Touches the agent and leads it away; returns the positions of the mouse."""
    x, y = agent_of(session).round().tolist()
    path = [(x + 4.0 * index, y + 6.0 * index) for index in range(n_steps)]
    for position in path:
        session.step(position)
    return path


def replayed(episode: Episode) -> np.ndarray:
    """States (T, 5) of a fresh environment that is given the recorded actions."""
    env = PushTEnv()
    observation, _ = env.reset(options={"state": episode["state"][0]})
    states = [observation]
    for action in episode["action"][:-1]:
        states.append(env.step(action)[0])
    return np.array(states, np.float32)


# --- the session ---


def test_the_agent_waits_until_the_mouse_is_near(store: Memory) -> None:
    session = Teleoperation(store)
    start = agent_of(session)
    session.step(None)
    session.step(moved(start, START_DISTANCE, 0))
    session.step(moved(start, 0, START_DISTANCE + 100))
    assert session.phase is Phase.WAITING
    assert session.n_steps == 0
    np.testing.assert_array_equal(agent_of(session), start)
    session.step(moved(start, 0, -START_DISTANCE + 1))
    assert session.phase is Phase.RECORDING
    session.step(moved(start, 0, -200))
    assert session.n_steps == 2
    assert agent_of(session)[1] < start[1] - 20


@pytest.mark.parametrize("images", [False, True])
def test_steps_are_recorded_as_they_were_before_the_action(store: Memory, images: bool) -> None:
    session = Teleoperation(store, images=images, seed_start=SEED)
    path = follow(session, 12)
    session.handle(Command.SAVE)
    (episode,) = store.episodes
    shapes = {name: (values.shape, values.dtype) for name, values in episode.items()}
    expected: dict[str, tuple[tuple[int, ...], Any]] = {
        "state": ((12, 5), np.float32),
        "action": ((12, 2), np.float32),
        "keypoint": ((12, 9, 2), np.float32),
        "n_contacts": ((12, 1), np.float32),
    }
    assert shapes == expected | ({"img": ((12, 96, 96, 3), np.uint8)} if images else {})
    np.testing.assert_array_equal(episode["action"], np.array(path, np.float32))
    np.testing.assert_array_equal(episode["state"], replayed(episode))
    keypoints = [keypoints_in_world(*state[2:].astype(float)) for state in episode["state"]]
    np.testing.assert_allclose(episode["keypoint"], keypoints, atol=1e-3)
    if images:
        env = PushTEnv("pixels")
        for index in (0, 5, 11):
            pixels, _ = env.reset(options={"state": episode["state"][index]})
            assert np.abs(pixels.astype(int) - episode["img"][index]).mean() < 0.05
        assert (episode["img"][0] != episode["img"][11]).any()


def test_contacts_are_those_of_the_step_before(store: Memory) -> None:
    session = Teleoperation(store, seed_start=SEED)
    _, block, _ = session.pose(1.0)
    session.step(tuple(agent_of(session)))
    for _ in range(15):
        session.step(block)
    session.handle(Command.SAVE)
    env = PushTEnv()
    (episode,) = store.episodes
    _, info = env.reset(options={"state": episode["state"][0]})
    counts = [info["n_contacts"]]
    for action in episode["action"][:-1]:
        counts.append(env.step(action)[4]["n_contacts"])
    assert episode["n_contacts"][:, 0].tolist() == counts
    assert max(counts) > 0


def test_episodes_start_where_the_human_demonstrations_do(store: Memory, pusht_demonstrations: Path) -> None:
    recording = zarr.open_group(str(pusht_demonstrations), mode="r")
    starts = np.concatenate([[0], recording["meta/episode_ends"][:-1]])
    states, actions = recording["data/state"][:][starts], recording["data/action"][:][starts]
    distances = np.linalg.norm(actions - states[:, :2], axis=1)
    assert START_DISTANCE - 0.1 < distances.max() < START_DISTANCE
    for seed in range(206):
        session = Teleoperation(store, seed_start=seed)
        agent, block, angle = session.pose(1.0)
        np.testing.assert_allclose([*agent, *block], states[seed, :4], atol=1e-3)
        assert math.remainder(angle - states[seed, 4], 2 * math.pi) == pytest.approx(0, abs=1e-5)


def test_actions_stay_in_the_window(store: Memory) -> None:
    session = Teleoperation(store)
    follow(session, 1)
    for position in ((-3, 40), (520, 590)):
        session.step(position)
    session.handle(Command.SAVE)
    assert store.episodes[0]["action"][1:].tolist() == [[0, 40], [511, 511]]


def test_a_complete_episode_is_saved_and_the_next_seed_follows(store: Memory) -> None:
    session = Teleoperation(store, seed_start=SEED, success_threshold=0.2)
    assert (session.number, session.seed) == (1, SEED)
    session.step(tuple(agent_of(session)))
    n_steps = 1
    while store.n_episodes == 0:
        agent, block, _ = session.pose(1.0)
        session.step(moved(block, 0.5 * (block[0] - agent[0]), 0.5 * (block[1] - agent[1])))
        n_steps += 1
        assert n_steps < 60
    assert (session.number, session.seed) == (2, SEED + 1)
    assert (session.phase, session.n_steps, session.finished) == (Phase.WAITING, 0, False)
    assert session.message.startswith(f"saved episode 1: seed {SEED}, {n_steps} steps, coverage 2")
    states = replayed(store.episodes[0])
    np.testing.assert_array_equal(states, store.episodes[0]["state"])
    # The step that completed the episode is recorded, the state after it is not.
    assert len(states) == n_steps
    assert max(geometry.coverage(*map(float, state[2:])) for state in states) <= 0.2


def test_restart_begins_the_same_seed_again(store: Memory) -> None:
    session = Teleoperation(store, seed_start=3)
    start = session.pose(1.0)
    follow(session)
    session.handle(Command.RESTART)
    assert (session.seed, session.n_steps, session.phase) == (3, 0, Phase.WAITING)
    assert session.pose(1.0) == session.pose(0.0) == start
    assert store.n_episodes == 0


def test_saving_needs_a_recorded_step(store: Memory) -> None:
    session = Teleoperation(store)
    session.handle(Command.SAVE)
    assert session.message == "nothing is recorded yet"
    assert store.n_episodes == 0
    follow(session, 1)
    session.handle(Command.SAVE)
    assert [len(episode["state"]) for episode in store.episodes] == [1]


def test_a_pause_holds_everything_until_the_mouse_is_back_at_the_agent(store: Memory) -> None:
    session = Teleoperation(store)
    follow(session)
    session.handle(Command.PAUSE)
    held = session.pose(1.0)
    session.step(held[0])
    assert (session.phase, session.n_steps, session.pose(1.0)) == (Phase.PAUSED, 5, held)
    assert session.pose(0.0) == held
    session.handle(Command.PAUSE)
    session.step((held[0][0] + 100, held[0][1]))
    assert (session.phase, session.n_steps, session.pose(1.0)) == (Phase.WAITING, 5, held)
    session.step(held[0])
    assert (session.phase, session.n_steps) == (Phase.RECORDING, 6)
    session.handle(Command.SAVE)
    np.testing.assert_array_equal(store.episodes[0]["state"], replayed(store.episodes[0]))


def test_deleting_is_asked_for_twice_and_goes_back_to_that_seed(store: Memory) -> None:
    session = Teleoperation(store, seed_start=10)
    session.handle(Command.DELETE)
    assert session.message == "there is no saved episode to delete"
    for _ in range(2):
        follow(session)
        session.handle(Command.SAVE)
    session.handle(Command.DELETE)
    assert session.message == "press d again to delete episode 2"
    session.handle(Command.PAUSE)
    session.handle(Command.DELETE)
    session.handle(Command.RESTART)
    session.handle(Command.DELETE)
    follow(session)
    session.handle(Command.SAVE)
    session.handle(Command.DELETE)
    assert store.n_episodes == 3
    session.handle(Command.DELETE)
    assert store.n_episodes == 2
    assert (session.seed, session.number, session.message) == (12, 3, "deleted episode 3")
    session.handle(Command.DELETE)
    assert store.n_episodes == 2


def with_one_saved(store: Memory) -> Teleoperation:
    session = Teleoperation(store)
    follow(session)
    session.handle(Command.SAVE)
    return session


def test_deleting_is_no_longer_confirmed_after_three_seconds(store: Memory) -> None:
    session = with_one_saved(store)
    session.handle(Command.DELETE)
    for _ in range(CONFIRMING_STEPS - 1):
        session.step(None)
    assert session.message == "press d again to delete episode 1"
    session.step(None)
    assert session.message == ""
    session.handle(Command.DELETE)
    assert store.n_episodes == 1
    session.handle(Command.DELETE)
    assert store.n_episodes == 0


def test_deleting_says_what_else_it_drops(store: Memory) -> None:
    session = with_one_saved(store)
    follow(session, 3)
    session.handle(Command.DELETE)
    assert session.message == "press d again to delete episode 1 and drop the 3 steps on the screen"
    session.handle(Command.DELETE)
    assert (store.n_episodes, session.n_steps, session.seed) == (0, 0, 0)


def test_nothing_is_deleted_while_an_episode_waits_to_be_saved(store: Memory) -> None:
    session = with_one_saved(store)
    follow(session, 3)
    store.full = True
    session.handle(Command.DELETE)
    session.handle(Command.SAVE)
    for _ in range(2):
        session.handle(Command.DELETE)
        assert session.message == "episode 2 is not saved yet: first n to save it, or r to drop it"
    store.full = False
    session.handle(Command.SAVE)
    assert [len(episode["state"]) for episode in store.episodes] == [5, 3]


def test_a_disk_that_fails_while_deleting_does_not_end_the_session(store: Memory) -> None:
    session = with_one_saved(store)
    follow(session, 3)
    store.full = True
    session.handle(Command.DELETE)
    session.handle(Command.DELETE)
    assert session.message == "not deleted: [Errno 28] No space left on device"
    assert (store.n_episodes, session.n_steps, session.seed) == (1, 3, 1)
    store.full, store.stays_dirty = False, True
    session.handle(Command.DELETE)
    session.handle(Command.DELETE)
    assert (store.n_episodes, session.seed, session.message) == (0, 0, "deleted episode 1")


def test_the_session_ends_at_its_limit_or_when_told(store: Memory) -> None:
    session = Teleoperation(store, limit=2)
    for expected in (False, True):
        follow(session)
        session.handle(Command.SAVE)
        assert session.finished is expected
    assert Teleoperation(store, limit=2).finished
    session = Teleoperation(store)
    session.handle(Command.QUIT)
    session.handle(Command.RESTART)
    follow(session)
    assert session.finished
    assert session.n_steps == 0


def test_a_full_disk_does_not_cost_the_episode(store: Memory) -> None:
    session = Teleoperation(store)
    follow(session)
    store.full = True
    session.handle(Command.SAVE)
    assert "not saved, n tries again" in session.message
    assert "No space left" in session.message
    session.handle(Command.PAUSE)
    session.step(tuple(agent_of(session)))
    assert (session.phase, session.n_steps, session.seed) == (Phase.DONE, 5, 0)
    store.full = False
    session.handle(Command.SAVE)
    assert [len(episode["state"]) for episode in store.episodes] == [5]
    assert (session.phase, session.seed) == (Phase.WAITING, 1)


def test_poses_between_two_steps(store: Memory) -> None:
    session = Teleoperation(store)
    follow(session, 3)
    before, middle, now = (session.pose(fraction) for fraction in (0.0, 0.5, 1.0))
    np.testing.assert_allclose(middle[0], (np.array(before[0]) + now[0]) / 2)
    assert before[0] != now[0]
    session.step(None)
    assert session.pose(0.0) == now


# --- the window ---


@pytest.fixture(autouse=True)
def no_display_left() -> Iterator[None]:
    yield
    pygame.display.quit()


def key(code: int) -> pygame.event.Event:
    return pygame.event.Event(pygame.KEYDOWN, key=code, mod=0, unicode="")


def mouse_at(position: Any) -> pygame.event.Event:
    x, y = position
    return pygame.event.Event(pygame.MOUSEMOTION, pos=(round(x), round(y)), rel=(0, 0), buttons=(0, 0, 0))


def person(*frames: list[pygame.event.Event], milliseconds: Iterable[float] = repeat(100.0)) -> Callable[[int], float]:
    """A tick that does not wait, and gives each next frame its events; at the end the window is closed."""
    remaining = iter([*frames, [pygame.event.Event(pygame.QUIT)], []])
    durations = iter(milliseconds)

    def tick(frames_per_second: int) -> float:
        for event in next(remaining):
            pygame.event.post(event)
        return next(durations)

    return tick


def test_mouse_and_keys_reach_the_session(store: Memory) -> None:
    session = Teleoperation(store)
    start = agent_of(session)
    motion = [[mouse_at(moved(start, 3 * index, -5 * index))] for index in range(8)]
    # The seed after the one saved: the mouse finds its agent, too.
    second = agent_of(Teleoperation(store, seed_start=1))
    run(session, person([], *motion, [key(pygame.K_n)], [mouse_at(second)], [], [key(pygame.K_RETURN)]))
    assert [len(episode["action"]) for episode in store.episodes] == [8, 2]
    np.testing.assert_array_equal(
        store.episodes[0]["action"], [[round(start[0] + 3 * i), round(start[1] - 5 * i)] for i in range(8)]
    )
    for episode in store.episodes:
        np.testing.assert_array_equal(episode["state"], replayed(episode))
    assert session.finished
    assert not pygame.display.get_init()


@pytest.mark.parametrize(
    ("code", "command"),
    [
        (pygame.K_r, Command.RESTART),
        (pygame.K_n, Command.SAVE),
        (pygame.K_RETURN, Command.SAVE),
        (pygame.K_KP_ENTER, Command.SAVE),
        (pygame.K_d, Command.DELETE),
        (pygame.K_SPACE, Command.PAUSE),
        (pygame.K_p, Command.PAUSE),
        (pygame.K_q, Command.QUIT),
    ],
)
def test_keys(store: Memory, monkeypatch: pytest.MonkeyPatch, code: int, command: Command) -> None:
    session = Teleoperation(store)
    commands: list[Command] = []
    handle = session.handle
    monkeypatch.setattr(session, "handle", lambda command: (commands.append(command), handle(command)))
    run(session, person([key(pygame.K_x), key(code)]))
    assert commands == [command] if command is Command.QUIT else [command, Command.QUIT]


def test_closing_the_window_drops_only_the_episode_on_the_screen(store: Memory) -> None:
    session = Teleoperation(store)
    here, there = ([mouse_at(agent_of(Teleoperation(store, seed_start=seed)))] for seed in (0, 1))
    run(session, person(here, [key(pygame.K_n), *there], [], []))
    assert [len(episode["action"]) for episode in store.episodes] == [1]


@pytest.mark.parametrize(
    ("milliseconds", "expected"),
    [
        ([1000 / 60] * 120, 20),
        ([40] * 50, 20),
        ([100] * 20, 20),
        # A machine that is too slow makes a step a picture, and does not catch up when it is faster again.
        ([350] * 20, 20),
        ([990] + [20] * 50, 11),
    ],
)
def test_ten_steps_a_second_at_any_frame_rate(
    store: Memory, monkeypatch: pytest.MonkeyPatch, milliseconds: list[float], expected: int
) -> None:
    session, steps = Teleoperation(store), []
    monkeypatch.setattr(session, "step", steps.append)
    run(session, person(*[[] for _ in milliseconds[1:]], milliseconds=[*milliseconds, 0.0]))
    assert abs(len(steps) - expected) <= (1 if len(milliseconds) == 120 else 0)


def test_the_picture_shows_the_world_between_steps_and_the_text(store: Memory) -> None:
    inside = (78, 126, 255)
    window, session = TeleoperationWindow(), Teleoperation(store, seed_start=3)
    screen = pygame.display.get_surface()
    assert screen is not None

    def color(x: float, y: float) -> tuple[int, ...]:
        return tuple(screen.get_at((round(x), round(y))))[:3]

    x, y = agent_of(session).tolist()
    window.show(session, 1.0)
    assert color(x, y) == inside
    assert color(x + START_DISTANCE - 1, y) == geometry.TARGET_COLOR
    assert (pygame.surfarray.array3d(screen)[:, geometry.WINDOW_SIZE :] < 100).any()
    session.step((x, y))
    session.step((x, y - 150))
    way = agent_of(session)[1] - y
    assert way < -40
    for fraction in (0.0, 0.5, 1.0):
        window.show(session, fraction)
        assert color(x, y + fraction * way) == inside
        assert color(x + START_DISTANCE - 1, y) != geometry.TARGET_COLOR
        assert [color(x, y) == inside, color(x, y + way) == inside] == [fraction == 0.0, fraction == 1.0]
    session.handle(Command.SAVE)
    lines = window.lines(session)
    assert lines[0].startswith("episode 2   seed 4   step 0   coverage ")
    assert lines[0].endswith(Phase.WAITING.value)
    assert lines[1].startswith("saved episode 1: seed 3, 2 steps, coverage ")
    font = pygame.font.Font(None, 20)
    assert all(font.size(line)[0] <= geometry.WINDOW_SIZE - 8 for line in lines)
    window.close()


def test_a_finished_session_needs_no_window(store: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "nowhere")
    session = Teleoperation(store)
    session.handle(Command.QUIT)
    run(session)


def test_no_screen_is_said(store: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "nowhere")
    with pytest.raises(NoDisplayError, match=r"no window can be opened \(nowhere not available\)"):
        run(Teleoperation(store))
    # Without a screen SDL may also draw into memory, where nobody sees it.
    monkeypatch.setattr(pygame.display, "get_driver", lambda: "offscreen")
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    pygame.display.init()
    monkeypatch.delenv("SDL_VIDEODRIVER")
    with pytest.raises(NoDisplayError, match="no screen found"):
        run(Teleoperation(store))
    assert not pygame.display.get_init()
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(NoDisplayError, match="neither DISPLAY nor WAYLAND_DISPLAY is set"):
        run(Teleoperation(store))

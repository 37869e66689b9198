"""The window for playing with policies: scripted mouse and keys reach the session, and videos the disk."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pygame
import pytest
import torch

from envs.pusht import geometry
from envs.pusht.live_window import NoDisplayError
from immiscible_policy.evaluation import play_window
from immiscible_policy.evaluation.play import Command, PlaySession
from immiscible_policy.evaluation.play_policies import NamedPolicy
from immiscible_policy.evaluation.play_window import PlayWindow, play
from immiscible_policy.policy import DiffusionPolicy


@pytest.fixture(autouse=True)
def no_display_left() -> Iterator[None]:
    yield
    pygame.display.quit()


@pytest.fixture
def session() -> PlaySession:
    torch.manual_seed(0)
    task = {"env_id": "envs:immiscible/PushT-v0", "obs_type": "state"}
    policy = DiffusionPolicy(5, 2, network={"name": "mlp", "width": 8, "n_blocks": 1}, task=task)
    policy.fit_normalizers(512 * torch.rand(50, 5), 512 * torch.rand(50, 2))
    policy.eval()
    return PlaySession([NamedPolicy(str(index), policy) for index in range(12)], num_inference_steps=1)


def key(code: int, shift: bool = False) -> pygame.event.Event:
    return pygame.event.Event(pygame.KEYDOWN, key=code, mod=pygame.KMOD_LSHIFT if shift else 0, unicode="")


def mouse(kind: int, position: Any, button: int = 1) -> pygame.event.Event:
    pos = (round(position[0]), round(position[1]))
    if kind == pygame.MOUSEMOTION:
        return pygame.event.Event(kind, pos=pos, rel=(0, 0), buttons=(1, 0, 0))
    return pygame.event.Event(kind, pos=pos, button=button)


Frame = list[pygame.event.Event] | Callable[[], Any]


def person(*frames: Frame, milliseconds: float = 100.0) -> Callable[[int], float]:
    """A tick that does not wait, and gives each next frame its events, or looks at what is; then presses q."""
    remaining = iter([*frames, [key(pygame.K_q)], []])

    def tick(frames_per_second: int) -> float:
        frame = next(remaining)
        events = frame() if callable(frame) else frame
        for event in events if isinstance(events, list) else []:
            pygame.event.post(event)
        return milliseconds

    return tick


def frames_in(path: Path) -> np.ndarray:
    reader = imageio_ffmpeg.read_frames(str(path))
    width, height = next(reader)["size"]
    return np.array([np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader])


def screen() -> np.ndarray:
    surface = pygame.display.get_surface()
    assert surface is not None
    return pygame.surfarray.array3d(surface).swapaxes(0, 1)


@pytest.mark.parametrize(
    ("code", "shift", "command"),
    [
        (pygame.K_r, False, Command.NEXT_SEED),
        (pygame.K_r, True, Command.SAME_SEED),
        (pygame.K_SPACE, False, Command.PAUSE),
        (pygame.K_n, False, Command.SINGLE_STEP),
        (pygame.K_TAB, False, Command.NEXT_POLICY),
        (pygame.K_TAB, True, Command.PREVIOUS_POLICY),
        (pygame.K_d, False, Command.DISTURB),
        (pygame.K_PLUS, False, Command.MORE_STEPS),
        (pygame.K_EQUALS, True, Command.MORE_STEPS),
        (pygame.K_KP_PLUS, False, Command.MORE_STEPS),
        (pygame.K_MINUS, False, Command.FEWER_STEPS),
        (pygame.K_KP_MINUS, False, Command.FEWER_STEPS),
        (pygame.K_q, False, Command.QUIT),
        (pygame.K_ESCAPE, False, Command.QUIT),
    ],
)
def test_keys(
    session: PlaySession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, shift: bool, command: Command
) -> None:
    commands: list[Command] = []
    handle = session.handle
    monkeypatch.setattr(session, "handle", lambda command: (commands.append(command), handle(command)))
    play(session, tmp_path, tick=person([key(pygame.K_x), key(code, shift)]))
    assert commands == ([command] if command is Command.QUIT else [command, Command.QUIT])


def test_digits_choose_policies(session: PlaySession, tmp_path: Path) -> None:
    chosen: list[int] = []
    codes = [pygame.K_3, pygame.K_9, pygame.K_1, pygame.K_KP7, pygame.K_0]
    frames: list[Frame] = []
    for code in codes:
        frames += [[key(code)], lambda: chosen.append(session.index)]
    play(session, tmp_path, tick=person(*frames))
    assert chosen == [2, 8, 0, 6, 6]


def test_closing_the_window_quits(session: PlaySession, tmp_path: Path) -> None:
    play(session, tmp_path, tick=person([pygame.event.Event(pygame.QUIT)], [], []))
    assert session.finished
    assert not pygame.display.get_init()


def test_the_left_button_drags_the_block(session: PlaySession, tmp_path: Path) -> None:
    _, (x, y, angle) = session.pose(1.0)
    start = geometry.to_world([(0.0, 15.0)], x, y, angle)[0]
    target = (start[0] - 60, start[1] + 90)
    pulls: list[Any] = []

    def look() -> None:
        pulls.append(session.pull(1.0))

    play(
        session,
        tmp_path,
        tick=person(
            [key(pygame.K_SPACE), mouse(pygame.MOUSEBUTTONDOWN, start, button=3)],
            look,
            [mouse(pygame.MOUSEBUTTONDOWN, start)],
            [mouse(pygame.MOUSEMOTION, target)],
            *[[] for _ in range(9)],
            look,
            [mouse(pygame.MOUSEBUTTONUP, target, button=3)],
            look,
            [mouse(pygame.MOUSEBUTTONUP, target)],
            [mouse(pygame.MOUSEMOTION, (0, 0))],
            look,
        ),
    )
    assert [pull is None for pull in pulls] == [True, False, False, True]
    np.testing.assert_allclose(pulls[1], [np.round(target), np.round(target)], atol=0.2)
    now = geometry.to_world([(0.0, 15.0)], *session.pose(1.0)[1])[0]
    np.testing.assert_allclose(now, target, atol=1.5)


@pytest.mark.parametrize(("speed", "expected"), [(0.5, 5), (1.0, 10), (3.0, 30)])
def test_speed(session: PlaySession, tmp_path: Path, speed: float, expected: int) -> None:
    play(session, tmp_path, speed=speed, tick=person(*[[] for _ in range(28)], milliseconds=1000 / 30))
    assert abs(session.n_steps - expected) <= 1


def test_videos_hold_what_was_shown(session: PlaySession, tmp_path: Path) -> None:
    shown: list[np.ndarray] = []

    def look() -> None:
        shown.append(screen())

    frames: list[Frame] = [[], [key(pygame.K_v)]]
    for _ in range(7):
        frames += [look]
    frames += [[key(pygame.K_v)], [], [key(pygame.K_v)], [], []]
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "play_0001.mp4").write_text("another one")
    window = play(session, tmp_path / "videos", tick=person(*frames))
    assert [path.name for path in window.videos] == ["play_0002.mp4", "play_0003.mp4"]
    assert window.problems == []
    first, second = (frames_in(path) for path in window.videos)
    # From the picture after the key was pressed to that before it was pressed again; the other until the window closed.
    # A look comes before the next picture is drawn, so the first one is not in the video.
    assert (len(first), len(second)) == (8, 4)
    assert first.shape[1:] == shown[0].shape
    for frame, picture in zip(first, shown[1:], strict=False):
        assert np.abs(frame[: geometry.WINDOW_SIZE].astype(int) - picture[: geometry.WINDOW_SIZE]).mean() < 1.5
    assert (tmp_path / "videos" / "play_0001.mp4").read_text() == "another one"


def test_a_video_at_another_rate(session: PlaySession, tmp_path: Path) -> None:
    frames: list[Frame] = [[key(pygame.K_v)], *[[] for _ in range(23)], [key(pygame.K_v)]]
    window = play(session, tmp_path, fps=30, tick=person(*frames, milliseconds=1000 / 60))
    (path,) = window.videos
    assert abs(len(frames_in(path)) - 12) <= 1


def test_the_window_goes_on_while_a_video_is_written(
    session: PlaySession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_end = threading.Event()
    write = play_window.write_video
    messages: list[str] = []

    def slow(frames: Any, path: Path, fps: float) -> Path:
        assert may_end.wait(30)
        return write(frames, path, fps)

    monkeypatch.setattr(play_window, "write_video", slow)
    press = [key(pygame.K_v)]
    frames: list[Frame] = [press, [], press, *[[] for _ in range(5)], lambda: messages.append(session.message)]
    window = play(session, tmp_path, tick=person(*frames, may_end.set))
    assert messages == [f"writing {tmp_path / 'play_0001.mp4'} ..."]
    assert session.n_steps >= 8
    assert len(window.videos) == 1


def test_a_video_that_cannot_be_written_is_told(session: PlaySession, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    window = play(session, tmp_path / "file" / "videos", tick=person([key(pygame.K_v)], [], [key(pygame.K_v)], []))
    assert window.videos == []
    (problem,) = window.problems
    assert problem.startswith("a video was not saved: ")


def test_help_is_shown_and_hidden(session: PlaySession, tmp_path: Path) -> None:
    shown: list[np.ndarray] = []

    def look() -> None:
        shown.append(screen()[: geometry.WINDOW_SIZE])

    press = [key(pygame.K_h)]
    play(session, tmp_path, tick=person([key(pygame.K_SPACE)], [], look, press, [], look, press, [], look))
    np.testing.assert_array_equal(shown[0], shown[2])
    assert (shown[1] != shown[0]).any(axis=2).mean() > 0.02


def test_the_rate_is_shown(session: PlaySession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[str] = []
    draw = play_window.PlayPicture.draw

    def drawn(self: Any, session: PlaySession, fraction: float, rate: str, *rest: Any) -> None:
        rates.append(rate)
        draw(self, session, fraction, rate, *rest)

    monkeypatch.setattr(play_window.PlayPicture, "draw", drawn)
    play(session, tmp_path, tick=person(*[[] for _ in range(5)], milliseconds=25.0))
    assert set(rates) == {"40 fps"}


def test_arguments_and_screens_are_checked(
    session: PlaySession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="fps is 0; allowed"):
        play(session, tmp_path, fps=0)
    with pytest.raises(ValueError, match="speed is -1; allowed"):
        play(session, tmp_path, speed=-1)
    monkeypatch.setenv("SDL_VIDEODRIVER", "nowhere")
    with pytest.raises(NoDisplayError, match="no window can be opened"):
        PlayWindow(session, tmp_path)

"""Videos of a session."""

from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pygame
import pytest
import torch

from envs.pusht import geometry
from envs.pusht.picture import FONT_SIZE
from immiscible_policy.evaluation.play import PlaySession
from immiscible_policy.evaluation.play_picture import KEYS_IN_WORDS, PlayPicture, status_lines
from immiscible_policy.evaluation.play_policies import NamedPolicy
from immiscible_policy.evaluation.play_recording import PackedFrames, Sampler, record
from immiscible_policy.policy import DiffusionPolicy, InferenceCoupling


@pytest.fixture
def session() -> PlaySession:
    torch.manual_seed(0)
    task = {"env_id": "envs:immiscible/PushT-v0", "obs_type": "state"}
    policy = DiffusionPolicy(5, 2, network={"name": "mlp", "width": 8, "n_blocks": 1}, task=task, coupling="KNN(k=2)")
    policy.fit_normalizers(512 * torch.rand(50, 5), 512 * torch.rand(50, 2))
    named = NamedPolicy("some run", policy.eval())
    return PlaySession([named, named], num_inference_steps=1)


def video(path: Path) -> tuple[float, np.ndarray]:
    """Rate and frames (N, H, W, 3)."""
    reader = imageio_ffmpeg.read_frames(str(path))
    meta = next(reader)
    width, height = meta["size"]
    return meta["fps"], np.array([np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader])


def agent_place(frame: np.ndarray) -> np.ndarray:
    """Mean x, y of the agent's pixels."""
    blue = np.argwhere(np.abs(frame.astype(int) - (78, 126, 255)).max(axis=2) < 40)
    assert len(blue) > 20
    return blue.mean(axis=0)[::-1]


def test_a_frame_a_step_and_the_first_state(session: PlaySession, tmp_path: Path) -> None:
    start = session.pose(1.0)[0]
    path = record(session, tmp_path / "new" / "out.mp4", n_steps=12)
    fps, frames = video(path)
    assert (fps, len(frames), frames.shape[1:]) == (10, 13, (608, 512, 3))
    np.testing.assert_allclose(agent_place(frames[0]), start, atol=2)
    np.testing.assert_allclose(agent_place(frames[-1]), session.pose(1.0)[0], atol=6)
    assert session.n_steps == 12
    assert [child.name for child in path.parent.iterdir()] == ["out.mp4"]


@pytest.mark.parametrize(
    ("fps", "speed", "n_steps", "expected"),
    [(10, 1, 6, 7), (30, 1, 3, 10), (10, 2, 6, 4), (10, 2, 7, 4), (25, 1, 3, 8), (24, 0.5, 2, 10), (10, 8, 6, 1)],
)
def test_frames_lie_on_a_grid_of_time(
    session: PlaySession,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fps: float,
    speed: float,
    n_steps: int,
    expected: int,
) -> None:
    times: list[float] = []
    draw = PlayPicture.draw

    def drawn(self: PlayPicture, session: PlaySession, fraction: float, *rest: Any) -> None:
        times.append(max(session.n_steps - 1 + fraction, 0) if session.n_steps else 0.0)
        draw(self, session, fraction, *rest)

    monkeypatch.setattr(PlayPicture, "draw", drawn)
    told: list[int] = []
    path = record(session, tmp_path / "out.mp4", n_steps, fps, speed, on_step=told.append)
    np.testing.assert_allclose(times, np.arange(expected) * 10 * speed / fps, atol=1e-9)
    assert told == list(range(1, n_steps + 1))
    rate, frames = video(path)
    assert (rate, len(frames)) == (fps, expected)


def test_disturbances_happen_when_asked(session: PlaySession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at: list[int] = []
    disturb = session.disturb
    monkeypatch.setattr(session, "disturb", lambda: (at.append(session.n_steps), disturb()))
    record(session, tmp_path / "out.mp4", n_steps=8, disturb_at=(0, 5))
    assert at == [0, 5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": Path("out.gif")}, "path is out.gif; allowed: a name that ends in .mp4"),
        ({"n_steps": 0}, "n_steps is 0; allowed"),
        ({"fps": 0.0}, "fps is 0; allowed: numbers above 0"),
        ({"fps": float("nan")}, "fps is nan; allowed"),
        ({"speed": -1.0}, "speed is -1; allowed"),
        ({"speed": float("inf")}, "speed is inf; allowed"),
        ({"disturb_at": [3, 10]}, "disturb_at is 10; allowed: 0 to 9"),
        ({"disturb_at": [-1]}, "disturb_at is -1; allowed: 0 to 9"),
    ],
)
def test_arguments_are_checked_before_any_step(
    session: PlaySession, tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        record(session, **{"path": tmp_path / "out.mp4", "n_steps": 10, **arguments})
    assert session.n_steps == 0
    assert list(tmp_path.iterdir()) == []


def test_where_nothing_can_be_written_no_step_is_made(session: PlaySession, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cannot write"):
        record(session, tmp_path / "file" / "out.mp4", n_steps=10)
    assert session.n_steps == 0


def test_packed_frames_are_the_frames() -> None:
    random = np.random.default_rng(0)
    frames = [random.integers(0, 256, (6, 8, 3)).astype(np.uint8) for _ in range(4)]
    packed = PackedFrames()
    for frame in frames:
        packed.append(frame)
    assert len(packed) == 4
    np.testing.assert_array_equal(np.array(packed), frames)
    np.testing.assert_array_equal(packed[-1], frames[3])
    np.testing.assert_array_equal(np.array(packed[1:3]), frames[1:3])
    with pytest.raises(IndexError):
        packed[4]


def test_a_sampler_keeps_its_rate_whatever_the_windows_is() -> None:
    shown: list[int] = []

    def frame() -> np.ndarray:
        return np.full((2, 2, 3), len(shown), np.uint8)

    def watched(sampler: Sampler, n_pictures: int, milliseconds: float) -> list[int]:
        shown.clear()
        for number in range(n_pictures):
            sampler.add(milliseconds, frame)
            shown.append(number)
        return [int(picture[0, 0, 0]) for picture in sampler.frames]

    fast, slow = Sampler(10), Sampler(10)
    assert np.diff(watched(fast, 121, 1000 / 60)) == pytest.approx(6, abs=1)
    assert fast.seconds == pytest.approx(2.0, abs=0.11)
    assert watched(slow, 3, 400.0) == [0, 1, 1, 1, 1, 2, 2, 2, 2]
    assert slow.seconds == pytest.approx(0.9)


# --- what is drawn ---


def test_status_lines(session: PlaySession) -> None:
    session.step()
    lines = status_lines(session, "60 fps", "saving a video: 3 s", "hint")
    assert lines == (
        f"seed 100000   step 1   coverage {session.coverage:.0%}   max {session.max_coverage:.0%}",
        "1/2  some run, trained with KNN(k=2)",
        "1 inference step   inference coupling none   60 fps",
        "saving a video: 3 s   hint",
    )
    session.initial_noise = InferenceCoupling("warm", noise_scale=0.8)
    assert "inference coupling warm, noise x 0.8" in status_lines(session, "60 fps")[2]
    session.say("a message")
    session.paused, session.success_step, session.num_inference_steps = True, 1, 20
    lines = status_lines(session, "60 fps", hint="hint")
    assert lines[0].endswith("success at step 1   paused")
    assert lines[2].startswith("20 inference steps   ")
    assert lines[3] == "a message"


def test_a_disturbance_is_told_whole_while_a_video_is_saved(session: PlaySession) -> None:
    session.say("disturbed: the block was shifted by 88 px and turned by -88 degrees")
    picture = PlayPicture(session)
    line = status_lines(session, "60 fps", "saving a video: 123 s", "hint")[3]
    assert line == f"{session.message}   saving a video: 123 s"
    width, _ = pygame.font.Font(None, FONT_SIZE).size(session.message)
    assert width < picture.picture.surface.get_width() - 16


def test_plan_hand_ghost_and_help_are_drawn(session: PlaySession) -> None:
    picture = PlayPicture(session)

    def frame(**options: Any) -> np.ndarray:
        picture.draw(session, 1.0, "10 fps", **options)
        return picture.array()[: geometry.WINDOW_SIZE].astype(int)

    plain = frame()
    session.step()
    planned = frame()
    x, y = session.plan[0].round().astype(int)
    assert np.abs(planned[y, x] - (230, 110, 20)).max() < 5
    assert (planned != plain).any()
    _, (block_x, block_y, angle) = session.pose(1.0)
    ((held_x, held_y),) = geometry.to_world([(0.0, 15.0)], block_x, block_y, angle)
    session.press((held_x, held_y))
    held = frame()
    assert held[round(held_y), round(held_x)].tolist() == [200, 30, 90]
    session.disturb()
    ghost = frame()
    reds = (np.abs(ghost - (200, 30, 90)).max(axis=2) < 60).sum()
    assert reds > 300
    covered = np.argwhere((frame(overlay=True) != ghost).any(axis=2))
    assert np.ptp(covered, axis=0).min() > 200


def test_the_help_fits_into_the_window(session: PlaySession) -> None:
    picture = PlayPicture(session)
    picture.draw(session, 1.0, "10 fps")
    before = picture.array()
    picture.picture.box(KEYS_IN_WORDS)
    changed = np.argwhere((picture.array() != before).any(axis=2))
    assert changed.min() > 10
    assert changed.max() < geometry.WINDOW_SIZE - 10


def test_another_policys_goal_is_drawn(session: PlaySession) -> None:
    elsewhere = session.policies[1].policy
    torch.manual_seed(1)
    other = DiffusionPolicy(
        5, 2, network={"name": "mlp", "width": 8, "n_blocks": 1}, task=elsewhere.task | {"goal_pose": (100, 400, 0)}
    )
    both = PlaySession([session.policies[0], NamedPolicy("other", other)])
    picture = PlayPicture(both)
    for expected in (False, True):
        picture.draw(both, 1.0, "10 fps")
        assert (picture.array()[415, 100].tolist() == list(geometry.GOAL_COLOR)) is expected
        both.switch(1)

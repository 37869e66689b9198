"""The command for watching policies, from its arguments to the video on the disk."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import pygame
import pytest
import torch

from immiscible_policy.evaluation.play_picture import KEYS_IN_WORDS
from immiscible_policy.policy import DiffusionPolicy

Runner = Callable[..., int]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run with two policies that know nothing."""
    task = {"env_id": "envs:immiscible/PushT-v0", "obs_type": "state", "legacy": True}
    for step, name in enumerate(("step=0000010", "step=0000020")):
        torch.manual_seed(step)
        network = {"name": "mlp", "width": 8, "n_blocks": 1}
        policy = DiffusionPolicy(5, 2, network=network, task=task, coupling="KNN(k=2)")
        policy.fit_normalizers(512 * torch.rand(50, 5), 512 * torch.rand(50, 2))
        policy.save_pretrained(tmp_path / "my_run" / "checkpoints" / name)
    return tmp_path / "my_run"


@pytest.fixture
def play_policy(run_script: Runner, monkeypatch: pytest.MonkeyPatch) -> Runner:
    """play_policy(*arguments) -> exit status, without changing the number of threads of the other tests."""
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    return lambda *arguments: run_script("play_policy", *map(str, arguments))


def n_frames(path: str) -> int:
    reader = imageio_ffmpeg.read_frames(path)
    next(reader)
    return sum(1 for _ in reader)


def test_it_records_without_a_display(
    play_policy: Runner, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("SDL_VIDEODRIVER", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    options = ("--steps", 6, "--num-inference-steps", 2, "--fps", 20)
    assert play_policy(folder, "--record", "new/out.mp4", *options, "--disturb", 2, 4) == 0
    said = capsys.readouterr()
    assert said.out.startswith("my_run step=0000020, seed 100000, 6 steps: coverage ")
    assert said.out.endswith("no success\nvideo new/out.mp4\n")
    assert n_frames("new/out.mp4") == 13
    assert not pygame.display.get_init()


def test_the_same_command_gives_the_same_video(play_policy: Runner, folder: Path) -> None:
    options = ("--steps", 3, "--num-inference-steps", 1, "--disturb", 2)
    for name, more in (("a", ()), ("b", ()), ("c", ("--seed", 7)), ("d", ("--no-legacy",))):
        assert play_policy(folder, "--record", f"{name}.mp4", *options, *more) == 0
    first, *others = (Path(f"{name}.mp4").read_bytes() for name in "abcd")
    assert [first == other for other in others] == [True, False, False]


@pytest.mark.parametrize("coupling", ["warm", "two_pass"])
def test_coupled_inference(play_policy: Runner, folder: Path, coupling: str) -> None:
    options = ("--record", "out.mp4", "--steps", 9, "--speed", 3, "--num-inference-steps", 1)
    assert play_policy(folder, "--inference-coupling", coupling, *options) == 0


def test_it_plays_in_a_window(
    play_policy: Runner, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = [pygame.K_v, pygame.K_TAB, None, pygame.K_r, pygame.K_v, None, pygame.K_q, None]

    class Clock:
        def tick(self, frames_per_second: int) -> int:
            code = keys.pop(0)
            if code is not None:
                pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=code, mod=0, unicode=""))
            return 100

    monkeypatch.setattr(pygame.time, "Clock", Clock)
    checkpoints = folder / "checkpoints"
    policies = (checkpoints / "step=0000010", checkpoints / "step=0000020")
    assert play_policy(*policies, "--num-inference-steps", 1, "--video-dir", "here") == 0
    assert capsys.readouterr().out == "video here/play_0001.mp4\n"
    assert n_frames("here/play_0001.mp4") == 4


def test_ctrl_c_ends_it(play_policy: Runner, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        def tick(self, frames_per_second: int) -> int:
            raise KeyboardInterrupt

    monkeypatch.setattr(pygame.time, "Clock", Clock)
    assert play_policy(folder) == 130
    assert not pygame.display.get_init()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: neither a policy folder"),
        (["{run}", "--seed", "-1"], "seed is -1; allowed: 0 to 4294967295"),
        (["{run}", "--fps", "0"], "fps is 0; allowed: numbers above 0"),
        (["{run}", "--speed", "-2"], "speed is -2; allowed: numbers above 0"),
        (["{run}", "--num-inference-steps", "101"], "num_inference_steps is 101; allowed: 1 to 100"),
        (["{run}", "--threads", "0"], "--threads is 0; allowed"),
        (["{run}", "--device", "tpu"], "device='tpu': choose"),
        (["{run}", "--record", "out.avi"], "--record is out.avi; allowed: a name that ends in .mp4"),
        (["{run}", "--record", "out.mp4", "--steps", "0"], "--steps is 0; allowed"),
        (
            ["{run}", "--record", "out.mp4", "--disturb", "300"],
            "--disturb is 300; allowed: 0 to 299, before the last of --steps 300",
        ),
        (["{run}", "--record", "out.mp4", "--steps", "5", "--disturb", "-1"], "--disturb is -1; allowed: 0 to 4"),
        (["{run}", "--record", "out.mp4", "--video-dir", "here"], "--video-dir is for the window"),
        (["{run}", "--steps", "300"], "--steps is for --record; the window stays"),
        (["{run}", "--record", "{run}/checkpoints/step=0000010/config.json/out.mp4"], "cannot write "),
        (["{run}", "{run}", "--record", "out.mp4"], "--record shows one policy, but 2 were given"),
        (["{run}", "--disturb", "3"], "--disturb is for --record; in the window press d"),
    ],
)
def test_mistakes_end_in_one_line(
    play_policy: Runner, folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert play_policy(*[argument.format(run=folder) for argument in arguments]) == 1
    said: Any = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"error: {message}")
    assert said.err.count("\n") == 1
    assert not list(Path().glob("*.mp4"))


def test_a_missing_screen_is_told(
    play_policy: Runner, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "nowhere")
    assert play_policy(folder) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: no window can be opened (")
    assert said.endswith(", or write a video with --record\n")
    assert said.count("\n") == 1


def test_the_help_lists_the_keys(play_policy: Runner, capsys: pytest.CaptureFixture[str]) -> None:
    assert play_policy("--help") == 0
    said = capsys.readouterr().out
    assert all(key in said and meaning in said for key, meaning in KEYS_IN_WORDS)

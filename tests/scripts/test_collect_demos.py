"""The command that records demonstrations, from its arguments to the store on the disk, with a scripted person."""

import importlib.util
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pygame
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from envs.pusht import PushTEnv
from immiscible_policy import cli
from immiscible_policy.data.replay import ReplayData, load_replay
from immiscible_policy.data.replay_writer import read_attributes, write_replay
from immiscible_policy.policy_data import load_data

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "collect_demos.py"
Record = Callable[..., int]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("script_collect_demos", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def record(script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Record]:
    """record(frames, *arguments) -> exit status, with a person who does a frame's worth every 0.1 s, without waiting.

    A frame is a mouse position, a key, or an exception for Ctrl-C. After the last one the person presses q.
    """
    monkeypatch.chdir(tmp_path)

    def run(frames: list[Any], *arguments: str) -> int:
        remaining = [*frames, pygame.K_q, None]

        class Clock:
            def tick(self, frames_per_second: int) -> int:
                frame = remaining.pop(0)
                if isinstance(frame, type):
                    raise frame
                if isinstance(frame, int):
                    pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=frame, mod=0, unicode=""))
                elif frame is not None:
                    x, y = frame
                    pos = (int(x), int(y))
                    pygame.event.post(pygame.event.Event(pygame.MOUSEMOTION, pos=pos, rel=(0, 0), buttons=(0, 0, 0)))
                return 100

        monkeypatch.setattr(pygame.time, "Clock", Clock)
        return int(script.main(list(arguments)))

    yield run
    pygame.display.quit()


def pushes(seed: int, n_steps: int) -> list[Any]:
    """The mouse at the agent of a seed's initial state and on from there; the key that saves."""
    observation, _ = PushTEnv(legacy=True).reset(seed=seed)
    x, y = observation[:2]
    return [*((x + 5 * index, y + 3 * index) for index in range(n_steps)), pygame.K_n]


def assert_replays(replay: ReplayData) -> None:
    for index in range(replay.n_episodes):
        steps = replay.episode(index)
        states, actions = replay.arrays["state"][steps], replay.arrays["action"][steps]
        env = PushTEnv()
        observation, _ = env.reset(options={"state": states[0]})
        for state, action in zip(states, actions, strict=True):
            np.testing.assert_array_equal(observation.astype(np.float32), state)
            observation = env.step(action)[0]


def lengths(replay: ReplayData) -> list[int]:
    return np.diff(replay.episode_ends, prepend=0).tolist()


def test_a_human_demonstration_is_recorded_again(record: Record, pusht_demonstrations: Path) -> None:
    human = load_replay(pusht_demonstrations)
    steps = human.episode(205)
    actions = human.arrays["action"][steps]
    assert record([*actions.tolist(), pygame.K_n], "--seed-start", "205", "--output", "one.zarr") == 0
    again = load_replay("one.zarr")
    np.testing.assert_array_equal(again.arrays["action"], actions)
    np.testing.assert_allclose(again.arrays["state"], human.arrays["state"][steps], atol=0.01)
    np.testing.assert_allclose(again.arrays["keypoint"], human.arrays["keypoint"][steps], atol=0.5)
    assert_replays(again)


def test_sessions_go_on_where_the_last_one_ended(
    record: Record, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert record([*pushes(0, 6), *pushes(1, 4), *pushes(2, 3)[:-1]]) == 0
    store = Path("data/pusht/collected.zarr")
    said = capsys.readouterr()
    assert f"2 demonstrations (10 steps) are in {store}" in said.out
    assert f"python scripts/train_policy.py dataset.path={store}" in said.out
    assert said.err == ""
    assert record([*pushes(2, 5), *pushes(3, 2)], "--episodes", "3") == 0
    replay = load_replay(store, arrays=("action", "state", "keypoint", "n_contacts"))
    assert lengths(replay) == [6, 4, 5]
    for index in range(3):
        start, _ = PushTEnv(legacy=True).reset(seed=index)
        np.testing.assert_array_equal(replay.arrays["state"][replay.episode(index)][0], start.astype(np.float32))
    assert_replays(replay)
    assert read_attributes(store) == {
        "recorded_with": "scripts/collect_demos.py",
        "seed_start": 0,
        "control_hz": 10,
    }


def test_the_command_that_is_printed_trains_on_a_single_episode(
    record: Record, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a folder whose name a shell would split."""
    assert record(pushes(0, 20), "--output", "my demos.zarr") == 0
    command = capsys.readouterr().out.splitlines()[-1].strip()
    assert command == "python scripts/train_policy.py 'dataset.path=my demos.zarr' dataset.val_ratio=0"
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(cli.CONFIG_DIR), version_base="1.3"):
        cfg = compose("train_policy", cli.quote_values(shlex.split(command)[1:])[1:])
    data = load_data(cfg)
    assert (len(data.train) > 0, data.validation) == (True, None)


def test_the_last_episode_is_deleted_on_the_disk_too(record: Record) -> None:
    delete = [pygame.K_d, pygame.K_d]
    assert (
        record([*pushes(7, 6), *pushes(8, 9), *delete, *pushes(8, 3)], "--seed-start", "7", "--output", "a.zarr") == 0
    )
    replay = load_replay("a.zarr")
    assert lengths(replay) == [6, 3]
    assert_replays(replay)
    assert record(delete * 2, "--output", "a.zarr") == 0
    assert not Path("a.zarr").exists()


def test_a_second_window_waits_and_goes_on_with_the_next_seed(
    script: ModuleType, record: Record, capsys: pytest.CaptureFixture[str]
) -> None:
    store, has_begun = Path("new/a.zarr"), threading.Event()

    def first_window() -> None:
        with script.alone_with(store):
            has_begun.set()
            time.sleep(0.5)
            start, _ = PushTEnv(legacy=True).reset(seed=0)
            script.open_store(store, None, False)[0].append(
                {
                    "state": start[None],
                    "action": start[None, :2],
                    "keypoint": np.zeros((1, 9, 2)),
                    "n_contacts": np.zeros((1, 1)),
                }
            )

    first = threading.Thread(target=first_window)
    first.start()
    assert has_begun.wait(10)
    assert record(pushes(1, 4), "--output", str(store)) == 0
    first.join()
    assert f"waiting for another window that records at {store}" in capsys.readouterr().err
    replay = load_replay(store)
    assert lengths(replay) == [1, 4]
    second, _ = PushTEnv(legacy=True).reset(seed=1)
    np.testing.assert_array_equal(replay.arrays["state"][1], second.astype(np.float32))


def test_pictures_are_recorded_if_asked_or_if_the_store_has_them(
    record: Record, capsys: pytest.CaptureFixture[str]
) -> None:
    assert record(pushes(0, 3), "--img", "--output", "img.zarr") == 0
    assert record(pushes(1, 2), "--output", "img.zarr") == 0
    images = load_replay("img.zarr", arrays=("img",)).arrays["img"]
    assert images.shape == (5, 96, 96, 3)
    first, _ = PushTEnv("pixels", legacy=True).reset(seed=0)
    np.testing.assert_array_equal(images[0], first)
    assert record(pushes(0, 3), "--output", "plain.zarr") == 0
    assert record([], "--img", "--output", "plain.zarr") == 1
    assert "have no pictures" in capsys.readouterr().err


def test_interrupting_keeps_what_was_saved(record: Record, capsys: pytest.CaptureFixture[str]) -> None:
    assert record([*pushes(0, 3), *pushes(1, 3)[:-1], KeyboardInterrupt], "--output", "a.zarr") == 0
    assert lengths(load_replay("a.zarr")) == [3]
    assert "1 demonstration (3 steps) is in" in capsys.readouterr().out


def test_nothing_recorded_makes_no_store(record: Record, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert record([]) == 0
    assert capsys.readouterr().out == "no demonstrations were saved\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed-start", "-1"], "--seed-start is -1; allowed"),
        (["--episodes", "0"], "--episodes is 0; allowed"),
        (["--output", "a.zarr", "--seed-start", "3"], "--seed-start is 3, but a.zarr starts at 0"),
        (["--output", "other.zarr"], "other.zarr was not made by this writer"),
        (["--output", "generated.zarr"], "generated.zarr was not recorded by this script"),
    ],
)
def test_arguments_that_do_not_fit(
    record: Record,
    make_store: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    record(pushes(0, 2), "--output", "a.zarr")
    make_store(Path("other.zarr"))
    write_replay("generated.zarr", [{"action": np.ones((2, 2))}], {"seed_start": 0})
    capsys.readouterr()
    assert record([], *arguments) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"error: {message}")
    assert said.err.count("\n") == 1


def test_without_a_screen_one_line_says_so(tmp_path: Path) -> None:
    no_screen = {"DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"}
    environment = {name: value for name, value in os.environ.items() if name not in no_screen}
    command = [sys.executable, str(SCRIPT), "--output", "a.zarr"]
    if sys.platform != "linux":
        environment["SDL_VIDEODRIVER"] = "nowhere"
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr.startswith("error: no window can be opened (")
    assert ended.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []

"""The command that makes demonstrations: its settings, what it prints, and how it ends."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from envs.pusht.geometry import GOAL_POSE
from immiscible_policy.data.replay import DataError
from immiscible_policy.data.replay_writer import write_replay

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "generate_demos.py"
Run = Callable[..., int]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("script_generate_demos", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def asked() -> list[tuple[Any, ...]]:
    """The arguments that `generate_demonstrations` was given."""
    return []


@pytest.fixture
def run(
    script: ModuleType, asked: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., int]:
    """run(*arguments, error=None) -> exit status, in a fresh folder; two episodes are made, or `error` is raised."""
    monkeypatch.chdir(tmp_path)

    def start(*arguments: str, error: BaseException | None = None) -> int:
        def generate(path: Path, *options: Any) -> Path:
            asked.append((path, *options))
            if error is not None:
                raise error
            write_replay(path, [{"state": np.ones((length, 5))} for length in (90, 111)], overwrite=True)
            return path

        monkeypatch.setattr(script, "generate_demonstrations", generate)
        try:
            return int(script.main(list(arguments)))
        except SystemExit as stop:
            return int(stop.code or 0)

    return start


def test_without_settings(run: Run, asked: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    path = Path("data/pusht/demonstrator_seed0.zarr")
    assert run() == 0
    assert asked == [(path, 200, 0, False, GOAL_POSE, None)]
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{path}: 2 episodes, 100 steps each, ")
    assert second == f"train on them: python scripts/train_policy.py dataset.path={path}"


def test_with_all_settings(run: Run, asked: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["n_episodes=3", "seed=4", "output=my/store.zarr", "images=True", "goal=356,300.5,-1", "processes=2"]
    assert run(*settings) == 0
    assert asked == [(Path("my/store.zarr"), 3, 4, True, (356.0, 300.5, -1.0), 2)]
    said = capsys.readouterr().out
    # So that the policy is evaluated where the demonstrations lead.
    assert said.endswith("dataset.path=my/store.zarr 'task.goal_pose=[356.0,300.5,-1.0]'\n")


def test_the_command_that_is_printed_can_be_typed(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("output=my demos.zarr") == 0
    assert capsys.readouterr().out.endswith(" scripts/train_policy.py 'dataset.path=my demos.zarr'\n")


def test_each_seed_has_a_store_of_its_own_and_the_last_setting_counts(run: Run, asked: list[Any]) -> None:
    assert run("seed=1", "images=false", "seed=12") == 0
    assert asked[0][:4] == (Path("data/pusht/demonstrator_seed12.zarr"), 200, 12, False)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("n_episode=3", "'n_episode=3': give name=value with one of n_episodes, seed, output, images, goal, processes"),
        ("n_episodes", "'n_episodes': give name=value with one of"),
        ("200", "'200': give name=value with one of"),
        ("=3", "'=3': give name=value with one of"),
        ("n_episodes=many", "n_episodes=many: "),
        ("n_episodes=", "n_episodes=: "),
        ("seed=1.5", "seed=1.5: "),
        ("images=yes", "images=yes: allowed: true, false"),
        ("goal=1,2", "goal=1,2: allowed: x,y,angle"),
        ("goal=1,2,north", "goal=1,2,north: "),
        ("--seed", "unrecognized arguments: --seed"),
    ],
)
def test_settings_that_are_not_understood(
    run: Run, asked: list[Any], capsys: pytest.CaptureFixture[str], setting: str, message: str
) -> None:
    assert run("seed=1", setting) == 2
    assert asked == []
    said = capsys.readouterr()
    assert said.out == ""
    assert f"error: {message}" in said.err


@pytest.mark.parametrize(
    "error", [ValueError("n_episodes is 0"), DataError("made otherwise"), OSError("no space left")]
)
def test_what_goes_wrong_ends_in_one_line(run: Run, capsys: pytest.CaptureFixture[str], error: Exception) -> None:
    assert run(error=error) == 1
    assert capsys.readouterr() == ("", f"error: {error}\n")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("n_episodes=-3", "n_episodes is -3; allowed: an integer of at least 1"),
        ("seed=-1", "seed is -1; allowed: an integer of at least 0"),
        ("processes=0", "processes is 0; allowed: an integer of at least 1"),
        ("goal=-1,2,3", "goal_pose is [-1.0, 2.0, 3.0]; allowed: x and y in [0, 512]"),
        ("goal=1,2,inf", "goal_pose is (1.0, 2.0, inf)"),
        ("output=file", "file is neither a zarr directory nor"),
    ],
)
def test_settings_out_of_range(
    script: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    setting: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert script.main([setting]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"error: {message}")
    assert said.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_ctrl_c_says_how_to_go_on(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(error=KeyboardInterrupt()) == 130
    assert capsys.readouterr() == ("", "interrupted: run the same command again to go on\n")


def test_help_names_every_setting(run: Run, asked: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    assert asked == []
    shown = capsys.readouterr().out
    for words in (
        "n_episodes=200",
        "seed=0",
        "output=PATH",
        "images=false",
        "goal=x,y,angle",
        "processes=",
        "dataset=",
    ):
        assert words in shown


def test_the_real_command_in_its_own_process(tmp_path: Path) -> None:
    """One episode, which costs less than all that is imported."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "n_episodes=1", "processes=1"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("data/pusht/demonstrator_seed0.zarr: 1 episodes, ")
    assert [path.name for path in (tmp_path / "data" / "pusht").iterdir()] == ["demonstrator_seed0.zarr"]

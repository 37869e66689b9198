"""Which demonstrations are taken, what is said about it, and how much of them is read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.pusht.geometry import GOAL_POSE, Pose
from immiscible_policy.data import sources
from immiscible_policy.data.lerobot_export import export_lerobot
from immiscible_policy.data.replay import DataError, load_replay
from immiscible_policy.data.sources import (
    DemonstratorSet,
    goal_of,
    load_demonstrations,
    locate_demonstrations,
    training_command,
)

Arrays = dict[str, np.ndarray]
MakeStore = Callable[..., Arrays]


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """What was asked of `generate_demonstrations`, which does nothing."""
    calls: list[tuple[object, ...]] = []

    def generate(path: str, n_episodes: int, seed: int, *, goal_pose: Pose) -> Path:
        calls.append((path, n_episodes, seed, goal_pose))
        return Path(path)

    monkeypatch.setattr(sources, "generate_demonstrations", generate)
    return calls


@pytest.fixture
def said() -> list[str]:
    return []


MADE = DemonstratorSet("made.zarr", 7, 3)


def test_a_path_is_taken_before_all_else_without_a_word(
    generated: list[object], said: list[str], make_store: MakeStore, tmp_path: Path
) -> None:
    make_store(tmp_path / "human.zarr")
    found = locate_demonstrations("given.zarr", str(tmp_path / "human.zarr"), MADE, said.append)
    assert found == (Path("given.zarr"), None)
    assert (generated, said) == ([], [])


def test_the_human_ones_are_taken_where_they_are(
    generated: list[object], said: list[str], make_store: MakeStore, tmp_path: Path
) -> None:
    human = str(tmp_path / "human.zarr")
    make_store(Path(human))
    for demonstrator in (MADE, None):
        assert locate_demonstrations(None, human, demonstrator, said.append) == (Path(human), None)
    assert generated == []
    assert said == [f"demonstrations: the human ones at {human}"] * 2


def test_else_the_demonstrators(generated: list[object], said: list[str]) -> None:
    assert locate_demonstrations(None, "nowhere.zarr", MADE, said.append) == (Path("made.zarr"), 7)
    assert locate_demonstrations(None, None, MADE, said.append) == (Path("made.zarr"), 7)
    assert generated == [("made.zarr", 7, 3, GOAL_POSE)] * 2
    assert said == [
        "demonstrations: 7 of the demonstrator at made.zarr (no human ones at nowhere.zarr: scripts/download_pusht.py"
        " gets them)",
        "demonstrations: 7 of the demonstrator at made.zarr",
    ]


def test_for_another_goal_than_the_human_one(
    generated: list[object], said: list[str], make_store: MakeStore, tmp_path: Path
) -> None:
    goal_pose = (356.0, 356.0, 0.0)
    human, elsewhere = str(tmp_path / "human.zarr"), DemonstratorSet("made.zarr", 7, 3, goal_pose)
    make_store(Path(human))
    assert locate_demonstrations(None, human, elsewhere, said.append) == (Path("made.zarr"), 7)
    assert locate_demonstrations(None, None, elsewhere, said.append) == (Path("made.zarr"), 7)
    assert generated == [("made.zarr", 7, 3, goal_pose)] * 2
    assert said == [
        "demonstrations: 7 of the demonstrator at made.zarr (the human ones are for another goal)",
        "demonstrations: 7 of the demonstrator at made.zarr",
    ]
    # Who names a path knows what is there.
    assert locate_demonstrations(human, None, elsewhere, said.append) == (Path(human), None)


def test_it_is_said_before_they_are_made(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    def fail(*arguments: object, **options: object) -> Path:
        assert len(said) == 1
        raise DataError("made otherwise")

    monkeypatch.setattr(sources, "generate_demonstrations", fail)
    with pytest.raises(DataError, match="made otherwise"):
        locate_demonstrations(None, None, MADE, said.append)


def test_nothing_to_choose_from(said: list[str]) -> None:
    for human in (None, "nowhere.zarr"):
        with pytest.raises(ValueError, match="dataset: give a path, the human demonstrations or the demonstrator's"):
            locate_demonstrations(None, human, None, said.append)
    assert said == []


def test_home_folders_are_understood(
    generated: list[object], make_store: MakeStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    make_store(tmp_path / "human.zarr")
    assert locate_demonstrations("~/given.zarr", None, None)[0] == tmp_path / "given.zarr"
    assert locate_demonstrations(None, "~/human.zarr", None)[0] == tmp_path / "human.zarr"


def test_without_an_announcer_it_is_printed(generated: list[object], capsys: pytest.CaptureFixture[str]) -> None:
    locate_demonstrations(None, None, DemonstratorSet("made.zarr"))
    assert capsys.readouterr().out == "demonstrations: 200 of the demonstrator at made.zarr\n"
    assert generated == [("made.zarr", 200, 0, GOAL_POSE)]


def test_only_the_first_episodes_of_a_longer_store(make_store: MakeStore, tmp_path: Path) -> None:
    arrays = make_store(tmp_path / "store.zarr", lengths=(12, 9, 20))
    names = ("action", "state")
    for n_episodes, n_steps in ((1, 12), (2, 21), (3, 41), (9, 41), (None, 41)):
        replay = load_demonstrations(tmp_path / "store.zarr", names, n_episodes)
        assert set(replay.arrays) == set(names)
        assert replay.n_steps == n_steps
        assert replay.episode_ends.tolist() == [12, 21, 41][: n_episodes or 3]
        for name in names:
            np.testing.assert_array_equal(replay.arrays[name], arrays[name][:n_steps])
        assert replay.source == tmp_path / "store.zarr"


def test_lerobot_folders_are_read_whole(make_store: MakeStore, tmp_path: Path) -> None:
    make_store(tmp_path / "store.zarr")
    replay = load_replay(tmp_path / "store.zarr")
    export_lerobot(replay, tmp_path / "set")
    path, n_episodes = locate_demonstrations(str(tmp_path / "set"), None, MADE)
    read = load_demonstrations(path, ("action",), n_episodes)
    assert {"action", "state", "keypoint"} <= set(read.arrays)
    np.testing.assert_allclose(read.arrays["action"], replay.arrays["action"])
    assert load_demonstrations(path, ("action",), 2).n_steps == 21


def test_lerobot_folders_say_their_goal_where_they_were_written_here(make_store: MakeStore, tmp_path: Path) -> None:
    make_store(tmp_path / "store.zarr")
    folder = export_lerobot(load_replay(tmp_path / "store.zarr"), tmp_path / "set", goal_pose=(300.0, 200.0, 0.5))
    assert goal_of(folder) == (300.0, 200.0, 0.5)
    info = json.loads((folder / "meta" / "info.json").read_text())
    for said in ([1.0, 2.0], "north", 3):
        (folder / "meta" / "info.json").write_text(json.dumps({**info, "goal_pose": said}))
        with pytest.raises(DataError, match=r"goal_pose is .*; allowed: three numbers, x, y and an angle"):
            goal_of(folder)
    del info["goal_pose"]
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    assert goal_of(folder) is None


def test_what_is_missing_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no demonstrations at .*nowhere.*download_pusht\.py.*dataset=demonstrator"):
        load_demonstrations(tmp_path / "nowhere", ("action",))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((Path("a.zarr"), 2), "dataset.path=a.zarr"),
        ((Path("a.zarr"), 2, GOAL_POSE), "dataset.path=a.zarr"),
        ((Path("a.zarr"), 1), "dataset.path=a.zarr dataset.val_ratio=0"),
        ((Path("my demos.zarr"), 2, (1.0, 2.0, 3.5)), "'dataset.path=my demos.zarr' 'task.goal_pose=[1.0,2.0,3.5]'"),
    ],
)
def test_the_command_that_trains_on_them(arguments: tuple[Any, ...], expected: str) -> None:
    assert training_command(*arguments) == f"python scripts/train_policy.py {expected}"

"""Folders that are written anew."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from immiscible_policy.data.replacing import staged, undo_replacing
from immiscible_policy.files import replace_folder, set_aside, staging_path


def write(target: Path, name: str) -> None:
    with staged(target) as staging:
        (staging / name).touch()
        replace_folder(staging, target)


def test_interrupted_anywhere_keeps_one_of_the_two(
    tmp_path: Path, interrupted_replacing: Callable[..., Iterator[bool]]
) -> None:
    target, seen = tmp_path / "target", []
    for _ in interrupted_replacing(lambda: write(target, "old"), lambda: write(target, "new")):
        undo_replacing(target)
        seen.append([path.name for path in target.iterdir()])
        write(target, "next")
        assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert seen == 6 * [["old"]] + 2 * [["new"]]


def test_a_failure_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "target"
    write(target, "old")

    def fail() -> None:
        with staged(target) as staging:
            (staging / "half").touch()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [path.name for path in tmp_path.rglob("*")] == ["target", "old"]


def test_nothing_is_undone_where_the_new_folder_is_there(tmp_path: Path) -> None:
    target = tmp_path / "target"
    write(target, "old")
    os.rename(target, set_aside(target))
    write(target, "new")
    assert [path.name for path in target.iterdir()] == ["new"]
    assert not set_aside(target).exists()
    assert not staging_path(target).exists()

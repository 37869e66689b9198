"""Files that are whole or not there."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from immiscible_policy.files import (
    complete_or_absent,
    replace_folder,
    save_figure,
    set_aside,
    staging_folder,
    write_json,
    write_text,
)


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "text.txt"
    with complete_or_absent(path) as partial:
        partial.write_text("half")
        assert not path.exists()
        assert partial.parent == path.parent
        assert partial.suffix == ".tmp"
    assert path.read_text() == "half"
    assert list(path.parent.iterdir()) == [path]


def test_writers_take_turns_and_leave_no_lock(tmp_path: Path) -> None:
    """Each reads the number and writes one more, as often as it is asked to: none of it may be lost."""
    path = tmp_path / "folder" / "number.json"
    turns = """
import json, sys, pathlib
from immiscible_policy.files import alone, write_json
path = pathlib.Path(sys.argv[1])
for _ in range(60):
    with alone(path):
        write_json(path, json.loads(path.read_text()) + 1 if path.exists() else 1)
"""
    writers = [subprocess.Popen([sys.executable, "-c", turns, str(path)], stderr=subprocess.DEVNULL) for _ in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert json.loads(path.read_text()) == 180
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    write_text(path, "old")

    def fail() -> None:
        with complete_or_absent(path) as partial:
            partial.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_writer_that_goes_by_the_suffix_gets_it(tmp_path: Path) -> None:
    with complete_or_absent(tmp_path / "film.mp4", keep_suffix=True) as partial:
        assert partial.suffix == ".mp4"
        partial.touch()


@pytest.mark.parametrize(("suffix", "start"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_figures_have_the_format_of_their_suffix(tmp_path: Path, suffix: str, start: bytes) -> None:
    path = tmp_path / f"figure.{suffix}"
    save_figure(Figure(figsize=(1, 1)), path)
    assert path.read_bytes().startswith(start)


def test_a_link_to_a_folder_is_replaced_and_can_be_again(tmp_path: Path) -> None:
    elsewhere, target = tmp_path / "elsewhere", tmp_path / "target"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    target.symlink_to(elsewhere)
    for name in ("first", "second"):
        staging = staging_folder(target)
        (staging / name).touch()
        replace_folder(staging, target)
        assert [path.name for path in target.iterdir()] == [name]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "target"]
    assert (elsewhere / "kept").exists()


def test_a_link_that_was_left_aside_is_no_hindrance(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    set_aside(target).symlink_to(tmp_path)
    replace_folder(staging_folder(target), target)
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_json_has_null_where_a_number_is_none(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": float("nan"), "b": [1.5, float("inf")]})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": None, "b": [1.5, None]}

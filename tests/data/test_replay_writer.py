"""Replay stores written an episode at a time: contents, refusals, and what a kill at any moment leaves."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from immiscible_policy.data import growing_array
from immiscible_policy.data.replay import DataError, load_replay
from immiscible_policy.data.replay_writer import ReplayWriter, read_attributes, write_replay

Episode = dict[str, np.ndarray]
NAMES = ("action", "state", "keypoint", "n_contacts")
SHAPES = {"action": (2,), "state": (5,), "keypoint": (9, 2), "n_contacts": (1,)}


def make_episode(length: int, seed: int = 0, images: bool = False) -> Episode:
    """Made-up steps; equal seeds and lengths give equal episodes."""
    rng = np.random.default_rng([seed, length])
    episode = {name: rng.uniform(1, 500, (length, *shape)).astype(np.float32) for name, shape in SHAPES.items()}
    if images:
        episode["img"] = rng.integers(0, 256, (length, 96, 96, 3)).astype(np.uint8)
    return episode


def assert_holds(path: Path, episodes: list[Episode]) -> None:
    replay = load_replay(path, arrays=tuple(episodes[0]))
    assert replay.n_episodes == len(episodes)
    for index, episode in enumerate(episodes):
        for name, values in episode.items():
            np.testing.assert_array_equal(replay.arrays[name][replay.episode(index)], values)
    assert all(len(values) == replay.n_steps for values in replay.arrays.values())


def assert_nothing_further(path: Path, writer: ReplayWriter) -> None:
    """The arrays end where the last episode does, for readers that know nothing of this writer, and so do the files."""
    root = zarr.open_group(path, mode="r")
    lengths = {"meta/episode_ends": writer.n_episodes} | {f"data/{name}": writer.n_steps for name in root["data"]}
    for name, length in lengths.items():
        array = root[name]
        assert array.shape[0] == length
        assert len([file for file in (path / name).iterdir() if not file.name.startswith(".")]) == array.nchunks
    assert not list(path.rglob("*.tmp"))


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 8 steps, so that short episodes cross them, and no waiting for the disk."""
    monkeypatch.setattr(growing_array, "CHUNK_STEPS", 8)
    monkeypatch.setattr(os, "fsync", lambda file: None)


# --- contents ---


@settings(max_examples=12, deadline=None)
@given(
    lengths=st.lists(st.one_of(st.none(), st.integers(1, 12)), min_size=1, max_size=7),
    chunk=st.integers(1, 9),
    reopen=st.booleans(),
)
def test_any_sequence_of_appends_and_drops(
    tmp_path_factory: Any, lengths: list[int | None], chunk: int, reopen: bool
) -> None:
    path = tmp_path_factory.mktemp("store") / "r.zarr"
    writer, expected = ReplayWriter(path), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(growing_array, "CHUNK_STEPS", chunk)
        for seed, length in enumerate(lengths):
            if length is not None:
                expected.append(make_episode(length, seed))
                writer.append(expected[-1])
            elif expected:
                expected.pop()
                writer.drop_last()
            if reopen:
                writer = ReplayWriter(path)
            assert writer.n_episodes == len(expected)
            assert writer.n_steps == sum(len(episode["action"]) for episode in expected)
    if expected:
        assert_holds(path, expected)
        assert_nothing_further(path, writer)
    else:
        assert list(path.parent.iterdir()) == []


def test_store_is_a_complete_zarr_version_2_group(tmp_path: Path) -> None:
    episodes = [make_episode(160, images=True), make_episode(5, 1, images=True)]
    write_replay(tmp_path / "r.zarr", episodes)
    root = zarr.open_group(tmp_path / "r.zarr", mode="r", zarr_format=2)
    assert sorted(root["data"].array_keys()) == ["action", "img", "keypoint", "n_contacts", "state"]
    assert root["data/img"].dtype == np.uint8
    assert root["data/state"].dtype == np.float32
    assert root["data/img"].nchunks == 2
    assert root["meta/episode_ends"].dtype == np.int64
    np.testing.assert_array_equal(root["meta/episode_ends"][:], [160, 165])
    for name in episodes[0]:
        np.testing.assert_array_equal(root["data"][name][:], np.concatenate([e[name] for e in episodes]))


def test_images_may_be_floats_that_are_whole_numbers(tmp_path: Path) -> None:
    episode = make_episode(3, images=True)
    ReplayWriter(tmp_path / "r.zarr").append(episode | {"img": episode["img"].astype(np.float32)})
    assert_holds(tmp_path / "r.zarr", [episode])


def test_a_step_may_be_a_single_number(tmp_path: Path) -> None:
    episode = make_episode(3) | {"reward": np.arange(3, dtype=np.float32)}
    writer = ReplayWriter(tmp_path / "r.zarr")
    writer.append(episode)
    writer.append(episode)
    assert_holds(tmp_path / "r.zarr", [episode, episode])


def test_whole_store_equals_the_one_written_by_episode(tmp_path: Path) -> None:
    episodes = [make_episode(length, length) for length in (700, 300, 100)]
    write_replay(tmp_path / "whole.zarr", iter(episodes), {"a": 1})
    writer = ReplayWriter(tmp_path / "parts.zarr", {"a": 1})
    for episode in episodes:
        writer.append(episode)
    files = {file.relative_to(tmp_path / "whole.zarr") for file in (tmp_path / "whole.zarr").rglob("*")}
    assert files == {file.relative_to(tmp_path / "parts.zarr") for file in (tmp_path / "parts.zarr").rglob("*")}
    assert_holds(tmp_path / "whole.zarr", episodes)
    assert_holds(tmp_path / "parts.zarr", episodes)


def test_nothing_is_written_before_the_first_episode(tmp_path: Path) -> None:
    writer = ReplayWriter(tmp_path / "new" / "r.zarr", {"a": 1})
    assert (writer.n_episodes, writer.n_steps, writer.attributes) == (0, 0, {"a": 1})
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(IndexError, match="no episode to drop"):
        writer.drop_last()
    writer.append(make_episode(2))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["r.zarr"]


# --- attributes ---


def test_attributes_come_back_and_stay_those_of_the_store(tmp_path: Path, make_store: Callable[..., Any]) -> None:
    attributes = {"noise": 0.1, "seeds": [0, 9], "environment": {"legacy": False}, "note": None}
    path = tmp_path / "r.zarr"
    ReplayWriter(path, attributes).append(make_episode(2))
    assert read_attributes(path) == attributes
    second = ReplayWriter(path, {"noise": 0.2})
    second.append(make_episode(2))
    assert second.attributes == read_attributes(path) == attributes
    second.drop_last()
    second.drop_last()
    second.append(make_episode(2))
    assert read_attributes(path) == attributes
    make_store(tmp_path / "other.zarr")
    assert read_attributes(tmp_path / "other.zarr") == {}
    with pytest.raises(DataError, match="no demonstrations at"):
        read_attributes(tmp_path / "nowhere.zarr")


@pytest.mark.parametrize("bad", [{"a": object()}, {"a": float("nan")}, {"a": np.float32(1)}])
def test_attributes_that_are_not_json(tmp_path: Path, bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"attributes is .*JSON"):
        ReplayWriter(tmp_path / "r.zarr", bad)
    with pytest.raises(ValueError, match=r"attributes is .*JSON"):
        write_replay(tmp_path / "r.zarr", [make_episode(2)], bad)
    with pytest.raises(ValueError, match="which the writer sets"):
        ReplayWriter(tmp_path / "r.zarr", {"immiscible_policy_replay_writer": 1})


# --- refusals ---


def without(episode: Episode, name: str) -> Episode:
    return {key: values for key, values in episode.items() if key != name}


def replaced(name: str, at: tuple[int, ...], value: float) -> Episode:
    episode = make_episode(4)
    episode[name][at] = value
    return episode


BAD_EPISODES = {
    "none": ({}, "holds no arrays"),
    "lengths": (make_episode(4) | {"action": np.ones((3, 2))}, "lengths .*'action': 3, 'state': 4"),
    "empty": (make_episode(0), "at least 1"),
    "missing": (without(make_episode(4), "state"), "expected those of the store"),
    "further": (make_episode(4) | {"extra": np.ones((4, 1))}, "'extra'.*expected those of the store"),
    "shape": (make_episode(4) | {"state": np.ones((4, 6))}, r"state has shape \(4, 6\), expected \(4, 5\)"),
    "nan": (replaced("keypoint", (2, 1, 0), np.nan), "keypoint holds NaN or infinite values .*step 2"),
    "infinite": (replaced("action", (0, 0), -np.inf), "action holds NaN or infinite values .*step 0"),
    "too large": (make_episode(4) | {"state": np.full((4, 5), 1e300)}, "state holds NaN or infinite"),
    "text": (make_episode(4) | {"state": np.array(["a"] * 4)}, "state has dtype <U1"),
    "scalar": (make_episode(4) | {"state": np.float32(1)}, "state has dtype float32 and shape ()"),
}


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("kind", BAD_EPISODES)
def test_bad_episodes_leave_the_store_untouched(tmp_path: Path, kind: str) -> None:
    bad, message = BAD_EPISODES[kind]
    writer = ReplayWriter(tmp_path / "r.zarr")
    writer.append(make_episode(3))
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match=message):
        writer.append(bad)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("kind", sorted(set(BAD_EPISODES) - {"missing", "further"}))
def test_bad_first_episodes_make_no_store(tmp_path: Path, kind: str) -> None:
    bad, message = BAD_EPISODES[kind]
    with pytest.raises(ValueError, match=message):
        ReplayWriter(tmp_path / "r.zarr").append(bad)
    with pytest.raises(ValueError, match=f"episode 0: .*{message}"):
        write_replay(tmp_path / "r.zarr", [bad])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bad", [-1, 256, 0.5, np.nan])
def test_images_outside_their_range(tmp_path: Path, bad: float) -> None:
    images = np.zeros((3, 96, 96, 3))
    images[1, 5, 5, 0] = bad
    with pytest.raises(ValueError, match=r"img holds values that are not whole numbers in 0\.\.255"):
        ReplayWriter(tmp_path / "r.zarr").append(make_episode(3) | {"img": images})


@pytest.mark.parametrize("name", ["", "a/b", "..", "a.b", "ü", 3])
def test_array_names_are_plain(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="is not allowed"):
        ReplayWriter(tmp_path / "r.zarr").append({name: np.ones(3)})


def test_stores_from_elsewhere_are_not_appended_to(tmp_path: Path, make_store: Callable[..., Any]) -> None:
    make_store(tmp_path / "r.zarr")
    before = snapshot(tmp_path)
    with pytest.raises(DataError, match="not made by this writer"):
        ReplayWriter(tmp_path / "r.zarr")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="not a zarr store"):
        ReplayWriter(tmp_path / "folder")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is a file"):
        ReplayWriter(tmp_path / "file")
    assert snapshot(tmp_path) == before | {tmp_path / "file": b""}


def test_arrays_shorter_than_the_episodes_stay_an_error(tmp_path: Path) -> None:
    path = tmp_path / "r.zarr"
    write_replay(path, [make_episode(5), make_episode(4)])
    growing_array.GrowingArray.open(path / "data" / "state").set_length(8)
    with pytest.raises(DataError, match=r"data/state has shape \(8, 5\), expected \(9, 5\)"):
        load_replay(path)
    with pytest.raises(DataError, match="data/state has 8 steps, expected at least 9"):
        ReplayWriter(path)


def test_damaged_stores_are_not_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "r.zarr"
    write_replay(path, [make_episode(5)])
    for damaged in ("data/state/.zarray", "meta/episode_ends/.zarray", "meta/episode_ends/0"):
        shutil.copytree(path, tmp_path / "copy.zarr")
        (tmp_path / "copy.zarr" / damaged).unlink()
        with pytest.raises(DataError, match="missing"):
            ReplayWriter(tmp_path / "copy.zarr")
        shutil.rmtree(tmp_path / "copy.zarr")
    shutil.rmtree(path / "data")
    with pytest.raises(DataError, match="no data/ folder"):
        ReplayWriter(path)


def test_whole_store_is_not_overwritten_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "r.zarr"
    write_replay(path, [make_episode(2)])
    with pytest.raises(FileExistsError, match="exists already"):
        write_replay(path, [make_episode(3)])
    for failing in ([], [make_episode(2), {}]):
        with pytest.raises(ValueError, match=r"episodes is empty|episode 1: "):
            write_replay(path, failing, overwrite=True)
        assert_holds(path, [make_episode(2)])
    write_replay(path, [make_episode(3)], overwrite=True)
    assert_holds(path, [make_episode(3)])
    assert [child.name for child in tmp_path.iterdir()] == ["r.zarr"]


def test_a_file_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "r.zip").write_text("a")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match=r"r\.zip is a file; allowed: a folder"):
            write_replay(tmp_path / "r.zip", [make_episode(2)], overwrite=overwrite)
    assert snapshot(tmp_path) == {tmp_path / "r.zip": b"a"}


@pytest.mark.parametrize("suffix", [".old", ".tmp"])
def test_folders_of_others_beside_the_store_are_left_alone(tmp_path: Path, suffix: str) -> None:
    path, backup = tmp_path / "r.zarr", tmp_path / f"r.zarr{suffix}"
    write_replay(backup, [make_episode(2)])
    before = snapshot(backup)
    ReplayWriter(path).append(make_episode(3))
    ReplayWriter(path).append(make_episode(4))
    write_replay(path, [make_episode(3)], overwrite=True)
    with pytest.raises(FileExistsError):
        write_replay(path, [])
    ReplayWriter(path).drop_last()
    assert snapshot(backup) == before
    assert ReplayWriter(path).n_episodes == 0  # the store was set aside by name: not brought back
    assert [child.name for child in tmp_path.iterdir()] == [backup.name]


# --- kills ---


class Killed(BaseException):
    """Stands for the death of the process: nothing that is done after it has an effect."""


class DyingFile:
    """A file whose content is written only half if the process dies while writing."""

    def __init__(self, file: Any, change: Callable[..., Any]) -> None:
        self._file, self._change = file, change

    def __enter__(self) -> "DyingFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, content: bytes) -> None:
        def write_half() -> None:
            self._file.write(content[: len(content) // 2])
            self._file.flush()

        self._change(lambda: self._file.write(content), write_half)


@contextmanager
def dying_at(number: int) -> Iterator[None]:
    """The process dies at the n-th change (0-based) of the file system: before it, or in the midst of a write."""
    n_changes = 0

    def change(make: Callable[[], Any], make_half: Callable[[], None] = lambda: None) -> Any:
        nonlocal n_changes
        n_changes += 1
        if n_changes == number + 1:
            make_half()
        if n_changes > number:
            raise Killed
        return make()

    def changing(real: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments, **keywords: change(lambda: real(*arguments, **keywords))

    real_open = Path.open

    def dying_open(self: Path, mode: str = "r", *arguments: Any, **keywords: Any) -> Any:
        if mode != "r" and n_changes > number:
            raise Killed
        file = real_open(self, mode, *arguments, **keywords)
        return file if mode == "r" else DyingFile(file, change)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("replace", "rename", "unlink", "rmdir", "mkdir", "remove"):
            patch.setattr(os, name, changing(getattr(os, name)))
        patch.setattr(Path, "open", dying_open)
        with suppress(Killed):
            yield


def killed_everywhere(setup: Callable[[], None], action: Callable[[], None]) -> Iterator[bool]:
    """Runs setup, then action killed at its first change, then at its second, ... Yields whether it finished."""
    for number in range(1000):
        setup()
        finished = False
        with dying_at(number):
            action()
            finished = True
        yield finished
        if finished:
            assert number > 3
            return
    raise AssertionError("the action never finished")


def small_episode(length: int, seed: int) -> Episode:
    """Two small arrays only: every change of the file system is a place to be killed at."""
    return {name: values for name, values in make_episode(length, seed).items() if name in ("action", "n_contacts")}


A, B, C = small_episode(6, 1), small_episode(21, 2), small_episode(3, 3)
ACTIONS: dict[str, tuple[list[Episode], Callable[[Path], None], list[Episode]]] = {
    "first append": ([], lambda path: ReplayWriter(path).append(B), [B]),
    "append": ([A, C], lambda path: ReplayWriter(path).append(B), [A, C, B]),
    "append within a chunk": ([C], lambda path: ReplayWriter(path).append(C), [C, C]),
    "drop": ([A, B], lambda path: ReplayWriter(path).drop_last(), [A]),
    "drop the only one": ([A], lambda path: ReplayWriter(path).drop_last(), []),
    "write": ([], lambda path: write_replay(path, [A, C]), [A, C]),
}


def state_of(path: Path, candidates: list[list[Episode]]) -> int:
    """Which of the candidates the store holds."""
    n_episodes = load_replay(path, arrays=()).n_episodes if path.exists() else 0
    index = [len(candidate) for candidate in candidates].index(n_episodes)
    if candidates[index]:
        assert_holds(path, candidates[index])
    return index


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("name", ACTIONS)
def test_killed_at_any_change(tmp_path: Path, name: str) -> None:
    before, action, after = ACTIONS[name]
    path, original = tmp_path / "r.zarr", tmp_path / "original.zarr"
    if before:
        write_replay(original, before)

    def setup() -> None:
        for folder in tmp_path.glob("*r.zarr*"):
            shutil.rmtree(folder)
        if before:
            shutil.copytree(original, path)

    seen = []
    for finished in killed_everywhere(setup, lambda: action(path)):
        seen.append(state_of(path, [before, after]))
        # The next writer continues where this one was killed, and leaves nothing of it behind.
        writer = ReplayWriter(path)
        if path.exists():
            assert_nothing_further(path, writer)
        writer.append(C)
        assert_holds(path, [before, after][seen[-1]] + [C])
        assert not list(tmp_path.rglob("*.tmp"))
        assert not finished or seen[-1] == 1
    assert seen == sorted(seen)
    assert seen[0] == 0


@pytest.mark.usefixtures("small_chunks")
def test_killed_while_cleaning_up_after_a_kill(tmp_path: Path) -> None:
    path, left = tmp_path / "r.zarr", tmp_path / "left.zarr"
    write_replay(left, [A])
    store_ends = left / "meta" / "episode_ends" / ".zarray"
    unfinished = store_ends.read_text()
    ReplayWriter(left).append(B)
    store_ends.write_text(unfinished)
    assert len(list((left / "data" / "action").glob("*.0"))) == 4

    def setup() -> None:
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(left, path)

    for _ in killed_everywhere(setup, lambda: ReplayWriter(path) and None):
        assert_holds(path, [A])
        writer = ReplayWriter(path)
        assert_nothing_further(path, writer)
        writer.append(C)
        assert_holds(path, [A, C])


@pytest.mark.usefixtures("small_chunks")
def test_killed_while_overwriting_keeps_one_of_the_two(tmp_path: Path) -> None:
    path = tmp_path / "r.zarr"

    def setup() -> None:
        for folder in tmp_path.glob("*r.zarr*"):
            shutil.rmtree(folder)
        write_replay(path, [A])

    seen = []
    for _ in killed_everywhere(setup, lambda: write_replay(path, [C, C], overwrite=True)):
        # Between its two renames the store is not at its path: the next writer puts it back.
        ReplayWriter(path)
        seen.append(state_of(path, [[A], [C, C]]))
    assert seen == sorted(seen)
    assert set(seen) == {0, 1}


@pytest.mark.usefixtures("small_chunks")
def test_a_full_disk_loses_nothing_and_the_same_writer_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.zarr"
    write_replay(path, [A])
    writer, expected = ReplayWriter(path), [A]
    real, calls = os.replace, [0]

    def failing(*arguments: Any) -> None:
        calls[0] += 1
        if calls[0] == limit:
            raise OSError(28, "No space left on device")
        real(*arguments)

    monkeypatch.setattr(os, "replace", failing)
    for limit in range(1, 24):
        calls[0] = 0
        try:
            writer.append(B)
        except OSError:
            assert_holds(path, expected)
            assert writer.n_episodes == len(expected)
            calls[0] = limit
            writer.append(C)
            expected.append(C)
            assert_holds(path, expected)
        else:
            break
    assert limit > 10


def test_the_tail_of_an_unfinished_append_is_tolerated_in_our_stores_only(tmp_path: Path) -> None:
    path = tmp_path / "r.zarr"
    episodes = [make_episode(5, 1, images=True), make_episode(4, 2, images=True)]
    write_replay(path, episodes)
    growing_array.GrowingArray.open(path / "meta" / "episode_ends").set_length(1)
    assert_holds(path, episodes[:1])
    attributes = path / ".zattrs"
    attributes.write_text(json.dumps({"other": 1}))
    for name in episodes[0]:
        with pytest.raises(DataError, match=rf"data/{name} has shape \(9, .*expected \(5, "):
            load_replay(path, arrays=(name,))


APPENDING = """
import sys
sys.path.insert(0, sys.argv[2])
from test_replay_writer import ReplayWriter, growing_array, make_episode
growing_array.CHUNK_STEPS = 8
writer = ReplayWriter(sys.argv[1])
while True:
    writer.append(make_episode(1 + writer.n_episodes % 20, writer.n_episodes))
    print(writer.n_episodes, flush=True)
"""


def test_a_killed_process_leaves_every_episode_it_had_reported(tmp_path: Path) -> None:
    path = tmp_path / "r.zarr"
    process = subprocess.Popen(
        [sys.executable, "-c", APPENDING, str(path), str(Path(__file__).parent)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for _ in range(9):
        process.stdout.readline()
    process.kill()
    reported = max([9, *map(int, process.stdout.read().split())])
    process.wait()
    n_episodes = load_replay(path, arrays=()).n_episodes
    assert n_episodes in (reported, reported + 1)
    expected = [make_episode(1 + index % 20, index) for index in range(n_episodes)]
    assert_holds(path, expected)
    ReplayWriter(path).append(make_episode(4))
    assert_holds(path, [*expected, make_episode(4)])

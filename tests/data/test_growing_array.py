"""Arrays that grow on disk: what zarr reads of them, where their chunks end, and which ones are not continued."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from immiscible_policy.data import growing_array
from immiscible_policy.data.growing_array import GrowingArray
from immiscible_policy.data.replay import DataError


def read(folder: Path) -> zarr.Array:
    array = zarr.open_array(folder, mode="r")
    assert array.nchunks_initialized == array.nchunks
    return array


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 11), min_size=1, max_size=5), chunk=st.integers(1, 7), cut=st.integers(0, 12))
def test_zarr_reads_what_was_written_in_parts_and_what_is_left_after_a_cut(
    tmp_path_factory: Any, lengths: list[int], chunk: int, cut: int
) -> None:
    folder = tmp_path_factory.mktemp("array") / "a"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(growing_array, "CHUNK_STEPS", chunk)
        GrowingArray.create(folder, (2,), "<f4")
    rows = np.random.default_rng(0).uniform(size=(sum(lengths), 2)).astype(np.float32)
    start = 0
    for length in lengths:
        array = GrowingArray.open(folder)
        array.write(start, rows[start : start + length])
        assert array.length == start
        array.set_length(start + length)
        start += length
    np.testing.assert_array_equal(np.asarray(read(folder)[:]), rows)
    kept = max(0, start - cut)
    np.testing.assert_array_equal(array.read(kept, start), rows[kept:])
    array.set_length(kept)
    array.remove_beyond_length()
    np.testing.assert_array_equal(np.asarray(read(folder)[:]), rows[:kept])
    assert len(list(folder.glob("*.0"))) == -(-kept // chunk)


def test_chunks_hold_a_bounded_number_of_steps_and_bytes(tmp_path: Path) -> None:
    small = GrowingArray.create(tmp_path / "small", (2,), "<f4")
    images = GrowingArray.create(tmp_path / "img", (96, 96, 3), "|u1")
    huge = GrowingArray.create(tmp_path / "huge", (5000, 5000), "<f4")
    assert (small.chunk, images.chunk, huge.chunk) == (1024, 151, 1)


def test_zeros_are_written_too(tmp_path: Path) -> None:
    array = GrowingArray.create(tmp_path / "a", (1,), "<f4")
    array.write(0, np.zeros((1025, 1), np.float32))
    array.set_length(1025)
    assert read(tmp_path / "a").nchunks == 2


@pytest.mark.parametrize(
    "change",
    [
        {"order": "F"},
        {"compressor": None},
        {"filters": [{"id": "delta", "dtype": "<f4"}]},
        {"dimension_separator": "/"},
        {"chunks": [1024, 1]},
        {"zarr_format": 3},
    ],
)
def test_arrays_with_another_encoding_are_not_continued(tmp_path: Path, change: dict[str, Any]) -> None:
    GrowingArray.create(tmp_path / "a", (2,), "<f4")
    metadata = tmp_path / "a" / ".zarray"
    metadata.write_text(json.dumps(json.loads(metadata.read_text()) | change))
    with pytest.raises(DataError, match="another way"):
        GrowingArray.open(tmp_path / "a")


def test_keys_that_other_zarr_libraries_add_are_accepted(tmp_path: Path) -> None:
    created = GrowingArray.create(tmp_path / "a", (2,), "<f4")
    metadata = tmp_path / "a" / ".zarray"
    changed = json.loads(metadata.read_text()) | {"dimension_separator": ".", "fill_value": 0.0}
    metadata.write_text(json.dumps(changed))
    assert GrowingArray.open(tmp_path / "a") == created


@pytest.mark.parametrize("content", ["{", "{}", '{"shape": [], "chunks": [], "dtype": "<f4"}'])
def test_damaged_metadata(tmp_path: Path, content: str) -> None:
    GrowingArray.create(tmp_path / "a", (2,), "<f4")
    (tmp_path / "a" / ".zarray").write_text(content)
    with pytest.raises(DataError, match=r"\.zarray is .*damaged"):
        GrowingArray.open(tmp_path / "a")


def test_rows_are_not_added_to_a_damaged_chunk(tmp_path: Path) -> None:
    array = GrowingArray.create(tmp_path / "a", (2,), "<f4")
    array.write(0, np.ones((3, 2), np.float32))
    array.set_length(3)
    for content in (b"", b"garbage" * 9):
        (tmp_path / "a" / "0.0").write_bytes(content)
        with pytest.raises(DataError, match=r"0\.0 is missing or damaged"):
            array.write(3, np.ones((3, 2), np.float32))
        assert (tmp_path / "a" / "0.0").read_bytes() == content

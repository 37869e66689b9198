"""The files of LeRobot data sets: metadata and parquet columns, whole and damaged."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from immiscible_policy.data.lerobot_files import as_integers, read_columns, read_info, read_listing
from immiscible_policy.data.replay import DataError

V2 = {"codebase_version": "v2.1", "chunks_size": 2}
V3 = {"codebase_version": "v3.0"}
EPISODES_V3 = "meta/episodes/chunk-000/file-000.parquet"


def write_table(path, columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def write_info(root, info):
    (root / "meta").mkdir(parents=True, exist_ok=True)
    (root / "meta/info.json").write_text(info if isinstance(info, str) else json.dumps(info))


def v2_folder(root, lengths=(4, 6, 5), **info):
    """Metadata as v2.1 writes them, and parquet files with one column."""
    write_info(root, {**V2, **info})
    lines = [json.dumps({"episode_index": i, "tasks": ["push"], "length": n}) for i, n in enumerate(lengths)]
    (root / "meta/episodes.jsonl").write_text("\n".join(lines) + "\n")
    for index, length in enumerate(lengths):
        write_table(root / f"data/chunk-{index // 2:03d}/episode_{index:06d}.parquet", {"x": np.arange(length)})
    return root


def v3_folder(root, lengths=(4, 6, 5), files=(0, 0, 1), **info):
    """Metadata as v3.0 writes them, and parquet files with one column."""
    write_info(root, {**V3, **info})
    columns = {"episode_index": range(len(lengths)), "length": lengths}
    columns |= {"data/chunk_index": [0] * len(lengths), "data/file_index": files}
    write_table(root / EPISODES_V3, {name: np.array(values) for name, values in columns.items()})
    for file in set(files):
        write_table(root / f"data/chunk-000/file-{file:03d}.parquet", {"x": np.arange(3)})
    return root


def listing(root):
    return read_listing(root, read_info(root))


def names(root, files):
    return [str(file.relative_to(root)) for file in files]


def test_one_file_an_episode_in_chunks(tmp_path):
    found = listing(v2_folder(tmp_path))
    assert found.lengths == {0: 4, 1: 6, 2: 5}
    assert names(tmp_path, found.files) == [
        "data/chunk-000/episode_000000.parquet",
        "data/chunk-000/episode_000001.parquet",
        "data/chunk-001/episode_000002.parquet",
    ]


def test_a_template_of_its_own_is_followed(tmp_path):
    v2_folder(tmp_path, lengths=(3,), data_path="steps/{episode_index}-of-{episode_chunk}.parquet")
    (tmp_path / "steps").mkdir()
    (tmp_path / "data/chunk-000/episode_000000.parquet").rename(tmp_path / "steps/0-of-0.parquet")
    assert names(tmp_path, listing(tmp_path).files) == ["steps/0-of-0.parquet"]
    root = v3_folder(tmp_path / "v3", lengths=(3,), files=(0,), data_path="{chunk_index}_{file_index}.parquet")
    (root / "data/chunk-000/file-000.parquet").rename(root / "0_0.parquet")
    assert names(root, listing(root).files) == ["0_0.parquet"]


def test_several_episodes_a_file_and_files_that_are_not_named(tmp_path):
    v3_folder(tmp_path)
    write_table(tmp_path / "data/chunk-000/file-002.parquet", {"x": [1]})
    found = listing(tmp_path)
    assert found.lengths == {0: 4, 1: 6, 2: 5}
    assert names(tmp_path, found.files) == [f"data/chunk-000/file-00{n}.parquet" for n in range(3)]


def test_episodes_listed_in_several_files_and_any_order(tmp_path):
    v3_folder(tmp_path)
    table = pq.read_table(tmp_path / EPISODES_V3)
    write_table(tmp_path / EPISODES_V3, table.slice(1))
    write_table(tmp_path / "meta/episodes/chunk-001/file-000.parquet", table.slice(0, 1))
    assert list(listing(tmp_path).lengths.items()) == [(0, 4), (1, 6), (2, 5)]


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ("{", r"info\.json is not JSON, the file is truncated or damaged"),
        ("[1]", r"info\.json holds a list, expected a JSON object"),
        ({}, r"codebase_version is None; allowed: v2\.0, v2\.1, v3\.0"),
        ({"codebase_version": "v1.6"}, r"codebase_version is 'v1\.6'; allowed"),
        ({**V2, "chunks_size": 0}, r"chunks_size is 0; allowed: an integer of at least 1"),
        (
            {**V2, "data_path": "data/{chunk_index}.parquet"},
            r"allowed: a path with {episode_chunk}, {episode_index} in",
        ),
        ({**V2, "data_path": None}, r"data_path is None; allowed: a path with"),
        ({**V2, "data_path": "../{episode_index}.parquet"}, r"allowed: a path inside the data set's folder"),
        ({**V2, "data_path": "/data/{episode_index}.parquet"}, r"allowed: a path inside the data set's folder"),
        ({**V2, "total_episodes": 206}, r"episodes\.jsonl adds up to total_episodes = 3, meta/info\.json says 206"),
        ({**V2, "total_frames": 25650}, r"episodes\.jsonl adds up to total_frames = 15, meta/info\.json says 25650"),
    ],
)
def test_info_that_does_not_fit(tmp_path, info, message):
    v2_folder(tmp_path)
    write_info(tmp_path, info)
    with pytest.raises(DataError, match=message):
        listing(tmp_path)


def test_folders_that_are_no_data_set(tmp_path):
    with pytest.raises(DataError, match=r"no LeRobot data set at .*absent"):
        read_info(tmp_path / "absent")
    with pytest.raises(DataError, match=r"is not a LeRobot data set: expected meta/info\.json in it$"):
        read_info(tmp_path)
    v3_folder(tmp_path / "hub" / "snapshots" / "abc")
    with pytest.raises(DataError, match=r"did you mean .*hub/snapshots/abc\?"):
        read_info(tmp_path / "hub")
    (tmp_path / "old" / "meta_data").mkdir(parents=True)
    (tmp_path / "old" / "meta_data" / "info.json").write_text("{}")
    with pytest.raises(DataError, match=r"version 1; allowed: v2\.0, v2\.1, v3\.0"):
        read_info(tmp_path / "old")


@pytest.mark.parametrize(
    ("make", "gone", "message"),
    [
        (v2_folder, "meta/episodes.jsonl", r"episodes\.jsonl is missing, which lists the episodes of a v2\.1"),
        (
            v2_folder,
            "data/chunk-000/episode_000001.parquet",
            r"1 of the 3 data files are missing, the first is .*01\.p",
        ),
        (v3_folder, EPISODES_V3, r"meta/episodes/\S+ is missing, which lists the episodes of a v3\.0"),
        (
            v3_folder,
            "data/chunk-000/file-000.parquet",
            r"1 of the 2 data files are missing, the first is .*file-000\.p",
        ),
    ],
)
def test_missing_files_are_named(tmp_path, make, gone, message):
    make(tmp_path)
    (tmp_path / gone).unlink()
    with pytest.raises(DataError, match=message):
        listing(tmp_path)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"episode_index": 0, "length": 4}\n{"episode_in', r"episodes\.jsonl, line 2 is not JSON"),
        ('{"episode_index": 0}', r"has episode_index 0 and length None, expected integers"),
        ('{"episode_index": -1, "length": 4}', r"has episode_index -1"),
        ('{"episode_index": 0, "length": 0}', r"and length 0"),
        ('{"episode_index": 0, "length": true}', r"and length True"),
        ('{"episode_index": 0, "length": 4}\n' * 2, r"episode 0 is listed twice"),
        ("\n", r"episodes\.jsonl lists no episode"),
    ],
)
def test_lists_of_episodes_that_are_damaged(tmp_path, lines, message):
    (v2_folder(tmp_path) / "meta/episodes.jsonl").write_text(lines)
    with pytest.raises(DataError, match=message):
        listing(tmp_path)


VALUES = np.arange(12, dtype=np.float32).reshape(6, 2)


@pytest.mark.parametrize(
    "array",
    [
        pa.array(VALUES.tolist(), pa.list_(pa.float32())),
        pa.array(VALUES.tolist(), pa.large_list(pa.float64())),
        pa.array(VALUES.tolist(), pa.list_(pa.float32(), 2)),
        pa.array(VALUES.reshape(6, 2, 1).tolist(), pa.list_(pa.list_(pa.float32()))),
        pa.array(VALUES.astype(int).tolist(), pa.list_(pa.int16())),
        pa.chunked_array([pa.array(VALUES[:4].tolist()), pa.array(VALUES[4:].tolist())]),
    ],
    ids=["list", "large list of doubles", "fixed size", "nested", "integers", "chunks"],
)
def test_lists_of_every_kind_are_read(tmp_path, array):
    write_table(tmp_path / "x.parquet", {"a": array, "a.b": list("unused"), "c": range(6)})
    columns = read_columns(tmp_path / "x.parquet", ("a", "c"), ("a.b.c", "d"))
    assert sorted(columns) == ["a", "c"]
    np.testing.assert_array_equal(columns["a"], VALUES)
    np.testing.assert_array_equal(as_integers(columns, "c", tmp_path / "x.parquet"), np.arange(6))


def test_an_optional_column_is_read_where_it_is(tmp_path):
    write_table(tmp_path / "x.parquet", {"a": [1.0, 2.0], "b": [3.0, 4.0]})
    np.testing.assert_array_equal(read_columns(tmp_path / "x.parquet", ("a",), ("b",))["b"], [[3], [4]])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"b": [1]}, r"column a is missing; there are: b$"),
        ({"a": [[1.0, 2.0], [1.0]]}, r"column a has rows of \[1, 2\] values, expected one width"),
        ({"a": [[1.0], None]}, r"column a holds 1 empty values \(null\), expected numbers"),
        ({"a": [[1.0], [None]]}, r"column a holds 1 empty values"),
        ({"a": pa.array([], pa.float32())}, r"holds no rows"),
        ({"a": pa.array([], pa.list_(pa.float32()))}, r"holds no rows"),
        ({"a": ["left"]}, r"column a has type string, expected real numbers"),
        ({"a": [True]}, r"column a has type bool, expected real numbers"),
        ({"a": [{"b": 1}]}, r"column a has type struct"),
    ],
)
def test_columns_that_do_not_fit(tmp_path, columns, message):
    write_table(tmp_path / "x.parquet", columns)
    with pytest.raises(DataError, match=message):
        read_columns(tmp_path / "x.parquet", ("a",))


def test_two_columns_of_one_name(tmp_path):
    pq.write_table(pa.table([pa.array([1]), pa.array([2])], names=["a", "a"]), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="2 times"):
        read_columns(tmp_path / "x.parquet", ("a",))


@pytest.mark.parametrize("values", [np.array([0.0, 1.0]), np.zeros((2, 2), int)])
def test_integers_must_be_integers(tmp_path, values):
    with pytest.raises(DataError, match=r"column i holds (float|int)64 values, [12] a row, expected one integer"):
        as_integers({"i": values.reshape(2, -1)}, "i", tmp_path)


@pytest.mark.parametrize("size", [0, 3, 200])
def test_truncated_files(tmp_path, size):
    path = tmp_path / "x.parquet"
    write_table(path, {"a": np.arange(100)})
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DataError, match=r"x\.parquet: does not read as parquet, the file is truncated or damaged"):
        read_columns(path, ("a",))


def test_files_that_are_absent_or_only_pointers(tmp_path):
    with pytest.raises(DataError, match=r"x\.parquet: is missing"):
        read_columns(tmp_path / "x.parquet", ("a",))
    (tmp_path / "x.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(DataError, match=r"is a git-lfs pointer, not the data: run `git lfs pull`"):
        read_columns(tmp_path / "x.parquet", ("a",))

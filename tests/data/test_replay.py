"""Replay stores: what is read, from which containers, and what is said about damaged ones."""

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import zarr

from immiscible_policy.data.replay import DataError, ReplayData, load_replay


@pytest.fixture
def store(tmp_path, make_store):
    make_store(tmp_path / "replay.zarr")
    return tmp_path / "replay.zarr"


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_arrays_are_read_as_written(tmp_path, make_store, zarr_format):
    written = make_store(tmp_path / "r.zarr", zarr_format=zarr_format)
    replay = load_replay(str(tmp_path / "r.zarr"), arrays=("action", "state", "keypoint", "img"))
    for name in ("action", "state", "keypoint"):
        assert replay.arrays[name].dtype == np.float32
        np.testing.assert_array_equal(replay.arrays[name], written[name])
    assert replay.arrays["img"].dtype == np.uint8
    np.testing.assert_array_equal(replay.arrays["img"], written["img"])
    assert replay.episode_ends.dtype == np.int64
    assert (replay.n_steps, replay.n_episodes) == (41, 3)


@pytest.mark.parametrize("prefix", ["", "pusht/", "pusht/pusht_cchi_v7_replay.zarr/"])
def test_zip_with_the_store_at_its_root_or_in_a_folder(tmp_path, store, prefix, zip_folder):
    archive = zip_folder(store, tmp_path / "replay.zip", prefix)
    replay, expected = load_replay(archive), load_replay(store)
    for name, values in expected.arrays.items():
        np.testing.assert_array_equal(replay.arrays[name], values)
    np.testing.assert_array_equal(replay.episode_ends, expected.episode_ends)


def test_zip_of_a_version_3_store(tmp_path, make_store, zip_folder):
    written = make_store(tmp_path / "r.zarr", zarr_format=3)
    archive = zip_folder(tmp_path / "r.zarr", tmp_path / "r.zip", "inside/")
    np.testing.assert_array_equal(load_replay(archive).arrays["action"], written["action"])


@pytest.mark.parametrize("lengths", [(12, 9, 20), (12, 9, 19), (4, 2)])
def test_sharded_version_3_arrays_are_complete(tmp_path, make_store, lengths):
    """The last shard, with room for two chunks, holds both of them, or one, and is the only shard."""
    written = make_store(tmp_path / "r.zarr", lengths, zarr_format=3, action=None)
    values = shard(tmp_path / "r.zarr", sum(lengths))
    replay = load_replay(tmp_path / "r.zarr", arrays=("action", "state"))
    np.testing.assert_array_equal(replay.arrays["action"], values)
    np.testing.assert_array_equal(replay.arrays["state"], written["state"])


@pytest.mark.parametrize("number", [0, 2])
@pytest.mark.parametrize("lengths", [(12, 9, 20), (12, 9, 19)])
def test_missing_shard(tmp_path, make_store, lengths, number):
    make_store(tmp_path / "r.zarr", lengths, zarr_format=3, action=None)
    shard(tmp_path / "r.zarr", sum(lengths))
    (tmp_path / "r.zarr" / "data" / "action" / "c" / str(number) / "0").unlink()
    with pytest.raises(DataError, match="data/action is truncated: 2 of its 3 shards"):
        load_replay(tmp_path / "r.zarr", arrays=("action",))


def shard(path, n_steps):
    """Adds `action` in shards of two chunks of 8 steps to a store of version 3."""
    values = np.random.default_rng(1).uniform(size=(n_steps, 2)).astype(np.float32)
    zarr.open_group(path, mode="a")["data"].create_array("action", data=values, chunks=(8, 2), shards=(16, 2))
    return values


def test_only_the_named_arrays_are_touched(store):
    shutil.rmtree(store / "data" / "img")
    shutil.rmtree(store / "data" / "keypoint")
    assert sorted(load_replay(store, arrays=("state", "action")).arrays) == ["action", "state"]


def test_episode_slices_partition_the_steps(store):
    replay = load_replay(store, arrays=("action",))
    assert [replay.episode(i) for i in range(3)] == [slice(0, 12), slice(12, 21), slice(21, 41)]
    assert replay.episode(-1) == slice(21, 41)
    for outside in (3, -4):
        with pytest.raises(IndexError, match=f"episode index {outside} is outside the 3"):
            replay.episode(outside)


def test_a_digest_is_of_what_the_arrays_hold(store):
    replay = load_replay(store, arrays=("action", "state"))
    known = replay.sha256(["action"])
    assert known == load_replay(store, arrays=("action",)).sha256(("action",)) == replay.first(3).sha256(["action"])
    assert replay.sha256(["state", "action"]) == replay.sha256(["action", "state"])
    changed = {**replay.arrays, "action": replay.arrays["action"] + np.float32(1)}
    others = [
        ReplayData(changed, replay.episode_ends, store).sha256(["action"]),
        ReplayData(replay.arrays, replay.episode_ends + np.array([1, 0, 0]), store).sha256(["action"]),
        replay.sha256(["state", "action"]),
        replay.first(2).sha256(["action"]),
    ]
    assert len({known, *others}) == 5


def test_replay_data_cannot_be_reassigned():
    replay = ReplayData(arrays={}, episode_ends=np.array([3]), source=Path("x"))
    with pytest.raises(AttributeError):
        replay.source = Path("y")  # type: ignore[misc]


def test_a_string_instead_of_names_is_refused(store):
    with pytest.raises(TypeError, match="sequence of names"):
        load_replay(store, arrays="action")


def test_missing_path_says_how_to_get_it(tmp_path):
    with pytest.raises(DataError, match=r"no demonstrations at .*nowhere.*download_pusht\.py.*dataset\.path"):
        load_replay(tmp_path / "nowhere.zarr")


def test_folder_that_is_not_a_store_points_to_the_store_inside(tmp_path, store):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty is not a zarr store"):
        load_replay(tmp_path / "empty")
    with pytest.raises(DataError, match=r"did you mean .*replay\.zarr\?"):
        load_replay(tmp_path)


def test_damaged_metadata(store):
    (store / "data" / "action" / ".zarray").write_text('{"shape": [41')
    with pytest.raises(DataError, match="data/action"):
        load_replay(store)
    (store / ".zgroup").write_text("not json")
    with pytest.raises(DataError, match="does not open as a zarr group"):
        load_replay(store)


def test_a_file_that_is_no_archive_and_an_archive_without_a_store(tmp_path):
    (tmp_path / "text.zip").write_text("hello")
    with pytest.raises(DataError, match="neither a zarr directory nor a complete zip"):
        load_replay(tmp_path / "text.zip")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(DataError, match="holds no zarr store"):
        load_replay(tmp_path / "other.zip")


def test_truncated_zip(tmp_path, store, zip_folder):
    archive = zip_folder(store, tmp_path / "replay.zip")
    archive.write_bytes(archive.read_bytes()[:-1000])
    with pytest.raises(DataError, match="truncated zip"):
        load_replay(archive)


def test_zip_with_a_flipped_byte_fails_its_crc(tmp_path, store, zip_folder):
    archive = zip_folder(store, tmp_path / "replay.zip")
    content = bytearray(archive.read_bytes())
    position = content.index((store / "data" / "action" / "1.0").read_bytes()) + 20
    content[position] ^= 0xFF
    archive.write_bytes(content)
    with pytest.raises(DataError, match=r"data/action.*damaged"):
        load_replay(archive)


@pytest.mark.parametrize("name", ["action", "state", "keypoint", "img"])
def test_missing_array_is_named_with_what_is_there(tmp_path, make_store, name):
    make_store(tmp_path / "r.zarr", **{name: None})
    with pytest.raises(DataError, match=f"data/{name} is missing; data/ holds: .*, "):
        load_replay(tmp_path / "r.zarr", arrays=("action", "state", "keypoint", "img"))


def test_missing_episode_ends_and_missing_groups(tmp_path, make_store):
    make_store(tmp_path / "r.zarr", episode_ends=None)
    with pytest.raises(DataError, match="meta/episode_ends is missing; meta/ holds: nothing"):
        load_replay(tmp_path / "r.zarr")
    make_store(tmp_path / "s.zarr")
    shutil.rmtree(tmp_path / "s.zarr" / "meta")
    with pytest.raises(DataError, match="meta/episode_ends is missing"):
        load_replay(tmp_path / "s.zarr")


def test_a_group_in_place_of_an_array(tmp_path, make_store):
    make_store(tmp_path / "r.zarr", state=None)
    zarr.open_group(tmp_path / "r.zarr", mode="a")["data"].create_group("state")
    with pytest.raises(DataError, match="'state' in data/ is a group"):
        load_replay(tmp_path / "r.zarr")


@pytest.mark.parametrize("name", ["action", "state", "keypoint", "img"])
def test_missing_chunk_is_not_read_as_zeros(store, name):
    chunk = sorted((store / "data" / name).glob("1.*"))[0]
    chunk.unlink()
    with pytest.raises(DataError, match=f"data/{name} is truncated: 2 of its 3 chunks"):
        load_replay(store, arrays=(name,))


def test_missing_chunk_of_a_version_3_store(tmp_path, make_store):
    make_store(tmp_path / "r.zarr", zarr_format=3)
    (tmp_path / "r.zarr" / "data" / "state" / "c" / "2" / "0").unlink()
    with pytest.raises(DataError, match="data/state is truncated: 2 of its 3 chunks"):
        load_replay(tmp_path / "r.zarr")


def test_missing_chunk_of_episode_ends(store):
    (store / "meta" / "episode_ends" / "0").unlink()
    with pytest.raises(DataError, match="meta/episode_ends is truncated: 0 of its 1 chunks"):
        load_replay(store)


@pytest.mark.parametrize("keep", [0, 10])
def test_cut_off_chunk_file(store, keep):
    chunk = store / "data" / "action" / "1.0"
    chunk.write_bytes(chunk.read_bytes()[:keep])
    with pytest.raises(DataError, match="data/action has a chunk that does not decode"):
        load_replay(store)


def test_overwritten_chunk_file(store):
    chunk = store / "data" / "keypoint" / "0.0.0"
    chunk.write_bytes(b"\x00garbage" * 20)
    with pytest.raises(DataError, match="data/keypoint has a chunk that does not decode"):
        load_replay(store)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("action", (41, 3), r"\(41, 2\)"),
        ("state", (41, 4), r"\(41, 5\)"),
        ("keypoint", (41, 18), r"\(41, 9, 2\)"),
        ("img", (41, 64, 64, 3), r"\(41, 96, 96, 3\)"),
        ("action", (40, 2), r"\(41, 2\)"),
        ("state", (42, 5), r"\(41, 5\)"),
    ],
)
def test_wrong_shape_says_found_and_expected(tmp_path, make_store, name, shape, expected):
    make_store(tmp_path / "r.zarr", **{name: np.ones(shape, np.float32)})
    found = str(shape).replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(DataError, match=f"data/{name} has shape {found}, expected {expected}.*ends at 41"):
        load_replay(tmp_path / "r.zarr", arrays=(name,))


def test_wrong_dtype(tmp_path, make_store):
    make_store(tmp_path / "r.zarr", action=np.ones((41, 2), np.complex64))
    with pytest.raises(DataError, match=r"data/action has dtype complex64, expected real"):
        load_replay(tmp_path / "r.zarr")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_values_that_are_not_finite_in_float32(tmp_path, make_store, bad):
    values = np.ones((41, 5), np.float64)
    values[17, 3] = bad
    make_store(tmp_path / "r.zarr", state=values)
    with pytest.raises(DataError, match=r"data/state holds 1 NaN or infinite values .*first at step 17"):
        load_replay(tmp_path / "r.zarr")


@pytest.mark.parametrize("bad", [np.nan, 256.0, -1.0])
def test_images_outside_their_range(tmp_path, make_store, bad):
    images = np.zeros((41, 96, 96, 3), np.float32)
    images[20, 5, 5, 1] = bad
    make_store(tmp_path / "r.zarr", img=images)
    with pytest.raises(DataError, match=r"data/img holds values outside 0\.\.255 .* steps 16\.\.32"):
        load_replay(tmp_path / "r.zarr", arrays=("img",))


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ([12, 12, 41], "found 12 after 12 at episode 1"),
        ([21, 12, 41], "found 12 after 21 at episode 1"),
        ([-3, 12, 41], "found -3 after 0 at episode 0"),
        ([0, 12, 41], "found 0 after 0 at episode 0"),
    ],
)
def test_episode_ends_must_be_positive_and_increase(tmp_path, make_store, ends, message):
    make_store(tmp_path / "r.zarr", episode_ends=np.array(ends))
    with pytest.raises(DataError, match=f"meta/episode_ends must be positive and increasing, {message}"):
        load_replay(tmp_path / "r.zarr")


@pytest.mark.parametrize(
    "ends",
    [np.empty(0, np.int64), np.array([12.0, 41.0]), np.array([[12, 41]])],
    ids=["empty", "float", "2d"],
)
def test_episode_ends_of_another_kind(tmp_path, make_store, ends):
    make_store(tmp_path / "r.zarr", episode_ends=ends)
    with pytest.raises(DataError, match=r"meta/episode_ends has shape .* expected \(n_episodes,\) integers"):
        load_replay(tmp_path / "r.zarr")


def test_human_demonstrations(pusht_demonstrations):
    replay = load_replay(pusht_demonstrations)
    assert (replay.n_steps, replay.n_episodes) == (25_650, 206)
    assert {name: values.shape[1:] for name, values in replay.arrays.items()} == {
        "action": (2,),
        "state": (5,),
        "keypoint": (9, 2),
    }
    for name in ("action", "keypoint"):
        assert 0 <= replay.arrays[name].min() < replay.arrays[name].max() < 530
    assert replay.episode(0) == slice(0, 161)


def test_colours_between_0_and_1_are_not_taken_for_black(tmp_path, make_store):
    make_store(tmp_path / "r.zarr", img=np.random.default_rng(0).random((41, 96, 96, 3), np.float32))
    with pytest.raises(DataError, match=r"not whole numbers in steps .*; expected colours in 0\.\.255, not in 0\.\.1"):
        load_replay(tmp_path / "r.zarr", arrays=("img",))

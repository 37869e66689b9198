"""Writing LeRobot data sets: what comes back, rewards, metadata, and all of it or nothing."""

import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from envs.pusht.geometry import GOAL_POSE, coverage
from envs.pusht.vertices import vertices_in_world
from immiscible_policy.data import lerobot_export as module
from immiscible_policy.data.lerobot import is_lerobot, load_lerobot
from immiscible_policy.data.lerobot_export import TASK, export_lerobot
from immiscible_policy.data.replay import DataError, ReplayData, load_replay

LENGTHS = (12, 9, 20)


def made_up(lengths=LENGTHS, seed=0):
    """Episodes whose blocks lie near the goal, some of them on it."""
    rng, n = np.random.default_rng(seed), sum(lengths)
    poses = GOAL_POSE + rng.normal(0, 1, (n, 3)) * (30, 30, 0.5) * rng.choice([0, 1], (n, 1))
    poses[:, 2] += 4 * math.pi
    state = np.hstack([rng.uniform(0, 512, (n, 2)), poses]).astype(np.float32)
    arrays = {"action": rng.uniform(0, 512, (n, 2)).astype(np.float32), "state": state}
    return ReplayData(arrays, np.cumsum(lengths).astype(np.int64), Path("made-up"))


def data_columns(folder):
    tables = [pq.read_table(path) for path in sorted(folder.glob("data/*/*.parquet"))]
    return {name: np.array(values) for name, values in pa.concat_tables(tables).to_pydict().items()}


def pose_errors(given, found):
    difference = found.astype(np.float64) - given
    difference[:, 4] = [math.remainder(angle, 2 * math.pi) for angle in difference[:, 4]]
    return np.abs(difference)


def check_round_trip(replay, folder):
    loaded = load_lerobot(folder)
    np.testing.assert_array_equal(loaded.episode_ends, replay.episode_ends)
    np.testing.assert_array_equal(loaded.arrays["action"], replay.arrays["action"])
    np.testing.assert_array_equal(loaded.arrays["agent_pos"], replay.arrays["state"][:, :2])
    vertices = vertices_in_world(replay.arrays["state"][:, 2:]).astype(np.float32)
    np.testing.assert_array_equal(loaded.arrays["environment_state"], vertices)
    assert pose_errors(replay.arrays["state"], loaded.arrays["state"]).max() < 1e-3


def test_a_store_comes_back(tmp_path, make_store):
    make_store(tmp_path / "replay.zarr")
    replay = load_replay(tmp_path / "replay.zarr", arrays=("action", "state"))
    folder = export_lerobot(replay, str(tmp_path / "deep" / "set"))
    assert folder == tmp_path / "deep" / "set"
    assert [path.name for path in folder.parent.iterdir()] == ["set"]
    check_round_trip(replay, folder)


def test_the_human_demonstrations_come_back(tmp_path, pusht_demonstrations):
    replay = load_replay(pusht_demonstrations)
    folder = export_lerobot(replay, tmp_path / "set")
    check_round_trip(replay, folder)
    keypoints = load_lerobot(folder).arrays["keypoint"]
    # The recorded keypoints have jitter of their own, and a few lag behind the recorded state.
    assert np.sqrt(((keypoints - replay.arrays["keypoint"]) ** 2).mean()) < 0.03


def test_what_was_loaded_can_be_exported_again(tmp_path):
    once = load_lerobot(export_lerobot(made_up(), tmp_path / "once"))
    twice = load_lerobot(export_lerobot(once, tmp_path / "twice"))
    np.testing.assert_array_equal(twice.arrays["action"], once.arrays["action"])
    assert pose_errors(once.arrays["state"], twice.arrays["state"]).max() < 1e-3


def test_rewards_are_those_of_the_state_after_the_action(tmp_path):
    replay = made_up()
    columns = data_columns(export_lerobot(replay, tmp_path / "set"))
    step = 0
    for length in LENGTHS:
        covered = [coverage(*map(float, pose)) for pose in replay.arrays["state"][step : step + length, 2:]]
        after = [*covered[1:], covered[-1]]
        rewards = columns["next.reward"][step : step + length]
        np.testing.assert_allclose(rewards, [min(value / 0.95, 1) for value in after], rtol=0, atol=1e-6)
        assert columns["next.success"][step : step + length].tolist() == [value > 0.95 for value in after]
        assert columns["next.done"][step : step + length].tolist() == [False] * (length - 1) + [True]
        step += length
    assert 0 < columns["next.success"].sum() < sum(LENGTHS)


def test_rewards_for_another_goal(tmp_path):
    replay = made_up()
    replay.arrays["state"][:, 2:] = (120, 380, 1.0)
    rewards = [
        data_columns(export_lerobot(replay, tmp_path / str(goal), goal_pose=goal))["next.reward"]
        for goal in (GOAL_POSE, (120.0, 380.0, 1.0))
    ]
    assert (rewards[0] == 0).all()
    assert (rewards[1] == 1).all()


def test_counters(tmp_path):
    columns = data_columns(export_lerobot(made_up(), tmp_path / "set"))
    frames = np.concatenate([np.arange(length) for length in LENGTHS])
    np.testing.assert_array_equal(columns["frame_index"], frames)
    np.testing.assert_array_equal(columns["timestamp"], (frames / 10).astype(np.float32))
    np.testing.assert_array_equal(columns["episode_index"], np.repeat([0, 1, 2], LENGTHS))
    np.testing.assert_array_equal(columns["index"], np.arange(sum(LENGTHS)))
    assert not columns["task_index"].any()


# As pyarrow prints the types in the files that LeRobotDataset 0.4.4 wrote for the same columns.
LEROBOT_TYPES = {
    "observation.state": "fixed_size_list<element: float>[2]",
    "observation.environment_state": "fixed_size_list<element: float>[16]",
    "action": "fixed_size_list<element: float>[2]",
    "episode_index": "int64",
    "frame_index": "int64",
    "timestamp": "float",
    "next.reward": "float",
    "next.done": "bool",
    "next.success": "bool",
    "index": "int64",
    "task_index": "int64",
}


def test_types_and_features(tmp_path):
    folder = export_lerobot(made_up(), tmp_path / "set")
    file = pq.ParquetFile(folder / "data/chunk-000/file-000.parquet")
    assert {field.name: str(field.type) for field in file.schema_arrow} == LEROBOT_TYPES
    assert file.num_row_groups == len(LENGTHS)
    info = json.loads((folder / "meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0"
    assert (info["fps"], info["total_episodes"], info["total_frames"], info["total_tasks"]) == (10, 3, 41, 1)
    assert info["splits"] == {"train": "0:3"}
    names = {"float": "float32", "bool": "bool", "int64": "int64"}
    for field in file.schema_arrow:
        feature = info["features"][field.name]
        is_list = pa.types.is_fixed_size_list(field.type)
        assert feature["dtype"] == names[str(field.type.value_type if is_list else field.type)]
        assert feature["shape"] == [field.type.list_size if is_list else 1]
        assert feature["names"] is None or len(feature["names"]) == feature["shape"][0]


def test_list_of_episodes(tmp_path):
    folder = export_lerobot(made_up(), tmp_path / "set", task="Do it.")
    rows = pq.read_table(folder / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    ends = np.cumsum(LENGTHS).tolist()
    for index, (row, length, end) in enumerate(zip(rows, LENGTHS, ends, strict=True)):
        assert (row["episode_index"], row["length"], row["tasks"]) == (index, length, ["Do it."])
        assert (row["dataset_from_index"], row["dataset_to_index"]) == (end - length, end)
        places = ("data/chunk_index", "data/file_index", "meta/episodes/chunk_index", "meta/episodes/file_index")
        assert [row[place] for place in places] == [0, 0, 0, 0]


def test_the_task_is_the_index_of_its_table(tmp_path):
    path = export_lerobot(made_up(), tmp_path / "set") / "meta/tasks.parquet"
    assert pq.read_table(path).to_pylist() == [{"task_index": 0, "task": TASK}]
    assert json.loads(pq.read_schema(path).metadata[b"pandas"])["index_columns"] == ["task"]


def test_stats_of_the_set_and_of_each_episode(tmp_path):
    folder = export_lerobot(made_up(), tmp_path / "set")
    columns = data_columns(folder)
    check_stats(json.loads((folder / "meta/stats.json").read_text()), columns)
    rows = pq.read_table(folder / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    for row in rows:
        steps = slice(row["dataset_from_index"], row["dataset_to_index"])
        stats = {name: {} for name in columns}
        for key, values in row.items():
            if key.startswith("stats/"):
                _, name, statistic = key.split("/")
                stats[name][statistic] = values
        check_stats(stats, {name: values[steps] for name, values in columns.items()})


def check_stats(stats, columns):
    assert set(stats) == set(columns)
    for name, values in columns.items():
        values = values.reshape(len(values), -1)
        found = stats[name]
        assert found["count"] == [len(values)]
        assert found["min"] == values.min(axis=0).tolist()
        assert found["max"] == values.max(axis=0).tolist()
        np.testing.assert_allclose(found["mean"], values.mean(axis=0), rtol=1e-5)
        np.testing.assert_allclose(found["std"], values.std(axis=0), rtol=1e-4, atol=1e-9)
        ordered = np.sort(values, axis=0).astype(float)
        for percent in (1, 10, 50, 90, 99):
            at = percent / 100 * (len(values) - 1)
            low, high = ordered[math.floor(at)], ordered[math.ceil(at)]
            expected = low + (at - math.floor(at)) * (high - low)
            np.testing.assert_allclose(found[f"q{percent:02d}"], expected, rtol=1e-9, atol=1e-12)


def test_a_full_file_is_followed_by_another(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FILES_PER_CHUNK", 2)
    replay = made_up(lengths=(4000, 4000, 5000, 50, 12000))
    folder = export_lerobot(replay, tmp_path / "set", file_size_mb=1)
    check_round_trip(replay, folder)
    listed = pq.read_table(folder / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [(row["data/chunk_index"], row["data/file_index"]) for row in listed] == [
        (0, 0), (0, 0), (0, 1), (0, 1), (1, 0)
    ]  # fmt: skip
    for row in listed:
        name = f"data/chunk-{row['data/chunk_index']:03d}/file-{row['data/file_index']:03d}.parquet"
        assert row["episode_index"] in pq.read_table(folder / name)["episode_index"].to_pylist()


def test_what_is_there_is_kept_unless_forced(tmp_path):
    folder = export_lerobot(made_up(), tmp_path / "set")
    other = made_up(lengths=(5,), seed=1)
    with pytest.raises(FileExistsError, match=r"set exists already; nothing was changed \(--force replaces it\)"):
        export_lerobot(other, folder)
    check_round_trip(made_up(), folder)
    export_lerobot(other, folder, force=True)
    check_round_trip(other, folder)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_only_a_lerobot_set_is_ever_replaced(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("work")
    (tmp_path / "file").write_text("work")
    for name in ("home", "file"):
        with pytest.raises(FileExistsError, match=r"is no LeRobot data set; only such a one can be replaced"):
            export_lerobot(made_up(), tmp_path / name, force=True)
    assert (tmp_path / "home" / "thesis.tex").read_text() == (tmp_path / "file").read_text() == "work"
    (tmp_path / "empty").mkdir()
    assert is_lerobot(export_lerobot(made_up(), tmp_path / "empty", force=True))


@pytest.mark.parametrize("was_there", [False, True])
def test_a_failure_leaves_what_was_there(tmp_path, monkeypatch, was_there):
    if was_there:
        export_lerobot(made_up(), tmp_path / "set")

    def full_disk(path, value):
        raise OSError("No space left on device")

    monkeypatch.setattr(module, "_write_json", full_disk)
    with pytest.raises(OSError, match="No space left"):
        export_lerobot(made_up(lengths=(5,)), tmp_path / "set", force=True)
    assert [path.name for path in tmp_path.iterdir()] == (["set"] if was_there else [])
    if was_there:
        check_round_trip(made_up(), tmp_path / "set")


def test_a_renaming_that_fails_is_undone(tmp_path, monkeypatch):
    folder = export_lerobot(made_up(), tmp_path / "set")
    replace = os.replace

    def refuse_new(source, target):
        if target == folder:
            raise PermissionError("not now")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse_new)
    with pytest.raises(PermissionError, match="not now"):
        export_lerobot(made_up(lengths=(5,)), folder, force=True)
    check_round_trip(made_up(), folder)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_interrupted_anywhere_keeps_one_of_the_two(tmp_path, interrupted_replacing):
    folder, old, new = tmp_path / "set", made_up(), made_up(lengths=(5,), seed=1)

    def setup():
        shutil.rmtree(folder, ignore_errors=True)
        export_lerobot(old, folder)

    for killed in interrupted_replacing(setup, lambda: export_lerobot(new, folder, force=True)):
        if killed:
            with pytest.raises(FileExistsError, match="exists already; nothing was changed"):
                export_lerobot(new, folder)
        check_round_trip(old if load_lerobot(folder).n_episodes == 3 else new, folder)
        if killed:
            export_lerobot(new, folder, force=True)
        assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("missing", ["action", "state"])
def test_arrays_that_were_not_loaded(tmp_path, missing):
    replay = made_up()
    del replay.arrays[missing]
    with pytest.raises(DataError, match=rf"array '{missing}' was not loaded from made-up; loaded: "):
        export_lerobot(replay, tmp_path / "set")
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("size", [0, 0.5, True])
def test_file_size_out_of_range(tmp_path, size):
    with pytest.raises(ValueError, match=rf"file_size_mb is {size}; allowed: an integer of at least 1"):
        export_lerobot(made_up(), tmp_path / "set", file_size_mb=size)


@pytest.mark.parametrize("goal", [(600, 256, 0), (-1.0, 256, 0), (256, 256), (256, 256, math.nan)])
def test_a_goal_out_of_range(tmp_path, goal):
    with pytest.raises(ValueError, match=r"goal_pose is .*; allowed: x and y in \[0, 512\] and an angle in radians"):
        export_lerobot(made_up(), tmp_path / "set", goal_pose=goal)
    assert not (tmp_path / "set").exists()


def test_damage_is_noticed_or_does_no_harm(tmp_path):
    """Cut files and flipped bytes: a DataError of one line, or the values that were written."""
    replay = made_up()
    folder = export_lerobot(replay, tmp_path / "set")
    files = sorted(path for path in folder.rglob("*.*") if path.name in ("info.json", "file-000.parquet"))
    originals = {path: path.read_bytes() for path in files}
    assert len(files) == 3
    rng, errors = np.random.default_rng(0), []
    for trial in range(150):
        path = files[trial % len(files)]
        content = bytearray(originals[path])
        at = int(rng.integers(len(content)))
        if trial % 2:
            content = content[:at]
        else:
            content[at] ^= int(rng.integers(1, 256))
        path.write_bytes(content)
        try:
            check_round_trip(replay, folder)
        except DataError as error:
            errors.append(str(error))
        path.write_bytes(originals[path])
    assert len(errors) > 75
    assert not any("\n" in error for error in errors)

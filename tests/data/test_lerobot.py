"""LeRobot data sets of PushT: what is read from folders of each version, and what is said about damaged ones."""

import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from envs.pusht.keypoints import keypoints_in_world
from envs.pusht.vertices import vertices_in_world
from immiscible_policy.data.lerobot import is_lerobot, load_lerobot
from immiscible_policy.data.replay import DataError
from immiscible_policy.data.windows import observations_from_replay

VERSIONS = ("v2.0", "v2.1", "v3.0")
LENGTHS = (5, 3, 7)
STATE, VERTICES = "observation.state", "observation.environment_state"
DATA_PATHS = {
    "v2": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
    "v3": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
}
TASK = "Push the T-shaped block onto the T-shaped target."


def recording(lengths=LENGTHS):
    """Columns as LeRobot lists them, of made-up episodes, and the block poses (n, 3)."""
    rng, n = np.random.default_rng(0), sum(lengths)
    poses = np.column_stack([rng.uniform(100, 400, (n, 2)), rng.uniform(0, 2 * math.pi, n)])
    frame = np.concatenate([np.arange(length) for length in lengths])
    columns = {
        STATE: rng.uniform(50, 450, (n, 2)).astype(np.float32),
        VERTICES: vertices_in_world(poses).astype(np.float32),
        "action": rng.uniform(50, 450, (n, 2)).astype(np.float32),
        "episode_index": np.repeat(np.arange(len(lengths)), lengths),
        "frame_index": frame,
        "timestamp": (frame / 10).astype(np.float32),
        "next.reward": rng.uniform(0, 1, n).astype(np.float32),
        "next.done": np.zeros(n, bool),
        "next.success": np.zeros(n, bool),
        "index": np.arange(n),
        "task_index": np.zeros(n, np.int64),
    }
    return columns, poses


def as_table(columns):
    return pa.table({name: pa.array(list(values) if values.ndim > 1 else values) for name, values in columns.items()})


def write_parquet(path, table):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def write_lines(path, entries):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def write_dataset(root, version, columns, lengths=LENGTHS, chunks_size=1000, files=None, **info):
    """A data set in the layout of a version; `files` (v3.0) is the data file of each episode, in chunks of two."""
    columns = {name: values for name, values in columns.items() if values is not None}
    episode = columns.get("episode_index", np.repeat(np.arange(len(lengths)), lengths))
    major = version[:2]
    if major == "v2":
        for index in range(len(lengths)):
            rows = {name: values[episode == index] for name, values in columns.items()}
            name = DATA_PATHS["v2"].format(episode_chunk=index // chunks_size, episode_index=index)
            write_parquet(root / name, as_table(rows))
        listed = [{"episode_index": i, "tasks": [TASK], "length": length} for i, length in enumerate(lengths)]
        write_lines(root / "meta/episodes.jsonl", listed)
        write_lines(root / "meta/tasks.jsonl", [{"task_index": 0, "task": TASK}])
        (root / "meta" / ("stats.json" if version == "v2.0" else "episodes_stats.jsonl")).write_text("{}\n")
    else:
        files = files or [0] * len(lengths)
        for file in sorted(set(files)):
            chosen = np.isin(episode, [index for index, of in enumerate(files) if of == file])
            rows = {name: values[chosen] for name, values in columns.items()}
            write_parquet(root / DATA_PATHS["v3"].format(chunk_index=file // 2, file_index=file % 2), as_table(rows))
        write_episodes(root, lengths, files)
        write_parquet(root / "meta/tasks.parquet", pa.table({"task_index": [0], "task": [TASK]}))
    content = {
        "codebase_version": version,
        "robot_type": "2d pointer",
        "total_episodes": len(lengths),
        "total_frames": sum(lengths),
        "total_tasks": 1,
        "chunks_size": chunks_size,
        "fps": 10,
        "splits": {"train": f"0:{len(lengths)}"},
        "data_path": DATA_PATHS[major],
        "video_path": None,
        "features": {},
        **info,
    }
    (root / "meta/info.json").write_text(json.dumps(content))
    return root


def write_episodes(root, lengths, files):
    ends = np.cumsum(lengths)
    table = pa.table(
        {
            "episode_index": np.arange(len(lengths)),
            "tasks": [[TASK]] * len(lengths),
            "length": np.array(lengths),
            "data/chunk_index": np.array(files) // 2,
            "data/file_index": np.array(files) % 2,
            "dataset_from_index": ends - lengths,
            "dataset_to_index": ends,
        }
    )
    write_parquet(root / "meta/episodes/chunk-000/file-000.parquet", table)


@pytest.fixture(params=VERSIONS)
def version(request):
    return request.param


def check_equal(replay, columns, poses, lengths=LENGTHS):
    np.testing.assert_array_equal(replay.arrays["action"], columns["action"])
    np.testing.assert_array_equal(replay.arrays["agent_pos"], columns[STATE][:, :2])
    np.testing.assert_array_equal(replay.arrays["environment_state"], columns[VERTICES])
    np.testing.assert_array_equal(replay.arrays["state"][:, :2], columns[STATE][:, :2])
    np.testing.assert_allclose(replay.arrays["state"][:, 2:], poses, rtol=0, atol=1e-4)
    expected = np.array([keypoints_in_world(*pose) for pose in poses])
    np.testing.assert_allclose(replay.arrays["keypoint"], expected, rtol=0, atol=1e-3)
    assert {values.dtype for values in replay.arrays.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(replay.episode_ends, np.cumsum(lengths))
    assert replay.episode_ends.dtype == np.int64


def test_steps_and_block_poses_of_each_version(tmp_path, version):
    columns, poses = recording()
    root = write_dataset(tmp_path / "set", version, columns)
    assert is_lerobot(root)
    replay = load_lerobot(str(root))
    check_equal(replay, columns, poses)
    assert replay.source == root
    for obs_type, width in (("state", 5), ("keypoints", 20)):
        assert observations_from_replay(replay, obs_type).shape == (sum(LENGTHS), width)


@pytest.mark.parametrize(("version", "shape"), [("v2.1", {"chunks_size": 2}), ("v3.0", {"files": [0, 1, 3]})])
def test_several_chunks_and_files(tmp_path, version, shape):
    columns, poses = recording()
    root = write_dataset(tmp_path, version, columns, **shape)
    assert len({path.parent for path in root.glob("data/*/*")}) == 2
    check_equal(load_lerobot(root), columns, poses)


def test_files_that_the_metadata_do_not_name_are_read(tmp_path):
    """LeRobot's converter lists an episode that begins a file in the file before it."""
    columns, poses = recording()
    root = write_dataset(tmp_path, "v3.0", columns, files=[0, 1, 2])
    write_episodes(root, LENGTHS, [0, 0, 1])
    check_equal(load_lerobot(root), columns, poses)


def test_rows_are_ordered_by_episode_and_frame(tmp_path, version):
    columns, poses = recording()
    shuffled = np.random.default_rng(5).permutation(sum(LENGTHS))
    root = write_dataset(tmp_path, version, {name: values[shuffled] for name, values in columns.items()})
    check_equal(load_lerobot(root), columns, poses)


def test_episode_numbers_may_leave_out_some(tmp_path):
    columns, poses = recording()
    columns["episode_index"] = np.array([2, 5, 11])[columns["episode_index"]]
    root = write_dataset(tmp_path, "v3.0", {**columns}, files=[0] * 3)
    table = pq.read_table(root / "meta/episodes/chunk-000/file-000.parquet")
    write_parquet(root / "data/chunk-000/file-000.parquet", as_table(columns))
    write_parquet(
        root / "meta/episodes/chunk-000/file-000.parquet", table.set_column(0, "episode_index", pa.array([2, 5, 11]))
    )
    check_equal(load_lerobot(root), columns, poses)


def test_without_vertices_the_agent_is_read_and_the_block_is_missed_later(tmp_path, version):
    columns, _ = recording()
    replay = load_lerobot(write_dataset(tmp_path, version, {**columns, VERTICES: None}))
    assert sorted(replay.arrays) == ["action", "agent_pos"]
    np.testing.assert_array_equal(replay.arrays["agent_pos"], columns[STATE])
    for obs_type in ("state", "keypoints"):
        with pytest.raises(DataError, match=r"array '(state|keypoint)' was not loaded .* \['action', 'agent_pos'\]"):
            observations_from_replay(replay, obs_type)


@pytest.mark.parametrize("other", [None, "vertices", "something else"])
def test_a_state_of_five_holds_the_block_with_any_angle(tmp_path, other):
    columns, poses = recording()
    poses[:, 2] += 2 * math.pi * np.random.default_rng(3).integers(-3, 4, len(poses))
    columns[STATE] = np.hstack([columns[STATE], poses]).astype(np.float32)
    if other != "vertices":
        columns[VERTICES] = None if other is None else np.zeros((len(poses), 7), np.float32)
    replay = load_lerobot(write_dataset(tmp_path, "v3.0", columns))
    np.testing.assert_array_equal(replay.arrays["state"], columns[STATE])
    np.testing.assert_array_equal(replay.arrays["agent_pos"], columns[STATE][:, :2])
    expected = np.array([keypoints_in_world(*pose) for pose in poses])
    np.testing.assert_allclose(replay.arrays["keypoint"], expected, rtol=0, atol=1e-3)
    assert ("environment_state" in replay.arrays) == (other == "vertices")
    angle = observations_from_replay(replay, "state")[:, 4]
    assert (angle >= 0).all()
    assert (angle < 2 * math.pi).all()


def test_the_two_places_of_a_block_must_agree(tmp_path):
    columns, poses = recording()
    poses[9, 0] += 1.5
    columns[STATE] = np.hstack([columns[STATE], poses]).astype(np.float32)
    with pytest.raises(DataError, match=r"1\.5 px away from those of the pose in observation\.state \(first at step 9"):
        load_lerobot(write_dataset(tmp_path, "v3.0", columns))


def test_vertices_need_not_be_exact_but_those_of_a_block(tmp_path):
    columns, poses = recording()
    noise = np.random.default_rng(1).uniform(-0.3, 0.3, columns[VERTICES].shape).astype(np.float32)
    columns[VERTICES] += noise
    replay = load_lerobot(write_dataset(tmp_path / "near", "v3.0", columns))
    np.testing.assert_allclose(replay.arrays["state"][:, 2:], poses, rtol=0, atol=1)
    columns[VERTICES][4] = columns[VERTICES][4].reshape(8, 2)[:, ::-1].reshape(16)
    with pytest.raises(DataError, match=r"px away from those of a block at any pose \(first at step 4\)"):
        load_lerobot(write_dataset(tmp_path / "mirrored", "v3.0", columns))


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"action": None}, r"column action is missing; there are: observation\.state, .*, task_index$"),
        ({STATE: None}, r"column observation\.state is missing; there are: .*action"),
        ({"frame_index": None}, r"column frame_index is missing"),
        ({"action": np.zeros((15, 7), np.float32)}, r"column action is 7 wide, expected 2 "),
        ({STATE: np.zeros((15, 4), np.float32)}, r"column observation\.state is 4 wide, expected 2 .* or 5 "),
        ({VERTICES: np.zeros((15, 18), np.float32)}, r"environment_state is 18 wide, expected 16 "),
        ({"action": np.full((15, 2), "left")}, r"column action has type .*string.*, expected real numbers"),
        ({"frame_index": np.arange(15) / 2}, r"column frame_index holds float64 values, 1 a row, expected one integer"),
    ],
)
def test_columns_that_are_missing_or_of_another_shape(tmp_path, version, replaced, message):
    columns, _ = recording()
    with pytest.raises(DataError, match=message):
        load_lerobot(write_dataset(tmp_path, version, {**columns, **replaced}))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("column", ["action", STATE, VERTICES])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_values_that_are_not_finite_are_placed(tmp_path, version, column, value):
    columns, _ = recording()
    columns[column] = columns[column].astype(np.float64)
    columns[column][10, 1] = value
    message = rf"column {column} holds NaN or infinite values \(the first in episode 2, frame 2\)"
    with pytest.raises(DataError, match=message):
        load_lerobot(write_dataset(tmp_path, version, columns))


def replaced_frame(at, value):
    columns, _ = recording()
    columns["frame_index"][at] = value
    return columns


def without_rows(*rows):
    columns, _ = recording()
    return {name: np.delete(values, rows, axis=0) for name, values in columns.items()}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (without_rows(10), r"frame_index of episode 2 must count .* found 3 where 2 is expected"),
        (without_rows(5), r"frame_index of episode 1 .* found 1 where 0 is expected"),
        (replaced_frame(4, 3), r"frame_index of episode 0 .* found 3 where 4 is expected"),
        (without_rows(13, 14), r"episode 2 has 5 steps, meta/episodes.* lists 7"),
        (without_rows(5, 6, 7), r"episode 1 is listed in meta/episodes.*, but no data file holds its steps|no rows"),
    ],
)
def test_steps_that_are_missing_or_repeated(tmp_path, version, columns, message):
    with pytest.raises(DataError, match=message):
        load_lerobot(write_dataset(tmp_path, version, columns))


def test_an_episode_in_several_files(tmp_path):
    columns, _ = recording()
    root = write_dataset(tmp_path, "v2.1", columns)
    first, second = (root / DATA_PATHS["v2"].format(episode_chunk=0, episode_index=index) for index in (0, 1))
    table = pq.read_table(first)
    write_parquet(first, table.slice(0, 3))
    write_parquet(second, pa.concat_tables([pq.read_table(second), table.slice(3)]))
    with pytest.raises(DataError, match=r"episode 0 has steps in several files, .*000000.parquet and .*000001.parquet"):
        load_lerobot(root)


def test_steps_of_an_episode_that_is_not_listed(tmp_path):
    columns, _ = recording()
    root = write_dataset(tmp_path, "v3.0", columns)
    write_episodes(root, LENGTHS[:2], [0, 0])
    info = json.loads((root / "meta/info.json").read_text())
    (root / "meta/info.json").write_text(json.dumps({**info, "total_episodes": 2, "total_frames": 8}))
    with pytest.raises(DataError, match=r"episode 2 has steps in the data files, but meta/episodes/\S+ does not list"):
        load_lerobot(root)


def test_files_with_different_columns(tmp_path):
    columns, _ = recording()
    root = write_dataset(tmp_path, "v3.0", columns, files=[0, 1, 1])
    path = root / DATA_PATHS["v3"].format(chunk_index=0, file_index=1)
    write_parquet(path, pq.read_table(path).drop_columns([VERTICES]))
    message = r"file-001\.parquet: column observation\.environment_state is missing, .*file-000\.parquet it is 16 wide"
    with pytest.raises(DataError, match=message):
        load_lerobot(root)


@pytest.mark.parametrize("fps", [30, "10", None])
def test_another_rate_is_refused(tmp_path, version, fps):
    columns, _ = recording()
    with pytest.raises(DataError, match=rf"info\.json: fps is {fps!r}; allowed: 10"):
        load_lerobot(write_dataset(tmp_path, version, columns, fps=fps))


def test_the_rate_may_be_a_float(tmp_path, version):
    columns, poses = recording()
    check_equal(load_lerobot(write_dataset(tmp_path, version, columns, fps=10.0)), columns, poses)


def test_what_is_a_lerobot_folder(tmp_path, make_store):
    make_store(tmp_path / "replay.zarr")
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "absent", tmp_path / "replay.zarr", tmp_path / "file"):
        assert not is_lerobot(path)


def test_paths_begin_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    columns, _ = recording()
    write_dataset(tmp_path / "set", "v3.0", columns)
    assert is_lerobot("~/set")
    assert load_lerobot(Path("~/set")).source == tmp_path / "set"

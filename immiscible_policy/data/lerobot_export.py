"""Writer of low-dimensional LeRobot data sets, version 3.0, with the columns of `lerobot/pusht_keypoints`.

    meta/info.json                               version, rate, path templates, each column's type and shape, the goal
    meta/stats.json                              of each column: min, max, mean, std, count and five quantiles
    meta/tasks.parquet                           the one task, in words
    meta/episodes/chunk-000/file-000.parquet     of each episode: length, file, first and last row, stats
    data/chunk-000/file-000.parquet, ...         the steps, several episodes a file, one row group an episode

Names, types and layout are those that `LeRobotDataset` of huggingface/lerobot 0.4 writes. The quantiles are exact,
where LeRobot's are read off histograms.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from envs.pusht.geometry import CONTROL_HZ, GOAL_POSE, SUCCESS_COVERAGE, Pose, coverage_batch
from envs.pusht.task import checked_goal
from envs.pusht.vertices import BLOCK_VERTICES, vertices_in_world
from immiscible_policy.checks import is_integer
from immiscible_policy.data.lerobot import ACTION, ENVIRONMENT_STATE, STATE, is_lerobot
from immiscible_policy.data.lerobot_files import EPISODE, FRAME, INFO
from immiscible_policy.data.replacing import staged, undo_replacing
from immiscible_policy.data.replay import DataError, ReplayData
from immiscible_policy.files import alone, replace_folder

TASK = "Push the T-shaped block onto the T-shaped target."  # the wording of the published data sets
REWARD, DONE, SUCCESS = "next.reward", "next.done", "next.success"
FILES_PER_CHUNK = 1000

_FILE_PATH = "chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_VERTEX_NAMES = [f"vertex_{index}_{axis}" for index in range(len(BLOCK_VERTICES)) for axis in "xy"]
# Columns in the published order: type, width, names of the entries.
_COLUMNS: dict[str, tuple[str, int, list[str] | None]] = {
    STATE: ("float32", 2, ["agent_x", "agent_y"]),
    ENVIRONMENT_STATE: ("float32", len(_VERTEX_NAMES), _VERTEX_NAMES),
    ACTION: ("float32", 2, ["target_x", "target_y"]),
    EPISODE: ("int64", 1, None),
    FRAME: ("int64", 1, None),
    "timestamp": ("float32", 1, None),
    REWARD: ("float32", 1, None),
    DONE: ("bool", 1, None),
    SUCCESS: ("bool", 1, None),
    "index": ("int64", 1, None),
    "task_index": ("int64", 1, None),
}
_ARROW_TYPES = {"float32": pa.float32(), "int64": pa.int64(), "bool": pa.bool_()}
_QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}

Columns = Mapping[str, np.ndarray]
Stats = dict[str, dict[str, list[Any]]]


def export_lerobot(
    replay: ReplayData,
    output: str | Path,
    *,
    force: bool = False,
    task: str = TASK,
    goal_pose: Pose = GOAL_POSE,
    file_size_mb: int = 100,
) -> Path:
    """Write recorded PushT steps as a LeRobot data set; nothing appears at `output` before all of it is written.

    `next.reward`, `next.success` and `next.done` of a step belong to the state that its action led to, which is the
    state recorded at the next step. After an episode's last action no state was recorded: its reward and success
    repeat those of the last recorded state, as in the published data sets. `next.done` is True at that step only
    (the published ones set it at the step before, too).

    Args:
        replay: steps with the arrays `action` (2,) and `state` (5,).
        output: the data set's folder; parents are made.
        force: replace a LeRobot data set that is there; never anything else.
        task: what the agent was to do, in words.
        goal_pose: x, y in pixels and angle of the goal that the rewards are for; `meta/info.json` says it.
        file_size_mb: a new data file is begun where the steps in one would exceed this size, at least 1.

    Returns:
        output.

    Raises:
        DataError: `action` or `state` was not loaded. FileExistsError: something is at `output` already, and
        `force` is not set or it is no LeRobot data set. ValueError: file_size_mb or goal_pose is out of range.
    """
    output = Path(output).expanduser()
    missing = [name for name in ("action", "state") if name not in replay.arrays]
    if missing:
        raise DataError(f"array {missing[0]!r} was not loaded from {replay.source}; loaded: {sorted(replay.arrays)}")
    if not is_integer(file_size_mb, 1):
        raise ValueError(f"file_size_mb is {file_size_mb!r}; allowed: an integer of at least 1")
    goal_pose = checked_goal(goal_pose)
    undo_replacing(output)
    _refuse_existing(output, force)
    columns = _step_columns(replay, goal_pose)
    with alone(output), staged(output) as folder:
        _write(folder, columns, replay.episode_ends, task, file_size_mb, goal_pose)
        replace_folder(folder, output)
    return output


def _refuse_existing(output: Path, force: bool) -> None:
    if not output.exists():
        return
    if not force:
        raise FileExistsError(f"{output} exists already; nothing was changed (--force replaces it)")
    is_empty = output.is_dir() and not any(output.iterdir())
    if not (is_empty or is_lerobot(output)):
        raise FileExistsError(f"{output} exists already and is no LeRobot data set; only such a one can be replaced")


def _step_columns(replay: ReplayData, goal_pose: Pose) -> dict[str, np.ndarray]:
    """Every column but the file's, (n_steps, width) or (n_steps,), in its own type."""
    state, ends = replay.arrays["state"], replay.episode_ends
    lengths = np.diff(ends, prepend=0)
    index = np.arange(replay.n_steps)
    frame = index - np.repeat(ends - lengths, lengths)
    is_last = np.zeros(replay.n_steps, dtype=bool)
    is_last[ends - 1] = True
    coverage = coverage_batch(state[:, 2:], goal_pose)
    after = coverage[index + 1 - is_last]
    columns = {
        STATE: state[:, :2],
        ENVIRONMENT_STATE: vertices_in_world(state[:, 2:]),
        ACTION: replay.arrays["action"],
        EPISODE: np.repeat(np.arange(replay.n_episodes), lengths),
        FRAME: frame,
        "timestamp": frame / CONTROL_HZ,
        REWARD: np.minimum(after / SUCCESS_COVERAGE, 1.0),
        DONE: is_last,
        SUCCESS: after > SUCCESS_COVERAGE,
        "index": index,
        "task_index": np.zeros(replay.n_steps),
    }
    return {name: columns[name].astype(dtype) for name, (dtype, _, _) in _COLUMNS.items()}


def _write(folder: Path, columns: Columns, ends: np.ndarray, task: str, file_size_mb: int, goal_pose: Pose) -> None:
    stops = ends.tolist()
    starts = [0, *stops[:-1]]
    step_size = sum(values[:1].nbytes for values in columns.values())
    files = _file_numbers([step_size * (stop - start) for start, stop in zip(starts, stops, strict=True)], file_size_mb)
    episodes: list[dict[str, Any]] = []
    for file in range(files[-1] + 1):
        chosen = [episode for episode, number in enumerate(files) if number == file]
        place = {"chunk_index": file // FILES_PER_CHUNK, "file_index": file % FILES_PER_CHUNK}
        tables = []
        for episode in chosen:
            steps = {name: values[starts[episode] : stops[episode]] for name, values in columns.items()}
            tables.append(_table(steps))
            episodes.append(
                {
                    EPISODE: episode,
                    "tasks": [task],
                    "length": stops[episode] - starts[episode],
                    **{f"data/{key}": value for key, value in place.items()},
                    "dataset_from_index": starts[episode],
                    "dataset_to_index": stops[episode],
                    **_flat_stats(_stats(steps)),
                    "meta/episodes/chunk_index": 0,
                    "meta/episodes/file_index": 0,
                }
            )
        _write_parquet(folder / "data" / _FILE_PATH.format(**place), tables)
    first = _FILE_PATH.format(chunk_index=0, file_index=0)
    _write_parquet(folder / "meta" / "episodes" / first, [pa.Table.from_pylist(episodes)])
    _write_parquet(folder / "meta" / "tasks.parquet", [_tasks_table(task)])
    _write_json(folder / "meta" / "stats.json", _stats(columns))
    # LeRobot has no entry for the goal, and passes over what it does not know.
    _write_json(folder / INFO, {**_info(len(stops), stops[-1], file_size_mb), "goal_pose": list(goal_pose)})


def _file_numbers(sizes: list[int], file_size_mb: int) -> list[int]:
    """The number of the file of each episode, given their sizes in bytes; a larger episode has its own file."""
    numbers, number, filled = [], 0, 0
    for size in sizes:
        if filled and filled + size > file_size_mb * 2**20:
            number, filled = number + 1, 0
        filled += size
        numbers.append(number)
    return numbers


def _table(steps: Columns) -> pa.Table:
    arrays = []
    for name, (dtype, width, _) in _COLUMNS.items():
        flat = pa.array(steps[name].reshape(-1), type=_ARROW_TYPES[dtype])
        arrays.append(flat if width == 1 else pa.FixedSizeListArray.from_arrays(flat, width))
    return pa.Table.from_arrays(arrays, names=list(_COLUMNS))


def _stats(columns: Columns) -> Stats:
    """Statistics over the steps; each a list of as many entries as the column is wide, the count of one."""
    stats = {}
    for name, values in columns.items():
        rows = values.reshape(len(values), -1)
        wide = rows.astype(np.float64)
        quantiles = np.quantile(wide, list(_QUANTILES.values()), axis=0)
        stats[name] = {
            "min": rows.min(axis=0).tolist(),
            "max": rows.max(axis=0).tolist(),
            "mean": wide.mean(axis=0).tolist(),
            "std": wide.std(axis=0).tolist(),
            "count": [len(rows)],
            **dict(zip(_QUANTILES, quantiles.tolist(), strict=True)),
        }
    return stats


def _flat_stats(stats: Stats) -> dict[str, list[Any]]:
    return {f"stats/{column}/{name}": values for column, of in stats.items() for name, values in of.items()}


def _tasks_table(task: str) -> pa.Table:
    """Task to task_index; LeRobot reads it with pandas and looks tasks up in the index of the frame."""
    pandas = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [
            {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy, "metadata": None}
            for name, kind, numpy in (("task_index", "int64", "int64"), ("task", "unicode", "object"))
        ],
        "pandas_version": "2.0.0",
    }
    table = pa.table({"task_index": pa.array([0], pa.int64()), "task": [task]})
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})


def _info(n_episodes: int, n_steps: int, file_size_mb: int) -> dict[str, Any]:
    return {
        "codebase_version": "v3.0",
        "robot_type": "2d pointer",
        "total_episodes": n_episodes,
        "total_frames": n_steps,
        "total_tasks": 1,
        "chunks_size": FILES_PER_CHUNK,
        "data_files_size_in_mb": file_size_mb,
        "video_files_size_in_mb": 200,  # of no effect without videos, but LeRobot expects it
        "fps": CONTROL_HZ,
        "splits": {"train": f"0:{n_episodes}"},
        "data_path": f"data/{_FILE_PATH}",
        "video_path": None,
        "features": {
            name: {"dtype": dtype, "shape": [width], "names": names} for name, (dtype, width, names) in _COLUMNS.items()
        },
    }


def _write_parquet(path: Path, tables: list[pa.Table]) -> None:
    """Write tables of one schema, each as a row group."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, tables[0].schema, write_page_checksum=True) as writer:
        for table in tables:
            writer.write_table(table)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=4, allow_nan=False) + "\n", encoding="utf-8")

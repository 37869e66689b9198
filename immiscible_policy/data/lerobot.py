"""Reader for LeRobot data sets of PushT (huggingface/lerobot: `lerobot/pusht_keypoints`, `lerobot/pusht`), from a
local folder of version 2.0, 2.1 or 3.0.

Columns used: `action` (2) the agent's target xy; `observation.state` (2) agent xy; where it is there,
`observation.environment_state` (16) the block's eight vertices as gym-pusht lists them; `episode_index`,
`frame_index`. Some data sets hold agent xy, block xy and angle in an `observation.state` of 5 instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from envs.pusht.geometry import CONTROL_HZ
from envs.pusht.keypoints import BLOCK_KEYPOINTS
from envs.pusht.vertices import BLOCK_VERTICES, points_in_world, pose_from_vertices, vertices_in_world
from immiscible_policy.data.lerobot_files import (
    EPISODE,
    FRAME,
    INFO,
    Listing,
    as_integers,
    read_columns,
    read_info,
    read_listing,
)
from immiscible_policy.data.replay import DataError, ReplayData

ACTION = "action"
STATE = "observation.state"
ENVIRONMENT_STATE = "observation.environment_state"
VERTEX_TOLERANCE = 1.0  # pixels; vertices stored as float32 fit to 0.0001 px


def is_lerobot(path: str | Path) -> bool:
    """Whether `path` is a folder with `meta/info.json`, as every LeRobot data set since version 2.0 has."""
    return (Path(path).expanduser() / INFO).is_file()


def load_lerobot(path: str | Path) -> ReplayData:
    """Read a LeRobot data set of PushT into memory.

    Steps are ordered by episode_index, then frame_index, whatever their order in the files.

    Args:
        path: the data set's folder (nothing is downloaded).

    Returns:
        Steps with the float32 arrays `action` (2,) and `agent_pos` (2,), in pixels. If the block's pose is known,
        also `state` (5,) agent xy, block xy, block angle in radians and `keypoint` (9, 2); `environment_state`
        (16,) if the data set has it. The pose comes from an `observation.state` of 5 (any real angle), else from
        the eight vertices (angle in [0, 2 pi)). A data set with images in place of vertices, such as
        `lerobot/pusht`, gives `action` and `agent_pos` only. Where the goal was, published ones do not say, and
        `sources.goal_of` reads of those that were written here.

    Raises:
        DataError: files that are missing, truncated or damaged; a missing or mis-shaped column (with those that
            are there); NaN; gaps in frame_index; an episode in several files; another rate than 10 steps
            a second; vertices that are more than 1 px away from those of a block.
    """
    root = Path(path).expanduser()
    info = read_info(root)
    if info.get("fps") != CONTROL_HZ:
        raise DataError(f"{root / INFO}: fps is {info.get('fps')!r}; allowed: {CONTROL_HZ}, PushT's rate of control")
    columns, ends = _read_steps(root, read_listing(root, info))
    _check_widths(columns, root)
    arrays = {"action": columns[ACTION], "agent_pos": columns[STATE][:, :2]}
    poses = _block_poses(columns, root)
    if poses is not None:
        arrays["state"] = np.hstack([arrays["agent_pos"], poses])
        arrays["keypoint"] = points_in_world(BLOCK_KEYPOINTS, poses)
    if _has_vertices(columns):
        arrays["environment_state"] = columns[ENVIRONMENT_STATE]
    arrays = {name: np.ascontiguousarray(values, dtype=np.float32) for name, values in arrays.items()}
    return ReplayData(arrays=arrays, episode_ends=ends, source=root)


def _read_steps(root: Path, listing: Listing) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The float32 columns of all steps in order, each (n_steps, width), and the episode ends."""
    files = listing.files
    parts = [read_columns(path, (EPISODE, FRAME, ACTION, STATE), (ENVIRONMENT_STATE,)) for path in files]
    _check_same_columns(parts, files)
    episode, frame = (
        np.concatenate([as_integers(part, name, path) for part, path in zip(parts, files, strict=True)])
        for name in (EPISODE, FRAME)
    )
    file = np.repeat(np.arange(len(parts)), [len(part[EPISODE]) for part in parts])
    order = np.lexsort((frame, episode))
    episode, frame, file = episode[order], frame[order], file[order]
    ends = _check_episodes(episode, frame, file, listing, root)
    columns = {}
    for name in [name for name in parts[0] if name not in (EPISODE, FRAME)]:
        # A float64 beyond float32's range must be reported as infinite, not warned about here.
        with np.errstate(over="ignore"):
            values = np.concatenate([part[name] for part in parts]).astype(np.float32)[order]
        finite = np.isfinite(values)
        if not finite.all():
            at = int(np.argmin(finite.all(axis=1)))
            raise DataError(
                f"{files[file[at]]}: column {name} holds NaN or infinite values"
                f" (the first in episode {episode[at]}, frame {frame[at]}), expected finite numbers"
            )
        columns[name] = values
    return columns, ends


def _check_same_columns(parts: list[dict[str, np.ndarray]], files: list[Path]) -> None:
    first = {name: values.shape[1] for name, values in parts[0].items()}
    for path, part in zip(files, parts, strict=True):
        for name in sorted(first.keys() | part.keys()):
            width = part[name].shape[1] if name in part else 0
            if width != first.get(name, 0):
                this, other = (f"{w} wide" if w else "missing" for w in (width, first.get(name, 0)))
                raise DataError(f"{path}: column {name} is {this}, in {files[0]} it is {other}")


def _check_episodes(
    episode: np.ndarray, frame: np.ndarray, file: np.ndarray, listing: Listing, root: Path
) -> np.ndarray:
    """Compare the sorted steps with the metadata; returns the episode ends."""
    found, starts, counts = np.unique(episode, return_index=True, return_counts=True)
    listed = np.array(list(listing.lengths))
    for some, others, what in (
        (listed, found, f"is listed in {listing.source}, but no data file holds its steps"),
        (found, listed, f"has steps in the data files, but {listing.source} does not list it"),
    ):
        only = np.setdiff1d(some, others)
        if len(only):
            raise DataError(f"{root}: episode {only[0]} {what}")
    ends = starts + counts
    for index, start, end in zip(found.tolist(), starts.tolist(), ends.tolist(), strict=True):
        holders = np.unique(file[start:end])
        names = " and ".join(str(listing.files[holder].relative_to(root)) for holder in holders)
        if len(holders) > 1:
            raise DataError(f"{root}: episode {index} has steps in several files, {names}, expected one")
        wrong = np.flatnonzero(frame[start:end] != np.arange(end - start))
        if len(wrong):
            at = int(wrong[0])
            raise DataError(
                f"{root / names}: {FRAME} of episode {index} must count 0, 1, 2, ... without gaps or repeats,"
                f" found {frame[start + at]} where {at} is expected"
            )
        if end - start != listing.lengths[index]:
            raise DataError(
                f"{root / names}: episode {index} has {end - start} steps,"
                f" {listing.source} lists {listing.lengths[index]}"
            )
    return ends.astype(np.int64)


def _check_widths(columns: Mapping[str, np.ndarray], root: Path) -> None:
    width = columns[ACTION].shape[1]
    if width != 2:
        raise DataError(f"{root}: column {ACTION} is {width} wide, expected 2 (the agent's target xy)")
    width = columns[STATE].shape[1]
    if width not in (2, 5):
        raise DataError(
            f"{root}: column {STATE} is {width} wide, expected 2 (agent xy) or 5 (agent xy, block xy, block angle)"
        )
    if width == 2 and ENVIRONMENT_STATE in columns and not _has_vertices(columns):
        raise DataError(
            f"{root}: column {ENVIRONMENT_STATE} is {columns[ENVIRONMENT_STATE].shape[1]} wide,"
            f" expected {BLOCK_VERTICES.size} (xy of the block's 8 vertices)"
        )


def _has_vertices(columns: Mapping[str, np.ndarray]) -> bool:
    return ENVIRONMENT_STATE in columns and columns[ENVIRONMENT_STATE].shape[1] == BLOCK_VERTICES.size


def _block_poses(columns: Mapping[str, np.ndarray], root: Path) -> np.ndarray | None:
    """(n_steps, 3) x, y, angle of the block, which the vertices, if there are any, must agree with; or None."""
    known = columns[STATE].shape[1] == 5
    if not _has_vertices(columns):
        return columns[STATE][:, 2:].astype(np.float64) if known else None
    vertices = columns[ENVIRONMENT_STATE]
    poses = columns[STATE][:, 2:].astype(np.float64) if known else pose_from_vertices(vertices)[0]
    offset = (vertices - vertices_in_world(poses)).reshape(len(poses), -1, 2)
    deviation = np.hypot(offset[..., 0], offset[..., 1]).max(axis=1)
    if (deviation > VERTEX_TOLERANCE).any():
        at = int(np.argmax(deviation > VERTEX_TOLERANCE))
        of = f"the pose in {STATE}" if known else "a block at any pose"
        raise DataError(
            f"{root}: the vertices in {ENVIRONMENT_STATE} are {deviation[at]:.3g} px away from those of {of}"
            f" (first at step {at}), expected at most {VERTEX_TOLERANCE:g} px, in gym-pusht's order"
        )
    return poses

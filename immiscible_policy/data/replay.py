"""Reader for the replay layout of the Diffusion Policy paper (Chi et al., 2023), such as
`pusht_cchi_v7_replay.zarr`: `data/<array>` of shape (n_steps, ...) beside `meta/episode_ends`.

Zarr returns the fill value for a chunk file that is not there, so a half-copied store reads as zeros
without a complaint. This reader therefore counts chunks before it reads, and checks what it has read.
"""

from __future__ import annotations

import hashlib
import math
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import zarr
from zarr.storage import ZipStore

HOW_TO_GET = (
    "get it with `python scripts/download_pusht.py`, point `dataset.path=...` to your copy, or let the demonstrator "
    "make demonstrations: `dataset=demonstrator`"
)
HOW_TO_GET_PICTURES = (
    "image observations need recorded pictures, as the human demonstrations have them, or `dataset=demonstrator`"
)

# Shape of one time step of each array of the PushT set; other arrays may have any.
STEP_SHAPES: dict[str, tuple[int, ...]] = {
    "action": (2,),
    "state": (5,),
    "keypoint": (9, 2),
    "img": (96, 96, 3),
    "n_contacts": (1,),
}
STORE_MARKERS = (".zgroup", "zarr.json")
# Group attribute of stores made by `replay_writer`, whose arrays may go on after the last episode end.
WRITER_ATTRIBUTE = "immiscible_policy_replay_writer"


class DataError(ValueError):
    """Demonstrations that are missing, damaged or not of the expected shape."""


@dataclass(frozen=True)
class ReplayData:
    """Recorded episodes, end to end, in memory.

    Attributes:
        arrays: name -> (n_steps, ...) float32; `img` is uint8 (0..255), a quarter of float32's 2.8 GB.
            For PushT: `action` (2,) target xy in pixels; `state` (5,) agent xy, block xy in pixels,
            block angle in radians; `keypoint` (9, 2) block keypoints xy in pixels. LeRobot sets may have
            `agent_pos` (2,) and `environment_state` (16,) instead or besides.
        episode_ends: (n_episodes,) int64, the index one past each episode's last step.
        source: where it was read from.
    """

    arrays: dict[str, np.ndarray]
    episode_ends: np.ndarray
    source: Path

    @property
    def n_steps(self) -> int:
        """Number of steps over all episodes."""
        return int(self.episode_ends[-1])

    @property
    def n_episodes(self) -> int:
        """Number of episodes."""
        return len(self.episode_ends)

    def episode(self, index: int) -> slice:
        """The steps of episode `index` (0-based; negative counts from the end), to slice any array with."""
        if not -self.n_episodes <= index < self.n_episodes:
            raise IndexError(f"episode index {index} is outside the {self.n_episodes} episodes")
        index %= self.n_episodes
        start = int(self.episode_ends[index - 1]) if index > 0 else 0
        return slice(start, int(self.episode_ends[index]))

    def sha256(self, names: Sequence[str]) -> str:
        """What the named arrays and the ends of the episodes hold, as a hexadecimal digest.

        It is of the numbers as they were read: the same on every machine, whatever the store's format and chunks.
        """
        digest = hashlib.sha256()
        held = {"episode_ends": self.episode_ends, **{name: self.arrays[name] for name in sorted(names)}}
        for name, values in held.items():
            digest.update(f"{name}{values.dtype.str}{values.shape}".encode())
            digest.update(np.ascontiguousarray(values).data)
        return digest.hexdigest()

    def first(self, n_episodes: int) -> ReplayData:
        """Only the first `n_episodes` (all, if there are fewer)."""
        ends = self.episode_ends[:n_episodes]
        return ReplayData({name: values[: ends[-1]] for name, values in self.arrays.items()}, ends, self.source)


def load_replay(path: str | Path, arrays: Sequence[str] = ("action", "state", "keypoint")) -> ReplayData:
    """Read the named arrays of a replay store into memory; the others are not touched.

    Args:
        path: a zarr store (format 2 or 3): a directory, or a .zip that holds one at its root or in a folder.
        arrays: names under `data/`; `img` takes 0.7 GB.

    Raises:
        DataError: the store is missing, truncated or corrupt, or an array is missing, mis-shaped or holds
            NaN or infinity. The message names the array, what was found and what was expected.
    """
    if isinstance(arrays, str):
        raise TypeError(f"arrays must be a sequence of names, got the string {arrays!r}: use ({arrays!r},)")
    path = Path(path).expanduser()
    with open_store(path) as group:
        episode_ends = _read_episode_ends(group, path)
        n_steps = int(episode_ends[-1])
        loaded = {name: _read_array(group, name, n_steps, path) for name in arrays}
    return ReplayData(arrays=loaded, episode_ends=episode_ends, source=path)


@contextmanager
def open_store(path: Path) -> Iterator[zarr.Group]:
    """The root group of a store (a folder, or a zip that holds one), to read; DataError if there is none."""
    if not path.exists():
        raise DataError(f"no demonstrations at {path}: {HOW_TO_GET}")
    if path.is_dir():
        if not any((path / marker).is_file() for marker in STORE_MARKERS):
            raise DataError(_not_a_store(path))
        yield _open_group(path, "", path)
        return
    root = _store_root_in_zip(path)
    with ZipStore(path, mode="r") as store:
        yield _open_group(store, root, path)


def _open_group(store: Any, root: str, path: Path) -> zarr.Group:
    try:
        return zarr.open_group(store, path=root or None, mode="r")
    except Exception as error:  # a damaged metadata file surfaces as KeyError, JSON or zarr errors alike
        raise DataError(f"{path} does not open as a zarr group ({_reason(error)}): {HOW_TO_GET}") from error


def _not_a_store(directory: Path) -> str:
    if not any(directory.iterdir()):
        return (
            f"{directory} is not a zarr store but an empty folder: to write one there, remove the folder; "
            f"to read one, {HOW_TO_GET}"
        )
    message = f"{directory} is not a zarr store: expected {' or '.join(STORE_MARKERS)} in it"
    inside = sorted(child.parent for marker in STORE_MARKERS for child in directory.glob(f"*/{marker}"))
    return f"{message}; did you mean {inside[0]}?" if inside else f"{message}; {HOW_TO_GET}"


def _store_root_in_zip(path: Path) -> str:
    """Folder inside the archive that holds the store: the shallowest one with a zarr group in it."""
    if not zipfile.is_zipfile(path):
        raise DataError(
            f"{path} is neither a zarr directory nor a complete zip archive"
            f" ({path.stat().st_size:,} bytes; a truncated zip has lost its directory): {HOW_TO_GET}"
        )
    with zipfile.ZipFile(path) as archive:
        entries = [PurePosixPath(name) for name in archive.namelist()]
    roots = {e.parent for e in entries if e.name in STORE_MARKERS and not e.parts[0].startswith("__MACOSX")}
    if not roots:
        raise DataError(f"{path} holds no zarr store: expected {' or '.join(STORE_MARKERS)} in the archive")
    root = min(roots, key=lambda folder: (len(folder.parts), str(folder)))
    return "" if root == PurePosixPath(".") else str(root)


def _find_array(group: zarr.Group, key: str, path: Path) -> zarr.Array:
    folder, name = key.split("/")
    try:
        array = group[key]
    except Exception as error:
        try:
            found = ", ".join(sorted(group[folder].array_keys()))  # type: ignore[union-attr]
        except Exception:
            found = ""
        hint = f"; {HOW_TO_GET_PICTURES}" if key == "data/img" else ""
        raise DataError(f"{path}: array {key} is missing; {folder}/ holds: {found or 'nothing'}{hint}") from error
    if not isinstance(array, zarr.Array):
        raise DataError(f"{path}: {name!r} in {folder}/ is a group, expected an array")
    return array


def _check_complete(array: zarr.Array, key: str, path: Path) -> None:
    present, expected, parts = array.nchunks_initialized, array.nchunks, "chunks"
    if array.shards is not None:
        # Zarr counts a shard with all chunks that it has room for, also where the array ends within it.
        present //= math.prod(shard // chunk for shard, chunk in zip(array.shards, array.chunks, strict=True))
        expected = math.prod(-(-size // shard) for size, shard in zip(array.shape, array.shards, strict=True))
        parts = "shards"
    if present != expected:
        raise DataError(
            f"{path}: array {key} is truncated: {present} of its {expected} {parts} are there."
            f" Copy it again ({HOW_TO_GET}); a store of your own must be written with write_empty_chunks=True"
        )


def _read_all(array: zarr.Array, key: str, path: Path, selection: slice = slice(None)) -> np.ndarray:
    try:
        return np.asarray(array[selection])
    except Exception as error:  # every codec has its own exception type for bytes it cannot decode
        raise DataError(
            f"{path}: array {key} has a chunk that does not decode, the file is damaged ({_reason(error)}):"
            f" {HOW_TO_GET}"
        ) from error


def _read_episode_ends(group: zarr.Group, path: Path) -> np.ndarray:
    key = "meta/episode_ends"
    array = _find_array(group, key, path)
    if array.ndim != 1 or array.shape[0] == 0 or np.dtype(array.dtype).kind not in "iu":
        raise DataError(
            f"{path}: array {key} has shape {array.shape} and dtype {array.dtype},"
            f" expected (n_episodes,) integers with at least one episode"
        )
    _check_complete(array, key, path)
    ends = _read_all(array, key, path).astype(np.int64)
    lengths = np.diff(ends, prepend=0)
    if (lengths <= 0).any():
        at = int(np.argmax(lengths <= 0))
        before = int(ends[at - 1]) if at > 0 else 0
        raise DataError(
            f"{path}: array {key} must be positive and increasing, found {ends[at]} after {before} at episode {at}"
        )
    return ends


def _read_array(group: zarr.Group, name: str, n_steps: int, path: Path) -> np.ndarray:
    key = f"data/{name}"
    array = _find_array(group, key, path)
    expected = (n_steps, *STEP_SHAPES.get(name, array.shape[1:]))
    # An append that was killed leaves steps of no episode; in a store from elsewhere they are a damage.
    has_tail = WRITER_ATTRIBUTE in group.attrs and array.ndim > 0 and array.shape[0] > n_steps
    if ((n_steps, *array.shape[1:]) if has_tail else array.shape) != expected:
        raise DataError(
            f"{path}: array {key} has shape {array.shape}, expected {expected} (meta/episode_ends ends at {n_steps})"
        )
    if np.dtype(array.dtype).kind not in "iuf":
        raise DataError(f"{path}: array {key} has dtype {array.dtype}, expected real numbers")
    _check_complete(array, key, path)
    if name == "img":
        return _read_images(array, key, n_steps, path)
    # A float64 beyond float32's range must be reported below as infinite, not warned about here.
    with np.errstate(over="ignore"):
        values = _read_all(array, key, path, slice(n_steps)).astype(np.float32, copy=False)
    finite = np.isfinite(values)
    if not finite.all():
        at = int(np.argmin(finite.reshape(n_steps, -1).all(axis=1)))
        raise DataError(
            f"{path}: array {key} holds {int((~finite).sum())} NaN or infinite values"
            f" (the first at step {at}), expected finite numbers"
        )
    return values


def _read_images(array: zarr.Array, key: str, n_steps: int, path: Path) -> np.ndarray:
    """Images as uint8, a chunk at a time: the stored float32 as a whole would need 2.8 GB."""
    images = np.empty((n_steps, *array.shape[1:]), dtype=np.uint8)
    for start in range(0, n_steps, array.chunks[0]):
        block = slice(start, min(start + array.chunks[0], n_steps))
        values = _read_all(array, key, path, block)
        # Written so that NaN, which compares false, is refused as well.
        if not bool(((values >= 0) & (values <= 255)).all()):
            raise DataError(
                f"{path}: array {key} holds values outside 0..255 (or NaN)"
                f" in steps {block.start}..{block.stop}, found {values.min()} to {values.max()}"
            )
        whole = np.rint(values)
        if float(np.abs(values - whole).max(initial=0)) > 1e-3:
            raise DataError(
                f"{path}: array {key} holds values that are not whole numbers in steps {block.start}..{block.stop}; "
                "expected colours in 0..255, not in 0..1"
            )
        images[block] = whole
    return images


def _reason(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__

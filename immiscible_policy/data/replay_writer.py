"""Writer for the replay layout of the Diffusion Policy paper (Chi et al., 2023), an episode at a time.

A store (zarr format 2) holds `data/<array>` (n_steps, ...) beside `meta/episode_ends`. An episode becomes part
of it by a single rename, of the file that holds the number of episode ends; everything else is written
before, where no reader looks yet. A process killed in between leaves steps after the last episode end:
`load_replay` passes over them in stores with the attribute `WRITER_ATTRIBUTE`, and the next writer removes them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from immiscible_policy.data.growing_array import GrowingArray, write_file
from immiscible_policy.data.replacing import remove_replaced, staged, undo_replacing
from immiscible_policy.data.replay import STEP_SHAPES, WRITER_ATTRIBUTE, DataError, open_store
from immiscible_policy.files import replace_folder, staging_folder, staging_path

_GROUP = {"zarr_format": 2}
_LAYOUT_VERSION = 1

Episode = Mapping[str, ArrayLike]


class ReplayWriter:
    """Appends whole episodes to a replay store, each of them entirely or not at all.

    A store that is there is continued, after steps that a killed process left unfinished are removed; it must
    have been made by this writer. Otherwise the first `append` makes it: until then nothing is written. After
    a kill at any moment the store loads, with all episodes whose `append` had returned. One writer at a time.

    Args:
        path: folder of the store, such as `data/pusht/collected.zarr`.
        attributes: JSON values about a new store; one that is there keeps its own (see `attributes`).

    Raises:
        DataError: what is at `path` is damaged or was not made by this writer.
        ValueError: attributes that are not JSON.
    """

    def __init__(self, path: str | Path, attributes: Mapping[str, Any] | None = None) -> None:
        self.path = Path(path).expanduser()
        self._attributes = _checked_attributes(attributes)
        undo_replacing(self.path)
        if self.path.exists():
            self._attributes = _own_attributes(self.path)
            _Store(self.path).remove_unfinished()
            remove_replaced(self.path)

    @property
    def attributes(self) -> dict[str, Any]:
        """What the store says about itself."""
        return dict(self._attributes)

    @property
    def names(self) -> tuple[str, ...]:
        """The arrays that every episode must have; () while there is no store."""
        return tuple(_Store(self.path).data) if self.path.exists() else ()

    @property
    def n_episodes(self) -> int:
        """Episodes in the store now."""
        return _Store(self.path).ends.length if self.path.exists() else 0

    @property
    def n_steps(self) -> int:
        """Steps over all episodes in the store now."""
        return _Store(self.path).n_steps if self.path.exists() else 0

    def append(self, episode: Episode) -> None:
        """Add one episode: name -> (T, ...) with the same T >= 1 for all, and the names the store has.

        `img` is stored as uint8 (whole numbers in 0..255), everything else as float32. The first episode fixes
        names and shapes; those of PushT (`STEP_SHAPES`) are given.

        Raises:
            ValueError: arrays of different length, other names or shapes than the store's, or values that are
                not finite in float32; the store is untouched.
            OSError: it cannot be written (the disk is full); the episodes that were there are still there.
        """
        if self.path.exists():
            store = _Store(self.path)
            store.append(_checked_episode(episode, store.step_shapes))
            return
        checked = _checked_episode(episode, None)
        staging = staging_folder(self.path)
        _create(staging, checked, self._attributes).append(checked)
        os.rename(staging, self.path)

    def drop_last(self) -> None:
        """Remove the last episode, atomically as well; with the only one goes the store.

        Raises:
            IndexError: there is none.
        """
        if self.n_episodes == 0:
            raise IndexError(f"{self.path} holds no episode to drop")
        if self.n_episodes > 1:
            _Store(self.path).drop_last()
            return
        # A store without episodes would not load; renamed first, because removal is not atomic.
        dropped = staging_path(self.path)
        shutil.rmtree(dropped, ignore_errors=True)
        os.rename(self.path, dropped)
        shutil.rmtree(dropped)


def write_replay(
    path: str | Path,
    episodes: Iterable[Episode],
    attributes: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a whole store at once; nothing appears at `path` before all of it is written.

    Args:
        path: folder of the store.
        episodes: at least one, each as for `ReplayWriter.append`; taken one at a time.
        attributes: JSON values about the store.
        overwrite: replace the folder at `path`.

    Raises:
        FileExistsError: a folder is at `path` and `overwrite` is not set, or a file is.
        ValueError: no episodes, or as for `ReplayWriter.append`, with the episode's number.
    """
    path = Path(path).expanduser()
    checked_attributes = _checked_attributes(attributes)
    undo_replacing(path)
    if path.is_file():
        raise FileExistsError(f"{path} is a file; allowed: a folder, or a path where nothing is yet")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already; nothing was changed (overwrite=True replaces it)")
    with staged(path) as staging:
        store: _Store | None = None
        for index, episode in enumerate(episodes):
            try:
                checked = _checked_episode(episode, store.step_shapes if store else None)
            except ValueError as error:
                raise ValueError(f"episode {index}: {error}") from error
            store = store or _create(staging, checked, checked_attributes)
            store.append(checked)
        if store is None:
            raise ValueError("episodes is empty; allowed: at least one episode")
        replace_folder(staging, path)


def read_attributes(path: str | Path) -> dict[str, Any]:
    """What a replay store (a folder, or a zip that holds one) says about itself; {} if nothing.

    Raises:
        DataError: there is no store at `path`.
    """
    with open_store(Path(path).expanduser()) as group:
        return {name: value for name, value in dict(group.attrs).items() if name != WRITER_ATTRIBUTE}


class _Store:
    """The arrays of a store of this writer; their lengths and contents are always read from disk."""

    def __init__(self, path: Path) -> None:
        self.ends = GrowingArray.open(path / "meta" / "episode_ends")
        if not (path / "data").is_dir():
            raise DataError(f"{path} holds no data/ folder")
        self.data = {
            folder.name: GrowingArray.open(folder) for folder in sorted((path / "data").iterdir()) if folder.is_dir()
        }
        self.step_shapes = {name: array.step_shape for name, array in self.data.items()}
        for name, array in self.data.items():
            if array.length < self.n_steps:
                raise DataError(
                    f"{path}: array data/{name} has {array.length} steps, expected at least {self.n_steps}"
                    f" (meta/episode_ends ends there)"
                )

    @property
    def n_steps(self) -> int:
        n_episodes = self.ends.length
        return int(self.ends.read(n_episodes - 1, n_episodes)[0]) if n_episodes else 0

    def append(self, episode: Mapping[str, np.ndarray]) -> None:
        n_episodes, start = self.ends.length, self.n_steps
        stop = start + len(next(iter(episode.values())))
        # Chunks before lengths, because a reader counts the chunks of the length it sees.
        for name, values in episode.items():
            self.data[name].write(start, values)
        self.ends.write(n_episodes, np.array([stop]))
        for name in episode:
            self.data[name].set_length(stop)
        self.ends.set_length(n_episodes + 1)

    def drop_last(self) -> None:
        self.ends.set_length(self.ends.length - 1)
        self.remove_unfinished()

    def remove_unfinished(self) -> None:
        """Cut every array where the last episode ends."""
        n_steps = self.n_steps
        for array in self.data.values():
            if array.length != n_steps:
                array.set_length(n_steps)
            array.remove_beyond_length()
        self.ends.remove_beyond_length()


def _create(folder: Path, episode: Mapping[str, np.ndarray], attributes: Mapping[str, Any]) -> _Store:
    """A store without episodes, with arrays for episodes like the given one."""
    for name, values in episode.items():
        GrowingArray.create(folder / "data" / name, values.shape[1:], values.dtype.str)
    GrowingArray.create(folder / "meta" / "episode_ends", (), "<i8")
    for group in (folder / "data", folder / "meta", folder):
        write_file(group / ".zgroup", json.dumps(_GROUP, indent=4).encode())
    marked = {**attributes, WRITER_ATTRIBUTE: _LAYOUT_VERSION}
    write_file(folder / ".zattrs", json.dumps(marked, indent=4).encode())
    return _Store(folder)


def _checked_episode(episode: Episode, step_shapes: Mapping[str, tuple[int, ...]] | None) -> dict[str, np.ndarray]:
    """The arrays as they will be stored; `step_shapes` are those of the store, if there is one."""
    if not episode:
        raise ValueError("the episode holds no arrays; allowed: at least one")
    if step_shapes is not None and set(episode) != set(step_shapes):
        raise ValueError(
            f"the episode has the arrays {sorted(episode)}, expected those of the store: {sorted(step_shapes)}"
        )
    arrays = {name: _checked_array(name, values) for name, values in episode.items()}
    lengths = {name: len(values) for name, values in arrays.items()}
    if len(set(lengths.values())) > 1 or min(lengths.values()) < 1:
        raise ValueError(f"the episode's arrays have the lengths {lengths}; allowed: one length of at least 1")
    for name, values in arrays.items():
        expected = (step_shapes or STEP_SHAPES).get(name, values.shape[1:])
        if values.shape[1:] != expected:
            raise ValueError(f"array {name} has shape {values.shape}, expected {(len(values), *expected)}")
    return arrays


def _checked_array(name: str, given: ArrayLike) -> np.ndarray:
    if not (isinstance(name, str) and name.isascii() and name.isidentifier()):
        raise ValueError(f"array name {name!r} is not allowed; allowed: letters, digits and underscores")
    values = np.asarray(given)
    if values.dtype.kind not in "biuf" or values.ndim == 0:
        raise ValueError(
            f"array {name} has dtype {values.dtype} and shape {values.shape}, expected real numbers (T, ...)"
        )
    if name == "img":
        if not bool(((values >= 0) & (values <= 255) & (values == np.rint(values))).all()):
            raise ValueError("array img holds values that are not whole numbers in 0..255")
        return values.astype("|u1")
    with np.errstate(over="ignore"):
        stored = values.astype("<f4")
    finite = np.isfinite(stored)
    if not finite.all():
        at = int(np.argmin(finite.reshape(len(stored), -1).all(axis=1)))
        raise ValueError(f"array {name} holds NaN or infinite values (the first at step {at}), expected finite numbers")
    return stored


def _checked_attributes(attributes: Mapping[str, Any] | None) -> dict[str, Any]:
    attributes = dict(attributes or {})
    if WRITER_ATTRIBUTE in attributes:
        raise ValueError(f"attributes must not hold {WRITER_ATTRIBUTE!r}, which the writer sets itself")
    try:
        return json.loads(json.dumps(attributes, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"attributes is {attributes!r}; allowed: JSON values ({error})") from error


def _own_attributes(path: Path) -> dict[str, Any]:
    if path.is_file():
        raise DataError(f"{path} is a file; allowed: a folder, or a path where nothing is yet")
    with open_store(path) as group:
        found = dict(group.attrs)
    if found.pop(WRITER_ATTRIBUTE, None) != _LAYOUT_VERSION:
        raise DataError(
            f"{path} was not made by this writer, so nothing is appended to it: write a copy with write_replay,"
            f" or choose another path"
        )
    return found

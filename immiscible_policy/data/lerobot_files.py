"""The files of a LeRobot data set: what its metadata lists, and the columns of its parquet files, checked.

Layouts (huggingface/lerobot, `codebase_version` in `meta/info.json`):

- v2.0 and v2.1: one parquet file an episode, named by the template `data_path` from `episode_index` and
  `episode_chunk` = episode_index // chunks_size; `meta/episodes.jsonl` lists the episodes and their lengths.
- v3.0: several episodes a file, `data/chunk-000/file-000.parquet`, ...; `meta/episodes/*/*.parquet` lists the
  episodes, their lengths and (`data/chunk_index`, `data/file_index`) their files. LeRobot's own converter from
  v2.1 names the wrong file where a new one begins, and LeRobot reads whatever lies in `data/`. So does this
  reader; what the metadata says about files is only used to notice that one is missing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from immiscible_policy.checks import is_integer
from immiscible_policy.data.replay import DataError

INFO = "meta/info.json"
VERSIONS = ("v2.0", "v2.1", "v3.0")
EPISODE, FRAME = "episode_index", "frame_index"

_EPISODES_V2 = "meta/episodes.jsonl"
_EPISODES_V3 = "meta/episodes/*/*.parquet"
_DATA_V3 = "data/*/*.parquet"
_DATA_PATH_V2 = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
_DATA_PATH_V3 = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_EPISODE_COLUMNS = (EPISODE, "length", "data/chunk_index", "data/file_index")
_LARGE_FILE_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class Listing:
    """What the metadata say.

    Attributes:
        lengths: episode_index -> number of steps, in ascending order.
        files: the parquet files with the steps, all of which exist.
        source: the metadata that list the episodes, for messages.
    """

    lengths: dict[int, int]
    files: list[Path]
    source: str


def read_info(root: Path) -> dict[str, Any]:
    """`meta/info.json`, of a supported version.

    Raises:
        DataError: the folder is missing or no LeRobot data set, the file is damaged, or the version is another.
    """
    if not (root / INFO).is_file():
        raise DataError(_not_a_dataset(root))
    info = _parse_json((root / INFO).read_text(encoding="utf-8", errors="replace"), root / INFO)
    version = info.get("codebase_version")
    if version not in VERSIONS:
        raise DataError(f"{root / INFO}: codebase_version is {version!r}; allowed: {', '.join(VERSIONS)}")
    return info


def read_listing(root: Path, info: dict[str, Any]) -> Listing:
    """The episodes and files of a data set whose `read_info` is `info`; DataError if any is missing or damaged."""
    listing = _list_v3(root, info) if info["codebase_version"] == "v3.0" else _list_v2(root, info)
    if not listing.lengths:
        raise DataError(f"{root}: {listing.source} lists no episode, expected at least one")
    totals = {"total_episodes": len(listing.lengths), "total_frames": sum(listing.lengths.values())}
    for key, found in totals.items():
        if info.get(key, found) != found:
            raise DataError(f"{root}: {listing.source} adds up to {key} = {found}, {INFO} says {info[key]}")
    return listing


def read_columns(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Columns of a parquet file, each (n_rows, width) as stored; of `optional` those that are there.

    Raises:
        DataError: the file does not read, a column is missing, or one does not hold rows of numbers of one width.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            there = file.schema_arrow.names
            names = [name for name in (*required, *optional) if name in there]
            table = file.read(columns=names)
            chunked = {name: table[name] for name in names}
    except Exception as error:  # a damaged footer surfaces as Arrow, Unicode, Key or OS errors alike
        raise DataError(f"{path}: {_why_unreadable(path, error)}") from error
    missing = [name for name in required if name not in there]
    if missing:
        raise DataError(f"{path}: column {missing[0]} is missing; there are: {', '.join(there) or 'none'}")
    return {name: _as_array(column, name, path) for name, column in chunked.items()}


def as_integers(columns: Mapping[str, np.ndarray], name: str, path: Path) -> np.ndarray:
    """One of the `read_columns` of `path` as (n_rows,) int64; DataError if it does not hold one integer a row."""
    values = columns[name]
    if values.dtype.kind not in "iu" or values.shape[1] != 1:
        raise DataError(
            f"{path}: column {name} holds {values.dtype} values, {values.shape[1]} a row, expected one integer"
        )
    return values[:, 0].astype(np.int64)


def _list_v2(root: Path, info: dict[str, Any]) -> Listing:
    path = root / _EPISODES_V2
    if not path.is_file():
        raise DataError(f"{path} is missing, which lists the episodes of a {info['codebase_version']} data set")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    entries = [_parse_json(line, path, number) for number, line in enumerate(lines, 1) if line.strip()]
    lengths = _checked_lengths(((entry.get(EPISODE), entry.get("length")) for entry in entries), path)
    chunks_size = info.get("chunks_size", 1000)
    if not is_integer(chunks_size, 1):
        raise DataError(f"{root / INFO}: chunks_size is {chunks_size!r}; allowed: an integer of at least 1")
    files = [
        root / _fill(info, _DATA_PATH_V2, root, episode_chunk=episode // chunks_size, episode_index=episode)
        for episode in lengths
    ]
    _require_files(files, root)
    return Listing(lengths, files, _EPISODES_V2)


def _list_v3(root: Path, info: dict[str, Any]) -> Listing:
    paths = sorted(root.glob(_EPISODES_V3))
    if not paths:
        raise DataError(f"{root}: {_EPISODES_V3} is missing, which lists the episodes of a v3.0 data set")
    rows: list[tuple[int, int, int, int]] = []
    for path in paths:
        columns = read_columns(path, _EPISODE_COLUMNS)
        rows.extend(zip(*(as_integers(columns, name, path).tolist() for name in _EPISODE_COLUMNS), strict=True))
    lengths = _checked_lengths(((episode, length) for episode, length, _, _ in rows), root / _EPISODES_V3)
    named = {root / _fill(info, _DATA_PATH_V3, root, chunk_index=chunk, file_index=file) for _, _, chunk, file in rows}
    _require_files(sorted(named), root)
    return Listing(lengths, sorted(named | set(root.glob(_DATA_V3))), _EPISODES_V3)


def _checked_lengths(entries: Iterable[tuple[Any, Any]], path: Path) -> dict[int, int]:
    lengths: dict[int, int] = {}
    for episode, length in entries:
        if not is_integer(episode, 0) or not is_integer(length, 1):
            raise DataError(
                f"{path}: an entry has {EPISODE} {episode!r} and length {length!r}, expected integers, at least 0 and 1"
            )
        if episode in lengths:
            raise DataError(f"{path}: episode {episode} is listed twice")
        lengths[episode] = length
    return dict(sorted(lengths.items()))


def _fill(info: dict[str, Any], default: str, root: Path, **values: int) -> str:
    template = info.get("data_path", default)
    try:
        filled = template.format(**values)
    except (AttributeError, KeyError, IndexError, ValueError, TypeError) as error:
        raise DataError(
            f"{root / INFO}: data_path is {template!r}; allowed: a path with {{{'}, {'.join(values)}}} in it"
        ) from error
    name = PurePosixPath(filled)
    if name.is_absolute() or ".." in name.parts:
        raise DataError(f"{root / INFO}: data_path is {template!r}; allowed: a path inside the data set's folder")
    return str(name)


def _require_files(files: Sequence[Path], root: Path) -> None:
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise DataError(
            f"{root}: {len(missing)} of the {len(files)} data files are missing, the first is"
            f" {missing[0].relative_to(root)}: copy or download the data set again"
        )


def _as_array(column: pa.ChunkedArray, name: str, path: Path) -> np.ndarray:
    """(n_rows, width): a list a row, of any nesting, is flattened; a single value a row has width 1."""
    n_rows, values = len(column), column.combine_chunks()
    while _is_list(values.type):
        _refuse_nulls(values, name, path)
        lengths = pc.unique(pc.list_value_length(values)).to_pylist()
        if len(lengths) > 1:
            raise DataError(f"{path}: column {name} has rows of {sorted(lengths)} values, expected one width")
        values = values.flatten()
    _refuse_nulls(values, name, path)
    try:
        array = values.to_numpy(zero_copy_only=False)
    except pa.ArrowException as error:
        raise DataError(f"{path}: column {name} has type {column.type}, expected numbers ({error})") from error
    if n_rows == 0:
        raise DataError(f"{path} holds no rows, expected at least one")
    if array.dtype.kind not in "iuf":
        raise DataError(f"{path}: column {name} has type {column.type}, expected real numbers")
    return array.reshape(n_rows, -1)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _refuse_nulls(values: pa.Array, name: str, path: Path) -> None:
    if values.null_count:
        raise DataError(f"{path}: column {name} holds {values.null_count} empty values (null), expected numbers")


def _why_unreadable(path: Path, error: Exception) -> str:
    if not path.is_file():
        return "is missing"
    with path.open("rb") as opened:
        if opened.read(len(_LARGE_FILE_POINTER)) == _LARGE_FILE_POINTER:
            return "is a git-lfs pointer, not the data: run `git lfs pull` in the data set's folder"
    first_line = (str(error).strip().splitlines() or [""])[0]
    return f"does not read as parquet, the file is truncated or damaged ({type(error).__name__}: {first_line})"


def _not_a_dataset(root: Path) -> str:
    if not root.exists():
        return f"no LeRobot data set at {root}"
    if (root / "meta_data" / "info.json").is_file():
        return f"{root} is a LeRobot data set of version 1; allowed: {', '.join(VERSIONS)}"
    inside = sorted(info.parent.parent for depth in ("*", "*/*") for info in root.glob(f"{depth}/{INFO}"))
    hint = f"; did you mean {inside[0]}?" if inside else ""
    return f"{root} is not a LeRobot data set: expected {INFO} in it{hint}"


def _parse_json(text: str, path: Path, line: int | None = None) -> dict[str, Any]:
    place = str(path) if line is None else f"{path}, line {line}"
    try:
        value = json.loads(text)
    except ValueError as error:
        raise DataError(f"{place} is not JSON, the file is truncated or damaged ({error})") from error
    if not isinstance(value, dict):
        raise DataError(f"{place} holds a {type(value).__name__}, expected a JSON object")
    return value

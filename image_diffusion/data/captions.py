"""Captions from columns, a folder's metadata file, or text files beside the images: a list for each image."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from image_diffusion.data.source import AUTO, ImageDataError

METADATA_FILES = ("metadata.jsonl", "metadata.csv")
FILE_COLUMN, TEXT_COLUMN = "file_name", "text"
Metadata = dict[str, dict[str, Any]]


def as_captions(value: Any, column: str, where: str) -> list[str]:
    """A string or a list of strings as a list of captions without outer white space.

    Raises:
        ImageDataError: no caption, or something else than text; the message says where.
    """
    texts = value if isinstance(value, list | tuple) else [value]
    if any(text is not None and not isinstance(text, str) for text in texts):
        raise ImageDataError(f"{where}: column {column!r} must hold text or lists of text, got {value!r}"[:300])
    captions = [text.strip() for text in texts if text and text.strip()]
    if not captions:
        raise ImageDataError(f"{where}: column {column!r} holds no caption (caption_column=null reads none)")
    return captions


def read_metadata(root: Path) -> Metadata | None:
    """Rows of ``metadata.jsonl`` or ``metadata.csv`` in ``root`` by ``file_name``, relative to it; None without one.

    The layout of Hugging Face's ``imagefolder``.

    Raises:
        ImageDataError: both files, a line that cannot be read, no ``file_name``, or one twice.
    """
    found = [root / name for name in METADATA_FILES if (root / name).is_file()]
    if not found:
        return None
    if len(found) > 1:
        raise ImageDataError(f"{root} holds both {' and '.join(METADATA_FILES)}: leave one")
    rows = _json_lines(found[0]) if found[0].suffix == ".jsonl" else _csv_rows(found[0])
    metadata: Metadata = {}
    for line, row in rows:
        name = row.get(FILE_COLUMN)
        if not isinstance(name, str) or not name:
            raise ImageDataError(f"{found[0]}, line {line}: no {FILE_COLUMN!r}, it has {', '.join(map(str, row))}")
        name = Path(name).as_posix()
        if name in metadata:
            raise ImageDataError(f"{found[0]}, line {line}: {name} is there twice")
        metadata[name] = row
    return metadata


def folder_captions(
    root: Path, names: Sequence[str], metadata: Metadata | None, column: str | None
) -> list[list[str]] | None:
    """Captions of the images ``names`` in ``root``, from the metadata or the .txt files beside them; None without.

    Every line of a .txt file is a caption.

    Raises:
        ImageDataError: an image without a caption where others have one, or no such column.
    """
    if column is None:
        return None
    wanted = TEXT_COLUMN if column == AUTO else column
    if metadata is not None and (column != AUTO or any(wanted in row for row in metadata.values())):
        values = metadata_column(root, names, metadata, wanted)
        return [as_captions(value, wanted, str(root / name)) for name, value in zip(names, values, strict=True)]
    if column != AUTO:
        raise ImageDataError(f"caption_column={column!r}: {root} holds no {' or '.join(METADATA_FILES)}")
    texts = [(root / name).with_suffix(".txt") for name in names]
    there = [text.is_file() for text in texts]
    if not any(there):
        return None
    if not all(there):
        raise ImageDataError(
            f"{root / names[there.index(False)]} has no caption: {texts[there.index(False)].name} is missing, though "
            f"{sum(there)} images have one (caption_column=null reads none)"
        )
    return [_text_captions(text) for text in texts]


def metadata_column(root: Path, names: Sequence[str], metadata: Metadata, column: str) -> list[Any]:
    """The column's value for each image.

    Raises:
        ImageDataError: an image that the metadata does not list, or no such column; the message names it.
    """
    columns = sorted({str(key) for row in metadata.values() for key in row})
    if column not in columns:
        raise ImageDataError(f"the metadata in {root} has no column {column!r}, it has {', '.join(columns)}")
    missing = next((name for name in names if name not in metadata), None)
    if missing is not None:
        raise ImageDataError(f"{root / missing} is not listed in the metadata, which should give its {column!r}")
    return [metadata[name].get(column) for name in names]


def _text_captions(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ImageDataError(f"{path} is not UTF-8 text ({error})") from error
    captions = [line.strip() for line in lines if line.strip()]
    if not captions:
        raise ImageDataError(f"{path} holds no caption (caption_column=null reads none)")
    return captions


def _json_lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    rows = []
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
            if line.strip():
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ImageDataError(f"{path}, line {number}: must be an object like {{{FILE_COLUMN!r}: ...}}")
                rows.append((number, row))
    except json.JSONDecodeError as error:
        raise ImageDataError(f"{path}, line {number}: not JSON ({error.msg})") from error
    except UnicodeDecodeError as error:
        raise ImageDataError(f"{path} is not UTF-8 text ({error})") from error
    return rows


def _csv_rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            rows: list[tuple[int, dict[str, Any]]] = [(reader.line_num, row) for row in reader]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ImageDataError(f"{path} cannot be read as CSV ({error})") from error
    _as_numbers(rows)
    overlong = next((line for line, row in rows if None in row), None)
    if overlong is not None:
        raise ImageDataError(f"{path}, line {overlong}: more fields than columns; put texts with commas in quotes")
    return rows


def _as_numbers(rows: list[tuple[int, dict[str, Any]]]) -> None:
    """Make integers of columns that hold nothing else, which CSV writes as text: "10" would sort before "2"."""
    for column in {name for _, row in rows for name in row} - {FILE_COLUMN, TEXT_COLUMN}:
        values = [row.get(column) for _, row in rows]
        if all(isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]+", value) for value in values):
            for _, row in rows:
                row[column] = int(row[column])

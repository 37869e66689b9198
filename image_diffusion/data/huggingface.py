"""Data sets of the Hugging Face Hub, or folders in their layout, through the ``datasets`` library.

The library keeps an Arrow copy of the encoded images in its cache (``HF_DATASETS_CACHE``), which is read in place.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from image_diffusion.data.captions import as_captions
from image_diffusion.data.labels import Labels, encode_labels
from image_diffusion.data.raw import Encoded, RawImages, chosen_rows
from image_diffusion.data.source import AUTO, ImageDataError, ImageSource

IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp")
LABEL_COLUMNS = ("label", "labels", "fine_label", "cls")
CAPTION_COLUMNS = ("caption", "captions", "text", "txt")


def read_huggingface(source: ImageSource) -> RawImages:
    """Open a data set; nothing is decoded.

    Raises:
        ImageDataError: it cannot be had or read, an unknown split or column (the message lists what exists), or labels
            or captions that cannot be used.
    """
    splits = _load(source)
    if source.split not in splits:
        raise ImageDataError(f"split={source.split!r}: {source.name} has {', '.join(splits)}")
    data = splits[source.split]
    if not len(data):
        raise ImageDataError(f"{source.name}: split {source.split} is empty")
    rows = chosen_rows(len(data), source.max_items)

    def describe(place: int) -> str:
        return f"{source.name}, {source.split} row {place}"

    image_column = _image_column(source, data.features)
    images = data.select_columns([image_column]).with_format("arrow")

    def read(places: np.ndarray) -> list[Encoded]:
        return [_encoded(entry) for entry in images[places.tolist()][image_column].to_pylist()]

    label_column = _optional_column(source, "label_column", data.features, LABEL_COLUMNS, _is_label)
    caption_column = _optional_column(source, "caption_column", data.features, CAPTION_COLUMNS, _is_text)
    record = {
        "id": source.id,
        "path": source.path,
        "config_name": source.config_name,
        "revision": _revision(source, data),
    }
    columns = {"image_column": image_column, "label_column": label_column, "caption_column": caption_column}
    return RawImages(
        rows=rows,
        read=read,
        describe=describe,
        labels=_labels(source, splits, label_column, rows) if label_column else None,
        captions=_captions(data, caption_column, rows, describe) if caption_column else None,
        record=record | columns,
    )


def _load(source: ImageSource) -> Any:
    """All splits, by name."""
    import datasets

    if source.path is not None and not Path(source.path).expanduser().is_dir():
        raise ImageDataError(f"no {source.name} at {source.path}: no such folder{_how_to_get(source)}")
    try:
        if source.path is None:
            return datasets.load_dataset(source.id, source.config_name, revision=source.revision)
        # A folder may well hold only some of the files that its README counts.
        folder = str(Path(source.path).expanduser().resolve())  # "." would have no name
        return datasets.load_dataset(folder, source.config_name, verification_mode="no_checks")
    except MemoryError:
        raise
    except Exception as error:  # of the network, the file system, Arrow, or the library's own
        if isinstance(error, ValueError) and "Config" in str(error):
            raise ImageDataError(f"config_name={source.config_name}: {_line(error)}") from error
        if isinstance(error, FileNotFoundError) and source.path is not None:
            raise ImageDataError(f"no {source.name} at {source.path} ({_line(error)}){_how_to_get(source)}") from error
        if source.path is not None:
            reason = _broken_file(Path(source.path).expanduser()) or f"{source.path} cannot be read"
            raise ImageDataError(f"{reason} ({_line(error.__cause__ or error)})") from error
        raise ImageDataError(
            f"cannot get {source.id} from the Hugging Face Hub ({_line(error)}){_how_to_get(source)}"
        ) from error


def _broken_file(folder: Path) -> str | None:
    """What is wrong with the first parquet file that something is wrong with; the library only logs which it is."""
    import pyarrow
    from pyarrow import parquet

    for file in sorted(folder.rglob("*.parquet")):
        try:
            if not parquet.read_metadata(file).num_rows:
                return f"{file} holds no rows"
        except (pyarrow.ArrowException, OSError):
            return f"{file} cannot be read as parquet"
    return None


def _how_to_get(source: ImageSource) -> str:
    if source.id is None:
        return ""
    folder = source.path or f"data/{source.name}"
    command = f"hf download {source.id} --repo-type dataset --local-dir {folder}"
    return f"; where there is a network, get it with: {command} (and set dataset.path={folder})"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _image_column(source: ImageSource, features: Any) -> str:
    found = [name for name, feature in features.items() if _is_image(feature)]
    wanted = source.image_column
    if wanted is not None:
        _check_column(source, "image_column", wanted, features)
        if wanted not in found:
            raise ImageDataError(f"image_column={wanted!r} of {source.name} holds no images but {features[wanted]}")
        return wanted
    named = [name for name in IMAGE_COLUMNS if name in found]
    if not found:
        raise ImageDataError(f"{source.name} has no column of images; its columns are {_listed(features)}")
    return named[0] if named else found[0]


def _optional_column(source: ImageSource, field: str, features: Any, usual: Sequence[str], suits: Any) -> str | None:
    wanted = getattr(source, field)
    if wanted == AUTO:
        return next((name for name in usual if name in features and suits(features[name])), None)
    if wanted is not None:
        _check_column(source, field, wanted, features)
        if not suits(features[wanted]):
            kind = "integers or strings" if field == "label_column" else "text"
            raise ImageDataError(f"{field}={wanted!r} of {source.name} must hold {kind}, it holds {features[wanted]}")
    return wanted


def _check_column(source: ImageSource, field: str, column: str, features: Any) -> None:
    if column not in features:
        raise ImageDataError(f"{field}={column!r}: the columns of {source.name} are {_listed(features)}")


def _listed(features: Any) -> str:
    return ", ".join(features)


def _is_image(feature: Any) -> bool:
    import datasets

    if isinstance(feature, dict):
        return "bytes" in feature
    return isinstance(feature, datasets.Image) or getattr(feature, "dtype", None) in ("binary", "large_binary")


def _is_label(feature: Any) -> bool:
    kinds = ("int", "uint", "bool", "string", "large_string")
    return str(getattr(feature, "dtype", "")).rstrip("0123456789") in kinds


def _is_text(feature: Any) -> bool:
    inner = feature[0] if isinstance(feature, list) and feature else getattr(feature, "feature", feature)
    return getattr(inner, "dtype", None) in ("string", "large_string")


def _encoded(entry: Any) -> Encoded:
    content = entry.get("bytes") if isinstance(entry, dict) else entry
    if isinstance(content, bytes):
        return content
    path = entry.get("path") if isinstance(entry, dict) else None
    return Path(path) if path else b""


def _labels(source: ImageSource, splits: Any, column: str, rows: np.ndarray) -> Labels:
    data = splits[source.split]
    values = _column(data, column)
    names = list(getattr(data.features[column], "names", None) or ())
    if source.class_names and names and len(names) != len(source.class_names):
        raise ImageDataError(
            f"class_names: {source.name} has {len(names)} classes, got {len(source.class_names)} names"
        )
    parts = [part for part in splits.values() if column in part.features]
    vocabulary = {value for part in parts for value in _column(part, column).unique().to_pylist()}
    return encode_labels(
        values.take(rows).to_pylist(),
        vocabulary,
        source.class_names or names,
        column,
        lambda position: f"{source.name}, {source.split} row {rows[position]}",
    )


def _captions(data: Any, column: str, rows: np.ndarray, describe: Any) -> list[list[str]]:
    values = _column(data, column).take(rows).to_pylist()
    return [as_captions(value, column, describe(row)) for row, value in zip(rows.tolist(), values, strict=True)]


def _column(data: Any, column: str) -> Any:
    """A whole column as an Arrow array."""
    return data.select_columns([column]).with_format("arrow")[:][column]


def _revision(source: ImageSource, data: Any) -> str | None:
    """The commit of the files, where the library or ``hf download`` noted it; else what the settings ask for."""
    if source.path is not None:
        notes = sorted(Path(source.path).expanduser().glob(".cache/huggingface/download/**/*.metadata"))
        lines = {note.read_text().split("\n")[0].strip() for note in notes}
        commits = sorted(line for line in lines if re.fullmatch("[0-9a-f]{40}", line))
        return ",".join(commits) or None
    noted = re.search(r"@([0-9a-f]{40})/", " ".join(data.info.download_checksums or ()))
    return noted[1] if noted else source.revision

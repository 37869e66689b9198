"""Image files in a folder: subfolders are classes, captions lie in a metadata file or beside the images."""

from __future__ import annotations

import os
from pathlib import Path

from image_diffusion.data.captions import Metadata, folder_captions, metadata_column, read_metadata
from image_diffusion.data.labels import Labels, encode_labels
from image_diffusion.data.raw import RawImages, chosen_rows
from image_diffusion.data.source import AUTO, ImageDataError, ImageSource

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
SPLIT_FOLDERS = frozenset({"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval"})
_LABEL = "label"


def read_folder(source: ImageSource) -> RawImages:
    """List a folder's images, sorted by their path in it.

    Where all its subfolders are called ``train``, ``test``, ``val`` and the like, they are its splits; otherwise it is
    all ``train``. Files and folders whose names begin with a dot are passed over.

    Raises:
        ImageDataError: no folder, no images, an unknown split, a class folder without images, images both beside and
            in class folders, or labels or captions that are not there.
    """
    top = Path(source.path or "").expanduser()
    if not top.is_dir():
        raise ImageDataError(f"path={source.path}: no such folder; {source.name} needs one that holds images")
    splits = _splits(top)
    if source.split not in splits:
        raise ImageDataError(f"split={source.split!r}: {top} has {', '.join(splits)}")
    root = splits[source.split]
    names = _image_names(root)
    if not names:
        raise ImageDataError(f"{root} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    metadata = read_metadata(root)
    _check_listed(root, names, metadata)
    rows = chosen_rows(len(names), source.max_items)
    chosen = [names[row] for row in rows]
    return RawImages(
        rows=rows,
        read=lambda places: [root / names[place] for place in places],
        describe=lambda place: str(root / names[place]),
        labels=_labels(source, root, splits, names, chosen, metadata),
        captions=folder_captions(root, chosen, metadata, source.caption_column),
        record={"path": str(root)},
    )


def _splits(top: Path) -> dict[str, Path]:
    folders = _subfolders(top)
    if folders and all(folder.name in SPLIT_FOLDERS for folder in folders):
        return {folder.name: folder for folder in folders}
    return {"train": top}


def _subfolders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _image_names(root: Path) -> list[str]:
    """Paths of all images below ``root``, relative to it, with forward slashes, sorted."""
    names = []
    for folder, subfolders, files in os.walk(root, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        relative = Path(folder).relative_to(root)
        images = (name for name in files if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."))
        names += [(relative / name).as_posix() for name in images]
    return sorted(names)


def _check_listed(root: Path, names: list[str], metadata: Metadata | None) -> None:
    absent = next(iter(sorted(set(metadata or ()) - set(names))), None)
    if absent is not None:
        raise ImageDataError(f"the metadata in {root} lists {absent}, which is not there or no image")


def _labels(
    source: ImageSource,
    root: Path,
    splits: dict[str, Path],
    names: list[str],
    chosen: list[str],
    metadata: Metadata | None,
) -> Labels | None:
    def describe(position: int) -> str:
        return str(root / chosen[position])

    column = source.label_column
    if column is None:
        return None
    labelled = metadata is not None and any(_LABEL in row for row in metadata.values())
    if column == AUTO and not labelled and any("/" in name for name in names):
        stray = next((name for name in names if "/" not in name), None)
        if stray is not None:
            raise ImageDataError(
                f"{root / stray} lies beside class folders, in none of them (label_column=null trains without labels)"
            )
        classes = {name.split("/")[0] for name in names}
        for folder in _subfolders(root):
            if folder.name not in classes:
                raise ImageDataError(f"class folder {folder} holds no images: remove it or fill it")
        # The classes of all splits, so that a class that one of them lacks does not shift the others.
        every = {folder.name for split in splits.values() for folder in _subfolders(split)}
        return encode_labels([name.split("/")[0] for name in chosen], every, source.class_names, "folder", describe)
    if column == AUTO:
        if not labelled:
            return None
        column = _LABEL
    if metadata is None:
        raise ImageDataError(f"label_column={column!r}: {root} has no metadata file with columns")
    vocabulary = [row.get(column) for split in splits.values() for row in (read_metadata(split) or {}).values()]
    values = metadata_column(root, chosen, metadata, column)
    return encode_labels(values, vocabulary, source.class_names, column, describe)

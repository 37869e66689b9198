"""CIFAR-10 from the parquet files of its Hugging Face data set, without torchvision.

``hf download uoft-cs/cifar10 --repo-type dataset --local-dir data/cifar10`` fetches them.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIZE = (32, 32)
NORMALIZATIONS = ("symmetric", "standardized", "unit")
_IMAGE_COLUMNS, _LABEL_COLUMN = ("img", "image"), "label"


@dataclass(frozen=True)
class Cifar10:
    """Images (N, 3, 32, 32) uint8 and their labels (N,) int64, in the order of the files."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def load_cifar10(folder: str | Path, split: Literal["train", "test"] = "train") -> Cifar10:
    """Read all files ``{split}-*.parquet`` in ``folder`` or its ``plain_text`` subfolder.

    A file has a column ``img`` (or ``image``) of encoded images, each ``{"bytes": ..., "path": ...}``, and a column
    ``label`` of integers 0 to 9 in the order of :data:`CLASSES`.

    Raises:
        ValueError: an unknown split, no such files, or a file that is no parquet, lacks a column, or holds something
            else than 32x32 colour images and those labels; the message names the file (and the row).
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    folder = Path(folder).expanduser()
    files = sorted(folder.glob(f"{split}-*.parquet")) or sorted(folder.glob(f"plain_text/{split}-*.parquet"))
    if not files:
        raise ValueError(
            f"no CIFAR-10 at {folder} (no {split}-*.parquet there or in plain_text/): get it with: hf download "
            f"uoft-cs/cifar10 --repo-type dataset --local-dir {folder}"
        )
    parts = [_read(file) for file in files]
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Cifar10(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels))


def normalized(images: Tensor, how: str = "symmetric") -> Tensor:
    """Bytes as float32.

    Args:
        images: (N, 3, H, W) uint8.
        how: "symmetric": [-1, 1], as DDPM and its descendants train (CIFAR-10: standard deviation 0.51, mean square
            0.26); "standardized": mean 0 and variance 1 in each colour channel over the given images; "unit": [0, 1].

    Raises:
        TypeError: images that are not uint8. ValueError: unknown ``how``.
    """
    if images.dtype != torch.uint8:
        raise TypeError(f"images must be uint8, got {images.dtype}")
    if how not in NORMALIZATIONS:
        raise ValueError(f"how must be one of {', '.join(NORMALIZATIONS)}, got {how!r}")
    unit = images.float().div_(255.0)
    if how == "unit":
        return unit
    if how == "symmetric":
        return unit.mul_(2.0).sub_(1.0)
    channels = tuple(axis for axis in range(unit.ndim) if axis != 1)
    deviation = unit.double().std(channels, correction=0, keepdim=True)
    mean = unit.double().mean(channels, keepdim=True)
    return unit.sub_(mean).div_(deviation.clamp_min(1e-12))


def _read(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 32, 32, 3) uint8 and labels (N,) int64 of a file."""
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        table = parquet.read_table(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{file} cannot be read as parquet ({error})") from error
    column = next((name for name in _IMAGE_COLUMNS if name in table.column_names), None)
    if column is None or _LABEL_COLUMN not in table.column_names:
        raise ValueError(
            f"{file} must have columns {' or '.join(_IMAGE_COLUMNS)} and {_LABEL_COLUMN}, it has {table.column_names}"
        )
    if not len(table):
        raise ValueError(f"{file} holds no rows")
    labels = table[_LABEL_COLUMN].to_numpy()
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= len(CLASSES):
        raise ValueError(f"{file}: labels must be integers 0 to {len(CLASSES) - 1}, got {labels.dtype} {labels[:5]}...")
    entries = table[column].to_pylist()
    images = np.stack([_decode(entry, file, row) for row, entry in enumerate(entries)])
    return images, labels.astype(np.int64)


def _decode(entry: Any, file: Path, row: int) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    data = entry.get("bytes") if isinstance(entry, dict) else entry
    if not isinstance(data, bytes):
        raise ValueError(f"{file}, row {row}: an image must be given by its bytes, got {type(data).__name__}")
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.size != SIZE:
                raise ValueError(f"{file}, row {row}: images must be 32x32, got {image.size[0]}x{image.size[1]}")
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{file}, row {row}: not an image ({error})") from error

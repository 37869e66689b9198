"""CIFAR-10 as one tensor, for measurements that need no training.

``hf download uoft-cs/cifar10 --repo-type dataset --local-dir data/cifar10`` fetches it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from image_diffusion.data import ImageDataError, ImageSource, load_images

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
NORMALIZATIONS = ("symmetric", "standardized", "unit")


@dataclass(frozen=True)
class Cifar10:
    """Images (N, 3, 32, 32) uint8 and their labels (N,) int64, in the order of the files."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def load_cifar10(folder: str | Path, split: Literal["train", "test"] = "train") -> Cifar10:
    """Read a split from a folder of parquet files in the Hub's layout.

    Raises:
        ValueError: an unknown split, no such files, or something else than 32x32 colour images with labels 0 to 9 in
            the order of :data:`CLASSES`.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    source = ImageSource(
        name="CIFAR-10",
        id="uoft-cs/cifar10",
        path=str(folder),
        split=split,
        label_column="label",
        caption_column=None,
        class_names=CLASSES,
        channels=3,
        memory_limit=float("inf"),
    )
    data = load_images(source)
    if data.image_size != 32:
        raise ImageDataError(f"{folder}: images must be 32x32, got {data.image_size}x{data.image_size}")
    assert data.images is not None  # there is no limit
    assert data.labels is not None
    return Cifar10(data.images, data.labels)


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

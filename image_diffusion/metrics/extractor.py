"""What a feature extractor is, and what all of them check and share."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class FeatureExtractor(Protocol):
    """Maps images to the vectors in which two sets of images are compared.

    Attributes:
        name: part of every result's key: lower-case letters, digits, ``.`` and ``-``.
        dim: length of a feature vector.
        canonical: whether this is, weights included, the network with which published distances are measured.
        weights_sha256: hash of the weights; None where there are none.
        resize: what is done to images of other sizes (and to greyscale ones), in words.
    """

    @property
    def name(self) -> str: ...
    @property
    def dim(self) -> int: ...
    @property
    def canonical(self) -> bool: ...
    @property
    def weights_sha256(self) -> str | None: ...
    @property
    def resize(self) -> str: ...

    def __call__(self, images: Tensor) -> Tensor:
        """Features (N, dim) float32 of ``images`` (N, C, H, W) uint8."""
        ...


def check_images(images: Tensor, channels: Collection[int], extractor: str) -> None:
    """Refuse what an extractor would silently misread.

    Args:
        images: a batch.
        channels: the numbers of channels that the extractor takes.
        extractor: its name, for the message.

    Raises:
        TypeError: anything but a uint8 tensor. ValueError: not (N, C, H, W), no image, or other channels.
    """
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a uint8 tensor (N, C, H, W), got {type(images).__name__}")
    if images.dtype != torch.uint8:
        raise TypeError(
            f"images must be uint8 (0 to 255), got {images.dtype}; from [-1, 1]: "
            "(127.5 * images + 127.5).round().clamp(0, 255).to(torch.uint8)"
        )
    if images.ndim != 4 or not images.numel():
        raise ValueError(f"images must be (N, C, H, W) and not empty, got shape {tuple(images.shape)}")
    if images.shape[1] not in channels:
        allowed = " or ".join(str(number) for number in sorted(channels))
        raise ValueError(f"{extractor} takes images of {allowed} channels (N, C, H, W), got {tuple(images.shape)}")


def as_rgb(images: Tensor) -> Tensor:
    """Greyscale (N, 1, H, W) as three equal channels; colour images as they are."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


def in_parts(network: Callable[[Tensor], Tensor], images: Tensor, device: torch.device) -> Tensor:
    """``network(images)`` of a network for images of some 200 pixels a side; on a CPU, four of them at once.

    Of more, activations pass 32 MiB, memory that glibc gives back to the system and gets cleared anew at every layer:
    this took three quarters of the time of a batch of 64.
    """
    at_once = 4 if device.type == "cpu" else len(images)
    return torch.cat([network(part) for part in images.split(at_once)])


def weights_folder() -> Path:
    """Where weights are looked for and kept: ``$IMMISCIBLE_WEIGHTS``, else a folder in the user's cache."""
    return _kept_in("weights")


def references_folder() -> Path:
    """Where statistics of data are kept: ``$IMMISCIBLE_REFERENCES``, else a folder in the user's cache."""
    return _kept_in("references")


def _kept_in(what: str) -> Path:
    if chosen := os.environ.get(f"IMMISCIBLE_{what.upper()}"):
        return Path(chosen).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "immiscible-policy" / what


def tensors_sha256(tensors: Iterable[Tensor]) -> str:
    """SHA-256 over the values of tensors, with their shapes, in the given order."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()

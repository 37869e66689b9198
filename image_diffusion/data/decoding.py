"""Many images at once: decoding by a pool of threads, and the settings that the images decide."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from image_diffusion.data.decode import GREY_MODES, Decoder, crop_box, open_image
from image_diffusion.data.raw import RawImages, evenly_spaced
from image_diffusion.data.source import CorruptImageError, ImageDataError, ImageSource

CHUNK = 1_024  # images read and decoded at a time
N_PROBED = 256  # images looked at to choose the number of channels
N_NAMED = 20  # skipped images that a warning names


class Decoding:
    """Decodes images of ``raw`` at positions 0..N-1, a share of each request in every thread."""

    def __init__(self, raw: RawImages, decoder: Decoder, threads: int | None) -> None:
        self.raw, self.decoder = raw, decoder
        self.threads = threads or min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4)
        self._pool: ThreadPoolExecutor | None = None

    def each(self, positions: Sequence[int] | np.ndarray) -> Iterator[np.ndarray | ImageDataError]:
        """Images in order, or in their place the error, which names the image."""
        rows = self.raw.rows[np.asarray(positions, dtype=np.int64)]
        tasks = list(zip(self.raw.read(rows), rows.tolist(), strict=True))
        if self.threads == 1 or len(tasks) < 2:
            return iter(self._share(tasks))
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="decode")
        step = -(-len(tasks) // self.threads)
        shares = [tasks[start : start + step] for start in range(0, len(tasks), step)]
        return (image for share in self._pool.map(self._share, shares) for image in share)

    def tensor(self, positions: Sequence[int] | np.ndarray) -> Tensor:
        """(B, C, H, W) uint8."""
        images = torch.empty(len(positions), self.decoder.channels, *(self.decoder.size,) * 2, dtype=torch.uint8)
        for image, target in zip(self.each(positions), images.numpy(), strict=True):
            if isinstance(image, ImageDataError):
                raise image
            target[:] = image
        return images

    def _share(self, tasks: list[tuple[Any, int]]) -> list[np.ndarray | ImageDataError]:
        return [self._one(encoded, row) for encoded, row in tasks]

    def _one(self, encoded: Any, row: int) -> np.ndarray | ImageDataError:
        try:
            return self.decoder(encoded)
        except ImageDataError as error:
            return type(error)(f"{self.raw.describe(row)}: {error}")


def decode_all(
    raw: RawImages, decoder: Decoder, source: ImageSource, store: bool
) -> tuple[Tensor | None, list[int], list[str]]:
    """All images in one tensor (if ``store``), the positions that could be decoded, and the names of the others."""
    decoding = Decoding(raw, decoder, source.decode_threads)
    images = torch.empty(len(raw) if store else 0, decoder.channels, *(decoder.size,) * 2, dtype=torch.uint8)
    pixels = images.numpy()
    kept: list[int] = []
    skipped: list[str] = []
    starts = tqdm(range(0, len(raw), CHUNK), desc=f"decoding {source.name}", leave=False, disable=None)
    for start in starts:
        positions = range(start, min(start + CHUNK, len(raw)))
        for position, image in zip(positions, decoding.each(positions), strict=True):
            if isinstance(image, CorruptImageError) and source.on_corrupt == "skip":
                skipped.append(raw.describe(int(raw.rows[position])))
                continue
            if isinstance(image, ImageDataError):
                raise image
            if store:
                pixels[len(kept)] = image
            kept.append(position)
    if not kept:
        raise CorruptImageError(f"none of the {len(raw)} images of {source.name} can be decoded: {skipped[0]}, ...")
    if skipped:
        more = f" and {len(skipped) - N_NAMED} more" if len(skipped) > N_NAMED else ""
        names = ", ".join(skipped[:N_NAMED]) + more
        warnings.warn(f"{len(skipped)} of {len(raw)} images of {source.name} skipped: {names}", stacklevel=3)
    return images[: len(kept)] if store else None, kept, skipped


def fitted_decoder(raw: RawImages, source: ImageSource) -> Decoder:
    """Size and channels as the settings or, where those leave it open, the images say."""
    size, channels = source.image_size, source.channels
    if size is None:
        size = _native_size(raw, source)
    if channels is None:
        modes = {image.mode for _, image in _opened(raw, source, N_PROBED)}
        channels = 1 if modes <= GREY_MODES else 3
    strict_grey = source.channels is None and channels == 1
    return Decoder(size, channels, source.crop, source.resize_filter, source.image_size is not None, strict_grey)


def _native_size(raw: RawImages, source: ImageSource) -> int:
    row, image = next(_opened(raw, source, len(raw)))
    try:
        left, upper, right, lower = crop_box(image.width, image.height, source.crop)
    except ImageDataError as error:
        raise ImageDataError(f"{raw.describe(row)}: {error}") from error
    if right - left != lower - upper:
        raise ImageDataError(
            f"{raw.describe(row)}: {image.size[0]}x{image.size[1]} is no square: set crop=center or image_size"
        )
    return right - left


def _opened(raw: RawImages, source: ImageSource, count: int) -> Iterator[tuple[int, Image.Image]]:
    """Up to ``count`` evenly spaced images that can be decoded, with their rows.

    Raises:
        CorruptImageError: one cannot, and settings do not allow to skip it, or none can.
    """
    found = False
    for row in raw.rows[evenly_spaced(len(raw), count)].tolist():
        try:
            yield row, open_image(raw.read(np.array([row]))[0])
            found = True
        except CorruptImageError as error:
            if source.on_corrupt != "skip":
                raise CorruptImageError(f"{raw.describe(row)}: {error}") from error
    if not found:
        raise CorruptImageError(f"none of the images of {source.name} that were looked at can be decoded")

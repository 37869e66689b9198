"""From the settings of a data set to its images."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from image_diffusion.data.dataset import ImageDataset, content_hash
from image_diffusion.data.decoding import N_NAMED, decode_all, fitted_decoder
from image_diffusion.data.digits import read_digits
from image_diffusion.data.folder import read_folder
from image_diffusion.data.huggingface import read_huggingface
from image_diffusion.data.record import check_unchanged
from image_diffusion.data.source import ImageSource

READERS = {"huggingface": read_huggingface, "folder": read_folder, "digits": read_digits}


def load_images(source: ImageSource, began_with: Mapping[str, Any] | None = None) -> ImageDataset:
    """Read a data set.

    Its record ``source`` holds name, format, split, where it comes from (id, path, revision, columns), n, what was
    skipped, size, channels, crop, filter, flip, the version of Pillow, and two hashes: ``content_hash`` of all labels
    and captions and of up to 1,024 evenly spaced images as decoded, the same whether in memory or not, and
    ``pixels_hash`` of all images, where they are in memory.

    Args:
        began_with: what a run recorded of them, see ``recorded_images``.

    Raises:
        ImageDataError: data or settings that cannot be used, or other images by now than the run began with, in one
            line.
    """
    raw = READERS[source.format](source)
    decoder = fitted_decoder(raw, source)
    n_bytes = len(raw) * decoder.channels * decoder.size**2
    in_memory = n_bytes <= source.memory_limit * 2**30
    images, skipped = None, list[str]()
    if in_memory or source.on_corrupt == "skip":
        images, kept, skipped = decode_all(raw, decoder, source, in_memory)
        raw = raw.keep(kept) if skipped else raw
    dataset = ImageDataset(raw, decoder, images, source)
    dataset.source = {
        "name": source.name,
        "format": source.format,
        "split": source.split,
        **raw.record,
        "n": len(raw),
        "max_items": source.max_items,
        "n_skipped": len(skipped),
        "skipped": skipped[:N_NAMED],
        "image_size": decoder.size,
        "channels": decoder.channels,
        "crop": source.crop,
        "resize_filter": source.resize_filter,
        "flip": source.flip,
        "n_classes": dataset.n_classes,
        "pillow": version("pillow"),
        "content_hash": content_hash(dataset),
        "pixels_hash": None if images is None else hashlib.sha256(images.numpy().data).hexdigest(),
    }
    if began_with is not None:
        check_unchanged(began_with, dataset.source)
    return dataset

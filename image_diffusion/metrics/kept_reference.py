"""Statistics of reference images that took long to make are kept, so that later runs have them at once."""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor
from tqdm import tqdm

from image_diffusion.metrics.extractor import FeatureExtractor, references_folder
from image_diffusion.metrics.features import BAR_AFTER
from image_diffusion.metrics.reference import ReferenceStatistics, reference_statistics

WORTH_SECONDS = 30.0  # statistics of 10,000 features can take 60 MB


def kept_reference(
    batches: Callable[[], Iterable[Tensor]],
    extractor: FeatureExtractor,
    source: str,
    pixels_hash: str | None = None,
    total: int | None = None,
    progress: bool = True,
    worth_seconds: float = WORTH_SECONDS,
    **options: Any,
) -> ReferenceStatistics:
    """``reference_statistics``, from :func:`references_folder` where the same were made before.

    The same are those of the same images, by the hash of all their pixels, extractor, weights, device and options.
    Where that hash is not known, the pixels are gone through for it only if statistics of an equally named set are
    kept. A damaged file is made anew, one that cannot be written a warning.

    Args:
        batches: starts a pass over the images.
        source: which images these are.
        pixels_hash: SHA-256 of all pixels in order, such as a data set's record has of images in memory.
        total: images, for the bars.
        worth_seconds: what took at least so long is kept.
        options: of ``reference_statistics``.
    """
    asked = [
        extractor.name,
        extractor.weights_sha256,
        extractor.resize,
        str(getattr(extractor, "device", "cpu")),
        source,
        dict(sorted(options.items())),
    ]
    folder, name = references_folder(), hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]
    if pixels_hash is None and any(folder.glob(f"{name}-*.npz")):
        read = hashlib.sha256()
        with tqdm(
            total=total, desc="compare with kept statistics", unit="image", disable=not progress, delay=BAR_AFTER
        ) as bar:
            for batch in _hashed(batches(), read):
                bar.update(len(batch))
        pixels_hash = read.hexdigest()
    if pixels_hash is not None and (path := folder / f"{name}-{pixels_hash}.npz").is_file():
        try:
            return ReferenceStatistics.load(path)
        except ValueError as error:
            warnings.warn(f"{error}; it is made anew", stacklevel=2)
    read, started = hashlib.sha256(), time.monotonic()
    images = batches() if pixels_hash is not None else _hashed(batches(), read)
    made = reference_statistics(images, extractor, source, total=total, progress=progress, **options)
    if time.monotonic() - started >= worth_seconds:
        path = folder / f"{name}-{pixels_hash or read.hexdigest()}.npz"
        try:
            made.save(path)
        except OSError as error:
            warnings.warn(f"statistics of {source} cannot be kept at {path} ({error})", stacklevel=2)
    return made


def _hashed(batches: Iterable[Tensor], digest: Any) -> Iterator[Tensor]:
    for batch in batches:
        digest.update(batch.contiguous().numpy().data)
        yield batch

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

from image_diffusion.metrics.extractor import FeatureExtractor, add_to_digest, references_folder, tensors_sha256
from image_diffusion.metrics.features import BAR_AFTER
from image_diffusion.metrics.reference import ReferenceStatistics, reference_statistics

WORTH_SECONDS = 30.0  # statistics of 10,000 features can take 60 MB


def kept_reference(
    batches: Callable[[], Iterable[Tensor]],
    extractor: FeatureExtractor,
    source: str,
    total: int | None = None,
    progress: bool = True,
    worth_seconds: float = WORTH_SECONDS,
    **options: Any,
) -> ReferenceStatistics:
    """``reference_statistics``, from :func:`references_folder` where the same were made before.

    The same are those of the same images, by the hash of all their pixels, extractor, weights, device and options. The
    pixels are only gone through for comparison if statistics of an equally named set are kept. A damaged file is made
    anew, one that cannot be written a warning.

    Args:
        batches: starts a pass over the images.
        source: which images these are.
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
    if any(folder.glob(f"{name}-*.npz")):
        path = folder / f"{name}-{tensors_sha256(_shown(batches(), total, progress))}.npz"
        if path.is_file():
            try:
                return ReferenceStatistics.load(path)
            except ValueError as error:
                warnings.warn(f"{error}; it is made anew", stacklevel=2)
    digest = hashlib.sha256()
    started = time.monotonic()
    made = reference_statistics(
        _hashed(batches(), digest), extractor, source, total=total, progress=progress, **options
    )
    if time.monotonic() - started >= worth_seconds:
        path = folder / f"{name}-{digest.hexdigest()}.npz"
        try:
            made.save(path)
        except OSError as error:
            warnings.warn(f"statistics of {source} cannot be kept at {path} ({error})", stacklevel=2)
    return made


def _hashed(batches: Iterable[Tensor], digest: Any) -> Iterator[Tensor]:
    for batch in batches:
        add_to_digest(digest, batch)
        yield batch


def _shown(batches: Iterable[Tensor], total: int | None, progress: bool) -> Iterator[Tensor]:
    with tqdm(
        total=total, desc="compare with kept statistics", unit="image", disable=not progress, delay=BAR_AFTER
    ) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch))

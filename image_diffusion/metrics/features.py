"""From images to features, batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from tqdm import tqdm

from image_diffusion.metrics.extractor import FeatureExtractor

Images = Tensor | Iterable[Tensor]

BAR_AFTER = 2.0  # seconds


def feature_batches(
    images: Images,
    extractor: FeatureExtractor,
    batch_size: int = 64,
    progress: bool = True,
    label: str = "images",
    total: int | None = None,
) -> Iterator[Tensor]:
    """Features (N, dim) float32 on the CPU, in the order of the images, which are gone through once.

    Args:
        images: uint8 (N, C, H, W), or an iterable of such batches, of any sizes.
        extractor: applied to at most ``batch_size`` images at once.
        progress: show a bar, if it takes longer than ``BAR_AFTER``.
        label: what the images are, for the bar and for messages.
        total: how many, for the bar; a tensor's are known.

    Raises:
        ValueError: the extractor gives features of another shape, or NaN or infinity; the message says for which image.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    total = len(images) if isinstance(images, Tensor) else total
    done = 0
    with tqdm(
        total=total, desc=f"{extractor.name}, {label}", unit="image", disable=not progress, delay=BAR_AFTER
    ) as bar:
        for batch in [images] if isinstance(images, Tensor) else images:
            if not isinstance(batch, Tensor):
                raise TypeError(
                    f"{label} images must come as uint8 tensors (N, C, H, W), got a {type(batch).__name__} among them"
                )
            for part in batch.split(batch_size):
                features = extractor(part).detach().to("cpu", torch.float32)
                _check(features, len(part), extractor, done, label)
                done += len(part)
                bar.update(len(part))
                yield features


def _check(features: Tensor, n: int, extractor: FeatureExtractor, done: int, label: str) -> None:
    if features.shape != (n, extractor.dim):
        raise ValueError(
            f"{extractor.name} must give features {(n, extractor.dim)} for {n} images, got {tuple(features.shape)}"
        )
    finite = torch.isfinite(features).all(1)
    if not bool(finite.all()):
        raise ValueError(
            f"{extractor.name} gives NaN or infinite features for {label} image {done + int(finite.int().argmin())}"
        )


class FeatureSample:
    """All features that were added, or a uniform random sample of them that does not depend on the batches.

    Args:
        size: how many to keep; None for all.
        seed: draws the sample.
    """

    def __init__(self, size: int | None = None, seed: int = 0) -> None:
        self.size = size
        self._generator = torch.Generator().manual_seed(seed)
        self._features: list[Tensor] = []
        self._ranks: list[Tensor] = []
        self._held = 0

    def add(self, features: Tensor) -> None:
        """Take in features (N, dim)."""
        self._features.append(features)
        if self.size is None:
            return
        # Every image draws a rank when it comes; the lowest ones are kept.
        ranks = [torch.rand((), generator=self._generator, dtype=torch.float64) for _ in range(len(features))]
        self._ranks.append(torch.stack(ranks))
        self._held += len(features)
        if self._held > 2 * self.size:
            self._trim(self.size)

    def _trim(self, size: int) -> None:
        ranks = torch.cat(self._ranks)
        kept = ranks.argsort()[:size].sort().values
        self._features, self._ranks, self._held = [torch.cat(self._features)[kept]], [ranks[kept]], len(kept)

    def features(self) -> Tensor:
        """(n, dim), in the order in which they came."""
        if self.size is not None:
            self._trim(self.size)
        return torch.cat(self._features)

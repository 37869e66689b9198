"""The reference's side of a comparison, computed once; a file of it."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from image_diffusion.metrics.extractor import FeatureExtractor
from image_diffusion.metrics.features import FeatureSample, Images, feature_batches
from image_diffusion.metrics.frechet import frechet_distance
from image_diffusion.metrics.statistics import FeatureStatistics, RunningStatistics
from immiscible_policy.files import complete_or_absent

_FORMAT = 1
_COINS = 4096  # drawn at once


@dataclass(frozen=True)
class ReferenceStatistics:
    """What is known of the reference images in one extractor's features.

    Attributes:
        extractor, weights_sha256, resize: of the extractor; other ones cannot be compared with this reference.
        source: which images these are, such as "cifar10 train".
        statistics: moments over all images.
        floor: Frechet distance between two random halves, what no model can be asked to beat at their size; None where
            it was not measured.
        floor_n: images in the smaller half.
        features: (M, dim) float32, of all images or of a random sample, for the metrics that need pairs; or None.
    """

    extractor: str
    weights_sha256: str | None
    resize: str
    source: str
    statistics: FeatureStatistics
    floor: float | None = None
    floor_n: int = 0
    features: Tensor | None = None

    def check(self, extractor: FeatureExtractor) -> None:
        """Refuse another extractor than the one that this was made with.

        Raises:
            ValueError: naming both.
        """
        own = (self.extractor, self.statistics.dim, self.weights_sha256, self.resize)
        other = (extractor.name, extractor.dim, extractor.weights_sha256, extractor.resize)
        for what, mine, theirs in zip(("name", "dim", "weights", "resizing"), own, other, strict=True):
            if mine != theirs:
                raise ValueError(
                    f"reference statistics of {self.extractor} (dim {self.statistics.dim}) cannot be compared with "
                    f"features of {extractor.name} (dim {extractor.dim}): the {what} differ, {mine} and {theirs}"
                )

    def save(self, path: str | Path) -> Path:
        """Write an npz file, atomically."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {
            "format": _FORMAT,
            "extractor": self.extractor,
            "weights_sha256": self.weights_sha256,
            "resize": self.resize,
            "source": self.source,
            "n": self.statistics.n,
            "floor": self.floor,
            "floor_n": self.floor_n,
        }
        arrays: dict[str, Any] = {"mean": self.statistics.mean, "covariance": self.statistics.covariance}
        if self.features is not None:
            arrays["features"] = self.features.numpy()
        with complete_or_absent(path) as partial, partial.open("wb") as file:
            np.savez(file, record=np.array(json.dumps(record)), **arrays)
        return path

    @classmethod
    def load(cls, path: str | Path) -> ReferenceStatistics:
        """Read what ``save`` wrote.

        Raises:
            ValueError: no such file, or not one of these.
        """
        path = Path(path).expanduser()
        if not path.is_file():
            raise ValueError(f"there are no reference statistics at {path}")
        try:
            with np.load(path, allow_pickle=False) as file:
                record = json.loads(str(file["record"]))
                statistics = FeatureStatistics(record["n"], file["mean"], file["covariance"])
                features = torch.from_numpy(file["features"]) if "features" in file.files else None
        except (KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} does not hold reference statistics ({error})") from error
        if record.get("format") != _FORMAT:
            raise ValueError(f"{path} has format {record.get('format')}, this version reads {_FORMAT}")
        return cls(
            record["extractor"],
            record["weights_sha256"],
            record["resize"],
            record["source"],
            statistics,
            record["floor"],
            record["floor_n"],
            features,
        )


def reference_statistics(
    images: Images,
    extractor: FeatureExtractor,
    source: str = "",
    floor: bool = True,
    keep_features: bool = True,
    max_features: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = True,
    total: int | None = None,
) -> ReferenceStatistics:
    """Go through the reference images once.

    Args:
        images: uint8 (N, C, H, W), or an iterable of such batches; see ``feature_batches``.
        extractor: of the features.
        source: which images these are.
        floor: measure the distance between two halves (each needs 2 images). Of each two neighbours in the given order
            one goes to either half, drawn at random; so images should not come beside their own mirror images.
        keep_features: keep the features, for the metrics that need pairs.
        max_features: keep a random sample of at most this many, to bound memory and the quadratic cost of pairs.
        seed: draws halves and sample.
        total: images, for the bar, where they come in batches.

    Raises:
        ValueError: fewer than 2 images, or what ``feature_batches`` refuses.
    """
    if max_features is not None and max_features < 2:
        raise ValueError(f"max_features must be at least 2, got {max_features}")
    everything = RunningStatistics(extractor.dim)
    halves = (RunningStatistics(extractor.dim), RunningStatistics(extractor.dim))
    sample = FeatureSample(max_features, seed)
    sides = _Sides(seed)
    for features in feature_batches(images, extractor, batch_size, progress, "reference", total):
        if keep_features:
            sample.add(features)
        if floor:
            first = sides.draw(len(features))
            halves[0].add(features[first])
            halves[1].add(features[~first])
        else:
            everything.add(features)
    distance = None
    if floor:
        for half in halves:
            everything.merge(half)
        if min(half.n for half in halves) >= 2:
            distance = frechet_distance(halves[0].finish(), halves[1].finish())
    if everything.n < 2:
        raise ValueError(f"the reference must hold at least 2 images, got {everything.n}")
    return ReferenceStatistics(
        extractor.name,
        extractor.weights_sha256,
        extractor.resize,
        source,
        everything.finish(),
        distance,
        min(half.n for half in halves),
        sample.features() if keep_features else None,
    )


class _Sides:
    """Which half an image goes to: of two successive images, a coin decides for the first, the other goes elsewhere."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._drawn = torch.empty(0, dtype=torch.bool)

    def draw(self, n: int) -> Tensor:
        """(n,) bool for the next n images."""
        while len(self._drawn) < n:
            # Always as many at once, so that the sides do not depend on how the images are batched.
            coins = torch.randint(2, (_COINS, 1), generator=self._generator, dtype=torch.bool)
            self._drawn = torch.cat([self._drawn, torch.cat([coins, ~coins], 1).flatten()])
        sides, self._drawn = self._drawn[:n], self._drawn[n:]
        return sides

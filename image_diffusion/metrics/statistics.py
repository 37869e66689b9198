"""Mean and covariance of a stream of features, in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class FeatureStatistics:
    """Moments of n feature vectors.

    Attributes:
        n: how many, at least 2.
        mean: (dim,) float64.
        covariance: (dim, dim) float64, the unbiased one (divided by n - 1).
    """

    n: int
    mean: np.ndarray
    covariance: np.ndarray

    @property
    def dim(self) -> int:
        return len(self.mean)


class RunningStatistics:
    """Moments of everything that was added, whatever the sizes of the batches.

    A batch is centred on its own mean before products are taken, and means are merged by their difference (Chan, Golub
    and LeVeque 1979), so that features far from 0 lose no digits, unlike with sums of squares.

    Args:
        dim: length of a feature vector.
    """

    def __init__(self, dim: int) -> None:
        if dim < 1:
            raise ValueError(f"dim must be at least 1, got {dim}")
        self.n = 0
        self._mean = torch.zeros(dim, dtype=torch.float64)
        self._scatter = torch.zeros(dim, dim, dtype=torch.float64)

    def add(self, features: Tensor) -> None:
        """Take in features (N, dim); N may be 0."""
        if features.ndim != 2 or features.shape[1] != len(self._mean):
            raise ValueError(f"features must be (N, {len(self._mean)}), got {tuple(features.shape)}")
        if not len(features):
            return
        batch = features.detach().to("cpu", torch.float64)
        mean = batch.mean(0)
        batch = batch - mean
        self._scatter.addmm_(batch.T, batch)
        self._shift(len(batch), mean)

    def merge(self, other: RunningStatistics) -> None:
        """Take in everything that was added to another, such as another process's."""
        self._scatter += other._scatter
        self._shift(other.n, other._mean)

    def _shift(self, n: int, mean: Tensor) -> None:
        """Account for n more vectors with this mean, whose scatter about it has been added."""
        if not n:
            return
        total = self.n + n
        difference = mean - self._mean
        self._scatter.addr_(difference, difference, alpha=self.n * n / total)
        self._mean += difference * (n / total)
        self.n = total

    def finish(self) -> FeatureStatistics:
        """The moments so far; more can be added afterwards.

        Raises:
            ValueError: fewer than two vectors, which have no covariance.
        """
        if self.n < 2:
            raise ValueError(f"a covariance needs at least 2 images, got {self.n}")
        covariance = self._scatter / (self.n - 1)
        return FeatureStatistics(self.n, self._mean.numpy().copy(), covariance.numpy())

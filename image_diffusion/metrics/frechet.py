"""The Frechet distance between two Gaussians with the moments of two sets of features (Heusel et al. 2017)."""

from __future__ import annotations

import numpy as np

from image_diffusion.metrics.statistics import FeatureStatistics


def frechet_distance(first: FeatureStatistics, second: FeatureStatistics) -> float:
    """Squared 2-Wasserstein distance between N(m1, C1) and N(m2, C2) (Dowson and Landau 1982, equation 4).

    |m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1^1/2 C2 C1^1/2)^1/2. With C = L L^T the last trace is the sum of the
    singular values of L1^T L2, which is real and exact for singular covariances too (fewer images than dimensions),
    where the usual square root of C1 C2 turns complex or needs a correction.

    Estimated from finite samples it is biased upwards, by about 1/n, and by how much depends on the distributions: only
    distances at equal n compare (Chong and Forsyth 2020).

    Returns:
        The distance, at least 0, in squared units of the features.

    Raises:
        ValueError: statistics of different dims, or that are not finite.
    """
    if first.dim != second.dim:
        raise ValueError(f"statistics must have equal dims, got {first.dim} and {second.dim}")
    for statistics in (first, second):
        if not (np.isfinite(statistics.mean).all() and np.isfinite(statistics.covariance).all()):
            raise ValueError("statistics must be finite, got NaN or infinity in a mean or covariance")
    difference = first.mean - second.mean
    traces = np.trace(first.covariance) + np.trace(second.covariance)
    overlap = np.linalg.svd(_factor(first.covariance).T @ _factor(second.covariance), compute_uv=False).sum()
    return max(0.0, float(difference @ difference + traces - 2.0 * overlap))


def _factor(covariance: np.ndarray) -> np.ndarray:
    """L (dim, rank) with L L^T = covariance, from its eigenvectors; directions without variance are left out."""
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    kept = values > max(values[-1], 0.0) * len(values) * np.finfo(np.float64).eps
    return vectors[:, kept] * np.sqrt(values[kept])

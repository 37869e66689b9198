"""Conditional skew: how much of the noise can be told from the data, from the condition, or from the class."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from immiscible_policy.coupling._checks import flat_rows

_BLOCK = 2_048


def explained_share(regressors: Tensor, noise: Tensor, valid: Tensor) -> float:
    """Share of the noise's variance that a linear regression on ``regressors`` explains, adjusted.

    The regressors are centred and replaced by their leading principal components, at most B/4 of them,
    and H is the projection on these. With centred noise m, explained sum E = |H m|^2 and total T = |m|^2
    (all coordinates pooled), the share is (E - C) / (T - C), where C = B/(B-1) sum_i H_ii |m_i|^2 is what
    independent noise reaches by chance. For rows of equal norm this is the adjusted R^2,
    1 - (1 - E/T)(B-1)/(B-1-p); row-wise weights keep it at 0 in expectation under masks too.

    Args:
        regressors: (B, P). noise: (B, D). valid: (B, D) bool, entries of the noise that count.

    Returns:
        The share; 0 where the regressors are constant; NaN for B < 8, too few to tell.
    """
    if noise.shape[0] < 8:
        return math.nan
    return share_explained_by(leading_components(regressors.double(), noise.shape[0] // 4), noise, valid)


def share_explained_by(basis: Tensor, noise: Tensor, valid: Tensor | None = None) -> float:
    """:func:`explained_share` for regressors given as an orthonormal ``basis`` (B, p) of centred columns."""
    batch = noise.shape[0]
    if basis.shape[1] == 0:
        return 0.0
    noise = noise.double()
    if valid is None:
        centred = noise - noise.mean(0)
    else:
        column_mean = noise.sum(0) / valid.sum(0).clamp_min(1)
        centred = (noise - column_mean).masked_fill(~valid, 0.0)
    row_total = centred.square().sum(1)
    explained = float((basis.T @ centred).square().sum())
    chance = float((basis.square().sum(1) * row_total).sum()) * batch / (batch - 1)
    total = float(row_total.sum())
    return (explained - chance) / (total - chance) if total > chance else math.nan


def leading_components(regressors: Tensor, at_most: int) -> Tensor:
    """Orthonormal basis (B, p) of the leading principal components' scores, p <= at_most. float64."""
    regressors = regressors.double()
    centred = regressors - regressors.mean(0)
    scale = float(torch.linalg.vector_norm(regressors))
    if centred.shape[1] > centred.shape[0]:
        # Leading ones only, so that the half of the digits that products cost does no harm, and the time counts.
        squared, scores = torch.linalg.eigh(centred @ centred.T)
        squared, scores = squared.flip(0), scores.flip(1)
        rank = int((squared > scale**2 * max(centred.shape) * np.finfo(np.float64).eps).sum())
        return scores[:, : min(rank, at_most)]
    # QR first: the SVD of a tall matrix is then that of a small one, with no loss of digits.
    frame, small = torch.linalg.qr(centred)
    scores, singular, _ = torch.linalg.svd(small, full_matrices=False)
    rank = int((singular > scale * max(centred.shape) * np.finfo(np.float64).eps).sum())
    return frame @ scores[:, : min(rank, at_most)]


def is_labels(condition: Tensor) -> bool:
    """Whether a condition is (B,) class labels: integers or bools."""
    return condition.ndim == 1 and not condition.is_floating_point()


def regressors_of(condition: Tensor) -> Tensor:
    """Labels as one indicator per class, anything else as flat float64 vectors; (B, P)."""
    if is_labels(condition):
        _, classes = torch.unique(condition, return_inverse=True)
        return torch.nn.functional.one_hot(classes).double()
    return flat_rows(condition, torch.float64)


def predicted_data(data: Tensor, condition: Tensor) -> Tensor:
    """The data that the condition predicts: linear regression of data on condition, class means for labels.

    The direction x^(c)/|x^(c)| of a prediction depends on the condition alone, so noise that is independent of
    the condition has mean 0 along it. The mean along it under a coupling is, in standard deviations, a shift of
    p(noise | condition) that a sampler which starts from N(0, I) does not have.

    Args:
        data: (N, ...). condition: (N, ...) vectors or (N,) labels; at most N/4 principal components are used.

    Returns:
        (N, D) predictions, in the dtype of data.
    """
    x = flat_rows(data, torch.float64)
    basis = leading_components(regressors_of(condition), max(1, x.shape[0] // 4))
    mean = x.mean(0)
    return (mean + basis @ (basis.T @ (x - mean))).to(data.dtype)


@dataclass(frozen=True)
class ClassShift:
    """How far the mean noise of a class lies from the mean noise of all.

    Attributes:
        labels: (C,) the classes.
        counts: (C,) rows in each.
        distances: (C,) |mean noise of the class - mean noise of all|.
        expected: (C,) root mean square of that distance for noise independent of the class,
            sqrt(tr Cov (1/n_c - 1/n)).
        p_value: that independent noise of the same variance gives classes at least so far apart
            (sum_c n_c d_c^2 / sigma^2 ~ chi^2((C-1) D)).
    """

    labels: tuple[int, ...]
    counts: tuple[int, ...]
    distances: tuple[float, ...]
    expected: tuple[float, ...]
    p_value: float

    @property
    def shift(self) -> float:
        """Root mean square over classes of the distance, less what chance gives; 0 where chance gives more."""
        excess = np.square(self.distances) - np.square(self.expected)
        return math.sqrt(max(0.0, float(np.average(excess, weights=self.counts))))


def class_shift(noise: Tensor, labels: Tensor) -> ClassShift:
    """Mean noise by class against its sampling null.

    Args:
        noise: (B, ...), B >= 2. labels: (B,) integers or bools.

    Raises:
        ValueError: labels are not (B,) integers or bools, or name fewer than two classes.
    """
    from scipy.stats import chi2  # costs a second to import

    if tuple(labels.shape) != (noise.shape[0],) or not is_labels(labels):
        raise ValueError(
            f"labels must be (B,) integers with B={noise.shape[0]}, got {labels.dtype} of shape {tuple(labels.shape)}"
        )
    n = flat_rows(noise, noise.dtype)
    batch, dims = n.shape
    values, classes, counts = torch.unique(labels, return_inverse=True, return_counts=True)
    if len(values) < 2:
        raise ValueError(f"labels must name at least two classes, got {values.tolist()}")
    sums = torch.zeros(len(values), dims, dtype=torch.float64, device=n.device)
    total_square = 0.0
    for rows, ids in zip(n.split(_BLOCK), classes.split(_BLOCK), strict=True):  # for the memory of float64 copies
        sums.index_add_(0, ids, rows.double())
        total_square += float(rows.double().square().sum())
    means = sums / counts[:, None]
    squared = (means - sums.sum(0) / batch).square().sum(1)
    within = total_square - float((counts[:, None] * means.square()).sum())
    variance = within / ((batch - len(values)) * dims) if batch > len(values) else math.nan
    null = variance * dims * (1.0 / counts.double() - 1.0 / batch)
    statistic = float((counts * squared).sum()) / variance
    return ClassShift(
        labels=tuple(int(value) for value in values),
        counts=tuple(int(count) for count in counts),
        distances=tuple(squared.sqrt().tolist()),
        expected=tuple(null.sqrt().tolist()),
        p_value=float(chi2.sf(statistic, (len(values) - 1) * dims)),
    )

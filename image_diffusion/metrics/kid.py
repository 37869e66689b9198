"""Kernel distance with the polynomial kernel of degree 3 (KID; Binkowski et al. 2018, section 4), unbiased at any n."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from image_diffusion.metrics.kernels import check_pair, pair_sums


@dataclass(frozen=True)
class KernelDistance:
    """A kernel distance (squared MMD); may be negative, as an unbiased estimate of something near 0 must.

    Attributes:
        value: mean over random subsets, the published protocol.
        standard_error: of ``value`` as an estimate of the distance between the two distributions: that of ``full``, and
            what the finite number of subsets adds.
        subset_deviation: standard deviation over subsets, which others print behind their plus-minus sign. It is the
            spread at the subset's size and does not shrink with n.
        full: the estimate from all pairs, of which ``value`` is an approximation.
        full_standard_error: its standard error, by the delete-one jackknife over both sets.
        n_subsets, subset_size: as used.
    """

    value: float
    standard_error: float
    subset_deviation: float
    full: float
    full_standard_error: float
    n_subsets: int
    subset_size: int


def polynomial_kernel(x: Tensor, y: Tensor) -> Tensor:
    """(<x, y> / dim + 1)^3 for rows of x (N, dim) and y (M, dim)."""
    return (x @ y.T / x.shape[1] + 1.0) ** 3


def kernel_distance(
    generated: Tensor, reference: Tensor, n_subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> KernelDistance:
    """KID between features (N, dim) and (M, dim).

    Args:
        generated, reference: at least 3 rows each.
        n_subsets: how many pairs of subsets are drawn, each without replacement; at least 2.
        subset_size: rows in each, at least 2; no more than either set has.
        seed: draws the subsets.

    Raises:
        ValueError: an argument out of range, or features that do not fit.
    """
    check_pair(generated, reference)
    smallest = min(len(generated), len(reference))
    if smallest < 3:
        raise ValueError(f"the kernel distance needs at least 3 images on either side, got {smallest}")
    if not 2 <= subset_size <= smallest:
        raise ValueError(f"kid_subset_size must be from 2 to the smaller set's {smallest} images, got {subset_size}")
    if n_subsets < 2:
        raise ValueError(f"kid_subsets must be at least 2, got {n_subsets}")
    generator = torch.Generator().manual_seed(seed)
    estimates = torch.empty(n_subsets, dtype=torch.float64)
    for subset in range(n_subsets):
        picks = [torch.randperm(len(side), generator=generator)[:subset_size] for side in (generated, reference)]
        estimates[subset] = unbiased_mmd(generated[picks[0]], reference[picks[1]])[0]
    deviation = float(estimates.std())
    full, full_error = unbiased_mmd(generated, reference)
    return KernelDistance(
        value=float(estimates.mean()),
        standard_error=(full_error**2 + deviation**2 / n_subsets) ** 0.5,
        subset_deviation=deviation,
        full=full,
        full_standard_error=full_error,
        n_subsets=n_subsets,
        subset_size=subset_size,
    )


def unbiased_mmd(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Squared MMD from all pairs (Gretton et al. 2012, equation 3), and its jackknife standard error.

    Args:
        x, y: (N, dim) and (M, dim) features, at least 2 rows each; with fewer than 3 the error is NaN.
    """
    n, m = len(x), len(y)
    cross_x, cross_y = pair_sums(polynomial_kernel, x, y)
    # An image's kernel with itself has no part in an unbiased sum.
    within_x, within_y = (pair_sums(polynomial_kernel, side, side)[0] - _diagonal(side) for side in (x, y))
    sum_x, sum_y, sum_xy = within_x.sum(), within_y.sum(), cross_x.sum()
    term_x, term_y = sum_x / (n * (n - 1)), sum_y / (m * (m - 1))
    value = float(term_x + term_y - 2 * sum_xy / (n * m))
    if min(n, m) < 3:
        return value, float("nan")
    # The estimate without each row in turn; a row's pairs count twice in the sum within its own set.
    without_x = (sum_x - 2 * within_x) / ((n - 1) * (n - 2)) + term_y - 2 * (sum_xy - cross_x) / ((n - 1) * m)
    without_y = (sum_y - 2 * within_y) / ((m - 1) * (m - 2)) + term_x - 2 * (sum_xy - cross_y) / ((m - 1) * n)
    variance = sum((len(rows) - 1) * rows.var(correction=0) for rows in (without_x, without_y))
    return value, float(variance) ** 0.5


def _diagonal(x: Tensor) -> Tensor:
    """(N,) kernel of each row with itself."""
    return (x.double().square().sum(1) / x.shape[1] + 1.0) ** 3

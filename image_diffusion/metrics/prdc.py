"""Precision, recall, density and coverage from nearest neighbours in feature space.

Precision and recall: Kynkaanniemi et al. 2019, equations 1 and 2. Density and coverage: Naeem et al. 2020, equations 3
and 4. The comparisons at exactly the radius are those of either paper's published code: the neighbourhood includes its
boundary for precision and recall, and excludes it for density and coverage.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from image_diffusion.metrics.kernels import check_pair, row_blocks


@dataclass(frozen=True)
class NeighbourhoodScores:
    """Shares in [0, 1], except density, which exceeds 1 where samples crowd in dense parts of the reference.

    Attributes:
        precision: share of generated images inside some reference image's neighbourhood.
        recall: share of reference images inside some generated image's neighbourhood.
        density: in how many reference neighbourhoods a generated image lies, over k; about 1 for equal distributions.
        coverage: share of reference images with a generated one in their neighbourhood.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def neighbourhood_scores(generated: Tensor, reference: Tensor, k: int = 5) -> NeighbourhoodScores:
    """All four, between features (N, dim) and (M, dim); a neighbourhood reaches to the k-th nearest of the same set.

    All depend on n and k: compare at equal ones only. Distances are made a block at a time.

    Raises:
        ValueError: k < 1, no more than k images in a set, or features that do not fit.
    """
    check_pair(generated, reference)
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    smallest = min(len(generated), len(reference))
    if smallest <= k:
        raise ValueError(f"k={k} needs more than {k} images on either side, got {smallest}")
    generated, reference = generated.double(), reference.double()
    radii, generated_radii = nearest_radii(reference, k), nearest_radii(generated, k)
    inside_reference = torch.zeros(len(generated), dtype=torch.bool, device=generated.device)
    recalled = covered = n_inside = 0
    for rows in row_blocks(len(reference), len(generated)):
        distances = squared_distances(reference[rows], generated)
        own = radii[rows, None]
        inside_reference |= (distances <= own).any(0)
        recalled += int((distances <= generated_radii).any(1).sum())
        covered += int((distances < own).any(1).sum())
        n_inside += int((distances < own).sum())
    return NeighbourhoodScores(
        precision=float(inside_reference.double().mean()),
        recall=recalled / len(reference),
        density=n_inside / (k * len(generated)),
        coverage=covered / len(reference),
    )


def nearest_radii(features: Tensor, k: int) -> Tensor:
    """(N,) squared distance of each row of features (N, dim) to its k-th nearest other row."""
    radii = []
    for rows in row_blocks(len(features), len(features)):
        distances = squared_distances(features[rows], features)
        own = torch.arange(rows.start, rows.stop, device=features.device)
        distances[torch.arange(len(own), device=features.device), own] = torch.inf
        radii.append(distances.kthvalue(k, dim=1).values)
    return torch.cat(radii)


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """(N, M) between rows of x (N, dim) and y (M, dim), at least 0."""
    products = torch.addmm(y.square().sum(1)[None], x, y.T, alpha=-2.0)
    return products.add_(x.square().sum(1)[:, None]).clamp_min_(0.0)

"""CMMD: kernel distance between CLIP embeddings (Jayasumana et al. 2024, section 5)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from image_diffusion.metrics.kernels import check_pair, pair_sums

SIGMA = 10.0
SCALE = 1000.0


def cmmd(generated: Tensor, reference: Tensor) -> float:
    """1000 times the squared MMD of L2-normalised embeddings, Gaussian kernel of width 10, biased estimate.

    Published values use CLIP ViT-L/14 at 336 pixels. The bias is that of the paper (an image's kernel with itself
    counts), at most 1000 (1 - exp(-0.02)) / n, that is 20 / n, a set.

    Args:
        generated, reference: (N, dim) and (M, dim) CLIP image embeddings, of any length but 0.

    Raises:
        ValueError: features that do not fit, or an embedding of length 0.
    """
    check_pair(generated, reference)
    x, y = (_unit(embeddings) for embeddings in (generated, reference))
    mean_x, mean_y, mean_xy = (
        float(pair_sums(_kernel, first, second)[0].sum()) / (len(first) * len(second))
        for first, second in ((x, x), (y, y), (x, y))
    )
    return SCALE * (mean_x + mean_y - 2.0 * mean_xy)


def _unit(embeddings: Tensor) -> Tensor:
    embeddings = embeddings.double()
    if bool((embeddings.square().sum(1) == 0).any()):
        raise ValueError("CMMD needs embeddings of a length above 0, got one that is all 0")
    return functional.normalize(embeddings)


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    """exp(-|x - y|^2 / (2 sigma^2)) of unit vectors, whose squared distance is 2 - 2 <x, y>."""
    return torch.exp((x @ y.T - 1.0) / SIGMA**2)

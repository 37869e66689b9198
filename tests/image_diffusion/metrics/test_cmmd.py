"""CMMD against a loop over pairs, and where it is known."""

import math

import pytest
import torch

from image_diffusion.metrics.cmmd import cmmd


def slow(x: torch.Tensor, y: torch.Tensor) -> float:
    x, y = ([(row / row.norm()).tolist() for row in side.double()] for side in (x, y))

    def mean(a, b):
        kernels = [math.exp(-(math.dist(p, q) ** 2) / (2 * 10.0**2)) for p in a for q in b]
        return sum(kernels) / len(kernels)

    return 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))


def test_a_loop_over_pairs():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(7, 5, generator=generator), torch.randn(5, 5, generator=generator) + 1
    assert cmmd(x, y) == pytest.approx(slow(x, y), rel=1e-9)


def test_two_opposite_points_whatever_their_length():
    x, y = torch.tensor([[3.0, 0.0]] * 2), torch.tensor([[-0.1, 0.0]] * 3)
    assert cmmd(x, y) == pytest.approx(2000 * (1 - math.exp(-4 / 200)), rel=1e-12)
    assert cmmd(x, x) == pytest.approx(0, abs=1e-12)


def test_an_embedding_without_direction_is_refused():
    with pytest.raises(ValueError, match="all 0"):
        cmmd(torch.zeros(2, 3), torch.ones(2, 3))

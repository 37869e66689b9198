"""Neighbourhood scores against loops, and where they are known."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from image_diffusion.metrics import kernels
from image_diffusion.metrics.prdc import NeighbourhoodScores, nearest_radii, neighbourhood_scores


def distance(a: list[int], b: list[int]) -> int:
    return sum((p - q) ** 2 for p, q in zip(a, b, strict=True))


def slow(generated: list[list[int]], reference: list[list[int]], k: int) -> NeighbourhoodScores:
    def radii(points: list[list[int]]) -> list[int]:
        return [sorted(distance(a, b) for j, b in enumerate(points) if j != i)[k - 1] for i, a in enumerate(points)]

    own, other = radii(reference), radii(generated)
    pairs = list(zip(reference, own, strict=True))
    precision = [any(distance(g, r) <= radius for r, radius in pairs) for g in generated]
    recall = [any(distance(g, r) <= radius for g, radius in zip(generated, other, strict=True)) for r in reference]
    density = [distance(g, r) < radius for g in generated for r, radius in pairs]
    coverage = [any(distance(g, r) < radius for g in generated) for r, radius in pairs]
    return NeighbourhoodScores(
        sum(precision) / len(generated),
        sum(recall) / len(reference),
        sum(density) / (k * len(generated)),
        sum(coverage) / len(reference),
    )


def points(n: int) -> st.SearchStrategy[list[list[int]]]:
    return st.lists(st.lists(st.integers(-4, 4), min_size=2, max_size=2), min_size=n, max_size=14)


# Whole numbers, whose distances are exact: many lie exactly on a boundary, where the definitions differ.
@settings(max_examples=60, deadline=None)
@given(generated=points(4), reference=points(4), k=st.integers(1, 3), block=st.sampled_from([1, 30, 1000]))
def test_the_definitions_in_any_blocks(generated, reference, k, block):
    before = kernels._BLOCK_VALUES
    kernels._BLOCK_VALUES = block
    try:
        found = neighbourhood_scores(torch.tensor(generated).float(), torch.tensor(reference).float(), k)
    finally:
        kernels._BLOCK_VALUES = before
    assert found == slow(generated, reference, k)


def test_radii_reach_to_the_kth_other_point():
    line = torch.tensor([[0.0], [1.0], [3.0], [7.0]], dtype=torch.float64)
    assert nearest_radii(line, 1).tolist() == [1, 1, 4, 16]
    assert nearest_radii(line, 2).tolist() == [9, 4, 9, 36]


def test_equal_sets_and_distant_ones():
    reference = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    same = neighbourhood_scores(reference, reference, 5)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    assert same.density == pytest.approx(1, abs=0.01)
    far = neighbourhood_scores(reference + 100, reference, 5)
    assert far == NeighbourhoodScores(0, 0, 0, 0)


def test_one_good_image_over_and_over_has_precision_but_no_coverage():
    reference = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    collapsed = reference[:1].repeat(60, 1) + 1e-3 * torch.randn(60, 3, generator=torch.Generator().manual_seed(1))
    scores = neighbourhood_scores(collapsed, reference, 5)
    assert scores.precision == 1
    assert scores.recall < 0.05
    assert scores.coverage < 0.3


def test_equal_distributions_have_density_and_coverage_as_published():
    # Naeem et al. 2020, section 3.3: density 1; coverage 1 - (M-1)...(M-k) / ((2M-1)...(2M-k)), M images either side.
    n, k = 400, 5
    draws = torch.randn(2 * n, 4, generator=torch.Generator().manual_seed(2))
    scores = neighbourhood_scores(draws[:n], draws[n:], k)
    expected = 1.0
    for i in range(1, k + 1):
        expected *= (n - i) / (2 * n - i)
    assert scores.coverage == pytest.approx(1 - expected, abs=0.03)
    assert scores.density == pytest.approx(1, abs=0.1)


def test_k_and_n_are_checked():
    few = torch.zeros(5, 2)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        neighbourhood_scores(few, few, 0)
    with pytest.raises(ValueError, match="k=5 needs more than 5 images on either side, got 5"):
        neighbourhood_scores(torch.zeros(9, 2), few, 5)

"""Pairwise costs: equal to the definition through all differences, at any size, mask and precision."""

import pytest
import torch

from immiscible_policy.coupling._costs import (
    METRICS,
    class_ids,
    condition_cost,
    moments,
    pairwise_cost,
    pooled_moments,
    round_cost,
    standardised,
)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed))


def by_definition(data, noise, metric, mask) -> torch.Tensor:
    """(B, P) float64 costs from the (B, P, D) differences."""
    x, n = data.double().flatten(1), noise.double().flatten(1)
    valid = mask.expand(data.shape).flatten(1)[:, None]
    if metric == "inner":
        return -(x[:, None] * n[None]).masked_fill(~valid, 0.0).sum(-1)
    difference = (x[:, None] - n[None]).masked_fill(~valid, 0.0)
    if metric == "l1":
        return difference.abs().sum(-1)
    squared = difference.square().sum(-1)
    return squared if metric == "sqeuclidean" else squared.sqrt()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("masked", [None, "shared", "per row"])
@pytest.mark.parametrize(("batch", "pool", "shape"), [(5, 5, (3, 2)), (4, 9, (40, 5)), (1, 3, (7,)), (6, 6, ())])
def test_costs_are_those_of_the_definition(metric, masked, batch, pool, shape):
    data, noise = draw(0, batch, *shape) * 0.7, draw(1, pool, *shape)
    mask = torch.ones(1, dtype=torch.bool)
    if masked:
        rows = batch if masked == "per row" else 1
        mask = torch.rand(rows, *shape, generator=generator(2)) < 0.6
    poisoned = data.masked_fill(~mask.expand(data.shape), float("nan"))
    cost = pairwise_cost(poisoned, noise, metric, mask if masked else None)
    expected = by_definition(data.reshape(batch, -1), noise.reshape(pool, -1), metric, mask.reshape(len(mask), -1))
    assert cost.shape == (batch, pool)
    # Rows without a valid entry have distance 0, which float32 leaves at the root of its rounding error.
    tolerance = 1e-9 if data[0].numel() <= 64 else 2e-2 if metric == "l2" and masked else 2e-3
    assert torch.allclose(cost.double(), expected, atol=tolerance, rtol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_dropped_constants_belong_to_a_row_or_a_column_alone(masked):
    data, noise = draw(0, 6, 10), draw(1, 6, 10)
    mask = (torch.rand(6, 10, generator=generator(2)) < 0.6) if masked else None
    whole = pairwise_cost(data, noise, "sqeuclidean", mask)
    left = whole - 2.0 * pairwise_cost(data, noise, "sqeuclidean", mask, drop_constants=True)
    # What is left is a_i + b_j: it has no interaction of row and column.
    assert torch.allclose(left - left[:1] - left[:, :1] + left[0, 0], torch.zeros(6, 6, dtype=left.dtype), atol=1e-10)
    assert not torch.allclose(left, torch.zeros(6, 6, dtype=left.dtype))


@pytest.mark.parametrize("metric", METRICS)
def test_half_precision_of_large_magnitude_does_not_overflow(metric):
    data, noise = (draw(0, 4, 3072) * 2e4).clamp(-6e4, 6e4).half(), draw(1, 4, 3072).half()
    cost = pairwise_cost(data, noise, metric)
    assert cost.dtype == torch.float32
    expected = by_definition(data, noise, metric, torch.ones(1, 1, dtype=torch.bool))
    assert torch.allclose(cost.double(), expected, rtol=1e-5, atol=1.0)


def test_float64_data_have_float64_costs():
    data, noise = draw(0, 4, 100).double(), draw(1, 4, 100).double()
    expected = by_definition(data, noise, "l2", torch.ones(1, 1, dtype=torch.bool))
    assert torch.allclose(pairwise_cost(data, noise, "l2"), expected, atol=1e-12)


@pytest.mark.parametrize("rows", [0, 3])
def test_no_rows_or_no_columns(rows):
    assert pairwise_cost(draw(0, rows, 3, 2), draw(1, 5, 3, 2), "l2").shape == (rows, 5)
    assert pairwise_cost(draw(0, 3, 2), draw(1, 0, 2), "l1").shape == (3, 0)


def test_rounding_keeps_range_and_scale():
    cost = torch.tensor([[1.0, 2049.0], [3e5, 7e6]])
    assert torch.equal(round_cost(cost[:1], torch.float16), torch.tensor([[1.0, 2048.0]]))
    rounded = round_cost(cost, torch.float16)
    assert torch.isfinite(rounded).all()
    assert torch.allclose(rounded, cost, rtol=1e-3)
    assert round_cost(cost, None) is cost
    assert round_cost(torch.empty(0, 3), torch.float16).shape == (0, 3)
    assert not torch.isfinite(round_cost(torch.tensor([[float("inf")]]), torch.float16)).any()


def test_labels_cost_nothing_or_one():
    labels = torch.tensor([3, 1, 3])
    expected = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    for condition in (labels, labels.to(torch.int32), torch.stack((labels, labels % 2), 1), labels == 3):
        assert torch.equal(condition_cost(condition, condition, "cosine"), expected)
    assert torch.equal(condition_cost(labels[:1], labels, "l2"), expected[:1])


def test_condition_costs_of_vectors():
    a, b = draw(0, 5, 2, 3), draw(1, 4, 2, 3)
    x, y = a.flatten(1), b.flatten(1)
    squared = (x[:, None] - y[None]).square().sum(-1).double()
    assert torch.allclose(condition_cost(a, b, "sqeuclidean").double(), squared, atol=1e-5)
    assert torch.allclose(condition_cost(a, b, "l2").double(), squared.sqrt(), atol=1e-5)
    cosine = 1.0 - torch.nn.functional.cosine_similarity(x[:, None], y[None], dim=-1)
    assert torch.allclose(condition_cost(a, b, "cosine"), cosine, atol=1e-6)
    assert torch.allclose(condition_cost(7.0 * a, b.half(), "cosine"), cosine, atol=1e-3)


def test_cosine_of_zeros_is_defined():
    vectors = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    assert torch.equal(condition_cost(vectors, vectors, "cosine"), torch.tensor([[0.0, 1.0], [1.0, 0.0]]))


def test_class_ids_number_equal_rows():
    assert class_ids(torch.tensor([7, -2, 7, 9])).tolist() == [1, 0, 1, 2]
    floats = torch.tensor([[0.5, 1.0], [0.5, 2.0], [0.5, 1.0]])
    assert class_ids(floats).tolist() == [0, 1, 0]
    assert class_ids(torch.empty(3, 0)).tolist() == [0, 0, 0]
    assert class_ids(torch.empty(0, dtype=torch.int64)).tolist() == []


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("sizes", [(9,), (4, 5), (0, 9), (1, 0, 8)])
def test_moments_of_parts_are_those_of_the_whole(masked, sizes):
    rows = draw(0, 9, 4) * 3.0 + 100.0
    valid = (torch.rand(9, 4, generator=generator(1)) < 0.5) if masked else torch.ones(9, 4, dtype=torch.bool)
    valid[:, 3] &= not masked  # one coordinate without a valid entry
    rows = rows.masked_fill(~valid, float("nan"))
    parts = zip(rows.split(sizes), valid.split(sizes), strict=True)
    pooled = pooled_moments(torch.stack([moments(r, v if masked else None) for r, v in parts]))
    for column in range(4):
        entries = rows[valid[:, column], column].double()
        assert pooled[0, column] == len(entries)
        if len(entries):
            assert pooled[1, column] == pytest.approx(float(entries.mean()), rel=1e-12)
            assert pooled[2, column] == pytest.approx(float(entries.var(correction=0)) * len(entries), rel=1e-9)


def test_standardised_rows_have_mean_nothing_and_deviation_one():
    rows = draw(0, 50, 3) * torch.tensor([1e-3, 1.0, 1e3]) + torch.tensor([5.0, -1.0, 1e4])
    result = standardised(rows, moments(rows))
    assert torch.allclose(result.mean(0), torch.zeros(3, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(result.std(0, correction=0), torch.ones(3, dtype=torch.float64), atol=1e-9)


def test_coordinates_that_do_not_vary_become_zero():
    rows = torch.full((7, 2), 0.1)
    assert float(standardised(rows, moments(rows)).abs().max()) < 1e-6

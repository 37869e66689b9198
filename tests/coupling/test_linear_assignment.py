"""Linear assignment: a permutation always, and the best one."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from immiscible_policy.coupling import LinearAssignment

METRICS = ["l2", "sqeuclidean", "l1"]
COST_DTYPES = ["fp32", "fp16", "bf16"]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pairs(batch: int, dims: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        torch.randn(batch, dims, generator=generator(seed)) * 0.7,
        torch.randn(batch, dims, generator=generator(seed + 10_000)),
    )


def true_costs(data: torch.Tensor, noise: torch.Tensor, metric: str, mask: torch.Tensor) -> np.ndarray:
    """(B, B) costs by definition, in float64, through the (B, B, D) differences."""
    difference = (data.double()[:, None] - noise.double()[None]).masked_fill(~mask[:, None], 0.0)
    if metric == "l1":
        return difference.abs().sum(-1).numpy()
    squared = difference.square().sum(-1).numpy()
    return squared if metric == "sqeuclidean" else np.sqrt(squared)


def columns_taken(noise: torch.Tensor, result: torch.Tensor) -> list[int]:
    """Index of each result row among the noise rows."""
    equal = (result.flatten(1)[:, None] == noise.flatten(1)[None]).all(-1)
    assert (equal.sum(1) == 1).all()
    return equal.int().argmax(1).tolist()


@pytest.mark.parametrize("masked", [None, "shared", "per row"])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("batch", [2, 3, 4, 5, 6, 7])
def test_no_permutation_is_better(batch, metric, masked):
    permutations = np.array(list(itertools.permutations(range(batch))))
    for seed, dims in enumerate((1, 2, 5, 80)):
        data, noise = pairs(batch, dims, 7 * seed)
        mask = torch.ones(1, 1, dtype=torch.bool)
        if masked is not None:
            mask = torch.rand(1 if masked == "shared" else batch, dims, generator=generator(seed)) < 0.6
        costs = true_costs(data, noise, metric, mask.expand(batch, dims))
        best = costs[np.arange(batch), permutations].sum(1).min()
        result = LinearAssignment(metric)(data, noise, mask=None if masked is None else mask)
        rows = [int((noise == row).all(1).int().argmax()) for row in result]
        assert sorted(rows) == list(range(batch))
        assert costs[np.arange(batch), rows].sum() == pytest.approx(best, rel=1e-6, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 12),
    st.lists(st.integers(1, 4), min_size=0, max_size=3),
    st.sampled_from(METRICS),
    st.sampled_from(COST_DTYPES),
    st.booleans(),
    st.integers(0, 10_000),
)
def test_always_a_permutation_of_the_noise(batch, trailing, metric, cost_dtype, masked, seed):
    data = torch.randn(batch, *trailing, generator=generator(seed))
    noise = torch.randn(batch, *trailing, generator=generator(seed + 1))
    mask = torch.rand(data.shape, generator=generator(seed + 2)) < 0.5 if masked else None
    result = LinearAssignment(metric, cost_dtype)(data, noise, mask=mask)
    assert sorted(columns_taken(noise.reshape(batch, -1), result.reshape(batch, -1))) == list(range(batch))


def test_inner_product_cost_gives_the_permutation_of_the_squared_distance():
    from scipy.optimize import linear_sum_assignment

    for batch, dims, seed in ((64, 32, 0), (128, 32, 1), (256, 300, 2)):
        data, noise = pairs(batch, dims, seed)
        costs = true_costs(data, noise, "sqeuclidean", torch.ones(batch, dims, dtype=torch.bool))
        expected = noise[torch.from_numpy(linear_sum_assignment(costs)[1])]
        assert torch.equal(LinearAssignment("sqeuclidean")(data, noise), expected)


def test_squared_and_unsquared_optima_differ():
    data, noise = pairs(256, 32, 0)
    l2, squared = (LinearAssignment(m)(data, noise) for m in ("l2", "sqeuclidean"))
    differs = float((l2 != squared).any(1).double().mean())
    assert 0.0 < differs < 0.6
    assert float((data - l2).norm(dim=1).sum()) < float((data - squared).norm(dim=1).sum())


def test_drawn_noise_is_the_plain_draw_permuted():
    data, _ = pairs(64, 32, 0)
    result = LinearAssignment()(data, generator=generator(5))
    drawn = torch.randn(64, 32, generator=generator(5))
    assert sorted(columns_taken(drawn, result)) == list(range(64))
    # A permutation leaves the batch's pooled moments alone, up to the order of summation.
    assert float(result.square().sum()) == pytest.approx(float(drawn.square().sum()), rel=1e-6)


@pytest.mark.parametrize(("batch", "low", "high"), [(64, -18.0, -14.0), (256, -22.0, -18.0)])
def test_distance_reduction_of_gaussian_data(batch, low, high):
    """D=32, standard deviation 0.5: about -16 % at B=64 and -20 % at B=256."""
    data = 0.5 * torch.randn(batch, 32, generator=generator(1))
    noise = torch.randn(batch, 32, generator=generator(2))
    before = (data[:, None] - noise[None]).norm(dim=-1).mean()
    after = (data - LinearAssignment()(data, noise)).norm(dim=1).mean()
    assert low < float(100 * (after / before - 1)) < high


@pytest.mark.parametrize("metric", METRICS)
def test_batch_of_one_passes_through(metric):
    noise = torch.randn(1, 3, 2)
    assert torch.equal(LinearAssignment(metric)(torch.randn(1, 3, 2), noise), noise)


def test_short_distances_in_low_dimension_do_not_cancel():
    noise = torch.randn(64, 2, generator=generator(8))
    data = noise + 1e-3 * torch.randn(64, 2, generator=generator(9))
    expected = true_costs(data, noise, "l2", torch.ones(64, 2, dtype=torch.bool))
    assert LinearAssignment("l2")._cost(data, noise, None).numpy() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("cost_dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("metric", METRICS)
def test_rounded_costs_stay_near_the_optimum(metric, cost_dtype):
    data, noise = pairs(128, 96, 3)
    mask = torch.ones(128, 96, dtype=torch.bool)
    costs = true_costs(data, noise, metric, mask)
    totals = {}
    for dtype in ("fp32", cost_dtype):
        taken = columns_taken(noise, LinearAssignment(metric, dtype)(data, noise))
        totals[dtype] = costs[np.arange(128), taken].sum()
    gain = costs.mean() * 128 - totals["fp32"]
    assert totals["fp32"] <= totals[cost_dtype] + 1e-3
    assert totals[cost_dtype] - totals["fp32"] < 0.06 * gain


def test_cost_dtype_rounds_inputs_and_cost():
    data, noise = pairs(16, 96, 4)
    for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
        cost = LinearAssignment("l2", name)._cost(data, noise, None)
        reference = (data.to(dtype).float()[:, None] - noise.to(dtype).float()[None]).norm(dim=-1)
        assert torch.equal(cost, cost.to(dtype).float())
        spacing = torch.finfo(dtype).eps * float(reference.max())
        assert float((cost - reference).abs().max()) <= spacing
        assert not torch.equal(cost, reference)


def test_costs_beyond_the_range_of_fp16_keep_their_optimum():
    data, noise = pairs(64, 96, 5)
    for metric in METRICS:
        near = LinearAssignment(metric, "fp16")(data * 64, noise)
        far = LinearAssignment(metric, "fp16")(data * 16_384, noise)
        assert sorted(columns_taken(noise, far)) == list(range(64))
        if metric == "sqeuclidean":
            # Scaling data by a power of two scales this cost: the same rounding, the same optimum.
            assert torch.equal(near, far)


def test_data_beyond_the_range_of_fp16_is_an_error():
    data, noise = pairs(8, 96, 6)
    with pytest.raises(ValueError, match=r"cost of data against noise must be finite.*cost_dtype='fp32'"):
        LinearAssignment("l2", "fp16")(data + 1e5, noise)
    assert LinearAssignment("l2")(data + 1e5, noise).shape == (8, 96)


def test_masked_rows_without_valid_entries_take_what_is_left():
    data, noise = pairs(6, 4, 7)
    mask = torch.ones(6, 1, dtype=torch.bool)
    mask[3:] = False
    result = LinearAssignment()(data, noise, mask=mask)
    taken = columns_taken(noise, result)
    costs = true_costs(data, noise, "l2", mask.expand(6, 4))
    best = min(costs[[0, 1, 2], list(p)].sum() for p in itertools.permutations(range(6), 3))
    assert costs[[0, 1, 2], taken[:3]].sum() == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metric": "cosine"}, r"metric must be 'l2', 'sqeuclidean' or 'l1', got 'cosine'"),
        ({"cost_dtype": "int8"}, r"cost_dtype must be 'fp32', 'fp16' or 'bf16', got 'int8'"),
        ({"cost_dtype": torch.float16}, r"cost_dtype must be .* got torch.float16"),
    ],
)
def test_bad_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        LinearAssignment(**arguments)

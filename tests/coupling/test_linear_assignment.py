"""Linear assignment: a permutation always, and the best one."""

import dataclasses
import itertools
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from immiscible_policy.coupling import LinearAssignment, diagnose
from immiscible_policy.coupling._costs import pairwise_cost
from immiscible_policy.coupling.condition_weight import ClusteredConditions, TargetRate
from immiscible_policy.coupling.solvers import SOLVERS

METRICS = ["l2", "sqeuclidean", "l1", "inner"]
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
    if metric == "inner":
        return -(data.double()[:, None] * noise.double()[None]).masked_fill(~mask[:, None], 0.0).sum(-1).numpy()
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


def optimum(costs: np.ndarray) -> list[int]:
    """The columns that minimise a (B, P) cost."""
    from scipy.optimize import linear_sum_assignment

    return linear_sum_assignment(costs)[1].tolist()


def cost_seen(coupling: LinearAssignment, *call: torch.Tensor, **context: torch.Tensor) -> torch.Tensor:
    """The cost matrix that a coupling hands to its solver."""
    seen = []

    def spy(cost: torch.Tensor) -> torch.Tensor:
        seen.append(cost)
        return torch.arange(cost.shape[0])

    dataclasses.replace(coupling, solver=spy)(*call, **context)
    return seen[0]


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
    assert pairwise_cost(data, noise, "l2").numpy() == pytest.approx(expected, abs=1e-7)


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
        cost = cost_seen(LinearAssignment("l2", name), data, noise)
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
        ({"metric": "cosine"}, r"metric must be 'l2', 'sqeuclidean', 'l1' or 'inner', got 'cosine'"),
        ({"cost_dtype": "int8"}, r"cost_dtype must be 'fp32', 'fp16' or 'bf16', got 'int8'"),
        ({"cost_dtype": torch.float16}, r"cost_dtype must be .* got torch.float16"),
        ({"solver": "hungarian"}, r"solver must be 'exact', .* or a callable, got 'hungarian'"),
        ({"standardize": 1}, r"standardize must be False or True, got 1"),
        ({"pool_factor": 0.5}, r"pool_factor must be a number >= 1, got 0.5"),
        ({"pool_factor": True}, r"pool_factor must be a number >= 1, got True"),
        ({"pool_factor": "2"}, r"pool_factor must be a number >= 1, got '2'"),
        ({"target": "negated"}, r"target must be 'given' or 'flipped', got 'negated'"),
        ({"within": "label"}, r"within must be None or 'condition', got 'label'"),
        ({"condition_weight": -1}, r"condition_weight must be a number in \[0, 1e\+08\], TargetRate or .*, got -1"),
        ({"condition_weight": "auto"}, r"condition_weight must be a number .* got 'auto'"),
        ({"condition_metric": "l1"}, r"condition_metric must be None, 'sqeuclidean', 'l2' or 'cosine', got 'l1'"),
        ({"across_ranks": None}, r"across_ranks must be False or True, got None"),
        ({"within": "condition", "condition_weight": 1}, r"condition_weight must be 0 with within='condition'.*got 1"),
        (
            {"metric": "inner", "condition_weight": ClusteredConditions()},
            r"metric must be a distance for ClusteredConditions.*got 'inner'",
        ),
    ],
)
def test_bad_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        LinearAssignment(**arguments)


def test_the_published_defaults_are_unchanged():
    assert repr(LinearAssignment()) == "LinearAssignment(metric='l2')"
    assert LinearAssignment("sqeuclidean", "bf16") == LinearAssignment(metric="sqeuclidean", cost_dtype="bf16")


def test_inner_and_squared_distance_agree_but_for_masks_and_pools():
    data, noise = pairs(64, 16, 0)
    mask = torch.rand(64, 16, generator=generator(1)) < 0.6
    inner, squared = LinearAssignment("inner"), LinearAssignment("sqeuclidean")
    assert torch.equal(inner(data, noise), squared(data, noise))
    shared = mask[:1].expand(64, 16)
    assert not torch.equal(inner(data, noise, mask=mask), squared(data, noise, mask=mask))
    assert torch.equal(inner(data, noise, mask=shared), squared(data, noise, mask=shared))


def standardised_slowly(rows: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    result = rows.double().clone()
    for column in range(rows.shape[1]):
        entries = rows[valid[:, column], column].double()
        result[:, column] = (result[:, column] - entries.mean()) / entries.std(correction=0).clamp_min(1e-6)
    return result


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dims", [6, 80])
@pytest.mark.parametrize("metric", METRICS)
def test_standardized_costs_are_those_of_standardised_rows(metric, dims, masked):
    data, noise = pairs(24, dims, 3)
    data = data * torch.logspace(-2, 2, dims) + 5.0
    mask = torch.rand(24, dims, generator=generator(4)) < 0.7 if masked else torch.ones(24, dims, dtype=torch.bool)
    mask[0] = True
    x = standardised_slowly(data, mask)
    n = standardised_slowly(noise, torch.ones(24, dims, dtype=torch.bool))
    poisoned = data.masked_fill(~mask, float("nan"))
    result = LinearAssignment(metric, standardize=True)(poisoned, noise, mask=mask)
    assert columns_taken(noise, result) == optimum(true_costs(x, n, metric, mask))
    assert columns_taken(noise, result) != optimum(true_costs(data, noise, metric, mask))


def test_standardized_pools_use_the_statistics_of_the_whole_pool():
    data, _ = pairs(16, 6, 3)
    coupling = LinearAssignment("l2", standardize=True, pool_factor=3, source=counting)
    result = coupling(data * 4.0)
    pool = torch.cat((counting((16, 6), None), counting((32, 6), None)))
    costs = true_costs(
        standardised_slowly(data, torch.ones(16, 6, dtype=torch.bool)),
        standardised_slowly(pool, torch.ones(48, 6, dtype=torch.bool)),
        "l2",
        torch.ones(16, 6, dtype=torch.bool),
    )
    assert torch.equal(result, pool[optimum(costs)])


def counting(shape, generator):
    """A source without randomness: the shape decides, rows differ."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(shape[0]))


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_every_solver_permutes_and_is_near_the_optimum(name):
    data, noise = pairs(300, 32, 5)
    costs = true_costs(data, noise, "sqeuclidean", torch.ones(300, 32, dtype=torch.bool))
    result = LinearAssignment("sqeuclidean", solver=name)(data, noise)
    taken = columns_taken(noise, result)
    assert sorted(taken) == list(range(300))
    best = costs[np.arange(300), optimum(costs)].mean()
    gain = (costs.mean() - costs[np.arange(300), taken].mean()) / (costs.mean() - best)
    assert gain == pytest.approx(1.0, abs=1e-9) if name == "exact" else 0.9 < gain <= 1.0


def test_a_callable_solver_decides():
    data, noise = pairs(5, 3, 0)
    assert torch.equal(LinearAssignment(solver=lambda cost: torch.arange(5).flip(0))(data, noise), noise.flip(0))
    assert torch.equal(LinearAssignment(solver=lambda cost: torch.arange(5).int())(data, noise), noise)


@pytest.mark.parametrize(
    ("solver", "error", "message"),
    [
        (lambda cost: [0, 1, 2], TypeError, r"solver must return an int64 or int32 tensor of columns, got list"),
        (lambda cost: torch.zeros(3), TypeError, r"solver must return an int64 or int32 .* got torch.float32"),
        (lambda cost: torch.eye(3).long(), ValueError, r"one column for each of 3 rows, got shape \(3, 3\)"),
        (lambda cost: torch.arange(2), ValueError, r"one column for each of 3 rows, got shape \(2,\)"),
        (lambda cost: torch.arange(1, 4), ValueError, r"columns in \[0, 3\), got 1 to 3"),
        (lambda cost: torch.arange(-1, 2), ValueError, r"columns in \[0, 3\), got -1 to 1"),
        (lambda cost: torch.tensor([0, 0, 1]), ValueError, r"a column of its own, got 1 of 3 repeated"),
    ],
)
def test_wrong_results_of_a_callable_solver_are_named(solver, error, message):
    with pytest.raises(error, match=message):
        LinearAssignment(solver=solver)(torch.zeros(3, 2), torch.eye(3)[:, :2])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dims", [6, 80])
@pytest.mark.parametrize("factor", [1.5, 3])
def test_a_pool_is_searched_for_its_best_rows(metric, dims, factor):
    data, noise = pairs(12, dims, 2)
    mask = torch.rand(12, dims, generator=generator(5)) < 0.7
    result = LinearAssignment(metric, pool_factor=factor)(data, noise, mask=mask, generator=generator(9))
    number = round(12 * factor)
    pool = torch.cat((noise, torch.randn(number - 12, dims, generator=generator(9))))
    assert torch.equal(result, pool[optimum(true_costs(data, pool, metric, mask))])
    drawn = LinearAssignment(metric, pool_factor=factor)(data, generator=generator(9))
    again = generator(9)
    pool = torch.cat([torch.randn(rows, dims, generator=again) for rows in (12, number - 12)])
    assert torch.equal(drawn, pool[optimum(true_costs(data, pool, metric, torch.ones_like(mask)))])


def test_a_batch_of_one_may_choose_from_a_pool():
    data = torch.ones(1, 4)
    pool = torch.cat([torch.randn(rows, 4, generator=g) for g in [generator(0)] for rows in (1, 7)])
    result = LinearAssignment("inner", pool_factor=8)(data, generator=generator(0))
    assert torch.equal(result, pool[pool.sum(1).argmax()][None])


def test_pools_select_norms_as_their_caveat_says():
    data = 0.5 * torch.randn(256, 32, generator=generator(0))
    norms = {
        (metric, factor): diagnose(
            data, LinearAssignment(metric, pool_factor=factor)(data, generator=generator(1))
        ).noise_norm
        for metric in METRICS
        for factor in (1, 2)
    }
    for metric in METRICS:
        assert norms[metric, 1] == pytest.approx(1.0, abs=0.03)
        caveat = LinearAssignment(metric, pool_factor=2).caveat
        if metric == "inner":
            assert 1.1 < norms[metric, 2] < 1.2
            assert "long ones" in caveat
        else:
            assert 0.8 < norms[metric, 2] < 0.86
            assert "short ones" in caveat


def test_flipped_targets_assign_on_the_reversed_noise():
    data = torch.randn(200, 3, 4, 5, generator=generator(0))
    noise = torch.randn(200, 3, 4, 5, generator=generator(1))
    result = LinearAssignment("sqeuclidean", target="flipped")(data, noise)
    expected = LinearAssignment("sqeuclidean")(data, noise.flip(1, 2, 3)).flip(1, 2, 3)
    assert torch.equal(result, expected)
    # The noise returned is not nearer than chance, but still decided by the data.
    plain = diagnose(data, LinearAssignment("sqeuclidean")(data, noise))
    flipped = diagnose(data, result)
    assert plain.distance_change < -5
    assert abs(flipped.distance_change) < 1.5
    assert abs(flipped.alignment) < 0.5 < 1.5 < plain.alignment


def test_flipped_targets_count_the_mask_where_the_data_have_it():
    data, noise = pairs(12, 6, 0)
    mask = torch.rand(12, 6, generator=generator(1)) < 0.6
    result = LinearAssignment(target="flipped")(data, noise, mask=mask)
    assert columns_taken(noise, result) == optimum(true_costs(data, noise.flip(1), "l2", mask))


CONDITIONS = {
    "labels": torch.randint(0, 4, (40,), generator=generator(0)),
    "int32": torch.randint(0, 4, (40, 1), generator=generator(0), dtype=torch.int32),
    "bool": torch.rand(40, 2, generator=generator(1)) < 0.5,
    "one-hot": torch.eye(4)[torch.randint(0, 4, (40,), generator=generator(2))],
    "some alone": torch.arange(40).clamp_max(30),
}


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", CONDITIONS)
def test_within_a_condition_each_class_is_assigned_alone(kind, metric, factor):
    condition = CONDITIONS[kind]
    data, noise = pairs(40, 5, 3)
    coupling = LinearAssignment(metric, within="condition", pool_factor=factor)
    result = coupling(data, noise, condition, generator=generator(4))
    pool = torch.cat((noise, torch.randn(40 * (factor - 1), 5, generator=generator(4))))
    keys = [tuple(row.reshape(-1).tolist()) for row in condition]
    differs = np.array([[a != b for b in keys * factor] for a in keys])
    costs = true_costs(data, pool, metric, torch.ones(40, 5, dtype=torch.bool))
    assert torch.equal(result, pool[optimum(costs + 1e6 * differs)])


def test_within_a_condition_the_noise_stays_that_of_the_source():
    """Unlike the plain assignment, whose noise of a class leans to the class's mean by a standard deviation."""
    shift = {}
    for within in (None, "condition"):
        means = []
        for seed in range(40):
            condition = torch.randint(0, 2, (64,), generator=generator(seed))
            data = (2.0 * condition[:, None] - 1.0) * torch.ones(64, 2)
            noise = LinearAssignment(within=within)(data, condition=condition, generator=generator(1000 + seed))
            means.append(noise[condition == 1].mean())
        shift[within] = float(torch.stack(means).mean())
    assert shift[None] > 0.5
    assert abs(shift["condition"]) < 4.0 / (40 * 32 * 2) ** 0.5
    assert LinearAssignment(within="condition").caveat is None
    assert "p(noise | condition)" in LinearAssignment().caveat
    assert "p(noise | condition)" in LinearAssignment(pool_factor=2).caveat
    assert "p(noise | condition)" not in LinearAssignment(pool_factor=2, within="condition").caveat


def test_float_conditions_that_all_differ_warn_and_labels_do_not():
    data, noise = pairs(8, 3, 0)
    coupling = LinearAssignment(within="condition")
    with pytest.warns(UserWarning, match="left a batch of 8 as it was, since all its float conditions differ"):
        assert torch.equal(coupling(data, noise, torch.randn(8, 2, generator=generator(0))), noise)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(coupling(data, noise, torch.arange(8)), noise)


@pytest.mark.parametrize("factor", [1, 1.5])
@pytest.mark.parametrize(
    ("metric", "condition_metric", "used"),
    [("l2", None, "l2"), ("sqeuclidean", None, "sqeuclidean"), ("inner", None, "sqeuclidean"), ("l1", "cosine", None)],
)
def test_a_fixed_weight_adds_the_condition_cost_of_the_noises_sample(metric, condition_metric, used, factor):
    data, noise = pairs(16, 5, 3)
    condition = torch.randn(16, 3, generator=generator(6))
    coupling = LinearAssignment(metric, condition_weight=0.7, condition_metric=condition_metric, pool_factor=factor)
    result = coupling(data, noise, condition, generator=generator(4))
    pool = torch.cat((noise, torch.randn(round(16 * factor) - 16, 5, generator=generator(4))))
    if used is None:
        extra = 1.0 - torch.nn.functional.cosine_similarity(condition[:, None], condition[None], dim=-1).numpy()
    else:
        extra = true_costs(condition, condition, used, torch.ones(16, 3, dtype=torch.bool))
    beside = np.arange(len(pool)) % 16
    costs = true_costs(data, pool, metric, torch.ones(16, 5, dtype=torch.bool)) + 0.7 * extra[:, beside]
    assert torch.equal(result, pool[optimum(costs)])
    assert not torch.equal(result, LinearAssignment(metric, pool_factor=factor)(data, noise, generator=generator(4)))


@pytest.mark.parametrize("metric", ["l2", "sqeuclidean"])
def test_a_large_weight_of_labels_is_the_assignment_within_them(metric):
    data, noise = pairs(64, 100, 3)
    labels = torch.randint(0, 3, (64,), generator=generator(1))
    weighted = LinearAssignment(metric, condition_weight=1e8)(data, noise, labels)
    assert torch.equal(weighted, LinearAssignment(metric, within="condition")(data, noise, labels))


def test_a_large_weight_leaves_the_digits_of_the_distances():
    """At 1e8 times a squared distance of hundreds, float32 would round the distances to nothing."""
    data, noise = pairs(16, 100, 3)
    condition = torch.randint(-3, 4, (16, 100), generator=generator(1)).float()
    seen = cost_seen(LinearAssignment("sqeuclidean", condition_weight=1e8), data, noise, condition)
    everywhere = torch.ones(16, 100, dtype=torch.bool)
    extra = true_costs(condition, condition, "sqeuclidean", everywhere)
    left = seen.double().numpy() - 1e8 * extra
    assert left == pytest.approx(true_costs(data, noise, "sqeuclidean", everywhere), abs=1e-2)


def test_conditions_are_needed_where_they_are_used_and_ignored_elsewhere():
    data, noise = pairs(8, 3, 0)
    for settings_ in ({"within": "condition"}, {"condition_weight": 1.0}, {"condition_weight": TargetRate()}):
        with pytest.raises(ValueError, match=r"condition must be given to LinearAssignment\(metric='l2', .*got None"):
            LinearAssignment(**settings_)(data, noise)
        with pytest.raises(ValueError, match="condition must be finite, got 1 NaN or infinite of 8 entries"):
            LinearAssignment(**settings_)(data, noise, torch.tensor([float("inf"), *[0.0] * 7]))
    unused = torch.full((8,), float("nan"))
    assert torch.equal(LinearAssignment()(data, noise, unused), LinearAssignment()(data, noise))


@pytest.mark.parametrize(("metric", "weight"), [("sqeuclidean", 1e-7), ("l2", 1e-3), ("cosine", 10.0)])
def test_half_precision_conditions_do_not_overflow(metric, weight):
    data, noise = pairs(16, 5, 3)
    condition = (1e4 * torch.randn(16, 100, generator=generator(0))).half()
    coupling = LinearAssignment("sqeuclidean", condition_weight=weight, condition_metric=metric)
    assert torch.equal(coupling(data, noise, condition), coupling(data, noise, condition.float()))
    assert not torch.equal(coupling(data, noise, condition), LinearAssignment("sqeuclidean")(data, noise))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 10),
    st.sampled_from(METRICS),
    st.sampled_from(COST_DTYPES),
    st.sampled_from(sorted(SOLVERS)),
    st.booleans(),
    st.floats(1, 4),
    st.sampled_from(["given", "flipped"]),
    st.sampled_from([{}, {"within": "condition"}, {"condition_weight": 3.0}, {"condition_weight": TargetRate(0.5)}]),
    st.integers(0, 10_000),
)
def test_rows_are_always_different_rows_of_the_pool(
    batch, metric, cost_dtype, solver, standardize, factor, target, conditions, seed
):
    data = torch.randn(batch, 3, 2, generator=generator(seed)).to(torch.bfloat16)
    noise = torch.randn(batch, 3, 2, generator=generator(seed + 1)).to(torch.bfloat16)
    labels = torch.randint(0, 3, (batch,), generator=generator(seed + 2))
    coupling = LinearAssignment(metric, cost_dtype, solver, standardize, factor, target, **conditions)
    result = coupling(data, noise, labels, generator=generator(seed + 3))
    extra = torch.randn(round(factor * batch) - batch, 3, 2, generator=generator(seed + 3), dtype=torch.bfloat16)
    taken = columns_taken(torch.cat((noise, extra)), result)
    assert len(set(taken)) == batch


def test_a_given_source_is_permuted():
    def uniform(shape, generator):
        return torch.rand(shape, generator=generator)

    data, _ = pairs(32, 4, 0)
    result = LinearAssignment(source=uniform)(data, generator=generator(3))
    assert sorted(columns_taken(torch.rand(32, 4, generator=generator(3)), result)) == list(range(32))


def test_settings_are_compared_by_value_and_validation_is_alone():
    coupling = LinearAssignment(condition_weight=TargetRate(0.1), across_ranks=True)
    assert coupling == LinearAssignment(condition_weight=TargetRate(0.1), across_ranks=True)
    assert hash(coupling) == hash(LinearAssignment(condition_weight=TargetRate(0.1), across_ranks=True))
    assert coupling.for_validation() == LinearAssignment(condition_weight=TargetRate(0.1))
    assert LinearAssignment("l1").for_validation() == LinearAssignment("l1")

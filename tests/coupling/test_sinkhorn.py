"""Sinkhorn: the entropic plan, its two limits, and noises dealt by it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from scipy.stats import chisquare

from immiscible_policy.coupling import sinkhorn
from immiscible_policy.coupling.sinkhorn import Sinkhorn, log_plan

ROUNDINGS = ["permutation", "sample"]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pairs(batch: int, dims: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        torch.randn(batch, dims, generator=generator(seed)) * 0.7,
        torch.randn(batch, dims, generator=generator(seed + 10_000)),
    )


def squared_distances(data: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    return (data.double()[:, None] - noise.double()[None]).square().sum(-1)


def spread(cost: torch.Tensor) -> float:
    centred = cost - cost.mean(1, keepdim=True) - cost.mean(0) + cost.mean()
    return float(centred.square().mean().sqrt())


def slow_plan(cost: torch.Tensor, reg: float) -> torch.Tensor:
    """Cuturi 2013, Algorithm 1, by definition, iterated to the end in float64."""
    kernel = torch.exp(-(cost - cost.min()) / (reg * spread(cost)))
    u = torch.ones(len(cost), dtype=torch.float64)
    for _ in range(3000):
        v = 1.0 / len(cost) / (kernel.T @ u)
        u = 1.0 / len(cost) / (kernel @ v)
    return u[:, None] * kernel * v


def columns_taken(noise: torch.Tensor, result: torch.Tensor) -> list[int]:
    equal = (result[:, None] == noise[None]).all(-1)
    assert (equal.sum(1) == 1).all()
    return equal.int().argmax(1).tolist()


@pytest.mark.parametrize("reg", [0.15, 0.5, 3.0])
@pytest.mark.parametrize(("batch", "dims"), [(7, 3), (40, 12)])
def test_plan_is_that_of_plain_sinkhorn(batch, dims, reg):
    data, noise = pairs(batch, dims, batch)
    cost = squared_distances(data, noise)
    expected = slow_plan(cost, reg)
    plan = log_plan(cost, reg, n_iterations=20_000, tolerance=1e-12).exp()
    assert plan.numpy() == pytest.approx(expected.numpy(), rel=1e-6, abs=1e-12)
    single = log_plan(cost.float(), reg, n_iterations=20_000, tolerance=1e-5).exp()
    assert single.dtype == torch.float32
    assert single.numpy() == pytest.approx(expected.numpy(), rel=2e-3, abs=1e-7)


@pytest.mark.parametrize("reg", [1e-3, 0.1, 2.0])
def test_plan_of_two_by_two_in_closed_form(reg):
    """Costs are +-s up to terms of rows and columns, and P_00 P_11 / (P_01 P_10) = exp(-4 / reg)."""
    cost = squared_distances(*pairs(2, 3, 0))
    kept = 0.5 / (1.0 + math.exp(-2.0 / reg))
    lost = math.log(kept) - 2.0 / reg
    diagonal_is_kept = float(cost.trace()) < float(cost.flip(0).trace())
    plan = log_plan(cost, reg, 1000, 1e-12)
    expected = np.where(np.eye(2, dtype=bool) == diagonal_is_kept, math.log(kept), lost)
    assert plan.numpy() == pytest.approx(expected, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 40), st.integers(1, 20), st.floats(0.02, 10.0), st.floats(1e-4, 0.1), st.integers(0, 10_000))
def test_marginals_are_uniform_within_the_tolerance(batch, dims, reg, tolerance, seed):
    cost = squared_distances(*pairs(batch, dims, seed))
    plan = log_plan(cost, reg, n_iterations=100_000, tolerance=tolerance).exp()
    assert plan.sum(0).numpy() == pytest.approx(np.full(batch, 1.0 / batch), rel=1e-6)
    assert float((plan.sum(1) - 1.0 / batch).abs().sum()) < tolerance * (1 + 1e-6)


def test_marginals_in_float32_too():
    plan = log_plan(-(pairs(256, 64, 0)[0] @ pairs(256, 64, 0)[1].T), 0.05).exp()
    assert plan.dtype == torch.float32
    assert plan.sum(0).numpy() == pytest.approx(np.full(256, 1 / 256), rel=1e-3)
    assert float((plan.sum(1) - 1 / 256).abs().sum()) < 0.0101


def test_plan_depends_on_neither_scale_nor_terms_of_rows_and_columns():
    cost = squared_distances(*pairs(30, 5, 1))
    plan = log_plan(cost, 0.3, 10_000, 1e-10)
    terms = 40.0 * torch.randn(30, 1, generator=generator(2)) + 40.0 * torch.randn(30, generator=generator(3))
    for other in (1e-3 * cost, 1e3 * cost, cost + terms):
        assert log_plan(other, 0.3, 10_000, 1e-10).numpy() == pytest.approx(plan.numpy(), abs=1e-5)


@pytest.mark.parametrize("first_reg", [0.5, 0.01])
def test_entropy_lowered_in_stages_ends_at_the_same_plan(monkeypatch, first_reg):
    """From 1, from 0.5, or at reg at once."""
    cost = squared_distances(*pairs(30, 5, 1))
    expected = log_plan(cost, 0.2, 100_000, 1e-11).exp()
    monkeypatch.setattr(sinkhorn, "_FIRST_REG", first_reg)
    assert log_plan(cost, 0.2, 100_000, 1e-11).exp().numpy() == pytest.approx(expected.numpy(), abs=1e-9)


def test_plan_nears_the_optimum_as_reg_vanishes():
    cost = squared_distances(*pairs(64, 16, 0))
    rows, columns = linear_sum_assignment(cost.numpy())
    optimum, independent = float(cost[rows, columns].mean()), float(cost.mean())
    excess = []
    for reg in (3.0, 1.0, 0.3, 0.1, 0.03, 0.003):
        plan = log_plan(cost, reg, n_iterations=100_000, tolerance=1e-4).exp()
        excess.append((float((plan * cost).sum()) - optimum) / (independent - optimum))
    assert excess == sorted(excess, reverse=True)
    assert excess[0] > 0.5
    assert abs(excess[-1]) < 2e-3


def test_permutation_nears_the_exact_one_as_reg_vanishes():
    for seed in range(3):
        data, noise = pairs(64, 16, seed)
        cost = squared_distances(data, noise).numpy()
        best = cost[linear_sum_assignment(cost)].sum()
        result = Sinkhorn(0.002, n_iterations=5000)(data, noise)
        reached = cost[np.arange(64), columns_taken(noise, result)].sum()
        assert best - 1e-9 <= reached < best + 0.01 * (cost.mean() * 64 - best)


def test_large_reg_is_the_independent_coupling():
    batch, turns = 12, 600
    data, noise = pairs(batch, 4, 0)
    assert log_plan(squared_distances(data, noise), 1e7).exp().numpy() == pytest.approx(1 / batch**2, rel=1e-5)
    coupling, source_of_chance = Sinkhorn(1e7, rounding="sample"), generator(7)
    counts = np.zeros((batch, batch))
    for _ in range(turns):
        columns = columns_taken(noise, coupling(data, noise, generator=source_of_chance))
        counts[np.arange(batch), columns] += 1
    assert min(chisquare(row).pvalue for row in counts) > 0.01 / batch


def test_sampled_noises_follow_the_rows_of_the_plan():
    batch, turns = 8, 1000
    data, noise = pairs(batch, 4, 3)
    plan = log_plan(squared_distances(data, noise), 1.0, 500, 0.01)
    expected = plan.softmax(1).numpy() * turns
    coupling, source_of_chance = Sinkhorn(1.0, rounding="sample"), generator(8)
    counts = np.zeros((batch, batch))
    for _ in range(turns):
        columns = columns_taken(noise, coupling(data, noise, generator=source_of_chance))
        counts[np.arange(batch), columns] += 1
    statistic = ((counts - expected) ** 2 / expected)[expected > 5].sum()
    degrees = (expected > 5).sum()
    assert abs(statistic - degrees) < 4 * math.sqrt(2 * degrees)
    assert counts.sum(0) == pytest.approx(np.full(batch, turns), rel=0.1)  # each noise as often as any other


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("metric", ["sqeuclidean", "l2", "l1", "inner"])
def test_tiny_reg_and_large_data_stay_finite(metric, rounding):
    data, noise = pairs(24, 80, 5)
    data[3] *= 1000.0  # one datum far off: its row's costs dwarf the others'
    for reg in (1e-12, 1e-4):
        for dtype in (torch.float16, torch.float32, torch.float64):
            given_noise = noise.to(dtype)
            result = Sinkhorn(reg, metric, rounding)(data.to(dtype), given_noise, generator=generator(0))
            taken = columns_taken(given_noise, result)
            assert rounding == "sample" or sorted(taken) == list(range(24))
    assert torch.isfinite(log_plan(squared_distances(data, noise), 1e-12)).all()
    assert torch.isfinite(log_plan(squared_distances(data, noise).float(), 0.01)).all()


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 16),
    st.sampled_from(["sqeuclidean", "l2", "l1", "inner"]),
    st.sampled_from(ROUNDINGS),
    st.sampled_from([1e-4, 0.05, 10.0]),
    st.booleans(),
    st.integers(0, 10_000),
)
def test_noises_are_those_given(batch, metric, rounding, reg, masked, seed):
    data, noise = pairs(batch, 6, seed)
    mask = torch.rand(batch, 6, generator=generator(seed)) < 0.6 if masked else None
    taken = columns_taken(noise, Sinkhorn(reg, metric, rounding)(data, noise, mask=mask, generator=generator(seed)))
    assert rounding == "sample" or sorted(taken) == list(range(batch))


def test_inner_product_has_the_plan_of_the_squared_distance():
    data, noise = pairs(64, 96, 2)
    for rounding in ROUNDINGS:
        both = [Sinkhorn(0.1, m, rounding)(data, noise, generator=generator(3)) for m in ("sqeuclidean", "inner")]
        assert torch.equal(*both)


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_distances_are_over_valid_entries(rounding):
    """A mask shared by all samples couples as data and noise cut down to its entries do."""
    data, noise = pairs(32, 8, 4)
    mask = torch.tensor([True, True, False, True, False, True, True, True])
    coupling = Sinkhorn(0.05, "l2", rounding)
    cut = coupling(data[:, mask], noise[:, mask], generator=generator(1))
    poisoned = data.masked_fill(~mask, float("nan"))
    whole = coupling(poisoned, noise, mask=mask, generator=generator(1))
    assert torch.equal(whole[:, mask], cut)
    assert not torch.equal(whole, coupling(data, noise, generator=generator(1)))


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_batch_of_one_passes_through(rounding):
    data, noise = pairs(1, 3, 0)
    assert torch.equal(Sinkhorn(rounding=rounding)(data, noise), noise)


def test_data_without_spread_gets_independent_noise():
    data, noise = torch.zeros(6, 70), pairs(6, 70, 0)[1]
    for metric in ("sqeuclidean", "l2", "l1"):
        chance = generator(1)
        taken = [
            columns_taken(noise, Sinkhorn(1e-3, metric, "sample")(data, noise, generator=chance)) for _ in range(300)
        ]
        assert chisquare(np.bincount(np.ravel(taken), minlength=6)).pvalue > 1e-3
        assert torch.equal(Sinkhorn(1e-3, metric)(data, noise), noise)


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_the_generator_decides(rounding):
    data, _ = pairs(32, 8, 6)
    coupling = Sinkhorn(0.3, rounding=rounding)
    state = torch.get_rng_state()
    first, again, other = (coupling(data, generator=generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)
    drawn = torch.randn(32, 8, generator=generator(1))
    assert set(columns_taken(drawn, first)) <= set(range(32))


def test_noise_may_come_from_another_source():
    def uniform(shape, generator):
        return torch.rand(shape, generator=generator)

    result = Sinkhorn(source=uniform)(pairs(16, 3, 0)[0], generator=generator(4))
    drawn = torch.rand(16, 3, generator=generator(4))
    assert sorted(columns_taken(drawn, result)) == list(range(16))


@pytest.fixture
def count_iterations(monkeypatch):
    """A list that the iterations of every stage are added to."""
    counts = []
    scale = sinkhorn._scale

    def counting(*arguments):
        result = scale(*arguments)
        counts.append(result[2])
        return result

    monkeypatch.setattr(sinkhorn, "_scale", counting)
    return counts


def test_iterations_end_at_their_number(count_iterations):
    data, noise = pairs(40, 4, 0)
    for most in (1, 2, 7, 25, 60):
        count_iterations.clear()
        assert torch.isfinite(log_plan(squared_distances(data, noise), 1e-5, most, tolerance=1e-9)).all()
        assert most <= sum(count_iterations) <= most + 1
        count_iterations.clear()
        Sinkhorn(1e-5, n_iterations=most, tolerance=1e-9)(data, noise)
        assert most <= sum(count_iterations) <= most + 1


def test_stages_save_iterations(count_iterations, monkeypatch):
    data, noise = pairs(64, 16, 0)
    Sinkhorn(0.001, n_iterations=5000)(data, noise)
    in_stages = sum(count_iterations)
    count_iterations.clear()
    monkeypatch.setattr(sinkhorn, "_FIRST_REG", 0.001)
    Sinkhorn(0.001, n_iterations=5000)(data, noise)
    assert len(count_iterations) == 1
    assert in_stages < 0.5 * sum(count_iterations)


@pytest.mark.parametrize("limit", [1.0, 10.0])
def test_absorbing_scalings_changes_no_iteration(monkeypatch, limit):
    """Without stages and at small reg scalings grow by many orders; the same iterations by log-sum-exp alone."""
    cost = squared_distances(*pairs(30, 5, 1))
    monkeypatch.setattr(sinkhorn, "_FIRST_REG", 0.01)
    monkeypatch.setattr(sinkhorn, "_LARGEST_SCALING", limit)
    fast = log_plan(cost, 0.01, 150, 1e-9)
    monkeypatch.setattr(sinkhorn, "_LARGEST_SCALING", -1.0)
    slow = log_plan(cost, 0.01, 150, 1e-9)
    assert fast.exp().numpy() == pytest.approx(slow.exp().numpy(), abs=1e-7)


def test_only_sampling_repeats_noises_and_says_so():
    data, noise = pairs(64, 4, 0)
    sampled = columns_taken(noise, Sinkhorn(1.0, rounding="sample")(data, noise, generator=generator(0)))
    assert len(set(sampled)) < 64
    assert "a noise twice" in Sinkhorn(rounding="sample").caveat
    assert "a noise twice" not in Sinkhorn().caveat


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reg": 0.0}, r"reg must be a number > 0, got 0.0"),
        ({"reg": float("inf")}, r"reg must be a number > 0, got inf"),
        ({"reg": "small"}, r"reg must be a number > 0, got 'small'"),
        ({"tolerance": -1.0}, r"tolerance must be a number > 0, got -1.0"),
        ({"metric": "cosine"}, r"metric must be .*'sqeuclidean'.*, got 'cosine'"),
        ({"rounding": "argmax"}, r"rounding must be 'permutation' or 'sample', got 'argmax'"),
        ({"n_iterations": 0}, r"n_iterations must be an integer >= 1, got 0"),
        ({"n_iterations": 2.5}, r"n_iterations must be an integer >= 1, got 2.5"),
    ],
)
def test_bad_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Sinkhorn(**arguments)

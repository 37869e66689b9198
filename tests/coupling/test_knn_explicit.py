"""Explicit candidates: equal to the obvious selection, any cost and source, little memory."""

import math

import pytest
import torch
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode

from immiscible_policy.coupling import KNN

P_VALUE = 1e-4


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def chebyshev(data: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    return (data - noise).flatten(1).abs().amax(1)


COSTS = {
    "l2": lambda x, n, w: (w * (x - n).square()).sum(1),
    "l1": lambda x, n, w: (w * (x - n).abs()).sum(1),
    "inner": lambda x, n, w: -(w * x * n).sum(1),
    "cosine": lambda x, n, w: -(w * x * n).sum(1) / (w * n * n).sum(1).sqrt(),
    chebyshev: lambda x, n, w: (w * (x - n)).abs().amax(1),
}


@pytest.mark.parametrize("metric", COSTS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_is_the_obvious_selection(metric, weighted, masked):
    """All candidates of a block side by side, drawn in the same order."""
    x, given_noise = (torch.randn(200, 12, generator=generator(s), dtype=torch.float64) for s in (0, 1))
    mask = torch.rand(200, 12, generator=generator(3)) < 0.7 if masked else torch.ones(200, 12, dtype=torch.bool)
    weights = torch.arange(12.0) if weighted and isinstance(metric, str) else torch.ones(12)
    w = weights.double() * mask
    g = generator(2)
    candidates = [given_noise, *(torch.randn(200, 12, generator=g, dtype=torch.float64) for _ in range(6))]
    costs = torch.stack([COSTS[metric](x, n, w) for n in candidates])
    wanted = torch.stack(candidates)[costs.argmin(0), torch.arange(200)]
    coupling = KNN(7, metric, "explicit", weights={1: weights.tolist()} if isinstance(metric, str) else None)
    noise = coupling(x, given_noise, mask=mask if masked else None, generator=generator(2))
    assert torch.equal(noise, torch.where(w > 0, wanted, given_noise))


@pytest.mark.parametrize("pick", [2, 3, 5])
def test_a_random_one_of_the_best_is_among_them_each_as_often(pick):
    x, given_noise = torch.zeros(6_000, 3), torch.randn(6_000, 3, generator=generator(1))
    g = generator(2)
    candidates = torch.stack([given_noise, *(torch.randn(6_000, 3, generator=g) for _ in range(4))])
    noise = KNN(5, "l2", "explicit", pick=pick)(x, given_noise, generator=generator(2))
    order = candidates.square().sum(2).argsort(0)
    sorted_candidates = candidates.gather(0, order[..., None].expand_as(candidates))
    is_rank = (sorted_candidates == noise).all(2)
    assert (is_rank.sum(0) == 1).all()
    assert (is_rank[pick:].sum() == 0).all()
    assert stats.chisquare(is_rank[:pick].sum(1).numpy()).pvalue > P_VALUE


def test_blocks_of_rows_keep_the_law():
    """300 blocks of one row each, k of each row's own candidates."""
    x = torch.zeros(300, 2**16)
    x[:, 0] = 3.0
    noise = KNN(3, "inner", "explicit")(x, generator=generator(3))
    assert stats.kstest(stats.norm.cdf(noise[:, 0].double().numpy()) ** 3, "uniform").pvalue > P_VALUE
    assert torch.unique(noise[:, 1:5], dim=0).shape[0] == 300


def test_a_source_draws_every_candidate():
    """|n| uniform on [0, 1]: the least of k has 1 - (1 - t)^k."""
    shapes = []

    def uniform(shape, g):
        shapes.append(shape)
        return torch.rand(shape, generator=g) * 2.0 - 1.0

    x = torch.zeros(20_000, 1, 1)
    noise = KNN(4, source=uniform)(x, generator=generator(4))
    assert stats.kstest(1 - (1 - noise.abs().flatten().double().numpy()) ** 4, "uniform").pvalue > P_VALUE
    assert shapes == [(20_000, 1, 1)] * 4
    assert torch.equal(KNN(1, source=uniform)(x, generator=generator(5)), uniform(x.shape, generator(5)))


def test_what_a_source_returns_is_left_alone():
    kept = torch.arange(6.0).view(3, 2)
    noise = KNN(3, source=lambda shape, g: kept[: shape[0]])(torch.ones(3, 2))
    assert torch.equal(noise, kept)
    assert noise.data_ptr() != kept.data_ptr()
    assert torch.equal(kept, torch.arange(6.0).view(3, 2))


def test_a_source_of_the_wrong_shape_is_named():
    with pytest.raises(
        ValueError, match=r"source must return a tensor of the shape it is asked for \(3, 2\), got \(2,\)"
    ):
        KNN(3, source=lambda shape, g: torch.zeros(2))(torch.ones(3, 2))


def test_a_function_sees_the_shape_of_data_and_zeros_where_nothing_counts():
    seen = []

    def metric(data, noise):
        seen.append((data.clone(), noise.clone()))
        return (data - noise).flatten(1).norm(dim=1)

    data = torch.randn(5, 4, 2, generator=generator(0)).half()
    mask = torch.ones(4, 1, dtype=torch.bool)
    mask[3] = False
    KNN(3, metric, features={2: [1]})(data, mask=mask, generator=generator(1))
    assert len(seen) == 3
    for x, n in seen:
        assert x.shape == n.shape == (5, 4, 2)
        assert x.dtype == n.dtype == torch.float32
        for tensor in (x, n):
            assert (tensor[:, :3, 1] != 0).all()
            assert (tensor[:, 3] == 0).all()
            assert (tensor[..., 0] == 0).all()
        assert torch.equal(x[:, :3, 1], data[:, :3, 1].float())


@pytest.mark.parametrize(
    ("metric", "found"), [(lambda x, n: (x - n).norm(), r"\(\)"), (lambda x, n: 0.0, "float"), (torch.sub, r"\(5, 2\)")]
)
def test_a_function_of_the_wrong_shape_is_named(metric, found):
    with pytest.raises(
        ValueError, match=rf"metric must return one cost per row, a tensor of shape \(5,\); got {found}"
    ):
        KNN(2, metric)(torch.zeros(5, 2))


class LargestTensor(TorchDispatchMode):
    """Entries of the largest tensor that an operation computes; views and memory yet to be filled aside."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        aside = any(word in str(func) for word in ("view", "slice", "empty", "detach", "expand"))
        if isinstance(result, torch.Tensor) and not aside:
            self.entries = max(self.entries, result.numel())
        return result


@pytest.mark.parametrize("metric", COSTS)
@pytest.mark.parametrize("pick", [1, 4])
def test_beyond_the_result_memory_is_blocks_of_rows(metric, pick):
    data, noise = torch.randn(512, 1024), torch.randn(512, 1024)
    with LargestTensor() as largest:
        KNN(5, metric, "explicit", pick=pick)(data, noise)
    assert 2**15 < largest.entries < 2**18 < data.numel()


def test_costs_that_are_no_number_are_the_farthest():
    """Nothing is smaller than NaN, so a NaN cost of the first draw would never be beaten."""

    def metric(data, noise):
        return torch.where(noise[:, 0] > 0, noise[:, 0], math.nan)

    for pick in ("best", 2):
        noise = KNN(64, metric, pick=pick)(torch.ones(500, 2), generator=torch.Generator().manual_seed(0))
        assert bool((noise[:, 0] > 0).all())
    none = KNN(4, lambda data, noise: noise[:, 0] * math.nan)(torch.ones(500, 2))
    assert bool(none.isfinite().all())

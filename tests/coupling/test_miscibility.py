"""Noise clusters: closed forms of their distances, and that they are found under every coupling."""

import math

import pytest
import torch
from scipy import special

from immiscible_policy.coupling import KNN, Independent, LinearAssignment, Mixture, Warmup
from immiscible_policy.coupling.miscibility import (
    NoiseClusters,
    independent_distance,
    noise_clusters,
    tracked_noises,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_independent_distance_is_the_mean_of_a_chi_variable():
    assert independent_distance(1, 8) == pytest.approx(math.sqrt(2 / 8) * math.sqrt(2 / math.pi))
    assert independent_distance(3_072, 10_000) == pytest.approx(math.sqrt(2 * 3_072 / 10_000), rel=1e-4)
    draws = math.sqrt(2 / 50) * normal(20_000, 7).norm(dim=1)
    assert independent_distance(7, 50) == pytest.approx(float(draws.mean()), rel=0.01)


def test_independent_noise_lies_apart_by_sampling_alone():
    clusters = noise_clusters(Independent(), normal(30, 8, 16), torch.arange(12), 100, 20)
    found = clusters.distance()
    assert found.mean == pytest.approx(independent_distance(128, 100), rel=0.02)
    assert found.deviation == pytest.approx(0.1, rel=0.3)  # 1 / sqrt(N)
    assert float(clusters.squared_shifts().mean()) == pytest.approx(0.0, abs=0.1)
    torch.testing.assert_close(clusters.spread, torch.full((12,), 128.0).double(), rtol=0.05, atol=0)


@pytest.mark.parametrize("k", [2, 8])
def test_inner_selection_moves_the_means_by_the_expected_largest_normal(k):
    """m_i = E_k x_i/|x_i|, so that the squared distance is E_k^2 |e_i - e_j|^2."""
    data = normal(20, 4, 3)
    tracked = torch.tensor([3, 19, 0, 7, 11])
    clusters = noise_clusters(KNN(k=k, metric="inner"), data, tracked, 20_000, 20)
    largest = {2: 1 / math.sqrt(math.pi), 8: 1.42360}[k]
    direction = data.flatten(1)[tracked].double()
    direction /= direction.norm(dim=1, keepdim=True)
    expected = largest * torch.pdist(direction)
    torch.testing.assert_close(clusters.squared_shifts().sqrt(), expected, rtol=0, atol=0.05)
    assert clusters.shift().mean == pytest.approx(float(expected.square().mean().sqrt()), abs=0.02)
    # The variance along the direction falls by E_k^2 - (E max^2 - 1).
    assert float(clusters.spread.mean()) < 12.0 + (0.0 if k == 2 else 1.0)


def test_assignment_of_opposite_pairs_is_the_expected_half_normal():
    """Two data +-x in one batch: each gets the larger of two projections, E_2 = 1/sqrt(pi)."""
    x = torch.zeros(2, 6)
    x[0, 0], x[1, 0] = 2.0, -2.0
    clusters = noise_clusters(LinearAssignment("sqeuclidean"), x, torch.arange(2), 4_000, 2)
    assert clusters.shift().mean == pytest.approx(2 / math.sqrt(math.pi), abs=0.06)
    assert math.isnan(clusters.shift().error)


def test_more_noises_are_foreseen_from_few():
    data = 2.0 * normal(40, 24)
    few = noise_clusters(LinearAssignment("sqeuclidean"), data, torch.arange(8), 300, 32)
    many = noise_clusters(LinearAssignment("sqeuclidean"), data, torch.arange(8), 1_500, 32, seed=1)
    assert few.distance().mean > many.distance().mean + 0.02
    assert few.distance(1_500).mean == pytest.approx(many.distance().mean, rel=0.03)
    assert few.shift().mean == pytest.approx(many.shift().mean, rel=0.03)
    torch.testing.assert_close(few.distances(300), few.distances())


def test_jackknife_error_is_the_spread_of_repetitions_with_other_data():
    """Centres at random: the pairs share data, so that their plain standard error would be far too small."""
    means, errors, naive = [], [], []
    for seed in range(200):
        centres = normal(12, 1, seed=seed).double() * torch.tensor([[1.0]]).double()
        distance = NoiseClusters(centres, torch.zeros(12).double(), 10).distance()
        means.append(distance.mean)
        errors.append(distance.error)
        naive.append(distance.deviation / math.sqrt(66))
    truth = float(torch.tensor(means).std())
    assert sum(errors) / 200 == pytest.approx(truth, rel=0.2)
    assert sum(naive) / 200 < 0.7 * truth


def test_noises_are_those_that_the_clusters_summarise():
    data = normal(30, 5)
    for coupling in (KNN(k=4), LinearAssignment()):
        arguments = (coupling, data, torch.tensor([4, 2, 9]), 50, 12)
        noises, clusters = tracked_noises(*arguments), noise_clusters(*arguments)
        assert noises.shape == (3, 50, 5)
        torch.testing.assert_close(noises.double().mean(1), clusters.centres)
        spread = noises.double().var(1).sum(1)
        torch.testing.assert_close(clusters.spread, spread)


def test_companions_are_other_data_and_change():
    seen = []

    class Spy(Independent):
        def _couple(self, data, noise, context):
            seen.append(context.indices.clone())
            assert torch.equal(data[:, 0], context.indices.float())
            assert torch.equal(context.condition, 10 * context.indices)
            # Row i gets noise that names it, so that the tracked ones can be told.
            return context.indices[:, None].float().expand(data.shape).clone()

    # Not taken for a coupling of single data.
    spy = Mixture(Spy(), p=1.0)
    data = torch.arange(20.0)[:, None].expand(20, 2)
    tracked = torch.tensor([5, 17])
    noises = tracked_noises(spy, data, tracked, 6, 8, condition=10 * torch.arange(20))
    assert torch.equal(noises, torch.tensor([5.0, 17.0])[:, None, None].expand(2, 6, 2))
    assert len(seen) == 6
    for rows in seen:
        assert len(torch.unique(rows)) == 8
        assert {5, 17} <= set(rows.tolist())
    assert len({tuple(rows.tolist()) for rows in seen}) == 6


def test_memory_and_time_are_looked_after():
    coupling = Warmup(Mixture(KNN(k=2), p=(0.0, 1.0)), start=2)
    clusters = noise_clusters(coupling, normal(10, 4), torch.arange(3), 5, 6)
    assert clusters.count == 5
    assert coupling.calls == 0


def test_the_seed_decides():
    arguments = (KNN(k=2), normal(10, 4), torch.arange(3), 5, 6)
    first, again, other = (noise_clusters(*arguments, seed=s).centres for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tracked": torch.tensor([1])}, r"tracked must be \(T,\) different indices, T >= 2, got \[1\]"),
        ({"tracked": torch.tensor([1, 1])}, r"tracked must be .* different indices"),
        ({"tracked": torch.tensor([1, 10])}, r"tracked must index the 10 data, got 1 to 10"),
        ({"count": 1}, r"count must be at least 2, got 1"),
        ({"batch_size": 2}, r"batch_size must be from 3 to the 10 data, got 2"),
        ({"batch_size": 11}, r"batch_size must be from 3 to the 10 data, got 11"),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = {"data": torch.zeros(10, 2), "tracked": torch.arange(3), "count": 4, "batch_size": 5, **change}
    with pytest.raises(ValueError, match=message):
        noise_clusters(Independent(), **arguments)


def test_expected_largest_of_eight():
    """The constant above, by integration over quantiles."""
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    assert float(torch.from_numpy(special.ndtri(u.numpy() ** (1 / 8))).mean()) == pytest.approx(1.42360, abs=1e-4)

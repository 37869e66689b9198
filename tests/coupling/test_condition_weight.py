"""Condition weights: the share that C2OT asks for, the clusters and gain of COT Policy, and their memory."""

from dataclasses import FrozenInstanceError

import pytest
import torch

from immiscible_policy.coupling import KNN, LinearAssignment, Mixture, Warmup, diagnose
from immiscible_policy.coupling._costs import condition_cost, pairwise_cost
from immiscible_policy.coupling.condition_weight import LARGEST_WEIGHT, ClusteredConditions, TargetRate


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed))


def problem(batch: int = 48, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Costs of random pairs, condition costs of 2-D conditions, and the diagonal."""
    condition = draw(seed + 2, batch, 2)
    cost = pairwise_cost(draw(seed, batch, 8) * 0.7, draw(seed + 1, batch, 8), "sqeuclidean")
    return cost, condition_cost(condition, condition, "sqeuclidean"), torch.arange(batch)


def share(cost: torch.Tensor, extra: torch.Tensor, own: torch.Tensor, weight: float) -> float:
    return float((cost + weight * extra <= cost[own, own][:, None]).double().mean())


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.2, 0.35])
@pytest.mark.parametrize("initial", [1e-4, 1.0, 1e4])
def test_the_target_share_of_pairs_stays_cheaper(rate, initial):
    cost, extra, own = problem()
    weight = TargetRate(rate=rate, initial=initial).weight(cost, extra, own, 2, 2)
    assert share(cost, extra, own, weight) == pytest.approx(rate, abs=2 / cost.numel())
    # The share falls through the rate at the matching quantile of the weights that single pairs tolerate.
    off = ~torch.eye(len(own), dtype=torch.bool)
    tolerated = ((cost[own, own][:, None] - cost) / extra)[off].sort().values
    rank = len(tolerated) - (rate * cost.numel() - len(own))
    low, high = tolerated[max(0, int(rank) - 3)], tolerated[min(len(tolerated) - 1, int(rank) + 3)]
    assert float(low) <= weight <= float(high)


def test_the_share_is_counted_against_the_samples_own_noise():
    """Own noises may lie anywhere: with all columns moved, the weight is the same."""
    cost, extra, own = problem()
    order = torch.randperm(len(own), generator=generator(9))
    moved = torch.empty_like(order)
    moved[order] = own
    expected = TargetRate().weight(cost, extra, own, 2, 2)
    assert TargetRate().weight(cost[:, order], extra[:, order], moved, 2, 2) == expected


def test_weight_is_nothing_where_few_pairs_are_cheap_anyhow():
    cost, extra, own = problem()
    near = cost + 100.0 * (own[:, None] != own[None])
    target = TargetRate(rate=0.2)
    assert target.weight(near, extra, own, 2, 2) == 0.0
    # The next batch is searched as ever, not stuck at nothing.
    assert target.state_dict() == {}
    assert target.weight(cost, extra, own, 2, 2) > 0.0


def test_weight_ends_where_equal_conditions_are_more_than_the_share():
    cost, _, own = problem()
    same = torch.zeros_like(cost)
    target = TargetRate(rate=0.1)
    assert target.weight(cost, same, own, 2, 2) == LARGEST_WEIGHT
    assert target.state_dict() == {}


def test_the_weight_carries_over_through_checkpoints():
    coupling = LinearAssignment("sqeuclidean", condition_weight=TargetRate(rate=0.1, tolerance=0.01, iterations=8))
    assert coupling.state_dict() == {"condition_weight": {}}
    data, noise, condition = draw(0, 32, 4), draw(1, 32, 4), draw(2, 32, 2)
    coupling(data, noise, condition)
    saved = coupling.state_dict()
    assert saved["condition_weight"]["weight"] > 0
    resumed = LinearAssignment("sqeuclidean", condition_weight=TargetRate(rate=0.1, tolerance=0.01, iterations=8))
    resumed.load_state_dict(saved)
    coupling(data * 0.5, noise, condition)
    resumed(data * 0.5, noise, condition)
    assert resumed.state_dict() == coupling.state_dict() != saved


def test_validation_leaves_the_memory_as_it_is():
    coupling = LinearAssignment(condition_weight=TargetRate(), across_ranks=True)
    data, noise, condition = draw(0, 32, 4), draw(1, 32, 4), draw(2, 32, 2)
    coupling(data, noise, condition)
    saved = coupling.state_dict()
    validation = coupling.for_validation()
    assert validation.state_dict() == saved
    assert not validation.across_ranks
    validation(data * 3.0, noise, condition)
    assert coupling.state_dict() == saved != validation.state_dict()


@pytest.mark.parametrize(
    "state",
    [
        {"weight": 0.0},
        {"weight": -1.0},
        {"weight": "big"},
        {"weight": 1e9},
        {"weight": 1.0, "rate": 2.0},
        {"rate": 1.0},
    ],
)
def test_a_foreign_state_is_refused(state):
    target = TargetRate()
    with pytest.raises(ValueError, match=r"state of TargetRate must be \{'weight': number in"):
        target.load_state_dict(state)
    assert target.state_dict() == {}


def test_conditions_are_less_skewed_the_fewer_pairs_stay_cheap():
    """p(noise | condition) nears the prior as the target share falls, and the distance gained goes with it."""
    skews, distances = [], []
    for weight in (0, TargetRate(rate=0.2), TargetRate(rate=0.05)):
        coupling = LinearAssignment("sqeuclidean", condition_weight=weight)
        batches = []
        for seed in range(12):
            condition = draw(100 + seed, 128, 2)
            data = 0.7 * condition + 0.2 * draw(200 + seed, 128, 2)
            batches.append((data, coupling(data, generator=generator(seed), condition=condition), condition))
        diagnosis = diagnose(*(torch.cat(parts) for parts in zip(*batches, strict=True)))
        skews.append(diagnosis.condition_skew)
        distances.append(diagnosis.distance_change)
    assert skews[0] > 0.8
    assert 0.1 < skews[1] < 0.3
    assert abs(skews[2]) < 0.01
    assert distances[0] < -60 < distances[1] < -25 < distances[2] < -5


def blobs(per_cluster: int = 30, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Conditions around 4 centres that are far apart, and far from the origin, in 6 dimensions; and which."""
    which = torch.arange(4).repeat_interleave(per_cluster)
    centres = 10.0 * torch.eye(6)[:4] + 70.0 * torch.eye(6)[0]
    return centres[which] + 0.1 * draw(seed, len(which), 6), which


@pytest.mark.parametrize("n_components", [None, 3, 100])
def test_clusters_are_found_and_centres_stand_for_conditions(n_components):
    condition, which = blobs()
    clusters = ClusteredConditions(n_clusters=4, n_components=n_components)
    clusters.fit(condition, condition)
    features = clusters.features(condition.reshape(-1, 2, 3))
    assert len(torch.unique(features, dim=0)) == 4
    for cluster in range(4):
        assert (features[which == cluster] == features[which == cluster][0]).all()
    # Distances between centres survive the projection: 10 sqrt(2) between any two.
    distances = torch.cdist(torch.unique(features, dim=0), torch.unique(features, dim=0))
    assert distances[~torch.eye(4, dtype=torch.bool)].numpy() == pytest.approx(10 * 2**0.5, rel=0.02)


@pytest.mark.parametrize(("number", "entries"), [(40, 6), (6, 40), (2, 5)])
def test_components_are_the_leading_singular_vectors(number, entries):
    condition = draw(0, number, entries) * torch.linspace(1.0, 3.0, entries)
    clusters = ClusteredConditions(n_clusters=2, n_components=3)
    clusters.fit(condition, condition)
    found = clusters.state_dict()["components"].double()
    rank = min(3, number - 1)
    assert found.shape == (rank, entries)
    assert torch.allclose(found @ found.T, torch.eye(rank, dtype=torch.float64), atol=1e-5)
    expected = torch.linalg.svd((condition - condition.mean(0)).double(), full_matrices=False)[2][:rank]
    assert (found * expected).sum(1).abs().numpy() == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("metric", ["sqeuclidean", "l2"])
@pytest.mark.parametrize("gain", [0.5, 10.0])
def test_conditions_outweigh_samples_by_the_gain(metric, gain):
    condition, _ = blobs(8)
    data, noise = draw(1, 32, 5), draw(2, 32, 5)
    clusters = ClusteredConditions(n_clusters=4, gain=gain)
    clusters.fit(data, condition)
    centres = clusters.features(condition).double()
    sample_distance = (data[:, None] - noise[None]).double().norm(dim=-1)
    condition_distance = (centres[:, None] - centres[None]).norm(dim=-1)
    g = gain * sample_distance.mean() / condition_distance.mean()
    power = 2 if metric == "sqeuclidean" else 1
    expected = sample_distance**power + (g * condition_distance) ** power
    seen = []

    def spy(cost: torch.Tensor) -> torch.Tensor:
        seen.append(cost)
        return torch.arange(32)

    LinearAssignment(metric, condition_weight=clusters, solver=spy)(data, noise, condition)
    assert torch.allclose(seen[0], expected, rtol=1e-4, atol=1e-4)


def test_noises_stay_in_their_cluster_at_a_large_gain_and_cross_without():
    condition, which = blobs(16)
    data, noise = condition[:, :2] + draw(1, 64, 2), draw(2, 64, 2)
    for gain, stays in ((100.0, True), (0.0, False)):
        clusters = ClusteredConditions(n_clusters=4, gain=gain)
        clusters.fit(data, condition)
        result = LinearAssignment("sqeuclidean", condition_weight=clusters)(data, noise, condition)
        taken = (result[:, None] == noise[None]).all(-1).int().argmax(1)
        assert torch.equal(which[taken], which) == stays
        assert not torch.equal(taken, torch.arange(64))


def test_one_cluster_leaves_the_plain_assignment():
    condition, _ = blobs(8)
    data, noise = draw(1, 32, 5), draw(2, 32, 5)
    clusters = ClusteredConditions(n_clusters=1)
    clusters.fit(data, condition)
    result = LinearAssignment(condition_weight=clusters)(data, noise, condition)
    assert torch.equal(result, LinearAssignment()(data, noise))


def test_fit_through_the_coupling_and_back_from_a_checkpoint():
    condition, _ = blobs()
    data, noise = draw(1, 120, 5), draw(2, 120, 5)
    coupling = LinearAssignment(condition_weight=ClusteredConditions(n_clusters=4, n_components=2))
    with pytest.raises(RuntimeError, match=r"must be fitted before it is used: call fit\(data, condition\)"):
        coupling(data, noise, condition)
    coupling.fit(data, condition)
    twin = LinearAssignment(condition_weight=ClusteredConditions(n_clusters=4, n_components=2))
    twin.load_state_dict(coupling.state_dict())
    assert twin == coupling
    assert hash(twin) == hash(coupling)
    expected = coupling(data, noise, condition)
    assert torch.equal(twin(data, noise, condition), expected)
    assert torch.equal(twin.for_validation()(data, noise, condition), expected)


def test_only_clusters_need_conditions_before_training():
    clustered = LinearAssignment(condition_weight=ClusteredConditions(n_clusters=4))
    assert clustered.fit_uses == Mixture(clustered).fit_uses == Warmup(clustered).fit_uses == frozenset({"condition"})
    for coupling in (LinearAssignment(), LinearAssignment(condition_weight=TargetRate()), KNN(2), Warmup(KNN(2))):
        assert coupling.fit_uses == frozenset()
    # The fit that is named is enough.
    condition, _ = blobs()
    other = LinearAssignment(condition_weight=ClusteredConditions(n_clusters=4))
    clustered.fit(draw(1, 120, 5), condition)
    other.fit(torch.empty(120, 0), condition)
    assert all(
        torch.equal(value, other.state_dict()["condition_weight"][name])
        for name, value in clustered.state_dict()["condition_weight"].items()
    )


def test_fit_is_the_same_every_time():
    condition = draw(0, 200, 3)
    states = []
    for seed in (0, 0, 1):
        clusters = ClusteredConditions(n_clusters=8, seed=seed)
        clusters.fit(condition, condition)
        states.append(clusters.state_dict()["centres"])
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_states_of_another_shape_are_refused():
    condition, _ = blobs()
    fitted = ClusteredConditions(n_clusters=4, n_components=2)
    fitted.fit(condition, condition)
    state = fitted.state_dict()
    for other in (ClusteredConditions(n_clusters=5, n_components=2), ClusteredConditions(n_clusters=4, n_components=1)):
        with pytest.raises(ValueError, match=r"must have the shapes \{.*'centres': .*got \{"):
            other.load_state_dict(state)
    with pytest.raises(ValueError, match=r"must hold the tensors \['centres', 'mean'\], got"):
        ClusteredConditions(n_clusters=4, n_components=None).load_state_dict(state)
    for name in state:
        broken = dict(state, **{name: state[name][..., :1].contiguous()})
        with pytest.raises(ValueError, match="must have the shapes"):
            fitted.load_state_dict(broken)
    assert torch.equal(fitted.state_dict()["mean"], state["mean"])
    with pytest.raises(ValueError, match=r"state of LinearAssignment must be .* got \['weight'\]"):
        LinearAssignment(condition_weight=fitted).load_state_dict({"weight": 1.0})


def test_bad_conditions_are_named():
    clusters = ClusteredConditions(n_clusters=4)
    condition, _ = blobs()
    with pytest.raises(ValueError, match="condition must be given to fit"):
        clusters.fit(condition, None)
    with pytest.raises(TypeError, match=r"condition must be of floats.*torch.int64.*within='condition'"):
        clusters.fit(condition, torch.arange(120))
    with pytest.raises(ValueError, match="condition must be finite, got 6 NaN"):
        clusters.fit(condition, torch.cat((condition, torch.full((1, 6), float("nan")))))
    with pytest.raises(ValueError, match="n_clusters must be at most the number of different conditions 3, got 4"):
        clusters.fit(condition, condition[:3].repeat(5, 1))
    clusters.fit(condition, condition)
    with pytest.raises(ValueError, match=r"condition must have the 6 entries a row .* got 5"):
        clusters.features(condition[:, :5])


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (TargetRate, {"rate": 0.0}, r"rate must be a number in \(0, 1\), got 0.0"),
        (TargetRate, {"rate": "0.2"}, r"rate must be a number in \(0, 1\), got '0.2'"),
        (TargetRate, {"initial": 0}, r"initial must be a number in \(0, 1e\+08\], got 0"),
        (TargetRate, {"tolerance": -1}, r"tolerance must be a number >= 0, got -1"),
        (TargetRate, {"iterations": 0}, r"iterations must be an integer >= 1, got 0"),
        (ClusteredConditions, {"n_clusters": 0}, r"n_clusters must be an integer >= 1, got 0"),
        (ClusteredConditions, {"n_components": 1.5}, r"n_components must be an integer >= 1, got 1.5"),
        (ClusteredConditions, {"gain": float("nan")}, r"gain must be a number >= 0, got nan"),
        (ClusteredConditions, {"seed": -1}, r"seed must be an integer >= 0, got -1"),
    ],
)
def test_bad_settings_are_named(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(**arguments)


def test_weights_are_frozen_values():
    assert TargetRate(rate=0.1) == TargetRate(rate=0.1) != TargetRate(rate=0.2)
    assert repr(TargetRate(rate=0.1)).startswith("TargetRate(rate=0.1")
    with pytest.raises(FrozenInstanceError):
        TargetRate().rate = 0.5


def test_batches_of_ties_alone_never_end_the_search_for_the_weight():
    """Each halves the weight some thirty times; at 0 doubling would never find it again."""
    coupling = LinearAssignment("inner", condition_weight=TargetRate())
    for seed in range(45):
        condition = torch.randn(8, 3, generator=torch.Generator().manual_seed(seed))
        coupling(torch.zeros(8, 4), condition=condition)
    assert coupling.state_dict() != {}

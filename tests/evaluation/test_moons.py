"""Eight Gaussians to two moons: points, network and distance against closed forms; the published numbers when asked."""

import math

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from immiscible_policy.coupling import Independent, LinearAssignment
from immiscible_policy.diffusion import FlowMatching
from immiscible_policy.diffusion.flow_matching import NETWORK_TIME_SCALE
from immiscible_policy.evaluation.moons import (
    Protocol,
    ResidualNet,
    condition_of,
    eight_gaussians,
    evaluate,
    train,
    two_moons,
)
from immiscible_policy.evaluation.wasserstein import squared_wasserstein

TINY = Protocol(iterations=12, batch_size=16, coupled_size=64, width=8, depth=1, n_points=40)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_eight_gaussians_have_their_moments() -> None:
    points = eight_gaussians((80_000, 2), generator())
    sector = (torch.atan2(points[:, 1], points[:, 0]) / (math.pi / 4)).round().long() % 8
    assert (sector.bincount(minlength=8) / 80_000).sub(1 / 8).abs().max() < 0.005
    for index in range(8):
        near = points[sector == index]
        centre = 5 * torch.tensor([math.cos(index * math.pi / 4), math.sin(index * math.pi / 4)])
        torch.testing.assert_close(near.mean(0), centre, atol=0.03, rtol=0)
        # Variance sqrt(0.1) in every direction; a few points cross into a neighbour's sector.
        torch.testing.assert_close(near.T.cov(), math.sqrt(0.1) * torch.eye(2), atol=0.02, rtol=0)


def test_two_moons_lie_on_their_circles_up_to_a_shift_along_the_diagonal() -> None:
    points, labels = two_moons(2001, generator())
    assert labels.tolist() == [0] * 1000 + [1] * 1001
    plain = (points.double() + 1) / 3
    shift = torch.empty(2001, dtype=torch.double)
    angle = torch.cat([torch.linspace(0, math.pi, 1000), torch.linspace(0, math.pi, 1001)]).double()
    outer = labels == 0
    shift[outer] = plain[outer, 0] - angle[outer].cos()
    shift[~outer] = plain[~outer, 0] - (1 - angle[~outer].cos())
    torch.testing.assert_close(plain[outer, 1], angle[outer].sin() + shift[outer], atol=1e-5, rtol=0)
    torch.testing.assert_close(plain[~outer, 1], 0.5 - angle[~outer].sin() + shift[~outer], atol=1e-5, rtol=0)
    assert shift.min() > -1e-6
    assert shift.max() < 0.2 + 1e-6
    assert shift.mean() == pytest.approx(0.1, abs=0.005)
    assert shift.std() == pytest.approx(0.2 / math.sqrt(12), rel=0.05)


def test_points_follow_the_generator() -> None:
    assert torch.equal(eight_gaussians((9, 2), generator(1)), eight_gaussians((9, 2), generator(1)))
    assert torch.equal(two_moons(9, generator(1))[0], two_moons(9, generator(1))[0])
    with pytest.raises(ValueError, match=r"\(n, 2\)"):
        eight_gaussians((9, 3))


def test_conditions() -> None:
    points, labels = two_moons(5, generator())
    assert condition_of("none", points, labels) is None
    told = condition_of("class", points, labels)
    assert told is not None
    assert told.tolist() == [[-1], [-1], [1], [1], [1]]
    along = condition_of("x", points, labels)
    assert along is not None
    assert torch.equal(along[:, 0], points[:, 0])
    with pytest.raises(ValueError, match="none, class, x"):
        condition_of("y", points, labels)


def test_the_network_is_the_residual_perceptron_of_the_published_time() -> None:
    torch.manual_seed(0)
    network = ResidualNet(6, 2, conditional=True)
    points, time, told = torch.randn(4, 2), torch.tensor([0.0, 250.0, 500.0, 1000.0]), torch.randn(4, 1)
    t = (1 - time / NETWORK_TIME_SCALE)[:, None]
    hidden = points @ network.point.weight.T + network.point.bias + t @ network.time.weight.T + network.time.bias
    assert network.condition is not None
    hidden = hidden + told @ network.condition.weight.T + network.condition.bias
    for first, activation, second in network.blocks:  # type: ignore[misc]
        assert first.out_features == 24
        hidden = hidden + second(activation(first(hidden)))
    torch.testing.assert_close(network(points, time, told), network.out(hidden))
    # 2 x 128 + 128, 128 + 128, three times 128 x 512 + 512 and 512 x 128 + 128, 128 x 2 + 2.
    assert sum(p.numel() for p in ResidualNet().parameters()) == 384 + 256 + 3 * (66_048 + 65_664) + 258


class Straight(torch.nn.Module):
    """The velocity that takes every point to ``target`` along a line, whatever the time."""

    def __init__(self, target: torch.Tensor) -> None:
        super().__init__()
        self.target = target

    def forward(self, noisy: torch.Tensor, time: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        s = (time / NETWORK_TIME_SCALE)[:, None].clamp_min(1e-9)
        return (noisy - self.target) / s


def test_scores_of_a_network_that_goes_to_one_point_are_the_moons_spread() -> None:
    """All points at the mean: the mean square distance of the moons from it, by one step and by many."""
    protocol = Protocol(n_points=400, batch_size=100, coupled_size=100)
    everything = eight_gaussians((400, 2), stream := generator(5))
    moons, _ = two_moons(400, stream)
    spread = float((moons - moons.mean(0)).square().sum(1).mean())
    scores = evaluate(Straight(moons.mean(0)), "none", 5, protocol)
    assert len(everything) == 400
    assert scores.euler == pytest.approx(spread, rel=1e-4)
    assert scores.adaptive == pytest.approx(spread, rel=1e-2)
    assert scores.n_calls > 6


class Outwards(torch.nn.Module):
    """The velocity x: one Euler step ends at 0, the exact path at x / e."""

    def forward(self, noisy: torch.Tensor, time: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        return noisy


def test_one_step_is_one_step_and_many_follow_the_path() -> None:
    protocol = Protocol(n_points=300, batch_size=100, coupled_size=100)
    source = eight_gaussians((300, 2), stream := generator(5))
    moons, _ = two_moons(300, stream)
    scores = evaluate(Outwards(), "none", 5, protocol)
    assert scores.euler == pytest.approx(float(moons.square().sum(1).mean()), rel=1e-5)
    assert scores.adaptive == pytest.approx(squared_wasserstein(source / math.e, moons), rel=1e-3)


@pytest.mark.parametrize("condition", ["none", "class", "x"])
def test_training_follows_the_seed(condition: str) -> None:
    source = eight_gaussians
    networks = [train(Independent(source=source), condition, seed, TINY) for seed in (3, 3, 4)]
    states = [torch.cat([p.flatten() for p in network.parameters()]) for network in networks]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])
    assert evaluate(networks[0], condition, 1, TINY) == evaluate(networks[1], condition, 1, TINY)


class Recorder(Independent):
    """Remembers the data and conditions that it saw."""

    def __init__(self) -> None:
        super().__init__(source=eight_gaussians)
        object.__setattr__(self, "seen", [])

    def _couple(self, data, noise, context):
        self.seen.append((data, context.condition))
        return super()._couple(data, noise, context)


@pytest.mark.parametrize("in_order", [True, False])
def test_a_coupling_sees_whole_batches_and_classes_as_labels(in_order: bool) -> None:
    coupling = Recorder()
    train(coupling, "class", 0, TINY, in_order)
    assert len(coupling.seen) == 3
    for data, labels in coupling.seen:
        assert data.shape == (64, 2)
        assert labels.dtype == torch.int64
        assert bool((labels.diff() >= 0).all()) is in_order
        assert int(labels.sum()) == 32


class Shifted(Independent):
    """Noise that tells whose it is."""

    def _couple(self, data, noise, context):
        return data + 1


def test_every_step_trains_on_pairs_and_conditions_of_the_coupling(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = FlowMatching.loss

    def loss(self, network, data, noise, condition, **others):
        seen.append((data, noise, condition))
        return original(self, network, data, noise, condition, **others)

    monkeypatch.setattr(FlowMatching, "loss", loss)
    train(Shifted(), "x", 0, TINY)
    assert len(seen) == 12
    for data, noise, condition in seen:
        torch.testing.assert_close(noise, data + 1)
        assert torch.equal(condition, data[:, :1])
    for start in range(0, 12, 4):  # the steps of a coupled batch share it out
        assert len(torch.cat([data for data, _, _ in seen[start : start + 4]]).unique(dim=0)) == 64


def test_noise_of_a_class_stays_in_it_as_with_the_authors_weight() -> None:
    """`within` solves the classes apart; the authors add 1e6 times the condition's cost: the same pairs."""
    points, labels = two_moons(128, generator())
    noise = eight_gaussians((128, 2), generator(1))
    within = LinearAssignment("sqeuclidean", within="condition")(points, noise, labels)
    weighted = LinearAssignment("sqeuclidean", condition_weight=1e6)(points, noise, labels)
    torch.testing.assert_close(within, weighted)
    cost = torch.cdist(points, noise).square() + 1e6 * (labels[:, None] != labels)
    _, columns = linear_sum_assignment(cost.double().numpy())
    torch.testing.assert_close(within, noise[torch.from_numpy(columns)])


@pytest.mark.parametrize(
    ("options", "message"), [({"batch_size": 3, "coupled_size": 8}, "multiple"), ({"n_points": 1}, "n_points")]
)
def test_bad_protocols(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Protocol(**options)

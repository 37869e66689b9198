"""Flow matching against closed forms of a Gaussian, and its Euler solver against diffusers' scheduler."""

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from immiscible_policy.diffusion import FlowMatching, build_objective

MEAN, STD = 0.3, 0.4


def optimal_velocity(noisy: Tensor, time: Tensor, condition: Tensor | None) -> Tensor:
    """The exact E[n - x | x_s] for data N(MEAN, STD^2), independent of noise."""
    s = (time / 1000).view(-1, *[1] * (noisy.ndim - 1)).to(noisy)
    variance = (1 - s) ** 2 * STD**2 + s**2
    return (s - (1 - s) * STD**2) / variance * (noisy - (1 - s) * MEAN) - MEAN


def curved(noisy: Tensor, time: Tensor, condition: Tensor | None) -> Tensor:
    """A velocity whose path to s = 0 is known: x_0 = x_1 exp(-sin 1)."""
    return noisy * (time / 1000).cos().view(-1, 1)


@pytest.mark.parametrize("data_scale", [1.0, 2.5])
def test_the_same_noise_makes_input_and_target(data_scale: float) -> None:
    """A network that knows the data has no loss: it finds the noise in the input and expects it in the target."""
    objective = FlowMatching(data_scale=data_scale)
    data, noise = torch.randn(64, 4, 2), torch.rand(64, 4, 2) + 5
    seen: dict[str, Tensor] = {}

    def oracle(noisy: Tensor, time: Tensor, condition: Tensor | None) -> Tensor:
        s = time.view(-1, 1, 1) / 1000
        seen["noise"] = (noisy - (1 - s) * data_scale * data) / s
        return seen["noise"] - data_scale * data

    time = torch.linspace(0.1, 1, 64)
    assert objective.loss(oracle, data, noise, time=time) < 1e-8
    torch.testing.assert_close(seen["noise"], noise)


def test_the_optimal_velocity_has_the_smallest_loss_and_no_other_has() -> None:
    """Its loss is the mean over s of Var(n - x | x_s) = STD^2 / ((1 - s)^2 STD^2 + s^2), which is pi STD / 2."""
    generator = torch.Generator().manual_seed(0)
    data = MEAN + STD * torch.randn(400_000, 1, generator=generator)
    noise = torch.randn(400_000, 1, generator=generator)

    def loss(factor: float, shift: float) -> float:
        def network(noisy: Tensor, time: Tensor, condition: Tensor | None) -> Tensor:
            return factor * optimal_velocity(noisy, time, condition) + shift

        return float(FlowMatching().loss(network, data, noise, generator=torch.Generator().manual_seed(1)))

    best = loss(1.0, 0.0)
    assert best == pytest.approx(math.pi * STD / 2, rel=0.01)
    assert all(loss(1 + d, e) > best for d in (-0.05, 0.05) for e in (-0.05, 0.05))
    assert loss(1.0, 0.1) == pytest.approx(best + 0.01, abs=1e-3)


@pytest.mark.parametrize(
    ("sampler", "steps"), [("euler", 100), ("midpoint", 20), ("heun", 20), ("midpoint", 61), ("adaptive", 1)]
)
def test_samples_of_the_optimal_velocity_are_the_data(sampler: str, steps: int) -> None:
    """Its flow is x_0 = MEAN + STD x_1, sample by sample."""
    objective = FlowMatching(sampler=sampler, clip_sample=False)
    noise = torch.randn(2_000, 2, 1, generator=torch.Generator().manual_seed(0))
    samples = objective.sample(optimal_velocity, (2_000, 2, 1), steps=steps, noise=noise)
    torch.testing.assert_close(samples, MEAN + STD * noise, atol=0.03, rtol=0)
    assert abs(samples.mean() - MEAN) < 0.03
    assert abs(samples.std() - STD) < 0.03


def test_one_step_of_any_fixed_solver_lands_on_the_mean() -> None:
    noise = torch.randn(50, 2)
    for sampler in ("euler", "midpoint", "heun"):
        samples = FlowMatching(sampler=sampler).sample(optimal_velocity, (50, 2), steps=1, noise=noise)
        torch.testing.assert_close(samples, torch.full((50, 2), MEAN))


@pytest.mark.parametrize("steps", [1, 2, 4, 7])
def test_euler_is_the_scheduler_of_diffusers(steps: int) -> None:
    generator = torch.Generator().manual_seed(0)
    matrix, noise = torch.randn(2, 2, generator=generator), torch.randn(5, 4, 2, generator=generator)

    def network(noisy: Tensor, time: Tensor, condition: Tensor | None) -> Tensor:
        return torch.tanh(noisy @ matrix + (time / 300).view(-1, 1, 1))

    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps).tolist())
    expected = noise
    for t in scheduler.timesteps:
        expected = scheduler.step(network(expected, t.expand(5), None), t, expected).prev_sample
    samples = FlowMatching(clip_sample=False).sample(network, (5, 4, 2), steps=steps, noise=noise)
    torch.testing.assert_close(samples, expected)


@pytest.mark.parametrize(("sampler", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2)])
def test_solvers_converge_with_their_order(sampler: str, order: int) -> None:
    noise = torch.ones(1, 1, dtype=torch.float64)

    def error(steps: int) -> float:
        def network(noisy: Tensor, time: Tensor, condition: Tensor | None) -> Tensor:
            return curved(noisy, time, condition)

        end, _ = FlowMatching(sampler=sampler).solve(network, noise, steps=steps)
        return abs(float(end) - math.exp(-math.sin(1)))

    assert error(16) / error(32) == pytest.approx(2**order, rel=0.2)


@pytest.mark.parametrize("sampler", ["euler", "midpoint", "heun", "adaptive"])
@pytest.mark.parametrize("steps", [1, 2, 3, 8, 9])
def test_network_calls_are_counted(sampler: str, steps: int) -> None:
    times: list[float] = []

    def network(noisy: Tensor, time: Tensor, condition: Tensor | None) -> Tensor:
        assert time.shape == (3,)
        times.append(float(time[0]) / 1000)
        return curved(noisy, time, condition)

    _, calls = FlowMatching(sampler=sampler).solve(network, torch.ones(3, 1), steps=steps)
    assert calls == len(times)
    assert times[0] == 1.0
    if sampler != "adaptive":
        assert calls == steps
        n_intervals = steps if sampler == "euler" else (steps + 1) // 2
        starts = times if sampler == "euler" else times[::2]
        assert starts == pytest.approx([1 - i / n_intervals for i in range(n_intervals)])


def test_the_adaptive_solver_keeps_its_tolerance() -> None:
    exact = math.exp(-math.sin(1))
    counts = []
    for tolerance in (1e-3, 1e-6):
        objective = FlowMatching(sampler="adaptive", rtol=tolerance, atol=tolerance)
        end, calls = objective.solve(curved, torch.ones(4, 1))
        assert (end - exact).abs().max() < 10 * tolerance
        counts.append(calls)
    assert counts[1] > counts[0]


def test_the_adaptive_solver_does_not_search_for_ever_where_the_network_returns_nan() -> None:
    with pytest.raises(ArithmeticError, match="returned NaN or infinity at s=1"):
        FlowMatching(sampler="adaptive").sample(lambda noisy, time, condition: noisy * float("nan"), (2, 1))


@pytest.mark.parametrize("time_sampling", ["uniform", "logit_normal"])
def test_times_are_never_zero(monkeypatch: pytest.MonkeyPatch, time_sampling: str) -> None:
    monkeypatch.setattr(torch, "rand", lambda batch, **options: torch.zeros(batch))
    monkeypatch.setattr(torch, "randn", lambda batch, **options: torch.full((batch,), -1e4))
    objective = FlowMatching(time_sampling=time_sampling)
    time = objective.diffusion_time(objective.draw_time(3, torch.device("cpu")))
    assert ((time > 0) & (time <= 1)).all()


@pytest.mark.parametrize("mean", [0.0, 1.0])
def test_logit_normal_times_are_normal_in_the_logit(mean: float) -> None:
    objective = FlowMatching(time_sampling="logit_normal", logit_mean=mean, logit_std=0.7)
    time = objective.draw_time(50_000, torch.device("cpu"), torch.Generator().manual_seed(0))
    logits = torch.logit(time)
    assert logits.mean() == pytest.approx(mean, abs=0.02)
    assert logits.std() == pytest.approx(0.7, abs=0.02)
    assert objective.diffusion_time(time).max() <= 1


def test_uniform_times_are_uniform() -> None:
    time = FlowMatching().draw_time(50_000, torch.device("cpu"), torch.Generator().manual_seed(0))
    counts = torch.histc(time, 20, 0, 1)
    assert 5 < ((counts - 2500) ** 2 / 2500).sum() < 45  # 19 degrees of freedom
    assert time.min() > 0
    assert time.max() <= 1


def test_clipping_follows_the_data_scale() -> None:
    def upwards(noisy: Tensor, time: Tensor, condition: Tensor | None) -> Tensor:
        return torch.full_like(noisy, -100.0)

    for scale in (1.0, 3.0):
        samples = FlowMatching(data_scale=scale).sample(upwards, (5, 2), steps=4)
        assert torch.equal(samples, torch.ones(5, 2))
        free = FlowMatching(data_scale=scale, clip_sample=False).sample(upwards, (5, 2), steps=4)
        assert free.min() * scale > 90


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time_sampling": "beta"}, "time_sampling='beta': choose one of uniform, logit_normal"),
        ({"sampler": "ddim"}, "sampler='ddim': choose one of euler, midpoint, heun, adaptive"),
        ({"logit_mean": float("nan")}, "logit_mean=nan: must be a finite number"),
        ({"logit_std": 0.0}, "logit_std=0.0: must be positive"),
        ({"rtol": -1.0}, "rtol=-1.0"),
        ({"data_scale": 0.0}, "data_scale=0.0"),
        ({"num_train_timesteps": 100}, "num_train_timesteps"),
    ],
)
def test_wrong_configuration_is_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_objective({"name": "flow_matching", **options})

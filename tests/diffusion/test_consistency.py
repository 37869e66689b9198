"""Consistency training against closed forms of a Gaussian, diffusers' scheduler, and the papers' schedules."""

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import CMStochasticIterativeScheduler
from safetensors.torch import save_file
from torch import Tensor, nn

from immiscible_policy.coupling import KNN, Coupling
from immiscible_policy.diffusion import Consistency, build_objective
from immiscible_policy.training import Trainer, TrainerConfig

MEAN, STD = 0.3, 0.4
# Losses as in the first paper: plain mean squares, pairs of levels drawn uniformly.
PLAIN: dict[str, Any] = {"distance": "l2", "weighting": "uniform", "time_sampling": "uniform"}


class ExactConsistency:
    """The network whose consistency function is exact for data N(mean, std^2).

    The probability-flow path through x at sigma ends at mean + (x - mean) sqrt((std^2 + smin^2) / (std^2 + sigma^2)).
    """

    def __init__(
        self, objective: Consistency, mean: float = MEAN, std: float = STD, power: float | Tensor = 1.0
    ) -> None:
        self.objective, self.mean, self.std, self.power = objective, mean, std, power

    def slope(self, sigma: Tensor) -> Tensor:
        return ((self.std**2 + self.objective.sigma_min**2) / (self.std**2 + sigma**2)).sqrt()

    def __call__(self, scaled: Tensor, time: Tensor, condition: Tensor | None) -> Tensor:
        shape = (-1, *[1] * (scaled.ndim - 1))
        sigma = (time.double() / 250).exp().view(shape)
        low, data = self.objective.sigma_min, self.objective.sigma_data * self.objective.data_scale
        noisy = scaled * (sigma**2 + data**2).sqrt()
        end = self.mean + self.slope(sigma) ** self.power * (noisy - self.mean)
        skip = data**2 / ((sigma - low) ** 2 + data**2)
        out = (sigma - low) * data / (sigma**2 + data**2).sqrt()
        return torch.where(out > 1e-9, (end - skip * noisy) / out.clamp_min(1e-9), torch.zeros_like(end))


def gaussian(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return MEAN + STD * torch.randn(n, 2, generator=generator), torch.randn(n, 2, generator=generator)


class Tiny(nn.Module):
    """A network with dropout and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 16), nn.SiLU(), nn.Dropout(0.3), nn.Linear(16, 2))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, noisy: Tensor, time: Tensor, condition: Tensor | None = None) -> Tensor:
        self.calls += 1
        return self.net(torch.cat([noisy, time[:, None] / 1000], dim=1))


@pytest.mark.parametrize("levels", [5, 20])
def test_loss_of_the_exact_function_is_the_closed_form_at_every_pair(levels: int) -> None:
    """f is linear, so student - teacher = (a' - a)(x - mean) + (a' s' - a s) n for slopes a, a' at levels s < s'."""
    objective = Consistency(s0=2, s1=levels - 1, **PLAIN)
    network, (data, noise) = ExactConsistency(objective), gaussian(10_000)
    sigma = objective.levels(levels)
    for pair in range(levels - 1):
        low, high = sigma[pair], sigma[pair + 1]
        a, b = network.slope(low), network.slope(high)
        expected = (b - a) ** 2 * STD**2 + (b * high - a * low) ** 2
        loss = objective.loss(network, data, noise, time=torch.full((10_000,), pair))
        torch.testing.assert_close(loss.double(), expected, rtol=0.05, atol=1e-7)


def test_loss_of_the_exact_function_vanishes_as_levels_approach_each_other() -> None:
    losses = []
    data, noise = gaussian(50_000)
    for s1 in (20, 80, 320):
        objective = Consistency(s1=s1, **PLAIN)
        losses.append(float(objective.loss(ExactConsistency(objective), data, noise)))
    assert losses[2] < 1e-4
    assert losses[0] / losses[1] == pytest.approx(16, rel=0.35)  # second order in the distance of levels
    assert losses[1] / losses[2] == pytest.approx(16, rel=0.35)


@pytest.mark.parametrize("options", [PLAIN, {"distance": "l2", "time_sampling": "uniform"}])
def test_the_exact_function_is_where_the_gradient_vanishes(options: dict[str, Any]) -> None:
    """The gradient of the distance to a fixed teacher, as the student's slope a becomes a^power."""
    objective = Consistency(s1=400, **options)
    data, noise = gaussian(50_000)

    def gradient(value: float) -> float:
        power = torch.tensor(value, requires_grad=True)
        network = ExactConsistency(objective, power=power)
        time = torch.randint(200, 400, (len(data),), generator=torch.Generator().manual_seed(1))
        (slope,) = torch.autograd.grad(objective.loss(network, data, noise, time=time), power)
        return float(slope)

    assert abs(gradient(1.0)) < 0.05 * min(abs(gradient(0.8)), abs(gradient(1.2)))
    assert gradient(0.8) < 0 < gradient(1.2)  # downhill leads to the exact one


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("data_scale", [1.0, 2.0])
def test_samples_of_the_exact_function_have_the_data_distribution(steps: int, data_scale: float) -> None:
    objective = Consistency(clip_sample=False, data_scale=data_scale)
    network = ExactConsistency(objective, MEAN * data_scale, STD * data_scale)
    samples = objective.sample(network, (20_000, 1, 1), steps=steps, generator=torch.Generator().manual_seed(0))
    assert abs(samples.mean() - MEAN) < 0.015
    assert abs(samples.std() - STD) < 0.015


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("clip", [True, False])
def test_sampling_is_the_scheduler_of_diffusers(steps: int, clip: bool) -> None:
    objective = Consistency(sigma_min=0.01, sigma_max=20.0, sigma_data=0.3, clip_sample=clip)
    matrix = torch.randn(2, 2, generator=torch.Generator().manual_seed(3))

    def network(noisy: Tensor, time: Tensor, condition: Tensor | None) -> Tensor:
        return 5 * torch.tanh(noisy.float() @ matrix + (time.float() / 300).view(-1, 1, 1))

    scheduler = CMStochasticIterativeScheduler(steps + 1, 0.01, 20.0, sigma_data=0.3, clip_denoised=clip)
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(5, 4, 2, generator=generator)
    expected = noise * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        output = network(scheduler.scale_model_input(expected, t), t.expand(5), None)
        expected = scheduler.step(output, t, expected, generator).prev_sample
    samples = objective.sample(network, (5, 4, 2), steps=steps, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(samples, expected, rtol=1e-4, atol=1e-5)
    assert bool(samples.abs().max() > 1) is not clip


def test_scalings_keep_inputs_at_unit_variance_and_leave_the_lowest_level_alone() -> None:
    """The square root in c_in: without it the input's standard deviation would be 1 / root."""
    objective = Consistency(sigma_data=0.4, data_scale=2.0)
    data, noise = 0.8 * torch.randn(50_000, 1), torch.randn(50_000, 1)
    for sigma in (0.002, 0.5, 80.0):
        seen: list[Tensor] = []

        def network(noisy: Tensor, time: Tensor, condition: Tensor | None) -> Tensor:
            seen.append(noisy)  # noqa: B023 - called within the iteration
            torch.testing.assert_close(time, torch.full_like(time, 250 * math.log(sigma)))  # noqa: B023
            return 1e3 * torch.ones_like(noisy)

        noisy = data + sigma * noise
        estimate = objective.denoise(network, noisy, torch.full((50_000,), sigma))
        assert seen[0].std() == pytest.approx(1, abs=0.01)
        if sigma == objective.sigma_min:
            assert torch.equal(estimate, noisy)


@pytest.mark.parametrize("data_scale", [1.0, 3.0])
def test_both_levels_of_a_pair_have_the_noise_of_the_coupling(data_scale: float) -> None:
    class Marked(Coupling):
        def _couple(self, data: Tensor, noise: Tensor | None, context: Any) -> Tensor:
            return torch.arange(data.numel()).view_as(data) + 10.0

    objective = Consistency(s1=80, data_scale=data_scale)
    data = torch.randn(6, 4, 2)
    noise = Marked()(data * data_scale)
    found: list[tuple[Tensor, Tensor]] = []

    def network(noisy: Tensor, time: Tensor, condition: Tensor | None) -> Tensor:
        sigma = (time / 250).exp().view(-1, 1, 1)
        unscaled = noisy * (sigma.square() + (0.5 * data_scale) ** 2).sqrt()
        found.append(((unscaled - data_scale * data) / sigma, sigma.flatten()))
        return noisy

    objective.loss(network, data, noise, time=torch.tensor([20, 30, 40, 50, 60, 79]))
    (student, high), (teacher, low) = found
    torch.testing.assert_close(student, noise, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(teacher, noise, rtol=1e-3, atol=1e-3)
    levels = objective.levels(81).float()
    torch.testing.assert_close(high, levels[[21, 31, 41, 51, 61, 80]])
    torch.testing.assert_close(low, levels[[20, 30, 40, 50, 60, 79]])


def test_levels_are_those_of_karras() -> None:
    levels = Consistency().levels(18)  # the values that EDM's sampler prints for 18 steps
    assert (levels[0], levels[-1]) == (0.002, 80.0)
    expected = [80.0, 57.586, 40.785, 28.374, 19.352, 12.910, 8.400, 5.315, 3.257, 1.923, 1.088]
    torch.testing.assert_close(levels.flip(0)[:11], torch.tensor(expected, dtype=torch.float64), rtol=1e-3, atol=1e-3)


def test_level_counts_of_both_papers() -> None:
    cm = Consistency(schedule="cm", s0=2, s1=150)
    assert [cm.n_levels(step, 800_000) for step in (1, 800_001)] == [2, 151]
    half = math.ceil(math.sqrt(0.5 * (151**2 - 2**2) + 2**2) - 1) + 1
    assert cm.n_levels(400_001, 800_000) == half == 107
    ict = Consistency(s0=10, s1=1280)
    counts = [ict.n_levels(step, 400_000) for step in range(1, 400_001, 50_000)]
    assert counts == [11, 21, 41, 81, 161, 321, 641, 1281]
    assert ict.n_levels(50_000, 400_000) == 11
    assert ict.n_levels(400_000, 400_000) == 1281
    # s1 / s0 is no power of two: the last doubling is cut short.
    assert [Consistency(s0=10, s1=50).n_levels(step, 300) for step in (1, 101, 201, 300)] == [11, 21, 41, 41]
    # Fewer steps than doublings.
    assert [ict.n_levels(step, 4) for step in (1, 2, 3, 4)] == [11, 21, 41, 81]


def test_teacher_decay_of_the_paper() -> None:
    cm = Consistency(schedule="cm", s0=2, s1=150, mu0=0.9)
    assert cm.teacher_decay(1, 800_000) == pytest.approx(0.9)
    assert cm.teacher_decay(400_001, 800_000) == pytest.approx(math.exp(2 * math.log(0.9) / 107))
    assert Consistency(schedule="cm", mu0=0.0).teacher_decay(5, 10) == 0


def test_lognormal_pairs_have_the_mass_between_their_levels() -> None:
    objective = Consistency(s0=4, s1=8)
    time = objective.draw_time(200_000, torch.device("cpu"), torch.Generator().manual_seed(0))
    sigma = objective.levels(9)
    edges = torch.erf((sigma.log() + 1.1) / (math.sqrt(2) * 2.0))
    mass = edges.diff() / (edges[-1] - edges[0])
    torch.testing.assert_close(torch.bincount(time, minlength=8) / 200_000, mass.float(), atol=0.005, rtol=0)


@pytest.mark.parametrize("time_sampling", ["uniform", "lognormal"])
def test_times_follow_training_and_reach_one(time_sampling: str) -> None:
    objective = Consistency(s0=4, s1=16, time_sampling=time_sampling)
    for step, levels in ((1, 5), (10, 5), (11, 9), (30, 17)):
        objective.begin_step(Tiny(), step, 30)
        assert objective.current_levels == levels
        time = objective.draw_time(20_000, torch.device("cpu"), torch.Generator().manual_seed(0))
        assert (int(time.min()), int(time.max())) == (0, levels - 2)
        known = objective.diffusion_time(torch.arange(levels - 1))
        torch.testing.assert_close(known, torch.arange(1, levels) / (levels - 1))


def test_distances_and_weights_are_the_papers() -> None:
    data, noise = gaussian(64)
    time = torch.arange(64)

    def network(noisy: Tensor, time: Tensor, condition: Tensor | None) -> Tensor:
        return torch.sin(3 * noisy + time[:, None])

    def loss(**options: Any) -> Tensor:
        return Consistency(**{**PLAIN, **options}, s1=80).loss(network, data, noise, time=time)

    base = Consistency(s1=80)
    sigma = base.levels(81)
    ends = [
        base.denoise(network, data + sigma[time + i].float()[:, None] * noise, sigma[time + i]).double() for i in (1, 0)
    ]
    square = (ends[0] - ends[1]).square().sum(1)
    torch.testing.assert_close(loss().double(), square.mean() / 2)
    c = 0.00054 * math.sqrt(2)
    huber = (square + c**2).sqrt() - c
    torch.testing.assert_close(loss(distance="pseudo_huber").double(), huber.mean() / math.sqrt(2), rtol=1e-4, atol=0)
    gaps = sigma[time + 1] - sigma[time]
    torch.testing.assert_close(loss(weighting="inverse_step").double(), (square / 2 / gaps).mean(), rtol=1e-4, atol=0)
    own = loss(distance=lambda student, teacher: (student - teacher).abs().amax(1))
    torch.testing.assert_close(own.double(), (ends[0] - ends[1]).abs().amax(1).mean())


@pytest.mark.parametrize("distance", ["l2", "pseudo_huber"])
def test_gradients_are_finite_where_student_and_teacher_agree_or_nothing_counts(distance: str) -> None:
    network = Tiny().eval()
    data, noise = gaussian(8)
    mask = (torch.arange(8) < 4)[:, None]
    Consistency(distance=distance).loss(network, data, 0 * noise, mask=mask).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_the_teacher_has_no_gradient_and_drops_out_the_same_units() -> None:
    """With identical levels student and teacher are identical, unless their dropout differs."""
    objective = Consistency(sigma_min=0.5, sigma_max=0.5 + 1e-9, sigma_data=0.5, **PLAIN)
    network, (data, noise) = Tiny(), gaussian(64)
    outputs: list[Tensor] = []
    network.register_forward_hook(lambda module, args, output: outputs.append(output))
    torch.manual_seed(0)
    assert objective.loss(network, data, noise) < 1e-12
    assert [output.requires_grad for output in outputs] == [True, False]
    assert not torch.equal(outputs[0], network.eval()(noise, torch.zeros(64)))
    # The random state moves on by one network call.
    torch.manual_seed(0)
    network.train()(noise, torch.zeros(64))
    expected = torch.rand(3)
    torch.manual_seed(0)
    objective.loss(network, data, noise, generator=torch.Generator())
    assert torch.equal(torch.rand(3), expected)


def test_the_student_keeps_its_gradients_under_autocast_and_the_loss_is_float32() -> None:
    """Autocast caches casts of weights, also those that a teacher made without gradients."""
    network, (data, noise) = Tiny().eval(), gaussian(256)
    objective = Consistency(s1=80, **PLAIN)
    gradients = []
    for enabled in (False, True):
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = objective.loss(network, data, noise, time=torch.arange(256) % 80)
        assert loss.dtype == torch.float32
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
    assert len(gradients[1]) == sum(p.numel() for p in network.parameters())
    assert torch.cosine_similarity(*gradients, dim=0) > 0.95


def test_the_teacher_is_a_moving_average_of_its_own() -> None:
    objective = Consistency(schedule="cm", s0=2, s1=20, mu0=0.5, **PLAIN)
    network = Tiny()
    assert objective.state_dict() == {}
    expected: dict[str, Tensor] = {}
    for step in range(1, 6):
        objective.begin_step(network, step, 5)
        decay = objective.teacher_decay(step - 1, 5) if step > 1 else 0.0
        for name, value in network.state_dict().items():
            average = name != "calls" and step > 1
            expected[name] = decay * expected[name] + (1 - decay) * value if average else value.clone()
        for name, value in objective.state_dict()["teacher"].items():
            torch.testing.assert_close(value, expected[name])
        with torch.no_grad():
            for value in network.parameters():
                value.add_(torch.randn_like(value))
    seen = network.calls.clone()
    objective.loss(network, *gaussian(8))
    assert network.calls == seen + 1  # the other call was the teacher's


def test_the_student_teaches_itself_in_ict() -> None:
    objective, network = Consistency(), Tiny()
    objective.begin_step(network, 1, 10)
    objective.loss(network, *gaussian(8))
    assert network.calls == 2
    assert objective.state_dict() == {}


def test_an_objective_that_no_trainer_told_of_its_step_is_at_the_end() -> None:
    objective, network, (data, noise) = Consistency(schedule="cm", s0=2, s1=9), Tiny().eval(), gaussian(32)
    assert objective.current_levels == 10
    idle = objective.loss(network, data, noise, generator=torch.Generator().manual_seed(0))
    objective.begin_step(network, 1, 10)
    assert objective.current_levels == 2
    assert objective.loss(network, data, noise, generator=torch.Generator().manual_seed(0)) != idle


class Model(nn.Module):
    def __init__(self, objective: Consistency) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.objective, self.network = objective, Tiny()

    def begin_step(self, step: int, total_steps: int) -> None:
        self.objective.begin_step(self.network, step, total_steps)

    def forward(self, batch: Mapping[str, Tensor], coupling: Coupling, generator: torch.Generator) -> Tensor:
        noise = coupling(batch["data"], generator=generator)
        return self.objective.loss(self.network, batch["data"], noise, generator=generator)

    def save_pretrained(self, folder: Path) -> None:
        save_file(self.state_dict(), folder / "model.safetensors")


class Points:
    def __init__(self) -> None:
        self.data = gaussian(40, seed=7)[0]

    def __len__(self) -> int:
        return len(self.data)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        return {"data": self.data[indices]}


class _KilledError(Exception):
    """Stands for whatever ends a process without warning."""


@pytest.mark.parametrize("schedule", ["cm", "ict"])
def test_a_killed_and_resumed_run_ends_with_the_same_weights(tmp_path: Path, schedule: str) -> None:
    config = TrainerConfig(
        steps=24,
        batch_size=8,
        learning_rate=1e-2,
        warmup_steps=0,
        device="cpu",
        mixed_precision="fp32",
        log_every=8,
        validate_every=10,
        evaluate_every=8,
        checkpoint_every=8,
        tensorboard=False,
    )

    def kill(model: Model, step: int) -> dict[str, float]:
        assert model.objective.state_dict() == {}  # the averaged weights have no teacher
        if step == 16:
            raise _KilledError
        return {}

    def trainer(folder: str, **options: Any) -> Trainer:
        (tmp_path / folder).mkdir(exist_ok=True)
        torch.manual_seed(11)
        objective = Consistency(schedule=schedule, s0=2, s1=12, mu0=0.8)
        return Trainer(Model(objective), Points(), KNN(k=2), config, tmp_path / folder, **options)

    whole = trainer("whole")
    whole.fit()
    first = trainer("killed", evaluate=kill)
    with pytest.raises(_KilledError):
        first.fit()
    second = trainer("killed")
    torch.manual_seed(99)
    second.resume()
    assert second.step == 8
    second.fit()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name
    states = [run.model.objective.state_dict() for run in (whole, second)]
    assert [bool(state) for state in states] == [schedule == "cm"] * 2
    for name, value in states[0].get("teacher", {}).items():
        assert torch.equal(value, states[1]["teacher"][name]), name
    assert not any("teacher" in name for name in whole.model.state_dict())


def test_a_checkpoint_taken_before_the_first_step_after_a_resume_still_has_the_teacher() -> None:
    objective, network = Consistency(schedule="cm"), Tiny()
    objective.begin_step(network, 1, 10)
    state = copy.deepcopy(objective.state_dict())
    restored = Consistency(schedule="cm")
    restored.load_state_dict(state)
    for name, value in restored.state_dict()["teacher"].items():
        assert torch.equal(value, state["teacher"][name])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "ct"}, "schedule='ct': choose one of ict, cm"),
        ({"time_sampling": "normal"}, "time_sampling='normal': choose one of lognormal, uniform"),
        ({"weighting": "snr"}, "weighting='snr'"),
        ({"distance": "l1"}, "distance='l1': choose one of pseudo_huber, l2, lpips"),
        ({"sampler": "ddpm"}, "sampler='ddpm': choose one of multistep"),
        ({"sigma_min": 0.0}, "sigma_min=0.0: must be positive"),
        ({"sigma_min": 90.0}, "sigma_min=90.0 must be below sigma_max=80"),
        ({"sigma_max": float("inf")}, "sigma_max=inf"),
        ({"lognormal_mean": float("nan")}, "lognormal_mean=nan: must be a finite number"),
        ({"s0": 1}, "needs 2 <= s0 <= s1"),
        ({"s0": 30, "s1": 20}, "s0=30, s1=20"),
        ({"mu0": 1.0}, r"mu0=1.0: must be at least 0 and below 1"),
        ({"_training": None}, "_training"),
    ],
)
def test_wrong_configuration_is_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_objective({"name": "consistency", "sigma_max": 80.0, **options})

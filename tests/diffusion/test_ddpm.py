"""The DDPM objective against closed forms."""

from functools import partial

import pytest
import torch
from diffusers import DDIMScheduler, PNDMScheduler
from torch import Tensor

from immiscible_policy.coupling import KNN
from immiscible_policy.diffusion import DDPM, build_objective


class OptimalDenoiser:
    """The exact E[n | x_t] for data N(mean, std^2), independent of noise."""

    def __init__(self, objective: DDPM, mean: float, std: float) -> None:
        self.alphas, self.mean, self.std = objective.scheduler.alphas_cumprod, mean, std

    def __call__(self, noisy: Tensor, time: Tensor, condition: Tensor | None) -> Tensor:
        abar = self.alphas[time.long()].view(-1, 1, 1)
        variance = abar * self.std**2 + (1 - abar)
        return (1 - abar).sqrt() * (noisy - abar.sqrt() * self.mean) / variance


def wave(noisy: Tensor, time: Tensor, condition: Tensor | None) -> Tensor:
    """A network whose predictions depend on all that it is told."""
    return torch.sin(3 * noisy + time.view(-1, 1) / 50)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_the_same_noise_makes_input_and_target(prediction_type: str) -> None:
    """A network that knows the coupled noise has no loss; with any other noise in the input or target it would."""
    objective = DDPM(prediction_type=prediction_type, data_scale=2.0)
    data = torch.randn(64, 4, 2)
    noise = KNN(k=4)(data * objective.data_scale)

    def oracle(noisy: Tensor, time: Tensor, condition: Tensor | None) -> Tensor:
        abar = objective.scheduler.alphas_cumprod[time].view(-1, 1, 1)
        torch.testing.assert_close(noisy, abar.sqrt() * 2 * data + (1 - abar).sqrt() * noise)
        return {
            "epsilon": noise,
            "sample": 2 * data,
            "v_prediction": abar.sqrt() * noise - (1 - abar).sqrt() * 2 * data,
        }[prediction_type]

    assert objective.loss(oracle, data, noise) < 1e-10


def test_loss_is_the_mean_square_of_the_noise_for_a_network_that_returns_zero() -> None:
    data, noise = torch.randn(8, 4, 2), torch.randn(8, 4, 2)
    loss = DDPM().loss(lambda noisy, time, condition: torch.zeros_like(noisy), data, noise)
    torch.testing.assert_close(loss, noise.square().mean())


def test_masked_entries_do_not_count() -> None:
    data, noise = torch.randn(8, 4, 2), torch.randn(8, 4, 2)
    mask = torch.arange(4).view(1, 4, 1) < 3
    loss = DDPM().loss(lambda noisy, time, condition: torch.zeros_like(noisy), data, noise, mask=mask)
    torch.testing.assert_close(loss, noise[:, :3].square().mean())


def test_times_are_uniform_over_all_steps_and_follow_the_generator() -> None:
    seen: list[Tensor] = []

    def network(noisy: Tensor, time: Tensor, condition: Tensor | None) -> Tensor:
        seen.append(time)
        return noisy

    data = torch.zeros(20_000, 1)
    for seed in (0, 0):
        DDPM().loss(network, data, data, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(seen[0], seen[1])
    counts = torch.bincount(seen[0], minlength=100).float()
    assert len(counts) == 100
    chi_square = ((counts - 200) ** 2 / 200).sum()
    assert 60 < chi_square < 150  # 99 degrees of freedom


# Of 100 steps 40 and 60 are strides of 2 and 3, and of 1 and 2.
@pytest.mark.parametrize(("sampler", "steps"), [("ddim", 100), ("ddim", 60), ("ddim", 40), ("ddim", 20), ("ddpm", 100)])
@pytest.mark.parametrize("data_scale", [1.0, 2.0])
def test_samples_of_the_exact_denoiser_have_the_data_distribution(sampler: str, steps: int, data_scale: float) -> None:
    objective = DDPM(sampler=sampler, clip_sample=False, data_scale=data_scale)
    network = OptimalDenoiser(objective, mean=0.3 * data_scale, std=0.4 * data_scale)
    samples = objective.sample(network, (20_000, 1, 1), steps=steps, generator=torch.Generator().manual_seed(0))
    assert abs(samples.mean() - 0.3) < 0.02
    assert abs(samples.std() - 0.4) < 0.05


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("steps", [7, 16, 60])
def test_the_network_is_told_how_much_noise_is_left(spacing: str, steps: int) -> None:
    """A network that knows the data and finds the noise by the step it is told always finds the same noise."""
    data, noise = torch.full((4, 2), 0.3), torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    objective = DDPM(timestep_spacing=spacing, clip_sample=False)
    found: list[Tensor] = []

    def network(noisy: Tensor, time: Tensor, condition: Tensor | None) -> Tensor:
        abar = objective.scheduler.alphas_cumprod[time].view(-1, 1)
        found.append((noisy - abar.sqrt() * data) / (1 - abar).sqrt())
        return found[-1]

    scheduler = objective.sampling_scheduler()
    scheduler.set_timesteps(steps)
    first = objective.scheduler.alphas_cumprod[scheduler.timesteps[0]]
    start = first.sqrt() * data + (1 - first).sqrt() * noise
    samples = objective.sample(network, (4, 2), steps=steps, noise=start)
    torch.testing.assert_close(torch.stack(found), noise.expand(steps, 4, 2), atol=1e-3, rtol=0)
    torch.testing.assert_close(samples, data, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("spacing", "steps"), [("trailing", 40), ("trailing", 16), ("linspace", 10), ("leading", 16)])
def test_ddim_floor_is_the_library_s_own_loop(spacing: str, steps: int) -> None:
    objective = DDPM(sampler="ddim_floor", timestep_spacing=spacing)
    noise = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    scheduler = DDIMScheduler.from_config(objective.scheduler.config)
    scheduler.set_timesteps(steps)
    expected = noise
    for t in scheduler.timesteps:
        expected = scheduler.step(wave(expected, t.expand(4), None), t, expected).prev_sample
    assert torch.equal(objective.sample(wave, (4, 2), steps=steps, noise=noise), expected)
    exact = DDPM(timestep_spacing=spacing).sample(wave, (4, 2), steps=steps, noise=noise)
    assert torch.equal(exact, expected) == (spacing == "leading")


@pytest.mark.parametrize("steps", [1, 2, 4, 5, 10, 20, 25, 50, 100])
def test_ddim_is_the_library_s_own_loop_where_the_steps_divide(steps: int) -> None:
    noise = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    exact = DDPM().sample(wave, (4, 2), steps=steps, noise=noise)
    assert torch.equal(exact, DDPM(sampler="ddim_floor").sample(wave, (4, 2), steps=steps, noise=noise))


def test_clipping_follows_the_data_scale() -> None:
    def huge(noisy: Tensor, time: Tensor, condition: Tensor | None) -> Tensor:
        return -100 * torch.ones_like(noisy)  # noise estimate that sends the data estimate far up

    for scale in (1.0, 3.0):
        samples = DDPM(data_scale=scale).sample(huge, (5, 2), steps=10)
        torch.testing.assert_close(samples, torch.ones(5, 2), atol=1e-4, rtol=0)


def test_sampling_is_a_function_of_the_initial_noise() -> None:
    objective = DDPM()
    noise = torch.randn(3, 4, 2)
    network = OptimalDenoiser(objective, 0.0, 0.5)
    first, second = (objective.sample(network, (3, 4, 2), steps=5, noise=noise) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, objective.sample(network, (3, 4, 2), steps=5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "ddmp"}, "choose one of ddpm"),
        ({"name": "ddpm", "beta_schedule": "cosine"}, "beta_schedule='cosine': choose one of linear"),
        ({"name": "ddpm", "prediction_type": "eps"}, "prediction_type='eps'"),
        ({"name": "ddpm", "sampler": "euler"}, "sampler='euler'"),
        ({"name": "ddpm", "timestep_spacing": "even"}, "timestep_spacing='even': choose one of trailing"),
        ({"name": "ddpm", "variance_type": "learned"}, "variance_type='learned': choose one of fixed_small"),
        ({"name": "ddpm", "num_train_timesteps": 0}, "num_train_timesteps=0: must be an integer of at least 1"),
        ({"name": "ddpm", "num_train_timesteps": 100.0}, "num_train_timesteps=100.0: must be an integer"),
        ({"name": "ddpm", "data_scale": float("inf")}, "data_scale=inf: must be positive"),
        ({"name": "ddpm", "beta_schedule": "linear", "beta_end": 2.0}, "beta_end=2.0: needs 0 < beta_start"),
        ({"name": "ddpm", "beta_schedule": "linear", "beta_start": -0.1}, "beta_start=-0.1, .*: needs 0 < beta_start"),
        ({"name": "ddpm", "steps": 3}, "steps"),
    ],
)
def test_wrong_configuration_is_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_objective(options)


def test_too_many_sampling_steps_and_too_few_are_refused() -> None:
    with pytest.raises(ValueError, match="steps=1: timestep_spacing='linspace' would visit step 0 alone"):
        DDPM(timestep_spacing="linspace").sample(lambda noisy, time, condition: noisy, (1, 1), steps=1)
    with pytest.raises(ValueError, match="num_inference_steps=1: timestep_spacing='linspace'"):
        DDPM(timestep_spacing="linspace").check_num_inference_steps(1)
    for steps in (0, 101, 2.5):
        with pytest.raises(ValueError, match=f"steps={steps}: choose 1 to 100"):
            DDPM().sample(lambda noisy, time, condition: noisy, (1, 1), steps=steps)


@pytest.mark.parametrize(
    ("spacing", "visited"),
    [("trailing", [999, 749, 499, 249]), ("leading", [750, 500, 250, 0]), ("linspace", [999, 666, 333, 0])],
)
def test_samplers_visit_the_steps_of_their_spacing(spacing: str, visited: list[int]) -> None:
    seen: list[int] = []

    def network(noisy: Tensor, time: Tensor, condition: Tensor | None) -> Tensor:
        seen.append(int(time[0]))
        return noisy

    DDPM(num_train_timesteps=1000, beta_schedule="linear", timestep_spacing=spacing).sample(network, (2, 3), steps=4)
    assert seen == visited


@pytest.mark.parametrize("n_train", [50, 100])
@pytest.mark.parametrize("sampler", ["ddim", "ddim_floor", "ddpm", "pndm"])
def test_any_number_of_steps_visits_so_many_different_ones(sampler: str, n_train: int) -> None:
    """Floats make diffusers' trailing spacing one step too long for some counts, 29 of 100 among them."""
    objective, seen = DDPM(n_train, sampler=sampler, clip_sample=False), []

    def network(noisy: Tensor, time: Tensor, condition: Tensor | None) -> Tensor:
        seen.append(int(time[0]))
        return noisy

    for steps in range(1, n_train + 1):
        seen.clear()
        objective.sample(network, (1, 2), steps=steps, noise=torch.ones(1, 2))
        again = 1 if sampler == "pndm" and steps > 1 else 0  # it looks twice at its second step
        assert len(seen) == steps + again, steps
        assert len(set(seen)) == steps, steps
        assert seen[0] == n_train - 1
        assert min(seen) >= 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_data_meets_as_much_noise(dtype: torch.dtype) -> None:
    seen: list[Tensor] = []

    def network(noisy: Tensor, time: Tensor, condition: Tensor | None) -> Tensor:
        assert noisy.dtype == dtype
        seen.append(noisy.float())
        return noisy

    objective, n = DDPM(), 20_000
    noise = torch.randn(n, 1, generator=torch.Generator().manual_seed(0)).to(dtype)
    for t in (0, 1, 5):
        time = torch.full((n,), t)
        objective.loss(network, torch.zeros(n, 1, dtype=dtype), noise, time=time)
        expected = (1 - objective.scheduler.alphas_cumprod[t]).sqrt() * noise.float().std()
        torch.testing.assert_close(seen[-1].std(), expected, rtol=2e-3, atol=0)


def test_the_ancestral_sampler_draws_the_variance_that_is_asked_for() -> None:
    """Ho et al., section 3.2: beta_t, or beta_t (1 - abar_{t-1}) / (1 - abar_t)."""
    variances = {}
    for kind in ("fixed_small", "fixed_large"):
        scheduler = DDPM(10, "linear", sampler="ddpm", variance_type=kind).sampling_scheduler()
        scheduler.set_timesteps(10)
        variances[kind] = float(scheduler._get_variance(5))
    beta, alphas_bar = float(scheduler.betas[5]), scheduler.alphas_cumprod
    small = beta * float((1 - alphas_bar[4]) / (1 - alphas_bar[5]))
    assert variances == {"fixed_small": pytest.approx(small), "fixed_large": pytest.approx(beta)}


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, 100),
        ({}, 20),
        ({}, 1),
        ({"timestep_spacing": "leading"}, 20),
        ({"timestep_spacing": "leading", "steps_offset": 1}, 20),
        ({"timestep_spacing": "linspace"}, 20),
    ],
)
def test_the_ancestral_sampler_leaves_no_noise_in_its_samples(options: dict, steps: int) -> None:
    """A network that knows the data gets it back, whichever step the last one is and however large the variance."""
    data = torch.full((256, 4), 0.5)
    for kind in ("fixed_small", "fixed_large"):
        objective = DDPM(sampler="ddpm", variance_type=kind, beta_schedule="linear", **options)

        def network(noisy: Tensor, time: Tensor, condition: Tensor | None, alphas: Tensor) -> Tensor:
            abar = alphas[time].view(-1, 1)
            return (noisy - abar.sqrt() * data) / (1 - abar).sqrt()

        knowing = partial(network, alphas=objective.scheduler.alphas_cumprod)
        samples = objective.sample(knowing, (256, 4), steps=steps, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(samples, data, atol=1e-4, rtol=0)


def test_all_steps_of_the_ancestral_sampler_are_the_library_s_own_loop() -> None:
    objective = DDPM(sampler="ddpm", variance_type="fixed_large")
    noise = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    scheduler, generator = objective.sampling_scheduler(), torch.Generator().manual_seed(1)
    scheduler.set_timesteps(100)
    expected = noise
    for t in scheduler.timesteps:
        expected = scheduler.step(wave(expected, t.expand(4), None), t, expected, generator=generator).prev_sample
    found = objective.sample(wave, (4, 2), noise=noise, generator=torch.Generator().manual_seed(1))
    assert torch.equal(found, expected)


def test_pndm_is_stable_diffusions_sampler() -> None:
    """One more call than steps, the steps that its pipeline visits, and no clipping."""
    options = {"num_train_timesteps": 1000, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    objective = DDPM(
        **options, sampler="pndm", timestep_spacing="leading", steps_offset=1, set_alpha_to_one=False, clip_sample=False
    )
    seen: list[int] = []

    def network(noisy: torch.Tensor, time: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        seen.append(int(time[0]))
        return 0.1 * noisy

    noise = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    found = objective.sample(network, (2, 3), steps=4, noise=noise)
    assert seen == [751, 501, 501, 251, 1]
    scheduler = PNDMScheduler(**options, skip_prk_steps=True, steps_offset=1, set_alpha_to_one=False)
    scheduler.set_timesteps(4)
    expected = noise
    for t in scheduler.timesteps:
        expected = scheduler.step(0.1 * expected, t, expected).prev_sample
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "pndm"}, "sampler='pndm' needs clip_sample=False"),
        ({"sampler": "pndm", "clip_sample": False, "prediction_type": "sample"}, "prediction_type='sample'"),
        ({"steps_offset": 2}, "steps_offset=2: choose 0 or 1"),
    ],
)
def test_settings_that_stable_diffusion_cannot_have_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DDPM(**options)


def test_an_offset_leaves_one_step_less() -> None:
    objective = DDPM(num_train_timesteps=10, timestep_spacing="leading", steps_offset=1)
    assert objective.max_steps == 9
    assert objective.sample(lambda x, t, c: x, (1, 2)).shape == (1, 2)
    with pytest.raises(ValueError, match="steps=10: choose 1 to 9"):
        objective.sample(lambda x, t, c: x, (1, 2), steps=10)

"""What a prediction says of data and noise, against diffusers' schedulers and the forward processes."""

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from immiscible_policy.diffusion import DDPM, Consistency, FlowMatching, Objective

SHAPE = (5, 2, 3)


def draws(*seeds: int) -> list[Tensor]:
    return [torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)) for seed in seeds]


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_ddpm_data_are_those_of_diffusers(prediction_type: str) -> None:
    prediction, noisy = draws(0, 1)
    scale = 2.0
    objective = DDPM(prediction_type=prediction_type, data_scale=scale)
    scheduler = DDIMScheduler.from_config({**objective.scheduler.config, "clip_sample": False})
    scheduler.set_timesteps(100)
    for t in (0, 40, 98):
        expected = scheduler.step(prediction, t, noisy).pred_original_sample
        data = objective.predict_data(prediction, noisy, torch.full((5,), t))
        torch.testing.assert_close(scale * data, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_ddpm_data_and_noise_make_the_input(prediction_type: str) -> None:
    prediction, noisy = draws(0, 1)
    objective = DDPM(prediction_type=prediction_type, data_scale=1.5)
    time = torch.tensor([0, 3, 50, 80, 97])
    data, noise = (
        method(prediction, noisy, time).double() for method in (objective.predict_data, objective.predict_noise)
    )
    again = objective.scheduler.add_noise(1.5 * data, noise, time)
    torch.testing.assert_close(again.float(), noisy, rtol=1e-3, atol=1e-3)


def test_flow_matching_ends_are_where_one_step_of_diffusers_lands() -> None:
    prediction, noisy = draws(0, 1)
    objective = FlowMatching(data_scale=3.0)
    scheduler = FlowMatchEulerDiscreteScheduler()
    for s in (1.0, 0.6, 0.25):
        time = torch.full((5,), 1000 * s)
        scheduler.set_timesteps(sigmas=[s])  # the only step: from s to 0
        expected = scheduler.step(prediction, scheduler.timesteps[0], noisy).prev_sample
        data, noise = (method(prediction, noisy, time) for method in (objective.predict_data, objective.predict_noise))
        torch.testing.assert_close(3.0 * data, expected)
        torch.testing.assert_close((1 - s) * 3.0 * data + s * noise, noisy)
        torch.testing.assert_close(noise - 3.0 * data, prediction)


def test_consistency_data_are_the_consistency_functions() -> None:
    """From what the network was given, which is scaled; and data + sigma noise is the noisy sample again."""
    objective = Consistency(data_scale=2.0)
    (noisy,) = draws(1)
    sigma = torch.tensor([0.002, 0.1, 1.0, 20.0, 80.0])
    noisy = sigma.view(-1, 1, 1) * noisy + 0.3
    calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def network(scaled: Tensor, time: Tensor, condition: Tensor | None) -> Tensor:
        calls.append((scaled.sin() + 0.1, scaled, time))
        return calls[0][0]

    expected = objective.denoise(network, noisy, sigma)
    data, noise = (method(*calls[0]) for method in (objective.predict_data, objective.predict_noise))
    torch.testing.assert_close(2.0 * data, expected, rtol=1e-4, atol=1e-4)
    again = 2.0 * data + sigma.view(-1, 1, 1) * noise
    torch.testing.assert_close(again, noisy, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("objective", [DDPM(), DDPM(prediction_type="sample"), FlowMatching(), Consistency()])
def test_half_precision_predictions_are_taken_in_float32(objective: Objective) -> None:
    prediction, noisy = draws(0, 1)
    time = torch.full((5,), 10)
    for method in (objective.predict_data, objective.predict_noise):
        assert method(prediction.bfloat16(), noisy, time).dtype == torch.float32

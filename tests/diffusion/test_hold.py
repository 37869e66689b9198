"""Known parts of a sample: where they are put, and that the rest follows them."""

from typing import Any

import pytest
import torch
from torch import Tensor

from immiscible_policy.diffusion import DDPM, Consistency, FlowMatching, Hold, Objective

OBJECTIVES: dict[str, Objective] = {
    "ddim": DDPM(data_scale=2.0),
    "ddpm": DDPM(sampler="ddpm", data_scale=2.0),
    "euler": FlowMatching(data_scale=2.0),
    "midpoint": FlowMatching(sampler="midpoint", data_scale=2.0),
    "consistency": Consistency(data_scale=2.0),
}


def held(batch: int = 4) -> Hold:
    generator = torch.Generator().manual_seed(5)
    data = torch.rand(batch, 2, generator=generator) * 2 - 1
    return Hold(data, torch.tensor([True, False]), torch.randn(batch, 2, generator=generator))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_known_entries_meet_the_network_as_noisy_as_the_rest_and_end_as_they_are(name: str) -> None:
    objective, hold = OBJECTIVES[name], held()
    calls: list[tuple[Tensor, Tensor]] = []

    def network(noisy: Tensor, time: Tensor, condition: Tensor | None) -> Tensor:
        calls.append((noisy.clone(), time))
        return 0.3 * noisy

    sample = objective.sample(network, (4, 2), steps=4, generator=torch.Generator().manual_seed(0), hold=hold)
    assert torch.equal(sample[:, 0], hold.data[:, 0])
    assert not torch.equal(sample[:, 1], hold.data[:, 1])
    data, noise = 2.0 * hold.data[:, 0], hold.noise[:, 0]
    for number, (noisy, time) in enumerate(calls):
        if isinstance(objective, DDPM):
            abar = objective.scheduler.alphas_cumprod[time]
            expected = abar.sqrt() * data + (1 - abar).sqrt() * noise
        elif isinstance(objective, FlowMatching):
            if name == "midpoint" and number % 2:
                continue  # in the middle of an interval
            s = time / 1000
            expected = (1 - s) * data + s * noise
        else:
            sigma = (time / 250).exp()
            expected = (data + sigma * noise) / (sigma**2 + 1.0).sqrt()  # sigma_data 0.5, scaled by 2
        torch.testing.assert_close(noisy[:, 0], expected, rtol=1e-4, atol=1e-4)


class Correlated:
    """The exact noise prediction for two entries with variance 1/4 and correlation 0.95."""

    covariance = 0.25 * torch.tensor([[1.0, 0.95], [0.95, 1.0]])

    def __init__(self, objective: DDPM) -> None:
        self.alphas = objective.scheduler.alphas_cumprod

    def __call__(self, noisy: Tensor, time: Tensor, condition: Tensor | None) -> Tensor:
        abar = float(self.alphas[int(time[0])])
        total = abar * self.covariance + (1 - abar) * torch.eye(2)
        return (1 - abar) ** 0.5 * noisy @ torch.linalg.inv(total)


def test_the_rest_follows_what_is_known() -> None:
    objective = DDPM(sampler="ddpm", clip_sample=False)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2_000, 2, generator=generator)
    options: dict[str, Any] = {"steps": 100, "generator": generator}
    free = objective.sample(Correlated(objective), (2_000, 2), **options)
    hold = Hold(torch.tensor([0.6, 0.0]), torch.tensor([True, False]), noise)
    led = objective.sample(Correlated(objective), (2_000, 2), hold=hold, **options)
    assert abs(float(free[:, 1].mean())) < 0.05
    assert float(led[:, 1].mean()) > 0.35  # 0.57 if it were exact; replacement is known to follow less than it should


def test_the_adaptive_sampler_refuses_known_parts() -> None:
    with pytest.raises(ValueError, match="hold: sampler='adaptive' cannot keep known parts"):
        FlowMatching(sampler="adaptive").sample(lambda x, t, c: x, (4, 2), hold=held())

"""Image models whose answers are known: their network is a formula."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from image_diffusion.model import PixelModel

UNET = {
    "block_out_channels": [8],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"],
}
DDIM = {"name": "ddpm", "num_train_timesteps": 50, "beta_schedule": "linear", "beta_end": 0.4}


class Straight(nn.Module):
    """The velocity under which one Euler step from noise n ends at ``factor n + shift``."""

    def __init__(self, factor: float, shift: float = 0.0) -> None:
        super().__init__()
        self.factor, self.shift = nn.Parameter(torch.tensor(factor)), shift

    def forward(self, noisy: Tensor, time: Tensor, condition: Tensor | None = None) -> Tensor:
        return (1 - self.factor) * noisy - self.shift


class OptimalVelocity(nn.Module):
    """E[n - x | x_s] for data N(mean, std^2), independent of noise."""

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.mean, self.std = nn.Parameter(torch.tensor(mean)), std

    def forward(self, noisy: Tensor, time: Tensor, condition: Tensor | None = None) -> Tensor:
        s = (time / 1000).view(-1, 1, 1, 1)
        variance = (1 - s) ** 2 * self.std**2 + s**2
        return (s - (1 - s) * self.std**2) / variance * (noisy - (1 - s) * self.mean) - self.mean


class OptimalNoise(nn.Module):
    """E[n | x_t] for the same data under DDPM."""

    def __init__(self, alphas: Tensor, mean: float, std: float) -> None:
        super().__init__()
        self.alphas, self.mean, self.std = alphas, nn.Parameter(torch.tensor(mean)), std

    def forward(self, noisy: Tensor, time: Tensor, condition: Tensor | None = None) -> Tensor:
        abar = self.alphas[time.long()].view(-1, 1, 1, 1)
        return (1 - abar).sqrt() * (noisy - abar.sqrt() * self.mean) / (abar * self.std**2 + 1 - abar)


def image_model(
    network: nn.Module | None = None, objective: dict[str, Any] | None = None, **options: Any
) -> PixelModel:
    """A model of 1 x 2 x 2 images, by flow matching in one step unless told otherwise."""
    settings = {"image_size": 2, "channels": 1, "num_inference_steps": 1, "flip": False, **options}
    model = PixelModel(network=UNET, objective=objective or {"name": "flow_matching"}, **settings).eval()
    if network is not None:
        model.network = network  # type: ignore[assignment]
    return model.requires_grad_(False)


def ddim_model(mean: float, std: float, **options: Any) -> PixelModel:
    """A DDIM model that knows the optimal denoiser of N(mean, std^2)."""
    model = image_model(objective=DDIM, **options)
    objective: Any = model.objective
    model.network = OptimalNoise(objective.scheduler.alphas_cumprod, mean, std)  # type: ignore[assignment]
    return model.requires_grad_(False)


@pytest.fixture(scope="session")
def toys() -> SimpleNamespace:
    """Networks and models of this file."""
    return SimpleNamespace(
        Straight=Straight, OptimalVelocity=OptimalVelocity, image_model=image_model, ddim_model=ddim_model
    )

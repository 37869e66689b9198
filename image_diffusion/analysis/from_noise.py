"""Images from chosen starting noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from image_diffusion.base_model import ImageModel, Labels


def start_noise(model: ImageModel, seeds: Sequence[int]) -> tuple[Tensor, list[torch.Generator]]:
    """What ``model.sample`` starts from, (n, ...) float32 on the CPU, and the generators that it goes on with."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    shape = model.sample_shape(1)
    return torch.cat([torch.randn(shape, generator=generator) for generator in generators]), generators


def draw_from(
    model: ImageModel,
    noise: Tensor,
    generators: Sequence[torch.Generator],
    labels: Labels | None = None,
    num_inference_steps: int | None = None,
) -> Tensor:
    """Images (n, C, H, W) uint8 on the CPU of noise (n, ...), one generator each for a sampler's own draws."""
    return model.draw(generators, labels, num_inference_steps, noise=noise.to(model.device))

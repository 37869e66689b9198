"""What every action network shares: the embedding of the diffusion time and the flattening of its condition.

Every network is a module with ``network(noisy, time, condition) -> prediction``: noisy (B, T, action_dim), time (B,),
condition (B, ...) and a prediction of noisy's shape.
"""

import math

import torch
from torch import Tensor, nn


class SinusoidalEmbedding(nn.Module):
    """Sines and cosines of the diffusion time (Vaswani et al., 2017, section 3.5): (B,) -> (B, dim)."""

    frequencies: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim < 4 or dim % 2:
            raise ValueError(f"dim={dim}: the embedding of the diffusion time needs an even width of at least 4")
        half = dim // 2
        frequencies = torch.exp(torch.arange(half) * (-math.log(10_000.0) / (half - 1)))
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, time: Tensor) -> Tensor:
        angles = time.to(self.frequencies.dtype)[:, None] * self.frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


def flatten_condition(condition: Tensor) -> Tensor:
    """An observation history (B, n_obs_steps, ...) as one vector (B, C)."""
    return condition.flatten(1)

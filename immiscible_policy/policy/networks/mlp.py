"""Residual multilayer perceptron over the flattened action sequence: the cheapest network a step."""

import torch
from torch import Tensor, nn

from immiscible_policy.checks import check_choice
from immiscible_policy.policy.networks.activations import ACTIVATIONS
from immiscible_policy.policy.networks.base import (
    SinusoidalEmbedding,
    flatten_condition,
)


class ResidualMLP(nn.Module):
    """Pre-norm residual blocks on (noisy actions, time embedding, observation history) joined to one vector.

    Args:
        action_dim, horizon: entries of one action and actions in a sequence.
        condition_dim: entries of the flattened observation history.
        width, n_blocks: of the residual trunk.
        step_embed_dim: width of the sinusoidal embedding of the diffusion time.
        activation: ``mish``, ``silu`` or ``gelu``.
    """

    def __init__(
        self,
        action_dim: int,
        condition_dim: int,
        horizon: int,
        width: int = 512,
        n_blocks: int = 4,
        step_embed_dim: int = 128,
        activation: str = "silu",
    ) -> None:
        super().__init__()
        check_choice("activation", activation, sorted(ACTIVATIONS))
        self.embedding = SinusoidalEmbedding(step_embed_dim)
        self.inlet = nn.Linear(horizon * action_dim + condition_dim + step_embed_dim, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width),
                nn.Linear(width, 2 * width),
                ACTIVATIONS[activation](),
                nn.Linear(2 * width, width),
            )
            for _ in range(n_blocks)
        )
        self.outlet = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, horizon * action_dim))

    def forward(self, noisy: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """noisy (B, T, action_dim), time (B,), condition (B, ...) -> (B, T, action_dim)."""
        joined = torch.cat([noisy.flatten(1), flatten_condition(condition), self.embedding(time)], dim=-1)
        hidden = self.inlet(joined)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.outlet(hidden).view_as(noisy)

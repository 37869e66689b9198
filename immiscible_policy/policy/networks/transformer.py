"""Transformer over an action sequence that attends to the diffusion time and the observation history.

Diffusion Policy (Chi et al., RSS 2023), section III-B: every noisy action is a token; a causal decoder cross-attends to
the tokens of the diffusion time and of the observations up to the same moment.
"""

import torch
from torch import Tensor, nn

from immiscible_policy.policy.networks.activations import Mish
from immiscible_policy.policy.networks.base import SinusoidalEmbedding


class ActionTransformer(nn.Module):
    """Decoder of pre-norm blocks: (noisy actions, time, observation history) -> prediction.

    Args:
        action_dim, observation_dim: entries of one action and of one observation.
        horizon, n_obs_steps: actions in a sequence and observations in the history.
        n_layers, n_heads, embed_dim: of the decoder.
        dropout: of embeddings and residual branches.
        causal: whether an action may attend only to itself and earlier ones, and to observations not after it.

    The defaults are the released low-dimensional configuration for PushT.
    """

    causal_mask: Tensor
    memory_mask: Tensor

    def __init__(
        self,
        action_dim: int,
        observation_dim: int,
        horizon: int,
        n_obs_steps: int,
        n_layers: int = 8,
        n_heads: int = 4,
        embed_dim: int = 256,
        dropout: float = 0.01,
        causal: bool = True,
    ) -> None:
        super().__init__()
        if embed_dim % n_heads:
            raise ValueError(f"embed_dim={embed_dim} must be divisible by n_heads={n_heads}")
        self.causal = causal
        self.time_embedding = SinusoidalEmbedding(embed_dim)
        self.action_inlet = nn.Linear(action_dim, embed_dim)
        self.observation_inlet = nn.Linear(observation_dim, embed_dim)
        self.action_position = nn.Parameter(torch.empty(1, horizon, embed_dim).normal_(std=0.02))
        self.memory_position = nn.Parameter(torch.empty(1, 1 + n_obs_steps, embed_dim).normal_(std=0.02))
        self.memory_encoder = nn.Sequential(
            nn.Linear(embed_dim, 4 * embed_dim), Mish(), nn.Linear(4 * embed_dim, embed_dim)
        )
        layer = nn.TransformerDecoderLayer(
            embed_dim, n_heads, 4 * embed_dim, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.dropout = nn.Dropout(dropout)
        self.decoder = nn.TransformerDecoder(layer, n_layers)
        self.outlet = nn.Sequential(nn.LayerNorm(embed_dim), nn.Linear(embed_dim, action_dim))
        steps = torch.arange(horizon)
        # Memory token 0 is the diffusion time (seen by all); token j >= 1 is the observation of step j - 1.
        observed = torch.arange(1 + n_obs_steps) - 1
        blocked = (
            torch.zeros(horizon, horizon, dtype=torch.bool),
            torch.zeros(horizon, 1 + n_obs_steps, dtype=torch.bool),
        )
        if causal:
            blocked = steps[None] > steps[:, None], observed[None] > steps[:, None]
        self.register_buffer("causal_mask", blocked[0], persistent=False)
        self.register_buffer("memory_mask", blocked[1], persistent=False)
        self.apply(_initialise)

    def forward(self, noisy: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """noisy (B, T, action_dim), time (B,), condition (B, n_obs_steps, observation_dim) -> (B, T, action_dim)."""
        memory = torch.cat([self.time_embedding(time)[:, None], self.observation_inlet(condition)], dim=1)
        memory = self.memory_encoder(self.dropout(memory + self.memory_position))
        actions = self.dropout(self.action_inlet(noisy) + self.action_position)
        # Told which mask it is, the decoder need not read its values, which would wait for a GPU.
        hidden = self.decoder(
            actions, memory, tgt_mask=self.causal_mask, memory_mask=self.memory_mask, tgt_is_causal=self.causal
        )
        return self.outlet(hidden)


def _initialise(module: nn.Module) -> None:
    """Weights of standard deviation 0.02 and zero biases, as in GPT-2 and in the reference policy."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.MultiheadAttention):
        nn.init.normal_(module.in_proj_weight, std=0.02)
        nn.init.zeros_(module.in_proj_bias)

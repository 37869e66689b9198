"""Action networks by name. All share ``network(noisy, time, condition) -> prediction``."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from immiscible_policy.policy.networks.base import check_choice
from immiscible_policy.policy.networks.mlp import ResidualMLP
from immiscible_policy.policy.networks.transformer import ActionTransformer
from immiscible_policy.policy.networks.unet1d import ConditionalUNet1D

__all__ = ["NETWORKS", "ActionTransformer", "ConditionalUNet1D", "ResidualMLP", "build_network"]

NETWORKS = ("mlp", "transformer", "unet1d")


def build_network(
    config: Mapping[str, Any], *, action_dim: int, observation_dim: int, horizon: int, n_obs_steps: int
) -> nn.Module:
    """The network that ``config`` names under ``name``, with the rest of ``config`` as its arguments."""
    options = dict(config)
    name = options.pop("name", None)
    check_choice("network.name", str(name), NETWORKS)
    condition_dim = observation_dim * n_obs_steps
    try:
        if name == "unet1d":
            return ConditionalUNet1D(action_dim, condition_dim, **options)
        if name == "mlp":
            return ResidualMLP(action_dim, condition_dim, horizon, **options)
        return ActionTransformer(action_dim, observation_dim, horizon, n_obs_steps, **options)
    except TypeError as error:
        raise ValueError(f"network {name!r}: {error}") from error

"""Action networks by name. All share ``network(noisy, time, condition) -> prediction``."""

from collections.abc import Mapping
from inspect import signature
from typing import Any

from torch import nn

from immiscible_policy.checks import check_choice
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
    network, sizes = {
        "unet1d": (ConditionalUNet1D, (action_dim, condition_dim)),
        "mlp": (ResidualMLP, (action_dim, condition_dim, horizon)),
        "transformer": (ActionTransformer, (action_dim, observation_dim, horizon, n_obs_steps)),
    }[str(name)]
    settings = list(signature(network).parameters)[len(sizes) :]
    if unknown := [setting for setting in options if setting not in settings]:
        raise ValueError(f"network {name!r} has no {', '.join(unknown)}: choose from {', '.join(settings)}")
    try:
        made = network(*sizes, **options)
    except TypeError as error:
        raise ValueError(f"network {name!r}: {error}") from error
    if horizon % getattr(made, "horizon_divisor", 1):
        raise ValueError(f"horizon={horizon}: network {name!r} needs a multiple of {made.horizon_divisor}")
    return made

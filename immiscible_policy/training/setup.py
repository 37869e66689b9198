"""What the training loop is built from: optimiser, averaged weights, compiled network, one accelerator a run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from accelerate.state import AcceleratorState
from torch import nn

from immiscible_policy.training.config import TrainerConfig

if TYPE_CHECKING:
    from diffusers.training_utils import EMAModel


def build_optimizer(model: nn.Module, config: TrainerConfig) -> torch.optim.Optimizer:
    """The optimiser of a configuration, over the parameters that are trained."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    settings: dict[str, Any] = {"lr": config.learning_rate, "betas": config.betas, "weight_decay": config.weight_decay}
    if config.optimizer == "radam":
        return torch.optim.RAdam(parameters, **settings)
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, **settings, fused=True)


def build_average(parameters: Iterable[nn.Parameter], config: TrainerConfig) -> EMAModel:
    """The weights' moving average of a configuration."""
    # Here, because it brings transformers, which is a third of the time that a script takes to start.
    from diffusers.training_utils import EMAModel

    return EMAModel(
        parameters,
        decay=config.ema_max_decay,
        min_decay=config.ema_max_decay if config.ema_warmup == "none" else 0.0,
        use_ema_warmup=config.ema_warmup == "power",
        inv_gamma=1.0,
        power=config.ema_power,
    )


def compile_network(model: nn.Module, mode: bool | str) -> None:
    """Compile the calls of ``model.network`` in place: parameters, their names and copies made before stay as they are.

    Raises:
        ValueError: the model has no ``network``.
    """
    network = getattr(model, "network", None)
    if not isinstance(network, nn.Module):
        raise ValueError(f"compile={mode!r} compiles model.network, which {type(model).__name__} does not have")
    network.compile(mode="default" if mode is True else mode)


def forget_earlier_accelerator() -> None:
    """Let a sweep's next run in this process choose its own device and precision: accelerate keeps the first's."""
    if AcceleratorState._shared_state and AcceleratorState().num_processes == 1:
        AcceleratorState._reset_state(reset_partial_state=True)

"""Memory of couplings that is made of tensors."""

import torch
from torch import Tensor


def on_device(state: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The same dictionary, its tensors moved to the device where they are not there yet."""
    for name, value in state.items():
        if value.device != device:
            state[name] = value.to(device)
    return state

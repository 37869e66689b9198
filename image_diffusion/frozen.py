"""Pretrained networks that a model uses and does not train."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn


class Frozen:
    """Holds a network so that the model around it does not own it.

    Its weights are no parameters of the model: an optimiser, the averaged weights and ``checkpoints/latest`` know
    nothing of them, and copies of the model share them. They follow the model's device when they are used.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network.eval().requires_grad_(False)

    def __deepcopy__(self, memo: dict[int, Any]) -> Frozen:
        return self

    def on(self, device: torch.device) -> Any:
        """The network on a device."""
        if next(self.network.parameters()).device != device:
            self.network.to(device)
        return self.network

    def digest(self) -> bytes:
        """SHA-256 of the weights."""
        found = hashlib.sha256()
        for name, value in sorted(self.network.state_dict().items()):
            found.update(name.encode())
            found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return found.digest()


def load_weights(kind: Any, folder: Path, name: str, **options: Any) -> Any:
    """``kind.from_pretrained(folder)`` of diffusers or transformers, from safetensors and from this machine alone.

    Args:
        name: what errors call the folder.

    Raises:
        ValueError: files are missing or damaged, or weights are: libraries would go on with random ones.
    """
    options = {"use_safetensors": True, "local_files_only": True, "output_loading_info": True, **options}
    try:
        network, info = kind.from_pretrained(folder, **options)
    except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
        raise ValueError(f"{name}: {folder.name}: {error}") from error
    missing = [*map(str, info["missing_keys"]), *map(str, info["mismatched_keys"])]
    if missing:
        raise ValueError(
            f"{name}: {folder.name}: {len(missing)} weights are missing or misshapen, such as {missing[0]}"
        )
    return network


@contextlib.contextmanager
def frozen_inference(device: torch.device) -> Iterator[None]:
    """No gradients, and bfloat16 where the training step around it uses a lower precision: in float16 some published
    autoencoders overflow."""
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=torch.is_autocast_enabled(device.type)):
        yield

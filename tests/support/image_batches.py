"""Batches of small images, and a coupling that is watched."""

from typing import Any

import torch
from torch import Tensor

from immiscible_policy.coupling import Coupling


def images(n: int = 6, channels: int = 1) -> Tensor:
    """(n, channels, 8, 8) uint8, always the same."""
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (n, channels, 8, 8), generator=generator, dtype=torch.uint8)


class Spy:
    """Stands in for a coupling; remembers what it was given and what it answered."""

    uses_time = False

    def __init__(self, inner: Coupling) -> None:
        self.inner = inner
        self.calls: list[tuple[Tensor, dict[str, Any], Tensor]] = []

    def __call__(self, data: Tensor, **options: Any) -> Tensor:
        noise = self.inner(data, **options)
        self.calls.append((data, options, noise))
        return noise

"""Images as bytes and as what networks see, upright and mirrored."""

from __future__ import annotations

import torch
from torch import Tensor


def draw_mirrored(n: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """Which of n training images to mirror, (n, 1, 1, 1) bool, each with chance 1/2."""
    return torch.rand(n, 1, 1, 1, device=device, generator=generator) < 0.5


def mirror_at_random(images: Tensor, generator: torch.Generator | None) -> Tensor:
    """Images (n, C, H, W), each mirrored with chance 1/2."""
    return torch.where(draw_mirrored(len(images), images.device, generator), images.flip(-1), images)


def from_bytes(images: Tensor) -> Tensor:
    """Bytes 0..255 as float32 -1..1, on their device."""
    return images.float().div_(127.5).sub_(1.0)


def to_bytes(sample: Tensor) -> Tensor:
    """Samples in [-1, 1] as uint8 on the CPU: rounded, values outside clipped."""
    return sample.float().add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8).cpu()

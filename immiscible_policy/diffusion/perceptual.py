"""LPIPS as a distance between images (Zhang et al., 2018), with which CM trains (Song et al., 2023, section 5).

Optional: it needs the package ``lpips``, which needs torchvision and downloads the weights of VGG-16 on first use.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# The size that CM's released code enlarges CIFAR-10's images to (openai/consistency_models_cifar10).
SIZE = 224


def perceptual_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """LPIPS of VGG-16 between two batches of images.

    Args:
        student, teacher: (B, C, H, W) in [-1, 1], C 1 or 3; grey images are shown as grey RGB images.

    Returns:
        (B,) float32.

    Raises:
        ValueError: not images, or the package ``lpips`` is missing.
    """
    if student.ndim != 4 or student.shape[1] not in (1, 3):
        raise ValueError(f"distance=lpips compares images (B, 1 or 3, H, W), got {tuple(student.shape)}")
    network = _network(student.device)
    pair = (F.interpolate(image.expand(-1, 3, -1, -1), (SIZE, SIZE), mode="bilinear") for image in (student, teacher))
    return network(*pair).flatten()


@functools.cache
def _network(device: torch.device) -> Any:
    try:
        import lpips  # type: ignore[import-not-found]
    except ImportError as error:
        raise ValueError(
            f"distance=lpips needs the package lpips and torchvision ({error}): pip install -e '.[lpips]', or choose "
            "pseudo_huber or l2"
        ) from error
    return lpips.LPIPS(net="vgg", verbose=False).to(device).eval().requires_grad_(False)

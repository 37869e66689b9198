"""A convolutional network with random weights: a distance for images of any size that needs no download."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from image_diffusion.metrics.extractor import check_images, tensors_sha256

_WIDTHS = (32, 64, 128)


class RandomConv:
    """Three random 3x3 convolutions with ReLU; means over all positions, after each, are the features.

    Random filters react to edges and texture, not to objects, so the distance sees noise, blur and colour, and little
    else. It is a function of ``channels`` and ``seed`` alone.

    Args:
        channels: of the images, 1 or 3.
        seed: draws the weights; part of the name.
    """

    canonical = False
    resize = "none: features are means over all positions"
    dim = sum(_WIDTHS)

    def __init__(self, channels: int = 3, seed: int = 0, device: str | torch.device = "cpu") -> None:
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, got {channels}")
        self.channels = channels
        self.name = f"random-conv-{seed}"
        generator = torch.Generator().manual_seed(seed)
        weights = []
        previous = channels
        for width in _WIDTHS:
            weight = torch.randn(width, previous, 3, 3, generator=generator)
            # Variance-preserving under ReLU (He et al. 2015, equation 10).
            weights.append(weight.mul_((2.0 / (9 * previous)) ** 0.5))
            previous = width
        self.weights_sha256 = tensors_sha256(weights)
        self._weights = [weight.to(device) for weight in weights]

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        check_images(images, (self.channels,), self.name)
        hidden = images.to(self._weights[0].device).float().div_(127.5).sub_(1.0)
        means = []
        for layer, weight in enumerate(self._weights):
            if layer and min(hidden.shape[2:]) >= 4:
                hidden = functional.avg_pool2d(hidden, 2)
            hidden = functional.conv2d(hidden, weight, padding=1).relu_()
            means.append(hidden.mean((2, 3)))
        return torch.cat(means, 1)

"""Spatial softmax: each feature map becomes the place where it is active (Finn et al., ICRA 2016, section V-B)."""

import torch
from torch import Tensor, nn


class SpatialSoftmax(nn.Module):
    """Expected coordinates of feature maps: (N, C, H, W) -> (N, 2 K), as x_1, y_1, x_2, y_2, ...

    Each map is normalised by a softmax over its H x W places; what comes out is the mean place under it, x to the
    right and y downwards, from -1 (centre of the first column or row) to 1 (centre of the last one). On an axis of a
    single place it is 0.

    Args:
        in_channels: C.
        n_keypoints: K maps, made by a 1 x 1 convolution; None takes the C maps as they are.
    """

    def __init__(self, in_channels: int, n_keypoints: int | None = None) -> None:
        super().__init__()
        if n_keypoints is not None and n_keypoints < 1:
            raise ValueError(f"n_keypoints={n_keypoints}: must be at least 1, or null for a keypoint a channel")
        self.out_dim = 2 * (in_channels if n_keypoints is None else n_keypoints)
        self.maps = nn.Identity() if n_keypoints is None else nn.Conv2d(in_channels, n_keypoints, 1)

    def forward(self, features: Tensor) -> Tensor:
        # In fp32: bf16 could not tell neighbouring places of a wide map apart.
        maps = self.maps(features).float()
        height, width = maps.shape[-2:]
        weight = maps.flatten(2).softmax(-1).unflatten(-1, (height, width))
        # Elementwise sums, because autocast would run matrix products in half precision.
        x = (weight.sum(-2) * _coordinates(width, weight)).sum(-1)
        y = (weight.sum(-1) * _coordinates(height, weight)).sum(-1)
        return torch.stack([x, y], dim=-1).flatten(1)


def _coordinates(size: int, like: Tensor) -> Tensor:
    if size == 1:
        return torch.zeros(1, device=like.device, dtype=like.dtype)
    return torch.linspace(-1, 1, size, device=like.device, dtype=like.dtype)

"""A small convolutional network for pictures, sized for a CPU."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


class ConvNet(nn.Module):
    """Convolutions with group normalisation and ReLU: (N, 3, H, W) in [-1, 1] -> (N, channels[-1], H', W').

    The first one is 5 x 5, the others 3 x 3. All but the last have stride 2, so that keypoints keep a finer grid: H' is
    H / 8 with the default four layers (84 -> 11).

    Args:
        channels: of each layer, each divisible by ``n_groups``.
        n_groups: of every group normalisation.
    """

    def __init__(self, channels: Sequence[int] = (16, 32, 64, 64), n_groups: int = 4) -> None:
        super().__init__()
        if not channels or n_groups < 1 or any(width < 1 or width % n_groups for width in channels):
            raise ValueError(
                f"channels={list(channels)}, n_groups={n_groups}: needs at least one layer, and channel counts that "
                "are divisible by n_groups"
            )
        self.out_channels = channels[-1]
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(pairwise([3, *channels])):
            size, stride = 5 if i == 0 else 3, 1 if i == len(channels) - 1 else 2
            layers += [
                nn.Conv2d(before, after, size, stride, padding=size // 2, bias=False),
                nn.GroupNorm(n_groups, after),
                nn.ReLU(),
            ]
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)

"""ResNet-18 (He et al., CVPR 2016, table 1) with group instead of batch normalisation, without its classifier.

Batch statistics do not go with weights that are averaged over training, so Diffusion Policy (Chi et al., RSS 2023,
section III-B) replaces them by group normalisation (Wu and He, 2018) with 16 channels a group.
"""

from collections.abc import Sequence

from torch import Tensor, nn

CHANNELS_A_GROUP = 16


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels // CHANNELS_A_GROUP, channels)


def _conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a skip connection: (N, in, H, W) -> (N, out, H / stride, W / stride)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _conv(in_channels, out_channels, 3, stride),
            _norm(out_channels),
            nn.ReLU(),
            _conv(out_channels, out_channels, 3),
            _norm(out_channels),
        )
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.skip = nn.Sequential(_conv(in_channels, out_channels, 1, stride), _norm(out_channels))
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.body(x) + self.skip(x))


class ResNet18(nn.Module):
    """(N, 3, H, W) in [-1, 1] -> (N, 512, ceil(H / 32), ceil(W / 32)); 11,176,512 parameters, initialised at random.

    Args:
        widths: channels of the four stages, each divisible by 16; the default is ResNet-18's.
    """

    def __init__(self, widths: Sequence[int] = (64, 128, 256, 512)) -> None:
        super().__init__()
        if not widths or any(width < CHANNELS_A_GROUP or width % CHANNELS_A_GROUP for width in widths):
            raise ValueError(f"widths={list(widths)}: needs multiples of {CHANNELS_A_GROUP}, one for each stage")
        self.out_channels = widths[-1]
        self.stem = nn.Sequential(
            _conv(3, widths[0], 7, stride=2), _norm(widths[0]), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1)
        )
        before = [widths[0], *widths[:-1]]
        self.stages = nn.Sequential(
            *(
                nn.Sequential(BasicBlock(i, o, 1 if stage == 0 else 2), BasicBlock(o, o))
                for stage, (i, o) in enumerate(zip(before, widths, strict=True))
            )
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        return self.stages(self.stem(images))

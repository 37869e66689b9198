"""Diffusion Policy's published U-Net (Chi et al., 2023) in the library's layers, (B, C, T); part of benchmark.py."""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn


class StepEmbedding(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, time: Tensor) -> Tensor:
        half = self.dim // 2
        frequencies = torch.exp(torch.arange(half, device=time.device) * (-math.log(10_000) / (half - 1)))
        angles = time[:, None] * frequencies[None]
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


def conv_block(in_channels: int, out_channels: int, kernel_size: int = 5) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(in_channels, out_channels, kernel_size, padding=kernel_size // 2),
        nn.GroupNorm(8, out_channels),
        nn.Mish(),
    )


class PublishedResidualBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, condition_dim: int) -> None:
        super().__init__()
        self.first, self.second = conv_block(in_channels, out_channels), conv_block(out_channels, out_channels)
        self.film = nn.Sequential(nn.Mish(), nn.Linear(condition_dim, 2 * out_channels))
        self.skip = nn.Conv1d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, bias = self.film(condition).unsqueeze(-1).chunk(2, dim=1)
        return self.second(scale * self.first(x) + bias) + self.skip(x)


class PublishedUNet(nn.Module):
    """network(noisy (B, T, action_dim), time (B,), condition (B, ...)) -> (B, T, action_dim)."""

    def __init__(self, action_dim: int, condition_dim: int, down_dims: Sequence[int], step_embed_dim: int) -> None:
        super().__init__()
        self.step_encoder = nn.Sequential(
            StepEmbedding(step_embed_dim),
            nn.Linear(step_embed_dim, 4 * step_embed_dim),
            nn.Mish(),
            nn.Linear(4 * step_embed_dim, step_embed_dim),
        )
        total, dims = step_embed_dim + condition_dim, [action_dim, *down_dims]

        def blocks(before: int, after: int, resize: nn.Module) -> nn.ModuleList:
            return nn.ModuleList(
                [PublishedResidualBlock(before, after, total), PublishedResidualBlock(after, after, total), resize]
            )

        halve = [nn.Conv1d(dim, dim, 3, stride=2, padding=1) for dim in down_dims[:-1]]
        self.down = nn.ModuleList(map(blocks, dims[:-1], dims[1:], [*halve, nn.Identity()]))
        self.middle = blocks(dims[-1], dims[-1], nn.Identity())
        self.up = nn.ModuleList(
            blocks(2 * after, before, nn.ConvTranspose1d(before, before, 4, stride=2, padding=1))
            for before, after in reversed(list(pairwise(down_dims)))
        )
        self.head = nn.Sequential(conv_block(dims[1], dims[1]), nn.Conv1d(dims[1], action_dim, 1))

    def forward(self, noisy: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        features = torch.cat([self.step_encoder(time), condition.flatten(1)], dim=-1)
        x = noisy.transpose(1, 2)
        skips: list[Tensor] = []
        for first, second, resize in self._levels(self.down):
            x = second(first(x, features), features)
            skips.append(x)
            x = resize(x)
        for block in list(self.middle)[:2]:
            x = block(x, features)
        for first, second, resize in self._levels(self.up):
            x = first(torch.cat([x, skips.pop()], dim=1), features)
            x = resize(second(x, features))
        return self.head(x).transpose(1, 2)

    @staticmethod
    def _levels(levels: nn.ModuleList) -> Iterator[tuple[nn.Module, nn.Module, nn.Module]]:
        return (cast("tuple[nn.Module, nn.Module, nn.Module]", tuple(level)) for level in levels)  # type: ignore[arg-type]

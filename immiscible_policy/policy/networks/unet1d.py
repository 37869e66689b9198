"""Conditional 1-D U-Net over an action sequence, FiLM-conditioned on time and observation.

Diffusion Policy (Chi et al., RSS 2023), section III-A and its released hyper-parameters: residual blocks of two
convolutions with group normalisation and an activation, each modulated by FiLM (Perez et al., 2018) from the
diffusion step embedding joined with the flattened observation history.

All tensors inside are (B, T, C). A sequence of 4 to 16 steps is so short that a CPU convolves it best by products of
matrices (see ``SequenceConv``), whose operands lie ready in this layout.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from immiscible_policy.checks import check_choice
from immiscible_policy.policy.networks import minimal_filtering
from immiscible_policy.policy.networks.activations import ACTIVATIONS
from immiscible_policy.policy.networks.base import (
    SinusoidalEmbedding,
    flatten_condition,
)

_SHORT = 4  # steps, up to which one product over the taps is at least as fast in fp32, too


class SequenceConv(nn.Module):
    """Convolution over time with "same" padding: (B, T, in) -> (B, ceil(T / stride), out).

    The weight is stored as (out, kernel, in). Under bf16 autocast on a CPU the taps are concatenated and multiplied
    at once: the product runs at bf16 speed there while the library's convolution does not (whole training step:
    ``scripts/benchmark.py --only policy``). Batches in fp32 take half the products (`minimal_filtering`). Where that
    does not apply, unfolding still pays for strides (0.6 of the library's time for 64 sequences of 8 steps, 128
    channels) and for the shortest sequences (a third, 4 steps, 1,024 channels). Elsewhere the same weight goes to the
    library's convolution as a view.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__()
        self.kernel_size, self.stride = kernel_size, stride
        reference = nn.Conv1d(in_channels, out_channels, kernel_size)
        self.weight = nn.Parameter(reference.weight.detach().transpose(1, 2).contiguous())
        self.bias = nn.Parameter(reference.bias.detach())  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        if self.kernel_size == 1:
            return F.linear(x, self.weight[:, 0], self.bias)
        pad = self.kernel_size // 2
        if x.device.type == "cpu":
            lowered = torch.is_autocast_enabled("cpu")
            if not lowered and self.stride == 1 and minimal_filtering.pays(x, self.weight):
                return minimal_filtering.convolve(x, self.weight, self.bias)
            if lowered or self.stride > 1 or x.shape[1] <= _SHORT:
                padded = F.pad(x.to(torch.get_autocast_dtype("cpu")) if lowered else x, (0, 0, pad, pad))
                taps = [padded[:, i : i + x.shape[1] : self.stride] for i in range(self.kernel_size)]
                return F.linear(torch.cat(taps, dim=-1), self.weight.flatten(1), self.bias)
        weight = self.weight.transpose(1, 2)
        return F.conv1d(x.transpose(1, 2), weight, self.bias, self.stride, pad).transpose(1, 2)


class Upsample(nn.Module):
    """Transposed convolution, kernel 4, stride 2, padding 1: (B, T, C) -> (B, 2T, C).

    An even output step sees the inputs (t - 1, t) and an odd one (t, t + 1), so it is two products of two taps each.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        reference = nn.ConvTranspose1d(channels, channels, 4, stride=2, padding=1)
        taps = reference.weight.detach().permute(1, 2, 0)  # (out, kernel, in)
        self.even = nn.Parameter(taps[:, [3, 1]].flatten(1))
        self.odd = nn.Parameter(taps[:, [2, 0]].flatten(1))
        self.bias = nn.Parameter(reference.bias.detach())  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, (0, 0, 1, 1))
        pairs = torch.cat([padded[:, :-1], padded[:, 1:]], dim=-1)
        even = F.linear(pairs[:, :-1], self.even, self.bias)
        odd = F.linear(pairs[:, 1:], self.odd, self.bias)
        return torch.stack([even, odd], dim=2).flatten(1, 2)


class ConvBlock(nn.Module):
    """Convolution, group normalisation, activation: (B, T, in) -> (B, T, out)."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, n_groups: int, activation: str) -> None:
        super().__init__()
        self.conv = SequenceConv(in_channels, out_channels, kernel_size)
        self.norm = nn.GroupNorm(n_groups, out_channels)
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        # A (B, C, 1, T) view of (B, T, C) memory is what torch calls channels_last, which group_norm reads as it
        # lies. In fp32, because bf16 statistics are both worse and (for few channels a group) 4 times slower.
        hidden = self.conv(x).float().transpose(1, 2).unsqueeze(2)
        return self.activation(self.norm(hidden)).squeeze(2).transpose(1, 2)


class FiLMResidualBlock(nn.Module):
    """Two convolution blocks with the condition's scale and bias between them, and a skip connection."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        condition_dim: int,
        kernel_size: int,
        n_groups: int,
        activation: str,
    ) -> None:
        super().__init__()
        self.first = ConvBlock(in_channels, out_channels, kernel_size, n_groups, activation)
        self.second = ConvBlock(out_channels, out_channels, kernel_size, n_groups, activation)
        self.film = nn.Linear(condition_dim, 2 * out_channels)
        self.skip = SequenceConv(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (B, T, in), activated condition (B, C) -> (B, T, out)."""
        scale, bias = self.film(condition).float().unsqueeze(1).chunk(2, dim=-1)
        return self.second(torch.addcmul(bias, scale, self.first(x))) + self.skip(x)


class ConditionalUNet1D(nn.Module):
    """U-Net that maps (noisy actions, diffusion time, observation history) to a prediction of the actions' shape.

    Args:
        action_dim: entries of one action.
        condition_dim: entries of the flattened observation history.
        down_dims: channels of each resolution; the horizon is halved between neighbours, so it must be divisible
            by ``2 ** (len(down_dims) - 1)``.
        kernel_size: of every convolution, odd.
        n_groups: of every group normalisation; divides each of ``down_dims``.
        step_embed_dim: width of the sinusoidal embedding of the diffusion time.
        activation: ``mish`` (the paper's) or ``silu`` (a fifth of its time on a CPU).

    The defaults are the released low-dimensional configuration (65.8M parameters for PushT's 2 x 20 observations).
    """

    def __init__(
        self,
        action_dim: int,
        condition_dim: int,
        down_dims: Sequence[int] = (256, 512, 1024),
        kernel_size: int = 5,
        n_groups: int = 8,
        step_embed_dim: int = 256,
        activation: str = "mish",
    ) -> None:
        super().__init__()
        check_choice("activation", activation, sorted(ACTIVATIONS))
        if not down_dims or kernel_size % 2 == 0 or any(dim % n_groups for dim in down_dims):
            raise ValueError(
                f"down_dims={list(down_dims)}, kernel_size={kernel_size}, n_groups={n_groups}: needs at least one "
                "resolution, an odd kernel, and channel counts divisible by n_groups"
            )
        dims = [action_dim, *down_dims]
        self.horizon_divisor = 2 ** (len(down_dims) - 1)
        self.step_encoder = nn.Sequential(
            SinusoidalEmbedding(step_embed_dim),
            nn.Linear(step_embed_dim, 4 * step_embed_dim),
            ACTIVATIONS[activation](),
            nn.Linear(4 * step_embed_dim, step_embed_dim),
        )
        self.activation = ACTIVATIONS[activation]()
        total = step_embed_dim + condition_dim

        def block(in_channels: int, out_channels: int) -> FiLMResidualBlock:
            return FiLMResidualBlock(in_channels, out_channels, total, kernel_size, n_groups, activation)

        self.down = nn.ModuleList()
        for i, (before, after) in enumerate(pairwise(dims)):
            last = i == len(down_dims) - 1
            resize = nn.Identity() if last else SequenceConv(after, after, 3, stride=2)
            self.down.append(nn.ModuleList([block(before, after), block(after, after), resize]))
        self.middle = nn.ModuleList([block(dims[-1], dims[-1]), block(dims[-1], dims[-1])])
        self.up = nn.ModuleList()
        for before, after in zip(reversed(dims[2:]), reversed(dims[1:-1]), strict=True):
            self.up.append(nn.ModuleList([block(2 * before, after), block(after, after), Upsample(after)]))
        self.head = nn.Sequential(
            ConvBlock(dims[1], dims[1], kernel_size, n_groups, activation),
            SequenceConv(dims[1], action_dim, 1),
        )

    def forward(self, noisy: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """noisy (B, T, action_dim), time (B,), condition (B, ...) -> (B, T, action_dim)."""
        if noisy.shape[1] % self.horizon_divisor:
            raise ValueError(f"horizon={noisy.shape[1]}: this network needs a multiple of {self.horizon_divisor}")
        features = torch.cat([self.step_encoder(time).float(), flatten_condition(condition)], dim=-1)
        features = self.activation(features)
        x = noisy
        skips: list[Tensor] = []
        for first, second, resize in _levels(self.down):
            x = second(first(x, features), features)
            skips.append(x)
            x = resize(x)
        for block in self.middle:
            x = block(x, features)
        for first, second, resize in _levels(self.up):
            x = first(torch.cat([x, skips.pop()], dim=-1), features)
            x = resize(second(x, features))
        return self.head(x)


def _levels(levels: nn.ModuleList) -> Iterable[tuple[nn.Module, nn.Module, nn.Module]]:
    return cast("Iterable[tuple[nn.Module, nn.Module, nn.Module]]", levels)

"""Min-max normalisation that travels with the policy."""

import torch
from torch import Tensor, nn


class MinMaxNormalizer(nn.Module):
    """Maps each of the last axis' ``dim`` entries linearly from its range in the data to [-1, 1].

    The reference policy's "limits" mode. An entry that is constant in the data has no scale: it maps to 0 and back
    to its constant.
    """

    low: Tensor
    high: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("low", torch.full((dim,), float("nan")))
        self.register_buffer("high", torch.full((dim,), float("nan")))

    def fit(self, data: Tensor) -> None:
        """Take the ranges from data (N, ..., dim)."""
        if data.shape[-1] != self.low.shape[0]:
            raise ValueError(f"data has {data.shape[-1]} entries, the normaliser {self.low.shape[0]}")
        flat = data.reshape(-1, data.shape[-1])
        self.low.copy_(flat.amin(0))
        self.high.copy_(flat.amax(0))

    def _center_and_half_range(self) -> tuple[Tensor, Tensor]:
        half = (self.high - self.low) / 2
        return (self.high + self.low) / 2, torch.where(half > 1e-6, half, torch.ones_like(half))

    def normalize(self, data: Tensor) -> Tensor:
        """data (..., dim) in its own units -> (..., dim), [-1, 1] for data within the fitted range."""
        center, half = self._center_and_half_range()
        return (data - center) / half

    def denormalize(self, normalized: Tensor) -> Tensor:
        """The inverse of ``normalize``."""
        center, half = self._center_and_half_range()
        return normalized * half + center

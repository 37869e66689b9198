"""Min-max normalisation that travels with the policy."""

from typing import Any

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
        self.is_fitted = False  # on the host: asking the buffers would make every prediction wait for the device

    def fit(self, data: Tensor) -> None:
        """Take the ranges from data (N, ..., dim), N >= 1.

        Raises:
            ValueError: another number of entries, no data, or NaN or infinite ones.
        """
        if data.shape[-1] != self.low.shape[0]:
            raise ValueError(f"data has {data.shape[-1]} entries, the normaliser {self.low.shape[0]}")
        flat = data.reshape(-1, data.shape[-1])
        if not len(flat):
            raise ValueError(f"data has shape {tuple(data.shape)}: ranges need at least one datum")
        low, high = flat.amin(0), flat.amax(0)  # which keep NaN
        if not bool((torch.isfinite(low) & torch.isfinite(high)).all()):
            raise ValueError(f"data must be finite, got ranges from {low.tolist()} to {high.tolist()}")
        self.low.copy_(low)
        self.high.copy_(high)
        self.is_fitted = True

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self.is_fitted = bool(torch.isfinite(self.low).all())

    def _center_and_half_range(self) -> tuple[Tensor, Tensor]:
        if not self.is_fitted:
            raise ValueError("the policy has no ranges of observations and actions yet: call fit_normalizers")
        half = (self.high - self.low) / 2
        return (self.high + self.low) / 2, torch.where(half > 1e-6, half, torch.ones_like(half))

    def normalize(self, data: Tensor) -> Tensor:
        """data (..., dim) in its own units -> (..., dim) of the normaliser's dtype, [-1, 1] within the fitted range."""
        center, half = self._center_and_half_range()
        return (data.to(center.dtype) - center) / half

    def denormalize(self, normalized: Tensor) -> Tensor:
        """The inverse of ``normalize``."""
        center, half = self._center_and_half_range()
        return normalized * half + center

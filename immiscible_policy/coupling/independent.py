"""The baseline: noise that knows nothing of the data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from immiscible_policy.coupling.base import Coupling


@dataclass(frozen=True)
class Independent(Coupling):
    """Independent Gaussian noise, as in ordinary diffusion training (Ho et al. 2020, Algorithm 1).

    Consumes the generator exactly as ``torch.randn(data.shape, generator=generator)`` does and returns
    those very bits, so that switching a coupling off gives the baseline to the last bit. A given
    ``noise`` is returned as it is.
    """

    def _couple(
        self,
        data: Tensor,
        noise: Tensor,
        condition: Tensor | None,
        mask: Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        return noise

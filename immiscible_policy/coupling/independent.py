"""The baseline: noise that knows nothing of the data."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from immiscible_policy.coupling.base import Context, Coupling, Source


@dataclass(frozen=True, repr=False)
class Independent(Coupling):
    """Independent noise, as in ordinary diffusion training (Ho et al. 2020, Algorithm 1).

    Consumes the generator exactly as ``torch.randn(data.shape, generator=generator)`` does and returns
    those very bits, so that switching a coupling off gives the baseline to the last bit. A given
    ``noise`` is returned as it is.

    >>> import torch
    >>> data = torch.zeros(8, 3, 32, 32)
    >>> noise = Independent()(data, generator=torch.Generator().manual_seed(0))
    >>> torch.equal(noise, torch.randn(data.shape, generator=torch.Generator().manual_seed(0)))
    True

    Args:
        source: distribution of the noise, ``(shape, generator) -> tensor``; None is N(0, I).
    """

    source: Source | None = None

    @property
    def is_rowwise(self) -> bool:
        return True

    def _couple(self, data: Tensor, noise: Tensor | None, context: Context) -> Tensor:
        return self._drawn(data, noise, context)

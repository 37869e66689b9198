"""The interface every coupling shares: data in, noise of the same shape out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from immiscible_policy.coupling._checks import check_arguments


class Coupling(ABC):
    """Chooses the Gaussian noise that each training sample is diffused with.

    Subclasses are small frozen dataclasses that implement :meth:`_couple`. A coupling returns noise
    aligned with ``data`` (row i belongs to sample i); it never moves or modifies data, so that
    conditions, masks and weights of the samples stay aligned.
    """

    @torch.no_grad()
    def __call__(
        self,
        data: Tensor,
        noise: Tensor | None = None,
        condition: Tensor | None = None,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return the noise to train ``data`` with.

        Args:
            data: (B, ...) float tensor of normalised data, any rank >= 1.
            noise: (B, ...) standard normal draw to start from, with the shape, dtype and device of
                ``data``. Drawn with ``torch.randn`` where it is None. Never modified.
            condition: (B, ...) vectors or (B,) labels; only condition-aware couplings use it.
            mask: bool tensor broadcastable to ``data``, True where the entry counts. Entries that do not
                count take no part in any distance, and may hold anything (NaN too).
            generator: source of all randomness, on the device of ``data``; None for torch's own.

        Returns:
            (B, ...) noise with the shape, dtype and device of ``data``, detached from any graph.

        Raises:
            TypeError, ValueError: an argument has the wrong type, dtype, shape or device, or holds NaN
                or infinity; the message names the argument, what was found and what is allowed.
        """
        check_arguments(data, noise, condition, mask, generator)
        if noise is None:
            noise = torch.randn(data.shape, generator=generator, dtype=data.dtype, device=data.device)
        noise = noise.detach()
        if data.numel() == 0:
            return noise
        if torch.is_autocast_enabled(data.device.type):
            # Autocast would silently run the dot products of the distances in half precision.
            with torch.autocast(data.device.type, enabled=False):
                return self._couple(data, noise, condition, mask, generator)
        return self._couple(data, noise, condition, mask, generator)

    @abstractmethod
    def _couple(
        self,
        data: Tensor,
        noise: Tensor,
        condition: Tensor | None,
        mask: Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Choose noise for checked, non-empty arguments; must leave ``noise`` itself unmodified."""

    def state_dict(self) -> dict[str, Any]:
        """What changes over training, for checkpoints; empty for couplings without memory."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            ValueError: ``state`` holds keys, but this coupling has no state.
        """
        if state:
            raise ValueError(
                f"state of {type(self).__name__} must be empty, since it has no memory; "
                f"got the keys {sorted(state)} (saved by another coupling?)"
            )

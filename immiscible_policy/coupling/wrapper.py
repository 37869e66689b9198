"""What couplings that are made of another one have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from immiscible_policy.coupling.base import Context, Coupling, Source


class Wrapper(Coupling):
    """A coupling around another, ``coupling``, which it is in all that it does not say itself."""

    coupling: Coupling

    def _require_coupling(self) -> None:
        """Raise TypeError unless what is wrapped is a coupling."""
        if not isinstance(self.coupling, Coupling):
            raise TypeError(f"coupling must be a Coupling, got {type(self.coupling).__name__}")

    def _by(self, coupling: Coupling, data: Tensor, noise: Tensor | None, context: Context) -> Tensor:
        """What another coupling makes of a call."""
        return coupling(data, noise, context.condition, context.mask, context.generator, context.time, context.indices)

    @property
    def source(self) -> Source | None:  # type: ignore[override]
        """That of the coupling: all noise comes from it."""
        return self.coupling.source

    @property
    def is_collective(self) -> bool:
        return self.coupling.is_collective

    @property
    def uses_time(self) -> bool:
        return self.coupling.uses_time

    @property
    def uses_indices(self) -> bool:
        return self.coupling.uses_indices

    @property
    def takes_noise(self) -> bool:
        return self.coupling.takes_noise

    @property
    def is_rowwise(self) -> bool:
        return self.coupling.is_rowwise

    @property
    def caveat(self) -> str | None:
        return self.coupling.caveat

    def fit(self, data: Tensor, condition: Tensor | None = None, mask: Tensor | None = None) -> None:
        masked = {"mask": mask} if "mask" in self.coupling.fit_uses else {}
        self.coupling.fit(data, condition, **masked)

    @property
    def fit_uses(self) -> frozenset[str]:
        return self.coupling.fit_uses

    def fit_size(self, n_data: int) -> None:
        self.coupling.fit_size(n_data)

    def state_dict(self) -> dict[str, Any]:
        return self.coupling.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.coupling.load_state_dict(state)

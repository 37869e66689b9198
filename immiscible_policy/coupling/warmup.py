"""Warmup: a coupling that starts later in training, or whose strength changes over it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from immiscible_policy.coupling.base import Context, Coupling
from immiscible_policy.coupling.independent import Independent
from immiscible_policy.coupling.wrapper import Wrapper


@dataclass(frozen=True, repr=False)
class Warmup(Wrapper):
    """Independent noise for the first calls, then a coupling, whose settings may be annealed.

    One call is one step (with gradient accumulation, one micro-batch). The number of calls is state: it is saved in
    checkpoints, and validation does not advance it.

    >>> import torch
    >>> from immiscible_policy.coupling import KNN
    >>> coupling = Warmup(KNN(k=8), start=1000, anneal_to={"k": 1}, anneal_over=50_000)
    >>> noise = coupling(torch.randn(64, 16, 2))  # the first of 1,000 calls with independent noise
    >>> coupling.calls
    1

    Args:
        coupling: what pairs after the start.
        start: calls with independent noise before the coupling starts.
        anneal_to: final values of the coupling's settings, such as ``{"k": 1}`` of a KNN or ``{"p": 0.0}`` of a
            Mixture. Each goes linearly from the coupling's own value; settings that are integers there stay integers
            (write ``KNN(8.0, "inner")`` for a real k).
        anneal_over: calls after the start in which they get there.

    Raises:
        TypeError, ValueError: on construction, for an argument outside these ranges or a final value that the
            coupling does not accept.
    """

    coupling: Coupling
    start: int = 0
    anneal_to: Mapping[str, float] | tuple[tuple[str, float], ...] | None = None
    anneal_over: int = 0
    _state: dict[str, int] = field(default_factory=lambda: {"calls": 0}, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._require_coupling()
        for name in ("start", "anneal_over"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an integer >= 0, got {value!r}")
            if value < 0:
                raise ValueError(f"{name} must be an integer >= 0, got {value}")
        given = self.anneal_to
        object.__setattr__(self, "anneal_to", tuple(dict(given).items()) if given else None)
        if bool(self.anneal_to) != bool(self.anneal_over):
            raise ValueError(
                "anneal_to and anneal_over belong together: what changes, and over how many calls; got "
                f"anneal_to={given!r}, anneal_over={self.anneal_over}"
            )
        self._check_annealed()

    def _check_annealed(self) -> None:
        for name, final in dict(self.anneal_to or ()).items():
            begin = getattr(self.coupling, name, None)
            if not _is_number(begin) or not _is_number(final):
                raise ValueError(
                    f"anneal_to must name settings of {type(self.coupling).__name__} that are numbers, and numbers for "
                    f"them; got {name}={final!r} for {name}={begin!r}"
                )
        self._at(self.start + self.anneal_over)  # whose own checks refuse a final value that is not allowed

    @property
    def calls(self) -> int:
        """Calls made so far."""
        return self._state["calls"]

    def current(self) -> Coupling | None:
        """The coupling that the next call pairs by; None before the start."""
        return self._at(self.calls)

    def _at(self, call: int) -> Coupling | None:
        if call < self.start:
            return None
        if not self.anneal_to:
            return self.coupling
        share = min(1.0, (call - self.start) / self.anneal_over)
        values: dict[str, float] = {}
        for name, final in dict(self.anneal_to or ()).items():
            begin = getattr(self.coupling, name)
            value = begin + share * (final - begin)
            values[name] = round(value) if isinstance(begin, int) else value
        annealed = dataclasses.replace(self.coupling, **values)  # type: ignore[type-var]
        if hasattr(self.coupling, "_state"):
            object.__setattr__(annealed, "_state", self.coupling._state)  # one memory, whatever the settings
        return annealed

    def _couple(self, data: Tensor, noise: Tensor | None, context: Context) -> Tensor:
        coupling = self.current()
        self._state["calls"] += 1
        if coupling is None:
            return self._drawn(data, noise, context)
        return self._by(coupling, data, noise, context)

    @property
    def caveat(self) -> str | None:
        last = self._at(self.start + self.anneal_over)
        return None if last is None else last.caveat

    def for_validation(self) -> Coupling:
        """What the next call would pair by, without counting calls."""
        current = self.current()
        return Independent(self.source) if current is None else current.for_validation()

    def at_inference(self) -> Coupling:
        """What the last calls pair by, with settings annealed to their final values."""
        last = self._at(self.start + self.anneal_over)
        return Independent(self.source) if last is None else last.at_inference()

    def state_dict(self) -> dict[str, Any]:
        return {"calls": self.calls, "coupling": self.coupling.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            ValueError: ``state`` is not a warm-up's.
        """
        if set(state) != {"calls", "coupling"}:
            raise ValueError(f"state of Warmup must hold calls and coupling, got the keys {sorted(state)}")
        self.coupling.load_state_dict(state["coupling"])
        self._state["calls"] = int(state["calls"])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

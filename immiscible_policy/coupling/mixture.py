"""Mixture: some samples meet coupled noise, the others independent noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from immiscible_policy.coupling._checks import require_unit_interval
from immiscible_policy.coupling.base import Context, Coupling
from immiscible_policy.coupling.wrapper import Wrapper

Probability = float | tuple[float, float] | Callable[[Tensor], Tensor]


@dataclass(frozen=True, repr=False)
class Mixture(Wrapper):
    """Couples each sample with probability ``p`` and gives the rest independent noise.

    It bounds from below how often a conditional model meets noise from the whole prior (the density of the noise
    given a sample is at least 1 - p times the prior's), and with ``p`` varying over diffusion time restricts a
    coupling to the times where it matters. The chosen samples are coupled among themselves, as a smaller batch.

    >>> from immiscible_policy.coupling import KNN
    >>> data, time = torch.randn(64, 16, 2), torch.rand(64)
    >>> noise = Mixture(KNN(k=2), p=0.5)(data)  # every second sample
    >>> noise = Mixture(KNN(k=2), p=(0.0, 1.0))(data, time=time)  # all at pure noise, none near the data

    Args:
        coupling: what the chosen samples are paired by.
        p: probability in [0, 1] that a sample is chosen; or a pair (at the data, at pure noise) between which it is
            linear in diffusion time; or a function of the times, (B,) in [0, 1] -> (B,) probabilities. The last two
            need ``time`` in every call.

    Raises:
        TypeError, ValueError: ``coupling`` or ``p`` is something else; on call, ``time`` is needed and missing, or a
            function's probabilities are not in [0, 1].
    """

    coupling: Coupling
    p: Probability = 0.5

    def __post_init__(self) -> None:
        self._require_coupling()
        if callable(self.p):
            return
        object.__setattr__(self, "p", _probabilities(self.p))

    def _couple(self, data: Tensor, noise: Tensor | None, context: Context) -> Tensor:
        probability = self._probability(data, context)
        if isinstance(probability, float) and probability in (0.0, 1.0) and not self.is_collective:
            if probability == 0.0:
                return self._drawn(data, noise, context)
            return self._by(self.coupling, data, noise, context)
        batch = data.shape[0]
        chosen = torch.rand(batch, generator=context.generator, device=data.device) < probability
        if self.coupling.is_rowwise and self.coupling.takes_noise:
            # The others make no difference to a sample, and counting the chosen would wait for a GPU.
            noise = self._drawn(data, noise, context)
            coupled = self._by(self.coupling, data, noise, context)
            return torch.where(chosen.view(-1, *(1,) * (data.ndim - 1)), coupled, noise)
        given = None if noise is None else noise[chosen]
        coupled = self._by(self.coupling, data[chosen], given, context.rows(chosen, data))
        if noise is not None:
            result = noise.clone()
        else:
            result = torch.empty_like(data)
            alone = ~chosen
            result[alone] = self._draw((batch - len(coupled), *data.shape[1:]), data, context)
        result[chosen] = coupled
        return result

    def _probability(self, data: Tensor, context: Context) -> float | Tensor:
        if isinstance(self.p, float):
            return self.p
        if context.time is None:
            raise ValueError(f"time must be given, (B,) diffusion times in [0, 1], since p={self.p!r} depends on it")
        time = context.time.to(device=data.device, dtype=torch.float32)
        if isinstance(self.p, tuple):
            at_data, at_noise = self.p
            return at_data + (at_noise - at_data) * time
        probability = self.p(time)
        if not isinstance(probability, Tensor) or probability.shape != time.shape:
            raise ValueError(f"p must map times (B,) to probabilities (B,), got {probability!r}")
        require_unit_interval("p must map times to probabilities", probability)
        return probability

    @property
    def uses_time(self) -> bool:
        return not isinstance(self.p, float) or self.coupling.uses_time

    @property
    def caveat(self) -> str | None:
        inner = self.coupling.caveat
        if inner is None or self.p == 0.0:
            return None
        return inner if self.p == 1.0 else f"For the samples that are coupled (p={self.p!r}): {inner}"

    def for_validation(self) -> Coupling:
        return Mixture(self.coupling.for_validation(), self.p)

    def at_inference(self) -> Coupling:
        return Mixture(self.coupling.at_inference(), self.p)


def _probabilities(p: Any) -> float | tuple[float, float]:
    """``p`` as a float or a pair of floats, each in [0, 1]."""
    pair = p if isinstance(p, list | tuple) else (p,)
    if len(pair) not in (1, 2) or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in pair):
        raise TypeError(f"p must be a number, a pair (at the data, at pure noise) or a function of time, got {p!r}")
    if not all(math.isfinite(v) and 0 <= v <= 1 for v in pair):
        raise ValueError(f"p must be in [0, 1], got {p!r}")
    return float(pair[0]) if len(pair) == 1 else (float(pair[0]), float(pair[1]))

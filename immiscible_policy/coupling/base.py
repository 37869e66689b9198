"""The interface every coupling shares: data in, noise of the same shape out."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from immiscible_policy.coupling._checks import check_arguments
from immiscible_policy.coupling._uncompiled import uncompiled

Source = Callable[[tuple[int, ...], torch.Generator | None], Tensor]
"""A noise distribution other than N(0, I): ``source((B, ...), generator) -> (B, ...)`` floats, rows independent."""


FIT_ARGUMENTS = frozenset({"data", "condition"})
"""What a ``fit`` looks at that says no more of it."""


@dataclass(frozen=True)
class Context:
    """What a coupling may know of a batch beside data and noise; fields as in :meth:`Coupling.__call__`."""

    condition: Tensor | None = None
    mask: Tensor | None = None
    generator: torch.Generator | None = None
    time: Tensor | None = None
    indices: Tensor | None = None

    def rows(self, chosen: Tensor, data: Tensor) -> Context:
        """The context of some samples of a batch of data (B, ...); ``chosen`` is a (B,) bool mask or (b,) indices."""

        def pick(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[chosen.to(tensor.device)]

        mask = self.mask
        if mask is not None and mask.ndim == data.ndim and mask.shape[0] > 1:  # else it is shared by the samples
            mask = pick(mask)
        return Context(pick(self.condition), mask, self.generator, pick(self.time), pick(self.indices))


class Coupling(ABC):
    """Chooses the noise that each training sample is diffused with.

    Subclasses are small frozen dataclasses that implement :meth:`_couple`. A coupling returns noise
    aligned with ``data`` (row i belongs to sample i); it never moves or modifies data, so that
    conditions, masks and weights of the samples stay aligned.
    """

    source: Source | None = None
    """Where noise is drawn from; None is N(0, I). A field of the couplings that can do without the Gaussian."""

    @uncompiled  # the compiler fails on what couplings are made of: generator=None, state, scipy
    @torch.no_grad()
    def __call__(
        self,
        data: Tensor,
        noise: Tensor | None = None,
        condition: Tensor | None = None,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
        time: Tensor | None = None,
        indices: Tensor | None = None,
    ) -> Tensor:
        """Return the noise to train ``data`` with.

        Args:
            data: (B, ...) float tensor of normalised data, any rank >= 1.
            noise: (B, ...) draw from the source (standard normal) to start from, with the shape, dtype and
                device of ``data``. Drawn with ``torch.randn`` where it is None. Never modified.
            condition: (B, ...) vectors or (B,) labels; only condition-aware couplings use it.
            mask: bool tensor broadcastable to ``data``, True where the entry counts. Entries that do not
                count take no part in any distance, and may hold anything (NaN too).
            generator: source of all randomness, on the device of ``data``; None for torch's own.
            time: (B,) diffusion times in [0, 1], 0 at the data and 1 at pure noise; only couplings that
                differ over diffusion time use it (:attr:`uses_time`).
            indices: (B,) integers, each sample's place in the data set; only couplings that remember
                samples use it (:attr:`uses_indices`).

        Returns:
            (B, ...) noise with the shape, dtype and device of ``data``, detached from any graph.

        Raises:
            TypeError, ValueError: an argument has the wrong type, dtype, shape or device, or holds NaN
                or infinity; the message names the argument, what was found and what is allowed.
        """
        check_arguments(data, noise, condition, mask, generator, time, indices)
        noise = None if noise is None else noise.detach()
        context = Context(condition, mask, generator, time, indices)
        if data.numel() == 0 and not self.is_collective:
            return self._drawn(data, noise, context)
        if torch.is_autocast_enabled(data.device.type):
            # Autocast would silently run the dot products of the distances in half precision.
            with torch.autocast(data.device.type, enabled=False):
                return self._couple(data, noise, context)
        return self._couple(data, noise, context)

    @abstractmethod
    def _couple(self, data: Tensor, noise: Tensor | None, context: Context) -> Tensor:
        """Choose noise for checked arguments; must leave a given ``noise`` unmodified.

        ``data`` is not empty unless :attr:`is_collective`. Most couplings begin with :meth:`_drawn`.
        """

    def _drawn(self, data: Tensor, noise: Tensor | None, context: Context) -> Tensor:
        """The given noise, or a draw of the shape of data."""
        return self._draw(data.shape, data, context) if noise is None else noise

    def _draw(self, shape: tuple[int, ...], like: Tensor, context: Context) -> Tensor:
        """Noise of ``shape`` from the source, with the dtype and device of ``like``."""
        if self.source is None:
            return torch.randn(shape, generator=context.generator, dtype=like.dtype, device=like.device)
        if not callable(self.source):
            raise TypeError(f"source must be a function (shape, generator) -> tensor or None, got {self.source!r}")
        drawn = self.source(tuple(shape), context.generator)
        if not isinstance(drawn, Tensor) or tuple(drawn.shape) != tuple(shape):
            found = tuple(drawn.shape) if isinstance(drawn, Tensor) else type(drawn).__name__
            raise ValueError(f"source must return a tensor of the shape it is asked for {tuple(shape)}, got {found}")
        return drawn.detach().to(device=like.device, dtype=like.dtype)

    @property
    def is_collective(self) -> bool:
        """Whether a call exchanges tensors with other processes, so that all of them must make it."""
        return False

    @property
    def uses_time(self) -> bool:
        """Whether calls need ``time``."""
        return False

    @property
    def uses_indices(self) -> bool:
        """Whether calls need ``indices``."""
        return False

    @property
    def takes_noise(self) -> bool:
        """Whether calls may give ``noise``."""
        return True

    @property
    def caveat(self) -> str | None:
        """One sentence on what sampling from the source does not reproduce of the training noise; None if nothing."""
        return None

    def fit(self, data: Tensor, condition: Tensor | None = None, mask: Tensor | None = None) -> None:
        """Learn what the coupling needs of the data set before training starts. Most couplings need nothing.

        Args:
            data: (N, ...) normalised data: the data set, or a large sample of it where :meth:`fit_size` does nothing.
            condition: (N, ...) vectors or (N,) labels.
            mask: as in :meth:`__call__`; only for couplings that name it in :attr:`fit_uses`.
        """
        self.fit_size(len(data))

    @property
    def fit_uses(self) -> frozenset[str]:
        """What :meth:`fit` looks at beside the data set's size, of "data", "condition" and "mask".

        Where data is costly to make, :meth:`fit_size` and a ``fit`` with what is named here do for a ``fit`` with all.
        """
        return frozenset() if type(self).fit is Coupling.fit else FIT_ARGUMENTS

    def fit_size(self, n_data: int) -> None:  # noqa: B027 - most couplings need none
        """Learn the size of the data set, which a ``fit`` with all of it would tell too. Most couplings need nothing.

        Args:
            n_data: all that training draws its batches from.
        """

    def for_validation(self) -> Coupling:
        """A coupling that pairs as this one does now, in this process alone, and leaves this one's state as it is."""
        return self

    @property
    def is_rowwise(self) -> bool:
        """Whether a sample's noise depends on that sample alone, whatever else is in the batch."""
        return False

    def at_inference(self) -> Coupling:
        """The coupling by which training ended, to choose the noise that sampling starts from.

        Given data like what is to be sampled, it returns noise as the trained network met it there. One that is not
        :attr:`is_rowwise` needs a batch of other data around the datum of interest.

        Raises:
            ValueError: training noise was tied to the data set's samples, so there is none for new data.
        """
        return self.for_validation()

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

    def __repr__(self) -> str:
        """The first setting and all that differ from their defaults, since tables name their rows by this."""
        if not dataclasses.is_dataclass(self):
            return f"{type(self).__name__}()"
        shown = []
        for position, field in enumerate(f for f in dataclasses.fields(self) if f.repr):
            value = getattr(self, field.name)
            value = value.item() if isinstance(value, np.generic) else value  # NumPy's text is no setting
            default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            if value != default or (position == 0 and value is not None):
                name = getattr(value, "__name__", None) if callable(value) and not isinstance(value, Coupling) else None
                shown.append(f"{field.name}={name or repr(value)}")
        return f"{type(self).__name__}({', '.join(shown)})"

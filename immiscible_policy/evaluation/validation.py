"""Validation loss on independent and on coupled noise."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from immiscible_policy.coupling import Coupling, Independent
from immiscible_policy.coupling.base import Context
from immiscible_policy.coupling.wrapper import Wrapper
from immiscible_policy.training import Dataset


@dataclass(frozen=True, repr=False)
class _OfCommonNoise(Wrapper):
    """The coupling of noise that is drawn before it is asked, and after the times, whether or not it looks at them.

    What it draws itself comes from ``choices``, so that the stream of times and noises is the same for all couplings.
    """

    coupling: Coupling
    choices: torch.Generator

    @property
    def uses_time(self) -> bool:
        return True

    def _couple(self, data: Tensor, noise: Tensor | None, context: Context) -> Tensor:
        common = self._drawn(data, noise, context)
        given = common if self.coupling.takes_noise else None
        return self._by(self.coupling, data, given, replace(context, generator=self.choices))


@torch.no_grad()
def validation_losses(
    model: Any, dataset: Dataset, coupling: Coupling, batch_size: int = 64, seed: int = 0
) -> dict[str, float]:
    """Mean loss of a model over a dataset, with fresh independent noise and with the training coupling's noise.

    A coupling lowers the loss that it is trained under by construction, so only the loss on independent noise can be
    compared between couplings; the gap between the two says how much of a lower loss the coupling itself accounts for.
    Both use the same diffusion times and, before pairing, the same noises at every call (but for couplings that make
    all noises themselves).

    Args:
        model: ``model(batch, coupling, generator) -> scalar``, in evaluation mode.
        coupling: measured as it pairs now, without advancing its state and without other processes.
        batch_size: also the batch that an assignment sees.

    Returns:
        ``validation/loss_independent`` and ``validation/loss_coupled``; the second is left out for ``Independent``.
    """
    device = next(model.parameters()).device
    indices = torch.arange(len(dataset))
    arms: dict[str, Coupling] = {"validation/loss_independent": Independent()}
    if not isinstance(coupling, Independent):
        arms["validation/loss_coupled"] = coupling.for_validation()
    losses = {}
    for name, arm in arms.items():
        generator, choices = (torch.Generator(device).manual_seed(s) for s in (seed, seed + 1))
        arm = _OfCommonNoise(arm, choices)
        total = 0.0
        for chunk in indices.split(batch_size):
            batch = {key: value.to(device) for key, value in dataset.batch(chunk).items()}
            total += float(model(batch, arm, generator)) * len(chunk)
        losses[name] = total / len(dataset)
    return losses

"""Coupled inference: the noise that sampling starts from, chosen as the training noise was.

A coupling makes training noise depend on the data. A network that only ever met such noise is asked for something it
has not seen when sampling starts from N(0, I). What is to be sampled is not known before it is sampled, but a policy
that acts in chunks knows nearly: the remainder of its previous plan (``warm``), or a first attempt (``two_pass``).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from immiscible_policy.checks import check_choice
from immiscible_policy.coupling import Coupling, Independent
from immiscible_policy.coupling.spec import parse_coupling
from immiscible_policy.policy.diffusion_policy import DiffusionPolicy

MODES = ("none", "warm", "two_pass")
FIRST_CHUNKS = ("two_pass", "independent")


@dataclass(frozen=True)
class InferenceCoupling:
    """Settings of coupled inference. Those that the mode has no use for are set to their defaults.

    Args:
        mode: ``none`` starts from N(0, I). ``warm`` chooses the noise against the previous plan, shifted by the actions
            that were executed, its last action repeated: it costs no network call. ``two_pass`` samples once from
            N(0, I), chooses noise against the result, and samples again: twice the network calls.
        first_chunk: what ``warm`` does where there is no previous plan: ``two_pass``, or ``independent`` noise.
        selection: text of the coupling that chooses (``KNN(k=2)``); None takes the one that the policy was trained
            with, as it was at the end of training.
        known_only: ``warm`` compares over those actions only that the previous plan really has; noise of the repeated
            ones stays independent.
        noise_scale: initial noise, chosen or not, is multiplied by it; below 1 samples lie nearer to the mean, and at 0
            a deterministic sampler has one plan for an observation. What a coupling chooses is shorter than N(0, I)
            (``KNN(k=2)`` on PushT: by 0.937), so this says what of a gain is length.
    """

    mode: str = "none"
    first_chunk: str = "two_pass"
    selection: str | None = None
    known_only: bool = False
    noise_scale: float = 1.0

    def __post_init__(self) -> None:
        # By the names of the scripts' settings, of which the mode is inference_coupling itself.
        check_choice("inference_coupling", self.mode, MODES)
        check_choice("first_chunk", self.first_chunk, FIRST_CHUNKS)
        if not 0 <= self.noise_scale < float("inf"):
            raise ValueError(f"noise_scale={self.noise_scale}: must be 0 or more")
        if self.selection is not None:
            parse_coupling(self.selection)
        # So that settings are equal where what they do is.
        unused = {"none": ("first_chunk", "selection", "known_only"), "two_pass": ("first_chunk", "known_only")}
        for name in unused.get(self.mode, ()):
            object.__setattr__(self, name, getattr(InferenceCoupling, name))

    def coupling_for(self, policy: DiffusionPolicy) -> Coupling:
        """The coupling that chooses for ``policy``.

        Raises:
            ValueError: none is given and the policy's is not recorded, or its training noise cannot be chosen for new
                data, or it pairs whole batches and the policy kept no companions.
        """
        text = self.selection or policy.coupling
        if text is None:
            raise ValueError(
                "selection=None: this policy does not say which coupling it was trained with; give "
                "one, such as KNN(k=2)"
            )
        try:
            coupling = parse_coupling(text).at_inference()
        except ValueError as error:
            raise ValueError(
                f"inference_coupling: {error}; choose none, or give another selection, such as KNN(k=2)"
            ) from error
        if not coupling.is_rowwise and not policy.n_companions:
            raise ValueError(
                f"inference_coupling: {coupling} pairs whole batches, and this policy kept no training data to make "
                "a batch of (n_companions=0)"
            )
        if self.selection is None and isinstance(coupling, Independent):
            warnings.warn(
                "inference_coupling: the policy was trained without a coupling, so that its noise is drawn as ever; "
                "give another selection, such as KNN(k=2)",
                stacklevel=2,
            )
        return coupling


class NoiseSelection:
    """Draws the noise of each episode from a stream of its own, whatever other episodes run beside it.

    Args:
        policy: whose companions fill the batch of a coupling that is not row-wise.
        coupling: what chooses.
        seeds: one for each episode.
    """

    def __init__(self, policy: DiffusionPolicy, coupling: Coupling, seeds: Sequence[int]) -> None:
        self.policy, self.coupling = policy, coupling
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, reference: Tensor, condition: Tensor | None, rows: Sequence[int], mask: Tensor | None) -> Tensor:
        """Noise for what is likely to be sampled.

        Args:
            reference: (n, horizon, action_dim) normalised actions.
            condition: (n, n_obs_steps, observation_dim) as the coupling saw it in training, or None.
            rows: (n,) the episodes.
            mask: (1, horizon, 1) bool, True where the reference counts, or None.

        Returns:
            (n, horizon, action_dim) float32 on the CPU.
        """
        data = reference.float().cpu() * self.policy.objective.data_scale
        seen = None if condition is None else condition.float().cpu()
        return torch.cat(
            [
                self._one(data[i : i + 1], None if seen is None else seen[i : i + 1], mask, self.generators[row])
                for i, row in enumerate(rows)
            ]
        )

    def _one(self, data: Tensor, condition: Tensor | None, mask: Tensor | None, generator: torch.Generator) -> Tensor:
        if not self.coupling.is_rowwise:
            policy = self.policy
            size = min(int(policy.companion_batch_size), policy.n_companions + 1) - 1
            beside = torch.randperm(policy.n_companions, generator=generator)[:size]
            data = torch.cat([data, policy.companion_data.cpu()[beside] * policy.objective.data_scale])
            if condition is not None:
                condition = torch.cat([condition, policy.companion_condition.cpu()[beside]])
        time = torch.ones(len(data)) if self.coupling.uses_time else None
        return self.coupling(data, condition=condition, mask=mask, generator=generator, time=time)[:1]


def selection_for(policy: DiffusionPolicy, settings: InferenceCoupling, seeds: Sequence[int]) -> NoiseSelection | None:
    """What chooses the noise; None where nothing is to be chosen."""
    if settings.mode == "none":
        return None
    coupling = settings.coupling_for(policy)
    return None if isinstance(coupling, Independent) else NoiseSelection(policy, coupling, seeds)

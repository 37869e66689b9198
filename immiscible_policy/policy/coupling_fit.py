"""What couplings learn of the demonstrations before training, or before what they do is measured."""

from __future__ import annotations

import torch

from immiscible_policy.coupling import Coupling
from immiscible_policy.data.windows import ActionWindows
from immiscible_policy.policy.diffusion_policy import DiffusionPolicy


@torch.no_grad()
def fit_coupling(coupling: Coupling, policy: DiffusionPolicy, windows: ActionWindows) -> None:
    """Show the coupling all it will pair, as the policy gives it, where it has anything to learn from that."""
    coupling.fit_size(len(windows))
    if not coupling.fit_uses:
        return
    # In parts: all pictures of all windows at once would be gigabytes.
    parts = []
    for indices in torch.arange(len(windows)).split(1024):
        batch = {name: value.to(policy.device) for name, value in windows.batch(indices).items()}
        parts.append(policy.coupling_inputs(batch))
    actions, observations, masks = zip(*parts, strict=True)
    masked = {"mask": torch.cat(masks)} if "mask" in coupling.fit_uses and masks[0] is not None else {}
    coupling.fit(torch.cat(actions) * policy.objective.data_scale, torch.cat(observations), **masked)

"""A policy that denoises action sequences (Chi et al., RSS 2023), trained with any noise coupling."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from immiscible_policy.coupling import Coupling
from immiscible_policy.diffusion import build_objective
from immiscible_policy.policy.networks import build_network
from immiscible_policy.policy.normalizer import MinMaxNormalizer

# Filled in by huggingface_hub when a policy is saved or pushed.
MODEL_CARD = """---
{{ card_data }}
---

# Diffusion policy

An action-sequence diffusion policy (Chi et al., 2023). `config.json` names its network, objective and task.

```python
from immiscible_policy.policy import load_policy

policy = load_policy("this folder")
actions = policy.predict_action(observation)  # (B, n_obs_steps, observation_dim) -> (B, n_action_steps, action_dim)
```
"""


class DiffusionPolicy(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="immiscible-policy",
    license="mit",
    tags=["robotics", "diffusion-policy", "immiscible-diffusion"],
    model_card_template=MODEL_CARD,
):
    """Observation history in, action chunk out; saved and loaded as one folder (safetensors + config.json).

    Args:
        observation_dim, action_dim: entries of one observation and of one action.
        horizon: actions in a predicted sequence; its first one belongs to the oldest observation of the history.
        n_obs_steps: observations in the history.
        n_action_steps: actions of the sequence that are executed, starting at the newest observation.
        network: ``{"name": "unet1d" | "mlp" | "transformer", ...arguments of that network}``.
        objective: ``{"name": "ddpm", ...arguments of that objective}``.
        num_inference_steps: network calls a prediction takes unless the caller says otherwise.
        mask_padding: leave the actions that repeat an episode's edge out of the coupling and of the loss. The
            published recipe trains on them, hence False.
        task: free description of what the policy was trained for (environment and observation type); evaluation
            builds its environment from it.
        coupling: text of the coupling that the policy was trained with, as ``parse_coupling`` reads it. A record only.
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        horizon: int = 16,
        n_obs_steps: int = 2,
        n_action_steps: int = 8,
        network: Mapping[str, Any] | None = None,
        objective: Mapping[str, Any] | None = None,
        num_inference_steps: int = 100,
        mask_padding: bool = False,
        task: Mapping[str, Any] | None = None,
        coupling: str | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= n_action_steps <= horizon - n_obs_steps + 1:
            raise ValueError(
                f"n_action_steps={n_action_steps} must be between 1 and horizon - n_obs_steps + 1 = "
                f"{horizon - n_obs_steps + 1}"
            )
        self.observation_dim, self.action_dim = observation_dim, action_dim
        self.horizon, self.n_obs_steps, self.n_action_steps = horizon, n_obs_steps, n_action_steps
        self.num_inference_steps = num_inference_steps
        self.mask_padding = mask_padding
        self.task = dict(task or {})
        self.coupling = coupling
        self.objective = build_objective(objective or {"name": "ddpm"})
        self.network = build_network(
            network or {"name": "unet1d"},
            action_dim=action_dim,
            observation_dim=observation_dim,
            horizon=horizon,
            n_obs_steps=n_obs_steps,
        )
        self.observation_normalizer = MinMaxNormalizer(observation_dim)
        self.action_normalizer = MinMaxNormalizer(action_dim)

    @property
    def device(self) -> torch.device:
        return self.action_normalizer.low.device

    def fit_normalizers(self, observation: Tensor, action: Tensor) -> None:
        """Take the ranges of all observations (N, observation_dim) and actions (N, action_dim), in their own units."""
        self.observation_normalizer.fit(observation)
        self.action_normalizer.fit(action)

    def _normalized_observation(self, observation: Tensor) -> Tensor:
        expected = (self.n_obs_steps, self.observation_dim)
        if observation.ndim != 3 or tuple(observation.shape[1:]) != expected:
            raise ValueError(
                f"observation has shape {tuple(observation.shape)}; this policy takes (B, n_obs_steps, "
                f"observation_dim) = (B, {expected[0]}, {expected[1]})"
            )
        return self.observation_normalizer.normalize(observation)

    def loss(self, batch: Mapping[str, Tensor], coupling: Coupling, generator: torch.Generator | None = None) -> Tensor:
        """Training loss of a batch, a scalar.

        Args:
            batch: ``observation`` (B, n_obs_steps, observation_dim) and ``action`` (B, horizon, action_dim) in their
                own units, ``action_is_pad`` (B, horizon) bool (used if ``mask_padding``), ``index`` (B,) places in
                the data set (for couplings that remember samples).
            coupling: draws the noise for the normalised actions. The one place where training noise comes from.
            generator: for the coupling's and the objective's draws.
        """
        data, observation, mask = self.coupling_inputs(batch)
        time = None
        if coupling.uses_time:  # otherwise the objective draws it, after the noise
            time = self.objective.draw_time(len(data), data.device, generator)
        noise = coupling(
            data * self.objective.data_scale,  # as the noise will meet it
            condition=observation,
            mask=mask,
            generator=generator,
            time=None if time is None else self.objective.diffusion_time(time),
            indices=batch.get("index"),
        )
        return self.objective.loss(
            self.network, data, noise, condition=observation, mask=mask, generator=generator, time=time
        )

    def coupling_inputs(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
        """What a coupling sees of a batch: normalised actions (not scaled) and observations, and the mask or None."""
        observation = self._normalized_observation(batch["observation"])
        data = self.action_normalizer.normalize(batch["action"])
        return data, observation, ~batch["action_is_pad"].unsqueeze(-1) if self.mask_padding else None

    # Calling the module computes its loss, so that wrappers (DistributedDataParallel, autocast) see the training step.
    forward = loss

    @torch.no_grad()
    def predict_action(
        self,
        observation: Tensor,
        generator: torch.Generator | None = None,
        num_inference_steps: int | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """The next actions for an observation history.

        Args:
            observation: (B, n_obs_steps, observation_dim), oldest first, in its own units, on the policy's device.
            generator: for the initial noise and an ancestral sampler's steps.
            num_inference_steps: network calls; default the policy's.
            noise: (B, horizon, action_dim) to start from instead of a draw.

        Returns:
            (B, n_action_steps, action_dim) actions in their own units.
        """
        condition = self._normalized_observation(observation)
        sequence = self.objective.sample(
            self.network,
            (observation.shape[0], self.horizon, self.action_dim),
            condition=condition,
            steps=num_inference_steps or self.num_inference_steps,
            generator=generator,
            device=self.device,
            noise=noise,
        )
        start = self.n_obs_steps - 1
        return self.action_normalizer.denormalize(sequence[:, start : start + self.n_action_steps])


def load_policy(folder: str | Path, device: torch.device | str = "cpu") -> DiffusionPolicy:
    """A policy from a local folder written by ``save_pretrained``; a ValueError says what is wrong with the folder."""
    folder = Path(folder)
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise ValueError(f"policy folder {folder}: {name} is missing, so this is not a complete saved policy")
    try:
        policy = DiffusionPolicy(**json.loads((folder / "config.json").read_text()))
        weights = load_file(folder / "model.safetensors", device=str(device))
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"policy folder {folder}: damaged or half-written file ({error})") from error
    except TypeError as error:
        raise ValueError(f"policy folder {folder}: config.json is not this policy's ({error})") from error
    try:
        policy.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"policy folder {folder}: weights and config.json do not belong together ({error})") from error
    return policy.to(device).eval()

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

from immiscible_policy.checks import check_integer
from immiscible_policy.coupling import Coupling
from immiscible_policy.diffusion import build_objective, couple
from immiscible_policy.policy.encoders import build_encoder
from immiscible_policy.policy.networks import build_network
from immiscible_policy.policy.normalizer import MinMaxNormalizer

Observation = Tensor | Mapping[str, Tensor]
"""A history of flat observations (B, n_obs_steps, observation_dim), or of pictures and positions in a dictionary."""

IMAGE_OBSERVATION = ("pixels", "agent_pos")

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
        observation_dim, action_dim: entries of one observation (with an encoder, of ``agent_pos``) and of one action.
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
        encoder: ``{"name": "resnet18" | "convnet", ...}``, see ``build_encoder``: observations are then dictionaries of
            ``pixels`` (B, n_obs_steps, H, W, 3) uint8 RGB and ``agent_pos`` (B, n_obs_steps, observation_dim). None
            for flat observations.
        n_companions: training data kept with the policy, which coupled inference needs where the coupling pairs whole
            batches (see ``keep_companions``).
    """

    companion_data: Tensor
    companion_condition: Tensor
    companion_batch_size: Tensor

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
        encoder: Mapping[str, Any] | None = None,
        n_companions: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (
            ("observation_dim", observation_dim),
            ("action_dim", action_dim),
            ("n_obs_steps", n_obs_steps),
        ):
            check_integer(name, value, 1)
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
        self.encoder = None if encoder is None else build_encoder(encoder, agent_dim=observation_dim)
        self.network = build_network(
            network or {"name": "unet1d"},
            action_dim=action_dim,
            observation_dim=observation_dim if self.encoder is None else self.encoder.out_dim,
            horizon=horizon,
            n_obs_steps=n_obs_steps,
        )
        self.observation_normalizer = MinMaxNormalizer(observation_dim)
        self.action_normalizer = MinMaxNormalizer(action_dim)
        self.n_companions = n_companions
        if n_companions:  # otherwise nothing is stored, as in policies from before
            self.register_buffer("companion_data", torch.zeros(n_companions, horizon, action_dim))
            self.register_buffer("companion_condition", torch.zeros(n_companions, n_obs_steps, observation_dim))
            self.register_buffer("companion_batch_size", torch.tensor(0))

    @property
    def device(self) -> torch.device:
        return self.action_normalizer.low.device

    def fit_normalizers(self, observation: Observation, action: Tensor) -> None:
        """Take the ranges of all observations (N, observation_dim) and actions (N, action_dim), in their own units.

        Of dictionaries, ``agent_pos`` is taken: pictures have a fixed range.
        """
        self.observation_normalizer.fit(observation if isinstance(observation, Tensor) else observation["agent_pos"])
        self.action_normalizer.fit(action)

    def encode(
        self, observation: Observation, training: bool | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """The network's condition, (B, n_obs_steps, F) with gradients to the encoder.

        Args:
            observation: history in its own units, oldest first, on the policy's device: (B, n_obs_steps,
                observation_dim), or with an encoder the dictionary of ``pixels`` and ``agent_pos``.
            training: whether pictures are cropped at random; None follows the module's mode.
            generator: for the places of the crops; None for torch's own. Flat observations draw nothing.

        Returns:
            Flat observations normalised, F = observation_dim; or an encoder's features, F = encoder.out_dim.
        """
        if self.encoder is None:
            if not isinstance(observation, Tensor):
                raise ValueError(f"observation is a dictionary of {sorted(observation)}; this policy takes one tensor")
            return self._normalized_observation(observation)
        if isinstance(observation, Tensor) or any(name not in observation for name in IMAGE_OBSERVATION):
            found = "one tensor" if isinstance(observation, Tensor) else f"a dictionary of {sorted(observation)}"
            raise ValueError(
                f"observation is {found}; this policy takes a dictionary of {', '.join(IMAGE_OBSERVATION)}"
            )
        position, pixels = self._normalized_observation(observation["agent_pos"]), observation["pixels"]
        if pixels.shape[:2] != position.shape[:2]:
            raise ValueError(
                f"pixels have shape {tuple(pixels.shape)}; this policy takes (B, n_obs_steps, H, W, 3) with the "
                f"{tuple(position.shape[:2])} of agent_pos"
            )
        return self.encoder(pixels, position, self.training if training is None else training, generator)

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
                the data set (for couplings that remember samples). With an encoder ``observation.pixels`` and
                ``observation.agent_pos`` instead of ``observation``.
            coupling: draws the noise for the normalised actions.
            generator: for the draws of crops, of the coupling and of the objective.
        """
        data, seen, mask = self.coupling_inputs(batch)
        condition = seen if self.encoder is None else self.encode(self._observation(batch), generator=generator)
        noise, time = couple(self.objective, coupling, data, seen, mask, generator, batch.get("index"))
        return self.objective.loss(
            self.network, data, noise, condition=condition, mask=mask, generator=generator, time=time
        )

    def coupling_inputs(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
        """What a coupling sees of a batch: normalised actions (not scaled) and observations, and the mask or None.

        Of image observations it sees the normalised ``agent_pos``: features change while the encoder is trained, and
        a coupling that is fitted to all conditions beforehand, or keeps noises for them, needs conditions that do not.
        """
        observation = self._normalized_observation(
            batch["observation" if self.encoder is None else "observation.agent_pos"]
        )
        data = self.action_normalizer.normalize(batch["action"])
        return data, observation, ~batch["action_is_pad"].unsqueeze(-1) if self.mask_padding else None

    def _observation(self, batch: Mapping[str, Tensor]) -> Observation:
        if self.encoder is None:
            return batch["observation"]
        return {name: batch[f"observation.{name}"] for name in IMAGE_OBSERVATION}

    def begin_step(self, step: int, total_steps: int) -> None:
        """Tell the objective where training is; the trainer calls it before each of its steps 1..total_steps."""
        self.objective.begin_step(self.network, step, total_steps)

    # Calling the module computes its loss, so that wrappers (DistributedDataParallel, autocast) see the training step.
    forward = loss

    @torch.no_grad()
    def predict_action(
        self,
        observation: Observation,
        generator: torch.Generator | None = None,
        num_inference_steps: int | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """The next actions for an observation history. :class:`Planner` chooses the noise by a coupling, too.

        Args:
            observation: as ``encode`` takes it.
            generator: for the initial noise and an ancestral sampler's steps.
            num_inference_steps: network calls; default the policy's.
            noise: (B, horizon, action_dim) to start from instead of a draw.

        Returns:
            (B, n_action_steps, action_dim) actions in their own units.

        Raises:
            ValueError: the observation or the noise has another shape, the objective does not sample in so many steps,
                or the policy was never fitted to data.
        """
        condition = self.encode(observation, training=False)
        return self.executed(self.plan(condition, generator, num_inference_steps, noise))

    @torch.no_grad()
    def plan(
        self,
        condition: Tensor,
        generator: torch.Generator | None = None,
        num_inference_steps: int | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """A sequence of normalised actions (B, horizon, action_dim) for a condition that ``encode`` made.

        Other arguments as in ``predict_action``.
        """
        return self.objective.sample(
            self.network,
            (condition.shape[0], self.horizon, self.action_dim),
            condition=condition,
            steps=self.num_inference_steps if num_inference_steps is None else num_inference_steps,
            generator=generator,
            device=self.device,
            noise=noise,
        )

    def executed(self, plan: Tensor) -> Tensor:
        """The actions of a plan that are carried out, (B, n_action_steps, action_dim) in their own units."""
        start = self.n_obs_steps - 1
        return self.action_normalizer.denormalize(plan[:, start : start + self.n_action_steps])

    def keep_companions(self, data: Tensor, condition: Tensor | None, batch_size: int) -> None:
        """Remember training data for the noise selection of a coupling that pairs whole batches.

        Args:
            data: (n_companions, horizon, action_dim) normalised actions, as ``coupling_inputs`` gives them.
            condition: (n_companions, n_obs_steps, observation_dim) what the coupling saw beside them.
            batch_size: data in a batch of the training.
        """
        self.companion_data.copy_(data)
        if condition is not None:
            self.companion_condition.copy_(condition)
        self.companion_batch_size.fill_(batch_size)


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

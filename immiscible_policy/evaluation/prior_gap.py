"""The gap between the noise that a policy was trained on and the N(0, I) that it is sampled from, and what it costs.

Training draws noise that a coupling has chosen for the demonstrated action. The sampler does not know that action. Here
the same network answers the same observations from both kinds of noise, and its actions are compared with those of
the demonstrator, without a rollout.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from immiscible_policy.coupling import Coupling, Independent
from immiscible_policy.coupling.skew import predicted_data
from immiscible_policy.coupling.spec import parse_coupling
from immiscible_policy.data.windows import ActionWindows
from immiscible_policy.policy import DiffusionPolicy
from immiscible_policy.policy.coupling_fit import fit_coupling
from immiscible_policy.training.precision import autocast, resolve_precision


@dataclass(frozen=True)
class ActionError:
    """Sampled against demonstrated actions, over the steps that are executed, in pixels; means are of squares.

    Attributes:
        error: distance of a sample from the demonstrated action.
        bias: distance of the mean sample from it (the noise of the estimate taken off).
        spread: distance of a sample from the mean sample. error^2 = bias^2 + spread^2.
    """

    error: float
    bias: float
    spread: float


@dataclass(frozen=True)
class PriorGap:
    """What a coupling does to the training noise, and what its network does with either noise.

    Attributes:
        coupling: that of the training's end.
        shift: mean of the training noise along the actions that the observation predicts (linear regression), in
            standard deviations; 0 for N(0, I).
        power: mean of |noise|^2 / D; 1 for N(0, I).
        prior: from N(0, I), as a policy is sampled.
        matched: from noise that the coupling chose for the demonstrated action, as in training. It carries a hint at
            that action: less error than from the prior is no merit, but shows how much the network relies on it.

    Of a coupling that cannot choose for new data only ``prior`` is known; the others are None.
    """

    coupling: str
    prior: ActionError
    shift: float | None = None
    power: float | None = None
    matched: ActionError | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@torch.no_grad()
def measure_prior_gap(
    policy: DiffusionPolicy,
    training: ActionWindows,
    held_out: ActionWindows,
    n_windows: int = 256,
    n_samples: int = 8,
    num_inference_steps: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
    precision: str = "auto",
) -> PriorGap:
    """Measure a policy.

    Args:
        policy: in evaluation mode; ``policy.coupling`` names the coupling.
        training: windows that the noise is measured on, all of them; the coupling is fitted to them as in training.
        held_out: windows of the demonstrations that the actions are compared on.
        n_windows: of these, evenly spaced.
        n_samples: of each window from either noise, at least 2.
        num_inference_steps: network calls of a sample; None takes the policy's own.
        batch_size: of the coupling, as in training.
        seed: of the noises.
        precision: auto | fp32 | bf16 | fp16, of the network.

    Raises:
        ValueError: an argument out of range.
    """
    if n_windows < 1 or n_samples < 2 or batch_size < 1:
        raise ValueError(
            f"n_windows={n_windows} and batch_size={batch_size} must be at least 1, n_samples={n_samples} at least 2"
        )
    text = policy.coupling or "Independent()"
    chosen = torch.linspace(0, len(held_out) - 1, min(n_windows, len(held_out))).long().unique()
    windows = {name: value.to(policy.device) for name, value in held_out.batch(chosen).items()}
    computed_in = resolve_precision(precision, str(policy.device))
    first = policy.n_obs_steps - 1
    target = windows["action"][:, first : first + policy.n_action_steps]

    def error(arm: Coupling) -> ActionError:
        noises = torch.Generator().manual_seed(seed)
        sampler = torch.Generator(policy.device).manual_seed(seed + 1)  # of samplers that draw, too
        draws = [
            _sample(policy, windows, arm, num_inference_steps, batch_size, noises, sampler, computed_in)
            for _ in range(n_samples)
        ]
        return action_error(torch.stack(draws), target)

    prior = error(Independent())
    try:
        coupling = parse_coupling(text)
        fit_coupling(coupling, policy, training)
        coupling = coupling.at_inference()
    except ValueError:
        return PriorGap(text, prior)
    shift, power = _training_noise(policy, training, coupling, batch_size, torch.Generator().manual_seed(seed))
    return PriorGap(str(coupling), prior, shift, power, error(coupling))


def action_error(samples: Tensor, target: Tensor) -> ActionError:
    """Samples (S, N, T, Da), S >= 2, of targets (N, T, Da)."""
    n_samples, mean = samples.shape[0], samples.double().mean(0)
    variance = float((samples - mean).square().sum(-1).mean()) * n_samples / (n_samples - 1)
    error = float((samples - target).double().square().sum(-1).mean())
    return ActionError(math.sqrt(error), math.sqrt(max(0.0, error - variance)), math.sqrt(variance))


def _training_noise(
    policy: DiffusionPolicy,
    windows: ActionWindows,
    coupling: Coupling,
    batch_size: int,
    generator: torch.Generator,
) -> tuple[float, float]:
    """Shift and power of the noise of one epoch."""
    order = torch.randperm(len(windows), generator=generator)
    data, condition, noise = [], [], []
    for indices in order.split(batch_size):
        batch = {name: value.to(policy.device) for name, value in windows.batch(indices).items()}
        actions, seen, mask = policy.coupling_inputs(batch)
        actions = actions.cpu() * policy.objective.data_scale
        noise.append(_noise(coupling, actions, seen.cpu(), mask, generator))
        data.append(actions)
        condition.append(seen.cpu())
    along = predicted_data(torch.cat(data), torch.cat(condition))
    along = torch.nn.functional.normalize(along, dim=1)
    n = torch.cat(noise).flatten(1)
    return float((along * n).sum(1).mean()), float(n.square().mean())


def _sample(
    policy: DiffusionPolicy,
    windows: dict[str, Tensor],
    coupling: Coupling,
    steps: int | None,
    batch_size: int,
    generator: torch.Generator,
    sampler: torch.Generator,
    precision: str,
) -> Tensor:
    """Executed actions (N, n_action_steps, Da) in pixels, on the policy's device."""
    actions, seen, mask = policy.coupling_inputs(windows)
    actions = actions.cpu() * policy.objective.data_scale
    noise = torch.cat(
        [
            _noise(coupling, part, seen_part, None if mask is None else mask[rows], generator)
            for rows, part, seen_part in zip(
                torch.arange(len(actions)).split(batch_size),
                actions.split(batch_size),
                seen.cpu().split(batch_size),
                strict=True,
            )
        ]
    )
    observation = windows["observation"] if policy.encoder is None else _pictures(windows)
    with autocast(precision, str(policy.device)):
        return policy.predict_action(
            observation, sampler, num_inference_steps=steps, noise=noise.to(policy.device)
        ).float()


def _pictures(windows: dict[str, Tensor]) -> dict[str, Tensor]:
    prefix = "observation."
    return {name[len(prefix) :]: value for name, value in windows.items() if name.startswith(prefix)}


def _noise(
    coupling: Coupling, data: Tensor, condition: Tensor, mask: Tensor | None, generator: torch.Generator
) -> Tensor:
    time = torch.ones(len(data)) if coupling.uses_time else None
    return coupling(
        data, condition=condition, mask=None if mask is None else mask.cpu(), generator=generator, time=time
    )

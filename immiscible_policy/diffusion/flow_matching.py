"""Flow matching (Lipman et al., 2023; rectified flow, Liu et al., 2023): the velocity of a straight path to noise.

Direction, here and nowhere else: ``s`` is 1 at pure noise and 0 at the data, as in diffusers'
FlowMatchEulerDiscreteScheduler (and opposite to much of the literature). The path is ``x_s = (1 - s) data + s noise``,
its velocity ``dx/ds = noise - data`` is the target, and sampling integrates from s = 1 down to 0. Networks see
``1000 s``, also as in diffusers, because sinusoidal embeddings are made for times of that size.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from immiscible_policy.checks import check_choice
from immiscible_policy.diffusion.objective import (
    Hold,
    Network,
    Objective,
    check_finite,
    check_positive,
    check_same_shape,
    fill_left_out,
    given_generator,
    initial_noise,
    masked_mean,
    per_sample,
)

TIME_SAMPLINGS = ("uniform", "logit_normal")
SAMPLERS = ("euler", "midpoint", "heun", "adaptive")
NETWORK_TIME_SCALE = 1000.0
DEFAULT_STEPS = 20


@dataclass(frozen=True)
class FlowMatching(Objective):
    """Predict ``noise - data`` at ``(1 - s) data + s noise`` for a random s in (0, 1].

    Args:
        time_sampling: uniform | logit_normal: s is the sigmoid of a normal number, so that the middle of the path is
            trained most (Esser et al., 2024, section 3.1).
        logit_mean, logit_std: of that normal number; a positive mean leans to the noise.
        sampler: euler | midpoint | heun | adaptive; see ``solve`` for the network calls that each takes.
        rtol, atol: tolerances of the adaptive solver, on the mean square over the whole batch.
        clip_sample: clip the final sample to the data's range [-1, 1] (times ``data_scale``).
        data_scale: see ``Objective``.
    """

    time_sampling: str = "uniform"
    logit_mean: float = 0.0
    logit_std: float = 1.0
    sampler: str = "euler"
    rtol: float = 1e-4
    atol: float = 1e-4
    clip_sample: bool = True
    data_scale: float = 1.0

    def __post_init__(self) -> None:
        check_choice("time_sampling", self.time_sampling, TIME_SAMPLINGS)
        check_choice("sampler", self.sampler, SAMPLERS)
        check_finite(logit_mean=self.logit_mean)
        check_positive(logit_std=self.logit_std, rtol=self.rtol, atol=self.atol, data_scale=self.data_scale)

    def draw_time(self, batch: int, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
        """Places s on the path, (batch,) float32 in (0, 1]."""
        if self.time_sampling == "uniform":
            return 1 - torch.rand(batch, device=device, **given_generator(generator))  # rand may be 0 and is never 1
        normal = torch.randn(batch, device=device, **given_generator(generator))
        return torch.sigmoid(self.logit_mean + self.logit_std * normal).clamp_min(torch.finfo(torch.float32).tiny)

    def diffusion_time(self, time: Tensor) -> Tensor:
        """s itself, (B,) in (0, 1]."""
        return time.float()

    def loss(
        self,
        network: Network,
        data: Tensor,
        noise: Tensor,
        condition: Tensor | None = None,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
        time: Tensor | None = None,
    ) -> Tensor:
        """Mean squared error of the velocity (Lipman et al., eq. 14 in the direction above); see ``Objective.loss``."""
        check_same_shape(data, noise)
        given, data = data.dtype, fill_left_out(data, mask)
        precise = torch.promote_types(given, torch.float32)
        data, noise = data.to(precise) * self.data_scale, noise.to(precise)
        if time is None:
            time = self.draw_time(data.shape[0], data.device, generator)
        s = per_sample(time, data)
        prediction = network(((1 - s) * data + s * noise).to(given), NETWORK_TIME_SCALE * time, condition)
        return masked_mean((prediction.float() - (noise - data).float()).square(), mask)

    def predict_data(self, prediction: Tensor, noisy: Tensor, time: Tensor) -> Tensor:
        """The end of the straight path along the predicted velocity; see ``Objective.predict_data``."""
        s = per_sample(time.float() / NETWORK_TIME_SCALE, noisy)
        return (noisy.float() - s * prediction.float()) / self.data_scale

    def predict_noise(self, prediction: Tensor, noisy: Tensor, time: Tensor) -> Tensor:
        """The beginning of that path; see ``Objective.predict_noise``."""
        s = per_sample(time.float() / NETWORK_TIME_SCALE, noisy)
        return noisy.float() + (1 - s) * prediction.float()

    @torch.no_grad()
    def sample(
        self,
        network: Network,
        shape: tuple[int, ...],
        condition: Tensor | None = None,
        steps: int | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
        noise: Tensor | None = None,
        hold: Hold | None = None,
    ) -> Tensor:
        """Data of ``shape`` in ``steps`` network calls (default 20); see ``solve`` and ``Objective.sample``."""
        start = initial_noise(shape, generator, device, noise)
        sample, _ = self.solve(network, start, condition, DEFAULT_STEPS if steps is None else steps, hold)
        if self.clip_sample:
            sample = sample.clamp(-self.data_scale, self.data_scale)
        sample = sample / self.data_scale
        return sample if hold is None else hold.put(sample, hold.data)

    @torch.no_grad()
    def solve(
        self,
        network: Network,
        noise: Tensor,
        condition: Tensor | None = None,
        steps: int = DEFAULT_STEPS,
        hold: Hold | None = None,
    ) -> tuple[Tensor, int]:
        """Follow the network's velocity from ``noise`` (B, ...) at s = 1 to s = 0.

        How ``steps`` network calls are spent:
            euler: ``steps`` equal intervals of one call each; diffusers' scheduler with
                ``sigmas=linspace(1, 1 / steps, steps)``.
            midpoint, heun: ``ceil(steps / 2)`` equal intervals of two calls each; where ``steps`` is odd the last
                interval, next to the data, is an Euler step of one call. So one step is an Euler step.
            adaptive: ``steps`` is not used. Dormand-Prince 5(4) with step sizes from ``rtol`` and ``atol``; the batch
                is one system, so all its samples share their steps.

        Args:
            hold: put into the sample at the start of every interval.

        Returns:
            the end of the path (B, ...), neither clipped nor divided by ``data_scale``, and the network calls made.

        Raises:
            ValueError: ``steps`` is below 1, or ``hold`` is given to the adaptive sampler, whose path may not jump.
            ArithmeticError: the adaptive solver met NaN or infinity, or found no step small enough.
        """

        def velocity(sample: Tensor, s: float) -> Tensor:
            time = torch.full((sample.shape[0],), NETWORK_TIME_SCALE * s, device=sample.device)
            return network(sample.to(noise.dtype), time, condition).float()

        self.check_steps(steps)
        if self.sampler == "adaptive":
            if hold is not None:
                raise ValueError("hold: sampler='adaptive' cannot keep known parts; choose euler, midpoint or heun")
            return self._solve_adaptive(velocity, noise)
        calls = 1 if self.sampler == "euler" else 2
        n_intervals = math.ceil(steps / calls)
        grid = torch.linspace(1, 0, n_intervals + 1, dtype=torch.float64, device="cpu").tolist()
        sample, left = noise, steps
        for s, s_next in pairwise(grid):
            if hold is not None:
                sample = hold.put(sample, (1 - s) * self.data_scale * hold.data + s * hold.noise)
            slope = velocity(sample, s)
            if calls == 2 and left >= 2:
                if self.sampler == "midpoint":
                    slope = velocity(sample + (s_next - s) / 2 * slope, (s + s_next) / 2)
                else:
                    slope = (slope + velocity(sample + (s_next - s) * slope, s_next)) / 2
            sample = sample + (s_next - s) * slope
            left -= calls
        return sample, steps

    def _solve_adaptive(self, velocity: Callable[[Tensor, float], Tensor], noise: Tensor) -> tuple[Tensor, int]:
        def flat_velocity(s: float, flat: np.ndarray) -> np.ndarray:
            sample = torch.from_numpy(flat).to(noise).view_as(noise)
            slope = velocity(sample, s).flatten().double().cpu().numpy()
            if not np.isfinite(slope).all():  # on which solve_ivp would halve its step for ever
                raise ArithmeticError(f"sampler='adaptive': the network returned NaN or infinity at s={s:.4g}")
            return slope

        start = noise.flatten().double().cpu().numpy()
        result = solve_ivp(flat_velocity, (1.0, 0.0), start, "RK45", t_eval=[0.0], rtol=self.rtol, atol=self.atol)
        if not result.success:
            raise ArithmeticError(
                f"sampler='adaptive' with rtol={self.rtol}, atol={self.atol} failed after {result.nfev} network calls: "
                f"{result.message}"
            )
        return torch.from_numpy(result.y[:, -1]).to(noise).view_as(noise), int(result.nfev)

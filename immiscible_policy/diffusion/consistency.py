"""Consistency training (Song et al., 2023, "CM"; Song & Dhariwal, 2024, "iCT"): one network call makes a sample.

The noisy input is ``data + sigma noise`` with levels sigma_min = sigma_1 < ... < sigma_N = sigma_max. The student sees
one level, the teacher the level below with the same data and the same noise, and the student learns to say what the
teacher says. N grows over training, so this objective has to be told where training is (``begin_step``).
"""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

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
    per_sample,
)
from immiscible_policy.diffusion.perceptual import perceptual_distance

Distance = Callable[[Tensor, Tensor], Tensor]
"""``distance(student, teacher) -> (B,)`` of two tensors (B, ...)."""

SCHEDULES = ("ict", "cm")
TIME_SAMPLINGS = ("lognormal", "uniform")
WEIGHTINGS = ("inverse_step", "uniform")
DISTANCES = ("pseudo_huber", "l2", "lpips")
NETWORK_TIME_SCALE = 250.0


@dataclass
class _Training:
    """What changes over training. ``restored``: a teacher's weights that wait for a network to put them into."""

    step: int | None = None
    total_steps: int = 1
    teacher: nn.Module | None = None
    restored: Mapping[str, Tensor] | None = None


@dataclass(frozen=True)
class Consistency(Objective):
    """Make the outputs at neighbouring noise levels of the same data and noise agree.

    Until ``begin_step`` is called (in validation, and in a policy that was loaded) the loss is that of the end of
    training: the finest levels, and the network as its own teacher. So validation losses of a run compare over steps.

    The defaults are iCT's for images and 400,000 steps. What a level learns comes from the level below, so a short run
    needs few levels: ``configs/objective/consistency.yaml`` holds settings for some thousand steps.

    Args:
        schedule: how the number of levels N grows and who teaches. ict: N doubles at equal intervals, and the teacher
            is the student itself without gradients (iCT, sections 3.2 and 3.4). cm: N^2 grows linearly, and the teacher
            is a moving average of the student with the decay mu(k) (CM, appendix C).
        s0, s1: levels at the start and at the end of training (cm counts s0 and s1 + 1, ict s0 + 1 and s1 + 1).
        mu0: the teacher's decay at the start (cm only).
        time_sampling: lognormal: pairs of levels by the mass of ln sigma ~ N(lognormal_mean, lognormal_std) between
            them (iCT, section 3.5) | uniform.
        weighting: inverse_step: 1 / (difference of the two levels) (iCT, section 3.1) | uniform.
        distance: pseudo_huber: sqrt(mean square + huber_c^2) - huber_c, iCT's (section 3.3) over sqrt(entries), so that
            gradient clipping means the same for data of any size | l2: mean square | lpips: of images, CM's (an
            optional extra, see ``perceptual``) | a function (see ``Distance``).
        sigma_min, sigma_max, rho: the levels, spaced as in Karras et al. (2022), equation 5.
        sigma_data: the standard deviation of the data, before ``data_scale``.
        clip_sample: clip every denoised estimate to the data's range [-1, 1] (times ``data_scale``) while sampling.
        data_scale: see ``Objective``. Noise levels stay as they are, so scaled data meets relatively less noise.
        sampler: multistep, the only one.
    """

    schedule: str = "ict"
    s0: int = 10
    s1: int = 1280
    mu0: float = 0.9
    time_sampling: str = "lognormal"
    lognormal_mean: float = -1.1
    lognormal_std: float = 2.0
    weighting: str = "inverse_step"
    distance: str | Distance = "pseudo_huber"
    huber_c: float = 0.00054
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    sigma_data: float = 0.5
    clip_sample: bool = True
    data_scale: float = 1.0
    sampler: str = "multistep"
    _training: _Training = field(default_factory=_Training, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_choice("schedule", self.schedule, SCHEDULES)
        check_choice("time_sampling", self.time_sampling, TIME_SAMPLINGS)
        check_choice("weighting", self.weighting, WEIGHTINGS)
        check_choice("sampler", self.sampler, ("multistep",))
        if not callable(self.distance):
            check_choice("distance", self.distance, DISTANCES)
        names = ("lognormal_std", "huber_c", "sigma_min", "sigma_max", "rho", "sigma_data", "data_scale")
        check_positive(**{name: getattr(self, name) for name in names})
        check_finite(lognormal_mean=self.lognormal_mean)
        if not self.sigma_min < self.sigma_max:
            raise ValueError(f"sigma_min={self.sigma_min} must be below sigma_max={self.sigma_max}")
        if not 2 <= self.s0 <= self.s1:
            raise ValueError(f"s0={self.s0}, s1={self.s1}: needs 2 <= s0 <= s1")
        if not 0 <= self.mu0 < 1:
            raise ValueError(f"mu0={self.mu0}: must be at least 0 and below 1")

    def n_levels(self, step: int, total_steps: int) -> int:
        """N(k), the noise levels of training step ``step`` in 1..total_steps (k = step - 1 counts from 0)."""
        k = step - 1
        if self.schedule == "cm":  # CM, appendix C
            squared = k / total_steps * ((self.s1 + 1) ** 2 - self.s0**2) + self.s0**2
            return math.ceil(math.sqrt(squared) - 1) + 1
        doublings = math.floor(math.log2(self.s1 // self.s0)) + 1  # iCT, table 1
        interval = max(1, math.floor(total_steps / doublings))
        return min(self.s0 * 2 ** (k // interval), self.s1) + 1

    def teacher_decay(self, step: int, total_steps: int) -> float:
        """mu(k), the decay of the teacher's moving average after training step ``step`` (CM, appendix C)."""
        return math.exp(self.s0 * math.log(self.mu0) / self.n_levels(step, total_steps)) if self.mu0 else 0.0

    @property
    def current_levels(self) -> int:
        """N at the step that ``begin_step`` told of; before it did, N at the end of training."""
        training = self._training
        return self.s1 + 1 if training.step is None else self.n_levels(training.step, training.total_steps)

    def begin_step(self, network: nn.Module, step: int, total_steps: int) -> None:
        """See ``Objective.begin_step``. Brings the teacher to after step - 1, whose weights ``network`` has."""
        training = self._training
        training.step, training.total_steps = step, total_steps
        if self.schedule != "cm" or self.mu0 == 0:
            return
        if training.teacher is None:
            training.teacher = copy.deepcopy(network).requires_grad_(False)
            if training.restored is None:
                return
            training.teacher.load_state_dict(training.restored)
            training.restored = None
        training.teacher.train(network.training)
        _update_average(training.teacher, network, self.teacher_decay(max(1, step - 1), total_steps))

    def state_dict(self) -> dict[str, Any]:
        """The teacher's weights where it has its own; the rest follows from the step."""
        training = self._training
        if training.teacher is not None:
            return {"teacher": training.teacher.state_dict()}
        return {} if training.restored is None else {"teacher": dict(training.restored)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned; the next ``begin_step`` builds the teacher from it."""
        if set(state) - {"teacher"}:
            raise ValueError(f"state of Consistency may hold a teacher, got the keys {sorted(state)}")
        self._training.teacher, self._training.restored = None, state.get("teacher")

    def levels(self, n: int, device: torch.device | str = "cpu") -> Tensor:
        """sigma_1 < ... < sigma_n, (n,) float64 from sigma_min to sigma_max (Karras et al., 2022, equation 5)."""
        ramp = torch.linspace(0, 1, n, dtype=torch.float64, device=device)
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        levels = (low + ramp * (high - low)) ** self.rho
        levels[0], levels[-1] = self.sigma_min, self.sigma_max  # exactly, so that the network leaves sigma_min alone
        return levels

    def draw_time(self, batch: int, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
        """Pairs of neighbouring levels, (batch,) int64 in 0..N-2: the place of the lower one."""
        n = self.current_levels
        if self.time_sampling == "uniform":
            return torch.randint(n - 1, (batch,), device=device, **given_generator(generator))
        edges = torch.special.ndtr((self.levels(n, device).log() - self.lognormal_mean) / self.lognormal_std)
        return torch.multinomial(edges.diff().float(), batch, replacement=True, **given_generator(generator))

    def diffusion_time(self, time: Tensor) -> Tensor:
        """The place of a pair's upper level between sigma_min and sigma_max, (B,) in (0, 1]."""
        return (time + 1).float() / (self.current_levels - 1)

    def denoise(
        self,
        network: Network,
        noisy: Tensor,
        sigma: Tensor,
        condition: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """The consistency function f(noisy, sigma): an estimate of the (scaled) data, and ``noisy`` at sigma_min.

        CM, appendix C: c_skip and c_out; Karras et al. (2022), table 1: c_in; the network sees 250 ln(sigma) as time,
        as in diffusers' CMStochasticIterativeScheduler. In float32 whatever the network computes in.

        Args:
            noisy: (B, ...) data + sigma noise.
            sigma: (B,) noise levels.
            dtype: of the network's input, float32 at most.
        """
        noisy, sigma = noisy.float(), sigma.float()
        root = self._input_scale(sigma, noisy)
        scaled = noisy / root
        if dtype.itemsize < scaled.dtype.itemsize:
            scaled = scaled.to(dtype)
        prediction = network(scaled, NETWORK_TIME_SCALE * sigma.log(), condition)
        return self._denoised(prediction, noisy, sigma)

    def _input_scale(self, sigma: Tensor, like: Tensor) -> Tensor:
        """1 / c_in (Karras et al., 2022, table 1), in a shape that broadcasts against ``like``."""
        return (per_sample(sigma, like).square() + (self.sigma_data * self.data_scale) ** 2).sqrt()

    def _denoised(self, prediction: Tensor, noisy: Tensor, sigma: Tensor) -> Tensor:
        s, sigma_data = per_sample(sigma, noisy), self.sigma_data * self.data_scale
        c_skip = sigma_data**2 / ((s - self.sigma_min).square() + sigma_data**2)
        c_out = (s - self.sigma_min) * sigma_data / self._input_scale(sigma, noisy)
        return c_skip * noisy + c_out * prediction.float()

    def predict_data(self, prediction: Tensor, noisy: Tensor, time: Tensor) -> Tensor:
        """See ``Objective.predict_data``; the network's input is scaled by 1 / sqrt(sigma^2 + sigma_data^2)."""
        sigma = (time.float() / NETWORK_TIME_SCALE).exp()
        unscaled = noisy.float() * self._input_scale(sigma, noisy)
        return self._denoised(prediction, unscaled, sigma) / self.data_scale

    def predict_noise(self, prediction: Tensor, noisy: Tensor, time: Tensor) -> Tensor:
        """See ``Objective.predict_noise``: what is left of the input without the predicted data, over sigma."""
        sigma = (time.float() / NETWORK_TIME_SCALE).exp()
        unscaled = noisy.float() * self._input_scale(sigma, noisy)
        data = self._denoised(prediction, unscaled, sigma)
        return (unscaled - data) / per_sample(sigma, noisy)

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
        """Weighted distance of student and teacher (CM, equation 10; iCT, section 3); see ``Objective.loss``.

        With a mask the distance is over the entries that count, and every sample weighs the same.
        """
        check_same_shape(data, noise)
        given, data = data.dtype, fill_left_out(data, mask)
        data = data.to(torch.promote_types(given, torch.float32)) * self.data_scale
        if time is None:
            time = self.draw_time(data.shape[0], data.device, generator)
        levels = self.levels(self.current_levels, data.device)
        low, high = levels[time], levels[time + 1]
        teacher = network if self._training.teacher is None else self._training.teacher
        # The student first: under autocast the casts of weights are cached, and casts made without gradients would
        # leave the student without them. Its random state is given back, so that both drop out the same units.
        with torch.random.fork_rng([data.device] if data.is_cuda else []):
            estimate = self.denoise(network, data + per_sample(high, data).float() * noise, high, condition, given)
        with torch.no_grad():
            target = self.denoise(teacher, data + per_sample(low, data).float() * noise, low, condition, given)
        distance = self._distance(estimate, target, mask)
        return distance.mean() if self.weighting == "uniform" else (distance / (high - low).float()).mean()

    def _distance(self, estimate: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        if mask is not None:
            estimate = torch.where(mask, estimate, target)
        if callable(self.distance):
            return self.distance(estimate, target)
        if self.distance == "lpips":
            return perceptual_distance(estimate / self.data_scale, target / self.data_scale)
        count = target[0].numel() if mask is None else mask.expand_as(target).flatten(1).sum(1).clamp_min(1)
        square = (estimate - target).square().flatten(1).sum(1) / count
        if self.distance == "l2":
            return square
        return (square + self.huber_c**2).sqrt() - self.huber_c

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
        """Denoise from sigma_max, then noise again and denoise, in ``steps`` calls (default 1; CM, algorithm 1).

        The levels fall from sigma_max towards sigma_min in ``steps`` equal parts of ``diffusion_time``: the same as
        diffusers' CMStochasticIterativeScheduler with ``num_train_timesteps=steps + 1``. See ``Objective.sample``.
        """
        steps = 1 if steps is None else steps
        self.check_steps(steps)
        start = initial_noise(shape, generator, device, noise)
        levels = self.levels(steps + 1).flip(0).tolist()[:-1]
        estimate = torch.zeros_like(start)
        for i, sigma in enumerate(levels):
            if i == 0:
                noisy = sigma * start
            else:
                fresh = randn_tensor(tuple(start.shape), generator=generator, device=start.device, dtype=start.dtype)
                noisy = estimate + math.sqrt(sigma**2 - self.sigma_min**2) * fresh
            if hold is not None:
                noisy = hold.put(noisy, self.data_scale * hold.data + sigma * hold.noise)
            time = torch.full((shape[0],), sigma, device=start.device)
            estimate = self.denoise(network, noisy, time, condition, start.dtype)
            if self.clip_sample:
                estimate = estimate.clamp(-self.data_scale, self.data_scale)
        estimate = estimate / self.data_scale
        return estimate if hold is None else hold.put(estimate, hold.data)


@torch.no_grad()
def _update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """``average <- decay average + (1 - decay) network`` for parameters, in place; buffers are copied."""
    for mine, theirs in zip(average.parameters(), network.parameters(), strict=True):
        mine.lerp_(theirs, 1 - decay)
    for own, other in zip(average.buffers(), network.buffers(), strict=True):
        own.copy_(other)

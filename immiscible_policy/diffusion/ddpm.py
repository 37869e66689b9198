"""Denoising diffusion (Ho et al., 2020) with DDPM or DDIM (Song et al., 2021) sampling, on diffusers' schedulers."""

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler, PNDMScheduler
from torch import Tensor

from immiscible_policy.checks import check_choice, check_integer
from immiscible_policy.diffusion.objective import (
    Hold,
    Network,
    Objective,
    check_positive,
    check_same_shape,
    fill_left_out,
    given_generator,
    initial_noise,
    masked_mean,
    per_sample,
)

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
SAMPLERS = ("ddim", "ddim_floor", "ddpm", "pndm")
TIMESTEP_SPACINGS = ("trailing", "leading", "linspace")
VARIANCE_TYPES = ("fixed_small", "fixed_large")


@dataclass(frozen=True)
class DDPM(Objective):
    """Predict the noise (or the data, or v) of ``sqrt(abar_t) x + sqrt(1 - abar_t) n`` at a random step t.

    Args:
        num_train_timesteps: diffusion steps T; t is uniform on 0..T-1.
        beta_schedule: linear | scaled_linear | squaredcos_cap_v2, from ``beta_start`` to ``beta_end``.
        prediction_type: epsilon | sample | v_prediction.
        sampler: ddim (deterministic, few steps) | ddim_floor (the same in diffusers' strides) | ddpm (ancestral) | pndm
            (deterministic; Liu et al., 2022, the linear multistep kind, Stable Diffusion's own: S steps take S + 1
            network calls; it clips nothing).
        timestep_spacing: which S of the T steps a sampler visits (Lin et al., 2024, table 2): trailing: T - 1 and down
            in strides of T / S | leading: 0 and up in strides of T // S, DDIM's linear selection, which with few steps
            begins well below pure noise | linspace: both ends. ddim and ddpm go where the next call looks. ddim_floor
            and pndm remove noise for a stride of T // S whatever the spacing: with trailing where S does not divide T,
            and with linspace, less than the network is then told (diffusers' issues 9261 and 12633; measured in
            docs/results, sampler_stride).
        variance_type: fixed_small | fixed_large, of the ancestral sampler's noise (Ho et al., section 3.2).
        clip_sample: clip the predicted data to the data's range [-1, 1] (times ``data_scale``) while sampling.
        data_scale: see ``Objective``.
        steps_offset: added to the steps that leading spacing visits; Stable Diffusion's 1 visits step 1 in place of 0.
        set_alpha_to_one: the last step of ddim and pndm ends at the data | False: at step 0, as in Stable Diffusion.
    """

    num_train_timesteps: int = 100
    beta_schedule: str = "squaredcos_cap_v2"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    prediction_type: str = "epsilon"
    sampler: str = "ddim"
    timestep_spacing: str = "trailing"
    variance_type: str = "fixed_small"
    clip_sample: bool = True
    data_scale: float = 1.0
    steps_offset: int = 0
    set_alpha_to_one: bool = True

    def __post_init__(self) -> None:
        check_choice("beta_schedule", self.beta_schedule, BETA_SCHEDULES)
        check_choice("prediction_type", self.prediction_type, PREDICTION_TYPES)
        check_choice("sampler", self.sampler, SAMPLERS)
        check_choice("timestep_spacing", self.timestep_spacing, TIMESTEP_SPACINGS)
        check_choice("variance_type", self.variance_type, VARIANCE_TYPES)
        if self.steps_offset not in (0, 1):
            raise ValueError(f"steps_offset={self.steps_offset}: choose 0 or 1")
        if self.sampler == "pndm" and (self.clip_sample or self.prediction_type == "sample"):
            raise ValueError(
                f"sampler='pndm' needs clip_sample=False and prediction_type epsilon or v_prediction, got "
                f"clip_sample={self.clip_sample} and prediction_type={self.prediction_type!r}"
            )
        check_integer("num_train_timesteps", self.num_train_timesteps, 1)
        check_positive(data_scale=self.data_scale)
        if self.beta_schedule != "squaredcos_cap_v2" and not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(
                f"beta_start={self.beta_start}, beta_end={self.beta_end}: needs 0 < beta_start <= beta_end < 1"
            )

    @property
    def max_steps(self) -> int:
        """T: a sampler visits each step at most once. With a ``steps_offset`` there is one less to visit."""
        return self.num_train_timesteps - (self.steps_offset if self.timestep_spacing == "leading" else 0)

    def check_steps(self, steps: int, name: str = "steps") -> None:
        """See ``Objective.check_steps``."""
        super().check_steps(steps, name)
        if steps == 1 and self.timestep_spacing == "linspace":
            raise ValueError(f"{name}=1: timestep_spacing='linspace' would visit step 0 alone; choose trailing")

    @cached_property
    def scheduler(self) -> Any:
        """diffusers' DDPMScheduler: the forward process, and the settings of the samplers."""
        return DDPMScheduler(
            num_train_timesteps=self.num_train_timesteps,
            beta_schedule=self.beta_schedule,
            beta_start=self.beta_start,
            beta_end=self.beta_end,
            prediction_type=self.prediction_type,
            variance_type=self.variance_type,
            timestep_spacing=self.timestep_spacing,
            clip_sample=self.clip_sample,
            clip_sample_range=self.data_scale,
            steps_offset=self.steps_offset,
        )

    def sampling_scheduler(self) -> Any:
        """A new scheduler of the sampler: diffusers' DDIMScheduler, DDPMScheduler or PNDMScheduler.

        By itself a DDIMScheduler is ddim_floor; `sample` corrects its stride.
        """
        config = self.scheduler.config
        if self.sampler == "ddpm":
            return DDPMScheduler.from_config(config)
        if self.sampler == "pndm":
            return PNDMScheduler.from_config(config, skip_prk_steps=True, set_alpha_to_one=self.set_alpha_to_one)
        return DDIMScheduler.from_config(config, set_alpha_to_one=self.set_alpha_to_one)

    def draw_time(self, batch: int, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
        """Steps to train on, (batch,) int64 uniform on 0..T-1."""
        return torch.randint(self.num_train_timesteps, (batch,), device=device, **given_generator(generator))

    def diffusion_time(self, time: Tensor) -> Tensor:
        """Steps as the diffusion time that couplings know, (B,) in (0, 1] with 1 at the noisiest step."""
        return (time + 1).float() / self.num_train_timesteps

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
        """Mean squared error of the network's prediction (Ho et al., eq. 14); see ``Objective.loss``."""
        check_same_shape(data, noise)
        given, data = data.dtype, fill_left_out(data, mask)
        precise = torch.promote_types(given, torch.float32)  # abar in bfloat16 is 1 where little noise is left
        data, noise = data.to(precise) * self.data_scale, noise.to(precise)
        if time is None:
            time = self.draw_time(data.shape[0], data.device, generator)
        prediction = network(self.scheduler.add_noise(data, noise, time).to(given), time, condition)
        if self.prediction_type == "epsilon":
            target = noise
        elif self.prediction_type == "sample":
            target = data
        else:
            target = self.scheduler.get_velocity(data, noise, time)
        return masked_mean((prediction.float() - target.float()).square(), mask)

    def predict_data(self, prediction: Tensor, noisy: Tensor, time: Tensor) -> Tensor:
        """See ``Objective.predict_data``; of a predicted noise it is (x_t - sqrt(1 - abar) n) / sqrt(abar)."""
        signal, sigma = self._signal_and_noise(time, noisy)
        prediction, noisy = prediction.float(), noisy.float()
        if self.prediction_type == "epsilon":
            data = (noisy - sigma * prediction) / signal
        elif self.prediction_type == "sample":
            data = prediction
        else:
            data = signal * noisy - sigma * prediction
        return data / self.data_scale

    def predict_noise(self, prediction: Tensor, noisy: Tensor, time: Tensor) -> Tensor:
        """See ``Objective.predict_noise``."""
        signal, sigma = self._signal_and_noise(time, noisy)
        prediction, noisy = prediction.float(), noisy.float()
        if self.prediction_type == "epsilon":
            return prediction
        if self.prediction_type == "sample":
            return (noisy - signal * prediction) / sigma
        return signal * prediction + sigma * noisy

    def _signal_and_noise(self, time: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(abar_t) and sqrt(1 - abar_t) in shapes that broadcast against ``like``."""
        abar = per_sample(self.scheduler.alphas_cumprod.to(like.device)[time.long()], like)
        return abar.sqrt(), (1 - abar).sqrt()

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
        """Data of ``shape`` in ``steps`` network calls (default all; pndm: one more); see ``Objective.sample``."""
        steps = self.max_steps if steps is None else steps
        self.check_steps(steps)
        scheduler = self.sampling_scheduler()
        scheduler.set_timesteps(steps)
        # diffusers rounds trailing steps from floats, which for some counts (29 of 100) gives one too many, -1.
        scheduler.timesteps = scheduler.timesteps[: steps + (self.sampler == "pndm")]
        sample = initial_noise(shape, generator, device, noise)
        options = {} if self.sampler == "pndm" else {"generator": generator}
        dtype = sample.dtype  # the schedulers go on in float32 where it is a shorter one
        times, visited = scheduler.timesteps.to(sample.device), scheduler.timesteps.tolist()
        for t, (here, following) in zip(times, pairwise([*visited, -1]), strict=True):
            if self.sampler == "ddim":
                # The scheduler's stride is T // S; of this many steps, a fraction, it is the one to the next call's.
                scheduler.num_inference_steps = Fraction(self.num_train_timesteps, here - following)
            if hold is not None:
                known = self.scheduler.add_noise(hold.data * self.data_scale, hold.noise, t.expand(1))
                sample = hold.put(sample, known)
            prediction = network(sample.to(dtype), t.expand(shape[0]), condition)
            step = scheduler.step(prediction.float(), here, sample, **options)
            # The last step ends at the data, where diffusers still adds noise of fixed_large unless it leaves step 0.
            is_data = self.sampler == "ddpm" and following < 0
            sample = step.pred_original_sample if is_data else step.prev_sample
        sample = sample / self.data_scale
        return sample if hold is None else hold.put(sample, hold.data)

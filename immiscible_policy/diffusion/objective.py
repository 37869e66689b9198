"""The interface that every objective shares: data and noise in, a loss out; noise in, samples out."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self, cast

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from immiscible_policy.checks import is_integer
from immiscible_policy.coupling import Coupling

Network = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""``network(noisy, time, condition) -> prediction``: (B, ...), (B,), anything or None -> (B, ...)."""


@dataclass(frozen=True)
class Hold:
    """Parts of a sample that are known beforehand, for in- and out-painting.

    Before every network call the known part is put where it would be with as much noise as the rest then has, and at
    the end as it is.

    Args:
        data: (B, ...) or broadcastable; only its known entries are looked at.
        mask: (B, ...) or broadcastable bool, True where the sample is known.
        noise: (B, ...) standard normal, of the known part.
    """

    data: Tensor
    mask: Tensor
    noise: Tensor

    def put(self, sample: Tensor, known: Tensor) -> Tensor:
        """``sample`` with the known entries of ``known``."""
        return torch.where(self.mask, known.to(sample.dtype), sample)


class Objective(ABC):
    """What a network learns to predict, and how samples are drawn from what it learnt.

    An objective never draws training noise: a coupling does, and ``loss`` uses that one tensor for the noisy input and
    for the target. Data may have any rank; nothing in an objective knows what it is. Subclasses are frozen dataclasses.

    Attributes:
        data_scale: image scaling of Improved Immiscible Diffusion, section 3.3.3: data is multiplied by it on the way
            in, the clipping range [-1, 1] widened, and samples divided on the way out.
        sampler: name of the sampler, as evaluations record it.
    """

    data_scale: float
    sampler: str

    @property
    def max_steps(self) -> int | None:
        """The largest ``steps`` that ``sample`` accepts; None where there is no limit."""
        return None

    def check_num_inference_steps(self, value: int) -> None:
        """Raise a ValueError for a number of network calls that ``sample`` would refuse, before anything is trained."""
        self.check_steps(value, "num_inference_steps")

    def with_sampler(self, sampler: str) -> Self:
        """The same objective, sampled otherwise.

        Raises:
            ValueError: it has no such sampler.
        """
        return replace(cast("Any", self), sampler=sampler)

    def check_steps(self, steps: int, name: str = "steps") -> None:
        """Raise a ValueError, which calls them ``name``, for a number of steps that ``sample`` does not take."""
        if not is_integer(steps, 1) or steps > (self.max_steps or steps):
            raise ValueError(f"{name}={steps!r}: choose 1 to {self.max_steps or 'any number'}")

    @abstractmethod
    def draw_time(self, batch: int, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
        """Times to train on, (batch,), in the objective's own units."""

    @abstractmethod
    def diffusion_time(self, time: Tensor) -> Tensor:
        """Times of ``draw_time`` as couplings know them, (B,) in (0, 1] with 1 at the noisiest."""

    @abstractmethod
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
        """Training loss, a scalar in float32.

        Args:
            network: ``network(noisy, time, condition) -> prediction`` of data's shape.
            data, noise: (B, ...), both. The same noise makes the noisy input and the target, so a coupling cannot be
                lost between them. The network's input is of data's dtype (Consistency: at most float32), so half
                precision suits a network of that dtype; times and all else are in float32 or finer.
            mask: broadcastable to data, True where an entry counts; None counts all. The network sees the others as
                well, NaN and infinity among them as 0.
            time: times from ``draw_time``, where the coupling had to know them; drawn here if None.

        Raises:
            ValueError: data and noise have different shapes.
        """

    @abstractmethod
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
        """Data of ``shape`` in ``steps`` network calls (some samplers say otherwise), from N(0, I) or from ``noise``.

        Args:
            steps: None takes the objective's own default.
            generator: for the initial noise and for a sampler's own draws.
            noise: of ``shape``. The network is called on its device, and with inputs of its dtype as in ``loss``.
            hold: entries of the sample that are known.

        Raises:
            ValueError: ``steps`` is no integer, below 1 or above ``max_steps``, or ``noise`` is of another shape.
        """

    @abstractmethod
    def predict_data(self, prediction: Tensor, noisy: Tensor, time: Tensor) -> Tensor:
        """The clean data that a prediction stands for, (B, ...) float32, divided by ``data_scale`` and not clipped.

        Args:
            prediction: (B, ...) what the network returned.
            noisy: (B, ...) and
            time: (B,) what it was called with.
        """

    @abstractmethod
    def predict_noise(self, prediction: Tensor, noisy: Tensor, time: Tensor) -> Tensor:
        """The noise that a prediction stands for, (B, ...) float32, of the scale of N(0, I); see ``predict_data``."""

    def begin_step(self, network: nn.Module, step: int, total_steps: int) -> None:  # noqa: B027 - most need none
        """Learn where training is. A training loop calls this before each of its steps 1..total_steps.

        Args:
            network: the one that ``loss`` is given, with its weights from before the step.
        """

    def state_dict(self) -> dict[str, Any]:
        """What changes over training, for checkpoints: tensors and JSON values. Empty for most objectives."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned.

        Raises:
            ValueError: ``state`` holds keys that this objective does not know.
        """
        if state:
            raise ValueError(
                f"state of {type(self).__name__} must be empty, since it has no memory; got the keys {sorted(state)} "
                "(saved by another objective?)"
            )


def couple(
    objective: Objective,
    coupling: Coupling,
    data: Tensor,
    condition: Tensor | None = None,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
    indices: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The training noise of a batch, and its times where the coupling had to know them: what ``loss`` takes.

    The one place where training noise comes from.

    Args:
        data: (B, ...) before ``data_scale``; the coupling sees it scaled, as the noise will meet it.
        condition, mask, generator, indices: as in ``Coupling.__call__``.
    """
    time = None
    if coupling.uses_time:  # otherwise the objective draws it, after the noise
        time = objective.draw_time(len(data), data.device, generator)
    noise = coupling(
        data * objective.data_scale,
        condition=condition,
        mask=mask,
        generator=generator,
        time=None if time is None else objective.diffusion_time(time),
        indices=indices,
    )
    return noise, time


def check_positive(**settings: float) -> None:
    """Raise a ValueError for the first setting that is not a positive number."""
    for name, value in settings.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"{name}={value}: must be positive")


def check_finite(**settings: float) -> None:
    """Raise a ValueError for the first setting that is not a finite number."""
    for name, value in settings.items():
        if not math.isfinite(value):
            raise ValueError(f"{name}={value}: must be a finite number")


def check_same_shape(data: Tensor, noise: Tensor) -> None:
    """Raise a ValueError unless there is a noise for each entry of the data: one for all would be no noise at all."""
    if noise.shape != data.shape:
        raise ValueError(f"noise has shape {tuple(noise.shape)}; it must have that of data, {tuple(data.shape)}")


def initial_noise(
    shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device | str, noise: Tensor | None
) -> Tensor:
    """The given noise, or a standard normal draw (which a CPU generator makes on the CPU, whatever the device).

    Raises:
        ValueError: the noise given is of another shape.
    """
    if noise is not None and tuple(noise.shape) != tuple(shape):
        raise ValueError(f"noise has shape {tuple(noise.shape)}; this sample takes {tuple(shape)}")
    return randn_tensor(shape, generator=generator, device=torch.device(device)) if noise is None else noise


def given_generator(generator: torch.Generator | None) -> dict[str, Any]:
    """The keyword argument ``generator`` of a random function; torch.compile fails on None at a second batch size."""
    return {} if generator is None else {"generator": generator}


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """One value a sample, (B,), in a shape that broadcasts against ``like`` (B, ...)."""
    return values.view(-1, *[1] * (like.ndim - 1))


def fill_left_out(data: Tensor, mask: Tensor | None) -> Tensor:
    """``data`` with 0 for NaN and infinity where the mask leaves entries out: a network spreads them to the others."""
    return data if mask is None else torch.where(mask, data, data.nan_to_num(0.0, 0.0, 0.0))


def masked_mean(error: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of the entries that count, a scalar; 0 where none does."""
    if mask is None:
        return error.mean()
    weight = mask.expand_as(error).to(error.dtype)
    return (error * weight).sum() / weight.sum().clamp_min(1)

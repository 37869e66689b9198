"""What image diffusion models of pixels and of latents share: the loss of a batch, sampling by seeds, guidance."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from image_diffusion.data import ImageDataset
from image_diffusion.label_mix import check_counts, labels_as_in_data, shown_in_turn
from image_diffusion.networks import PixelUNet, TextUNet
from immiscible_policy.checks import check_seed
from immiscible_policy.coupling import Coupling
from immiscible_policy.diffusion import Objective, build_objective, couple

CONFIG_NAME = "image_model.json"
Labels = Sequence[int | str]
"""What images shall show: classes, or prompts for a model with a text encoder."""


class ImageModel(nn.Module, ABC):
    """A network with its objective, which is trained on bytes and samples bytes.

    Subclasses say what is diffused (``prepare``, ``encode``, ``to_images``, ``sample_shape``) and how to save it.

    Args:
        image_size: height and width in pixels.
        channels: 1 (grey) or 3 (RGB).
        objective: ``{"name": "ddpm" | "flow_matching" | "consistency", ...arguments of that objective}``.
        n_classes: classes of a conditional model; None trains without labels.
        label_dropout: share of training images that are shown without their label, which classifier-free guidance
            needs (Ho & Salimans, 2021).
        flip: mirror training images at random.
        num_inference_steps: network calls of a sample unless the caller says otherwise.
        coupling: text of the coupling that it was trained with. A record only.
        class_counts: images of each class in the training data, whose mix evaluations draw; None where nobody knows.

    Attributes:
        network: ``network(noisy, time, condition)`` around ``network.unet``; set by the subclass.
        config: what ``image_model.json`` holds.
    """

    network: PixelUNet | TextUNet
    objective: Objective

    def __init__(
        self,
        image_size: int,
        channels: int,
        objective: Mapping[str, Any],
        n_classes: int | None,
        label_dropout: float,
        flip: bool,
        num_inference_steps: int,
        coupling: str | None,
        class_counts: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if channels not in (1, 3):
            raise ValueError(f"channels={channels}: choose 1 (grey) or 3 (RGB)")
        if not 0 <= label_dropout < 1:
            raise ValueError(f"label_dropout={label_dropout}: must be at least 0 and below 1")
        if n_classes is not None and n_classes < 1:
            raise ValueError(f"n_classes={n_classes}: must be at least 1, or null for none")
        check_counts(class_counts, n_classes)
        self.image_size, self.channels, self.n_classes = image_size, channels, n_classes
        self.class_counts = class_counts
        self.label_dropout, self.flip = label_dropout, flip
        self.num_inference_steps, self.coupling = num_inference_steps, coupling
        self.objective = build_objective(objective)
        self.objective.check_num_inference_steps(num_inference_steps)
        self.config: dict[str, Any] = {
            "image_size": image_size,
            "channels": channels,
            "objective": dict(objective),
            "n_classes": n_classes,
            "label_dropout": label_dropout,
            "flip": flip,
            "num_inference_steps": num_inference_steps,
            "coupling": coupling,
        }
        if class_counts is not None:  # models saved without say the same of themselves as ever
            self.config["class_counts"] = list(class_counts)

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @abstractmethod
    def prepare(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Training data of bytes (B, C, H, W): what is diffused, float32, where ``flip`` says so mirrored with chance
        1/2."""

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """What is diffused of bytes (B, C, H, W), float32 on their device: nothing mirrored, nothing random."""

    @abstractmethod
    def to_images(self, sample: Tensor) -> Tensor:
        """The inverse of ``encode``: samples as (B, C, H, W) uint8 on the CPU, rounded, values outside clipped."""

    @abstractmethod
    def sample_shape(self, n: int) -> tuple[int, ...]:
        """Shape of what is diffused for ``n`` images."""

    @abstractmethod
    def write_pipeline(self, folder: Path) -> None:
        """Write a diffusers pipeline into ``folder``."""

    def sample_mask(self, mask: Tensor) -> Tensor:
        """Where a sample has to change for the images to change where ``mask`` (..., H, W) bool says, (..., h, w)."""
        return mask

    def training_set(self, data: ImageDataset, memory_limit: float, device: torch.device | str) -> Any:
        """``data`` as the training loop shall read it.

        Args:
            memory_limit: GiB that it may take for what can be computed beforehand. device: to compute it on.
        """
        return data

    def training_data(self, batch: Mapping[str, Tensor], generator: torch.Generator | None) -> Tensor:
        """What is diffused of a batch of ``training_set``."""
        return self.prepare(batch["image"], generator)

    def training_condition(self, batch: Mapping[str, Tensor], generator: torch.Generator | None) -> Tensor | None:
        """What the network is told of a batch: labels, of which ``label_dropout`` stand for "no class"."""
        if self.n_classes is None:
            return None
        labels = batch["label"]
        if self.label_dropout:
            dropped = torch.rand(len(labels), device=labels.device, generator=generator) < self.label_dropout
            labels = torch.where(dropped, self.n_classes, labels)
        return labels

    def loss(self, batch: Mapping[str, Tensor], coupling: Coupling, generator: torch.Generator | None = None) -> Tensor:
        """Training loss of a batch, a scalar.

        Args:
            batch: ``image`` (B, C, H, W) uint8, ``label`` (B,) int64 for conditional models, ``index`` (B,) places in
                the data set (for couplings that remember samples; a flipped image shares its place); or what
                ``training_set`` makes of them.
            coupling: draws the noise for what is diffused.
            generator: for flips, dropped labels, the coupling's and the objective's draws.
        """
        data = self.training_data(batch, generator)
        labels = batch["label"] if self.n_classes is not None else None
        noise, time = couple(self.objective, coupling, data, labels, generator=generator, indices=batch.get("index"))
        condition = self.training_condition(batch, generator)
        return self.objective.loss(self.network, data, noise, condition=condition, generator=generator, time=time)

    def begin_step(self, step: int, total_steps: int) -> None:
        """Tell the objective where training is; the trainer calls it before each of its steps 1..total_steps."""
        self.objective.begin_step(self.network, step, total_steps)

    forward = loss

    @torch.no_grad()
    def sample(
        self,
        seeds: Sequence[int],
        labels: Labels | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float = 1.0,
    ) -> Tensor:
        """Images, one for each seed: the same seed gives the same image in whatever company it is sampled.

        Except where ``objective.sampler`` is adaptive: it solves all seeds of a call as one system.

        Args:
            seeds: of the noise.
            labels: one for each seed, for conditional models; None takes ``seed_labels``.
            num_inference_steps: network calls a sample; default the model's.
            guidance_scale: w of classifier-free guidance, prediction + (w - 1) (prediction - unconditional one); above
                1 it doubles the calls and needs a model trained with ``label_dropout``.

        Returns:
            (n, C, H, W) uint8 on the CPU.

        Raises:
            ValueError: a seed below 0, labels for a model without classes, out of range, or guidance that it was not
                trained for.
        """
        generators = generators_of(seeds)
        labels = self.seed_labels(seeds) if labels is None else labels
        return self.draw(generators, labels, num_inference_steps, guidance_scale)

    @torch.no_grad()
    def draw(
        self,
        generators: Sequence[torch.Generator],
        labels: Labels | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float = 1.0,
        **start: Any,
    ) -> Tensor:
        """Images, one for each CPU generator; all that samples goes through here.

        Args:
            labels, num_inference_steps, guidance_scale: as in ``sample``, but that no labels are ``default_labels``.
            start: ``noise`` or ``hold`` of ``Objective.sample``.

        Returns:
            (n, C, H, W) uint8 on the CPU.
        """
        condition = self.condition(len(generators), labels)
        network = self.guided(guidance_scale)
        shape = self.sample_shape(len(generators))
        steps = self.num_inference_steps if num_inference_steps is None else num_inference_steps
        # A list of generators is what diffusers takes for a batch; each draws on the CPU, whatever the device.
        each: Any = list(generators)
        return self.to_images(self.objective.sample(network, shape, condition, steps, each, self.device, **start))

    def seed_labels(self, seeds: Sequence[int]) -> list[int] | None:
        """Labels of images that nobody gave any: all classes in turn, by the seeds; None for a model without.

        Classes without a training image, of which the network knows nothing, are left out.
        """
        return None if self.n_classes is None else shown_in_turn(seeds, self.n_classes, self.class_counts)

    @property
    def label_counts(self) -> Sequence[int] | None:
        """How often the training data shows what each label of ``seed_labels`` stands for; None where unknown."""
        return self.class_counts

    def data_labels(self, seeds: Sequence[int]) -> list[int] | None:
        """Labels as frequent as in the training data, each by its seed alone; None for a model without.

        Raises:
            ValueError: an earlier version saved the model, without its classes' frequencies.
        """
        if self.label_counts is not None:
            return labels_as_in_data(seeds, self.label_counts)
        if self.seed_labels([0]) is None:
            return None
        raise ValueError("labels as in the data: this model was saved without class_counts; draw them in turn")

    def default_labels(self, n: int) -> list[int] | None:
        """Labels of n images of which nobody knows the seeds: those of seeds 0 to n - 1, see ``seed_labels``."""
        return self.seed_labels(range(n))

    def labels_of(self, data: ImageDataset, indices: Tensor) -> Labels | None:
        """What the data says of its images, as ``sample`` takes it; None where the model or the data has no such."""
        if self.n_classes is None or data.labels is None:
            return None
        return data.labels[indices].tolist()

    def condition(self, n: int, labels: Labels | None) -> Tensor | None:
        """Labels of n samples as the network takes them, see ``sample``; None for a model without."""
        if self.n_classes is None:
            if labels is not None:
                raise ValueError("labels are given, but this model was trained without classes")
            return None
        return torch.tensor(self._class_numbers(n, labels), device=self.device)

    def _class_numbers(self, n: int, labels: Labels | None) -> list[int]:
        """``labels`` as n numbers of classes; a ValueError says which are none."""
        count = self.n_classes or 0
        given: Labels = (self.default_labels(n) or []) if labels is None else labels
        chosen = [label for label in given if not isinstance(label, str) and 0 <= label < count]
        if not len(chosen) == len(given) == n:
            wrong = [label for label in given if label not in chosen]
            raise ValueError(f"labels: {n} of 0 to {count - 1} are needed, got {len(given)} with {wrong[:3]}")
        return chosen

    def check_guidance(self, scale: float) -> None:
        """Raise a ValueError for a ``guidance_scale`` that the model was not trained for."""
        if scale != 1.0 and (self.n_classes is None or not self.label_dropout):
            raise ValueError(f"guidance_scale={scale} needs a model trained with classes and label_dropout")

    def _nothing(self, condition: Tensor) -> Tensor:
        """What the network is told in place of ``condition`` when it is told nothing."""
        return torch.full_like(condition, self.n_classes)  # type: ignore[arg-type]

    def guided(self, scale: float) -> Any:
        """The network under classifier-free guidance of this scale, see ``sample``; 1 is the network itself."""
        self.check_guidance(scale)
        if scale == 1.0:
            return self.network

        def network(noisy: Tensor, time: Tensor, condition: Tensor) -> Tensor:
            conditions = torch.cat([condition, self._nothing(condition)])
            both = self.network(torch.cat([noisy, noisy]), torch.cat([time, time]), conditions)
            with_label, without = both.float().chunk(2)
            return without + scale * (with_label - without)

        return network

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a diffusers pipeline (``DiffusionPipeline.from_pretrained``) that ``load_image_model`` reads, too."""
        folder = Path(folder)
        self.write_pipeline(folder)
        (folder / CONFIG_NAME).write_text(json.dumps(self.config, indent=2) + "\n")


def generators_of(seeds: Sequence[int]) -> list[torch.Generator]:
    """A generator for each image's noise, on the CPU whatever the device."""
    for seed in seeds:
        check_seed(seed)
    return [torch.Generator().manual_seed(seed) for seed in seeds]

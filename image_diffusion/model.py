"""An image diffusion model: what training, sampling and saving need to know, whatever the method."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from image_diffusion.networks import build_network
from image_diffusion.pipelines import write_pipeline
from immiscible_policy.coupling import Coupling
from immiscible_policy.diffusion import build_objective, couple
from immiscible_policy.training.checkpoint import saved_models

CONFIG_NAME = "image_model.json"
WEIGHTS = Path("unet") / "diffusion_pytorch_model.safetensors"


class ImageModel(nn.Module):
    """A network with its objective, which is trained on bytes and samples bytes.

    Args:
        image_size: height and width in pixels.
        channels: 1 (grey) or 3 (RGB).
        network: arguments of the network, see ``build_network``.
        objective: ``{"name": "ddpm" | "flow_matching" | "consistency", ...arguments of that objective}``.
        n_classes: classes of a conditional model; None trains without labels.
        label_dropout: share of training images that are shown without their label, which classifier-free guidance
            needs (Ho & Salimans, 2021).
        flip: mirror training images at random.
        num_inference_steps: network calls of a sample unless the caller says otherwise.
        coupling: text of the coupling that it was trained with. A record only.
    """

    def __init__(
        self,
        image_size: int,
        channels: int,
        network: Mapping[str, Any],
        objective: Mapping[str, Any],
        n_classes: int | None = None,
        label_dropout: float = 0.0,
        flip: bool = True,
        num_inference_steps: int = 50,
        coupling: str | None = None,
    ) -> None:
        super().__init__()
        if channels not in (1, 3):
            raise ValueError(f"channels={channels}: choose 1 (grey) or 3 (RGB)")
        if not 0 <= label_dropout < 1:
            raise ValueError(f"label_dropout={label_dropout}: must be at least 0 and below 1")
        if n_classes is not None and n_classes < 1:
            raise ValueError(f"n_classes={n_classes}: must be at least 1, or null for none")
        self.image_size, self.channels, self.n_classes = image_size, channels, n_classes
        self.label_dropout, self.flip = label_dropout, flip
        self.num_inference_steps, self.coupling = num_inference_steps, coupling
        self.objective = build_objective(objective)
        if num_inference_steps < 1 or num_inference_steps > (self.objective.max_steps or num_inference_steps):
            raise ValueError(
                f"num_inference_steps={num_inference_steps}: choose 1 to {self.objective.max_steps or 'any number'}"
            )
        # The last class stands for "no class".
        self.network = build_network(network, image_size, channels, None if n_classes is None else n_classes + 1)
        self.config = {
            "image_size": image_size,
            "channels": channels,
            "network": dict(network),
            "objective": dict(objective),
            "n_classes": n_classes,
            "label_dropout": label_dropout,
            "flip": flip,
            "num_inference_steps": num_inference_steps,
            "coupling": coupling,
        }

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def prepare(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Training data of bytes (B, C, H, W): float32 in [-1, 1], where ``flip`` says so mirrored with chance 1/2."""
        data = images.float().div_(127.5).sub_(1.0)
        if self.flip:
            mirrored = torch.rand(len(data), 1, 1, 1, device=data.device, generator=generator) < 0.5
            data = torch.where(mirrored, data.flip(-1), data)
        return data

    def loss(self, batch: Mapping[str, Tensor], coupling: Coupling, generator: torch.Generator | None = None) -> Tensor:
        """Training loss of a batch, a scalar.

        Args:
            batch: ``image`` (B, C, H, W) uint8, ``label`` (B,) int64 for conditional models, ``index`` (B,) places in
                the data set (for couplings that remember samples; a flipped image shares its place).
            coupling: draws the noise for the images.
            generator: for flips, dropped labels, the coupling's and the objective's draws.
        """
        data = self.prepare(batch["image"], generator)
        labels = batch["label"] if self.n_classes is not None else None
        noise, time = couple(self.objective, coupling, data, labels, generator=generator, indices=batch.get("index"))
        if labels is not None and self.label_dropout:
            dropped = torch.rand(len(labels), device=labels.device, generator=generator) < self.label_dropout
            labels = torch.where(dropped, self.n_classes, labels)  # type: ignore[arg-type]
        return self.objective.loss(self.network, data, noise, condition=labels, generator=generator, time=time)

    def begin_step(self, step: int, total_steps: int) -> None:
        """Tell the objective where training is; the trainer calls it before each of its steps 1..total_steps."""
        self.objective.begin_step(self.network, step, total_steps)

    forward = loss

    @torch.no_grad()
    def sample(
        self,
        seeds: Sequence[int],
        labels: Sequence[int] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float = 1.0,
    ) -> Tensor:
        """Images, one for each seed: the same seed gives the same image in whatever company it is sampled.

        Args:
            seeds: of the noise.
            labels: one for each seed, for conditional models; None there takes class ``i % n_classes`` for image i.
            num_inference_steps: network calls a sample; default the model's.
            guidance_scale: w of classifier-free guidance, prediction + (w - 1) (prediction - unconditional one); above
                1 it doubles the calls and needs a model trained with ``label_dropout``.

        Returns:
            (n, C, H, W) uint8 on the CPU.

        Raises:
            ValueError: labels for a model without classes, out of range, or guidance that it was not trained for.
        """
        condition = self.condition(len(seeds), labels)
        network: Any = self.network
        if guidance_scale != 1.0:
            if condition is None or not self.label_dropout:
                raise ValueError(
                    f"guidance_scale={guidance_scale} needs a model trained with classes and label_dropout"
                )
            network = self._guided(guidance_scale)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        shape = (len(seeds), self.channels, self.image_size, self.image_size)
        steps = self.num_inference_steps if num_inference_steps is None else num_inference_steps
        # A list of generators is what diffusers takes for a batch; each draws on the CPU, whatever the device.
        sample = self.objective.sample(network, shape, condition, steps, generators, self.device)  # type: ignore[arg-type]
        return to_bytes(sample)

    def condition(self, n: int, labels: Sequence[int] | None) -> Tensor | None:
        """Labels of n samples on the model's device, see ``sample``; None for a model without classes."""
        if self.n_classes is None:
            if labels is not None:
                raise ValueError("labels are given, but this model was trained without classes")
            return None
        chosen = [i % self.n_classes for i in range(n)] if labels is None else list(labels)
        wrong = [label for label in chosen if not 0 <= label < self.n_classes]
        if wrong or len(chosen) != n:
            raise ValueError(f"labels: {n} of 0 to {self.n_classes - 1} are needed, got {len(chosen)} with {wrong[:3]}")
        return torch.tensor(chosen, device=self.device)

    def _guided(self, scale: float) -> Any:
        def network(noisy: Tensor, time: Tensor, condition: Tensor) -> Tensor:
            nothing = torch.full_like(condition, self.n_classes)  # type: ignore[arg-type]
            both = self.network(torch.cat([noisy, noisy]), torch.cat([time, time]), torch.cat([condition, nothing]))
            with_label, without = both.float().chunk(2)
            return without + scale * (with_label - without)

        return network

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a diffusers pipeline (``DiffusionPipeline.from_pretrained``) that ``load_image_model`` reads, too."""
        folder = Path(folder)
        write_pipeline(self.network.unet, self.objective, self.num_inference_steps, folder)
        (folder / CONFIG_NAME).write_text(json.dumps(self.config, indent=2) + "\n")


def to_bytes(sample: Tensor) -> Tensor:
    """Samples in [-1, 1] as uint8 on the CPU: rounded, values outside clipped."""
    return sample.float().add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8).cpu()


def sample_in_batches(
    model: ImageModel, seeds: Iterable[int], batch_size: int = 250, **options: Any
) -> Iterable[Tensor]:
    """``model.sample`` for many seeds, in batches (n, C, H, W) uint8; ``labels`` in options are for all seeds."""
    everything = list(seeds)
    labels = options.pop("labels", None)
    if labels is None and model.n_classes is not None:
        labels = [i % model.n_classes for i in range(len(everything))]
    for start in range(0, len(everything), batch_size):
        part = slice(start, start + batch_size)
        yield model.sample(everything[part], labels=None if labels is None else labels[part], **options)


def last_model_folder(folder: Path) -> Path:
    """The model folder that ``folder`` is, or the last one of the run that it is.

    Raises:
        ValueError: it is neither.
    """
    if (folder / CONFIG_NAME).is_file():
        return folder
    saved = saved_models(folder / "checkpoints")
    if not saved:
        raise ValueError(f"model={folder}: neither a model folder ({CONFIG_NAME}, unet/) nor a run folder")
    return saved[-1]


def load_image_model(folder: str | Path, device: torch.device | str = "cpu") -> ImageModel:
    """A model from a folder written by ``save_pretrained``; a ValueError says what is wrong with the folder."""
    folder = Path(folder)
    for name in (Path(CONFIG_NAME), WEIGHTS):
        if not (folder / name).is_file():
            raise ValueError(f"model folder {folder}: {name} is missing, so this is not a complete saved image model")
    try:
        model = ImageModel(**json.loads((folder / CONFIG_NAME).read_text()))
        model.network.unet.load_state_dict(load_file(folder / WEIGHTS))
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"model folder {folder}: damaged or half-written file ({error})") from error
    except (TypeError, RuntimeError) as error:
        raise ValueError(
            f"model folder {folder}: weights and {CONFIG_NAME} do not belong together ({error})"
        ) from error
    return model.to(device).eval()

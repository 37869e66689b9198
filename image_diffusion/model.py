"""Models that diffuse pixels, and loading saved image models of whatever kind."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from image_diffusion.base_model import CONFIG_NAME, ImageModel
from image_diffusion.image_bytes import from_bytes, mirror_at_random, to_bytes
from image_diffusion.latent_model import load_latent_model
from image_diffusion.networks import build_network
from image_diffusion.pipelines import write_pipeline
from immiscible_policy.training.checkpoint import saved_models

__all__ = ["PixelModel", "last_model_folder", "load_image_model", "sample_in_batches", "to_bytes"]

WEIGHTS = Path("unet") / "diffusion_pytorch_model.safetensors"


class PixelModel(ImageModel):
    """A model of pixels in [-1, 1].

    Args:
        network: arguments of the network, see ``build_network``.
        others: see ``ImageModel``.
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
        class_counts: Sequence[int] | None = None,
    ) -> None:
        super().__init__(
            image_size,
            channels,
            objective,
            n_classes,
            label_dropout,
            flip,
            num_inference_steps,
            coupling,
            class_counts,
        )
        # The last class stands for "no class".
        self.network = build_network(network, image_size, channels, None if n_classes is None else n_classes + 1)
        self.config["network"] = dict(network)

    def prepare(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """See ``ImageModel.prepare``: float32 in [-1, 1]."""
        data = self.encode(images)
        return mirror_at_random(data, generator) if self.flip else data

    def encode(self, images: Tensor) -> Tensor:
        """Bytes 0..255 as -1..1."""
        return from_bytes(images)

    def to_images(self, sample: Tensor) -> Tensor:
        return to_bytes(sample)

    def sample_shape(self, n: int) -> tuple[int, ...]:
        return (n, self.channels, self.image_size, self.image_size)

    def write_pipeline(self, folder: Path) -> None:
        write_pipeline(self.network.unet, self.objective, self.num_inference_steps, folder)


def sample_in_batches(
    model: ImageModel, seeds: Iterable[int], batch_size: int = 250, **options: Any
) -> Iterable[Tensor]:
    """``model.sample`` for many seeds, in batches (n, C, H, W) uint8; ``labels`` in options are for all seeds."""
    everything = list(seeds)
    labels = options.pop("labels", None)
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
        config = json.loads((folder / CONFIG_NAME).read_text())
        if config.pop("space", "pixels") == "latents":
            return load_latent_model(folder, config).to(device).eval()
        model = PixelModel(**config)
        model.network.unet.load_state_dict(load_file(folder / WEIGHTS))
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"model folder {folder}: damaged or half-written file ({error})") from error
    except (TypeError, RuntimeError) as error:
        raise ValueError(
            f"model folder {folder}: weights and {CONFIG_NAME} do not belong together ({error})"
        ) from error
    return model.to(device).eval()

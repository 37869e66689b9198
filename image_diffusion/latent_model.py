"""Latent diffusion (Rombach et al., 2022): the same objectives and couplings in the latents of a frozen autoencoder.

The network is told nothing, a class (an embedding that it learns), or a prompt (embeddings of a frozen text encoder). A
model that is told prompts may still have classes, whose names are then its prompts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import Tensor
from torch.nn import functional

from image_diffusion.autoencoder import Autoencoder, load_autoencoder
from image_diffusion.base_model import ImageModel, Labels
from image_diffusion.data import ImageDataset
from image_diffusion.frozen import load_weights
from image_diffusion.image_bytes import draw_mirrored, mirror_at_random
from image_diffusion.label_mix import shown_in_turn
from image_diffusion.latent_data import LatentImages
from image_diffusion.networks import PixelUNet, TextUNet
from image_diffusion.pipelines import write_latent_pipeline
from image_diffusion.text import PromptEmbeddings, TextEncoder, load_text_encoder
from immiscible_policy.diffusion import Objective


class LatentModel(ImageModel):
    """A model of an autoencoder's latents.

    Args:
        image_size: height and width in pixels.
        autoencoder: frozen.
        network: over latents of ``image_size / autoencoder.downsampling``: without a text encoder ``PixelUNet`` (for
            n_classes + 1 classes, where there are classes), with one ``TextUNet``.
        text_encoder: frozen; None for models that are not told prompts.
        prompts: what labels stand for, with a text encoder: a prompt for each class; without classes, prompts to show
            the model by, such as captions of its data. None: the empty prompt, always.
        pretrained: pipeline that training started from. A record only.
        objective, n_classes, label_dropout, flip, num_inference_steps, coupling, class_counts: see ``ImageModel``;
            dropped labels are the empty prompt.

    Raises:
        ValueError: parts that do not fit each other.
    """

    frozen_hash: Tensor
    _class_prompts: Tensor

    def __init__(
        self,
        image_size: int,
        autoencoder: Autoencoder,
        network: PixelUNet | TextUNet,
        objective: Mapping[str, Any],
        text_encoder: TextEncoder | None = None,
        prompts: Sequence[str] | None = None,
        n_classes: int | None = None,
        label_dropout: float = 0.0,
        flip: bool = True,
        num_inference_steps: int = 50,
        coupling: str | None = None,
        pretrained: str | None = None,
        class_counts: Sequence[int] | None = None,
    ) -> None:
        super().__init__(
            image_size,
            autoencoder.channels,
            objective,
            n_classes,
            label_dropout,
            flip,
            num_inference_steps,
            coupling,
            class_counts,
        )
        check_latent_objective(self.objective)
        autoencoder.check(image_size, autoencoder.channels)
        if (text_encoder is None) == isinstance(network, TextUNet):
            raise ValueError("a TextUNet and a text encoder need each other")
        self.autoencoder, self.network = autoencoder, network
        self.text = None if text_encoder is None else PromptEmbeddings(text_encoder)
        self.prompts = None if prompts is None else list(prompts)
        if self.text is not None and n_classes is not None:
            if self.prompts is None or len(self.prompts) != n_classes:
                raise ValueError(f"prompts: {n_classes} classes need one each, got {self.prompts}")
            # Where the weights are: brought there in every step, the step would wait for it.
            self.register_buffer("_class_prompts", torch.tensor(self.text.number(self.prompts)), persistent=False)
        # In checkpoints, so that no run goes on in another latent space than it began in.
        digest = hashlib.sha256(autoencoder.digest() + (text_encoder.digest() if text_encoder else b"")).digest()
        self.register_buffer("frozen_hash", torch.tensor(list(digest), dtype=torch.uint8))
        self.config |= {"space": "latents", "prompts": self.prompts, "pretrained": pretrained}

    @property
    def latent_size(self) -> int:
        return self.image_size // self.autoencoder.downsampling

    def prepare(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Latents of bytes (B, C, H, W), drawn from the autoencoder's posterior; see ``ImageModel.prepare``."""
        if self.flip:
            images = mirror_at_random(images, generator)
        return _drawn(self.autoencoder.posterior(images), generator)

    def training_data(self, batch: Mapping[str, Tensor], generator: torch.Generator | None) -> Tensor:
        if "posterior" not in batch:
            return self.prepare(batch["image"], generator)
        posterior = batch["posterior"]  # (B, upright and mirrored, 2, c, h, w)
        chosen = posterior[:, 0]
        if self.flip:
            mirrored = draw_mirrored(len(posterior), posterior.device, generator)
            chosen = torch.where(mirrored[..., None], posterior[:, 1], chosen)
        return _drawn(chosen, generator)

    def encode(self, images: Tensor) -> Tensor:
        """Means of the autoencoder's posterior."""
        return self.autoencoder.posterior(images)[:, 0]

    def to_images(self, sample: Tensor) -> Tensor:
        return self.autoencoder.decode(sample)

    def sample_shape(self, n: int) -> tuple[int, ...]:
        return (n, self.autoencoder.latent_channels, self.latent_size, self.latent_size)

    def sample_mask(self, mask: Tensor) -> Tensor:
        """Latents that hold any pixel of the mask; see ``ImageModel.sample_mask``."""
        touched = mask.float().reshape(-1, 1, *mask.shape[-2:])
        latents = functional.max_pool2d(touched, self.autoencoder.downsampling) > 0
        return latents.view(*mask.shape[:-2], self.latent_size, self.latent_size)

    def training_set(self, data: ImageDataset, memory_limit: float, device: torch.device | str) -> LatentImages:
        """See ``ImageModel.training_set``: with the latents, where they fit, and the captions' numbers."""
        with_captions = self.text is not None and self.n_classes is None and self.prompts is not None
        return LatentImages(
            data,
            self.autoencoder,
            self.text if with_captions else None,
            mirrored=self.flip,
            memory_limit=memory_limit,
            compute_device=torch.device(device),
        )

    def training_condition(self, batch: Mapping[str, Tensor], generator: torch.Generator | None) -> Tensor | None:
        """Embeddings of the classes' prompts or of one of each image's captions, of which ``label_dropout`` are those
        of the empty prompt; without a text encoder labels."""
        if self.text is None:
            return super().training_condition(batch, generator)
        if self.n_classes is not None:
            numbers = self._class_prompts[batch["label"]]
        elif "prompts" in batch:
            numbers = _choose(batch["prompts"], generator)
        else:
            first = next(iter(batch.values()))
            return self.text(torch.zeros(len(first), dtype=torch.int64, device=first.device))
        if self.label_dropout:
            dropped = torch.rand(len(numbers), device=numbers.device, generator=generator) < self.label_dropout
            numbers = numbers.masked_fill(dropped, 0)
        return self.text(numbers)

    def seed_labels(self, seeds: Sequence[int]) -> list[int] | None:
        """Labels of images that nobody gave any: all prompts in turn, see ``ImageModel.seed_labels``."""
        if self.text is None or self.prompts is None:
            return super().seed_labels(seeds)
        return shown_in_turn(seeds, len(self.prompts), self.label_counts)

    @property
    def label_counts(self) -> Sequence[int] | None:
        """See ``ImageModel.label_counts``; captions to show the model by are evenly spaced over the data."""
        if self.text is None or self.prompts is None or self.n_classes is not None:
            return super().label_counts
        return [1] * len(self.prompts)

    def labels_of(self, data: ImageDataset, indices: Tensor) -> Labels | None:
        """See ``ImageModel.labels_of``; of a model of captions each image's first."""
        if self.text is not None and self.n_classes is None and data.captions is not None:
            return [data.captions[i][0] for i in indices.tolist()]
        return super().labels_of(data, indices)

    def condition(self, n: int, labels: Labels | None) -> Tensor | None:
        """See ``ImageModel.condition``: a label is a place in ``prompts``, or a prompt."""
        if self.text is None:
            return super().condition(n, labels)
        chosen: Labels = (self.default_labels(n) or [""] * n) if labels is None else labels
        known = self.prompts or []
        wrong = [label for label in chosen if not isinstance(label, str) and not 0 <= label < len(known)]
        if wrong or len(chosen) != n:
            numbers = f" or numbers of 0 to {len(known) - 1}" if known else ""
            raise ValueError(f"labels: {n} prompts{numbers} are needed, got {len(chosen)} with {wrong[:3]}")
        return self.text.encode([label if isinstance(label, str) else known[label] for label in chosen], self.device)

    def check_guidance(self, scale: float) -> None:
        """See ``ImageModel.check_guidance``; the empty prompt is one that every text encoder knows."""
        if self.text is None:
            super().check_guidance(scale)

    def _nothing(self, condition: Tensor) -> Tensor:
        if self.text is None:
            return super()._nothing(condition)
        return self.text.encode([""], condition.device).expand_as(condition)

    def write_pipeline(self, folder: Path) -> None:
        encoder = None if self.text is None else self.text.encoder
        write_latent_pipeline(
            self.network.unet, self.autoencoder, encoder, self.objective, self.num_inference_steps, folder
        )

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **options: Any) -> Any:
        """As in torch.

        Raises:
            ValueError: the state was saved with another autoencoder or text encoder.
        """
        if not torch.equal(state_dict["frozen_hash"].cpu(), self.frozen_hash.cpu()):
            raise ValueError(
                "the checkpoint was written with another autoencoder or text encoder (weights or scaling differ): "
                "training cannot go on in other latents"
            )
        return super().load_state_dict(state_dict, *args, **options)


def check_latent_objective(objective: Objective) -> None:
    """Raise a ValueError for an objective that would clip latents."""
    if getattr(objective, "clip_sample", False):
        raise ValueError("objective.clip_sample=true: latents go beyond [-1, 1], so it must be false")


def load_latent_model(folder: Path, config: Mapping[str, Any]) -> LatentModel:
    """The model in a folder that ``LatentModel.save_pretrained`` wrote.

    Args:
        config: the content of its ``image_model.json``.

    Raises:
        ValueError: a part is missing or damaged.
    """
    autoencoder = load_autoencoder(folder, "model folder")
    with_text = (folder / "text_encoder").is_dir()
    kind = UNet2DConditionModel if with_text else UNet2DModel
    unet = load_weights(kind, folder / "unet", f"model folder {folder}")
    return LatentModel(
        autoencoder=autoencoder,
        network=TextUNet(unet) if with_text else PixelUNet(unet),
        text_encoder=load_text_encoder(folder, "model folder") if with_text else None,
        **{name: value for name, value in config.items() if name not in ("space", "channels")},
    )


def _drawn(posterior: Tensor, generator: torch.Generator | None) -> Tensor:
    """Latents (B, c, h, w) drawn from means and standard deviations (B, 2, c, h, w)."""
    mean, std = posterior.unbind(1)
    return mean + std * torch.randn(mean.shape, device=mean.device, generator=generator)


def _choose(prompts: Tensor, generator: torch.Generator | None) -> Tensor:
    """One of each row of (B, K) numbers, of which -1 are none, (B,)."""
    count = (prompts >= 0).sum(1)
    place = (torch.rand(len(prompts), device=prompts.device, generator=generator) * count).long()
    return prompts.gather(1, place.clamp_max(count - 1)[:, None])[:, 0]

"""Images as latent diffusion reads them: latents computed once, where they fit, and captions by number."""

from __future__ import annotations

import torch
from torch import Tensor
from tqdm import tqdm

from image_diffusion.autoencoder import Autoencoder
from image_diffusion.data import ImageDataset
from image_diffusion.text import PromptEmbeddings

ENCODED_AT_ONCE = 256


class LatentImages:
    """A data set whose batches hold latents in place of images.

    Args:
        data: the images.
        autoencoder: makes the latents.
        text: gives the captions their numbers; None leaves captions out.
        mirrored: whether training mirrors images, whose latents are others.
        memory_limit: GiB of latents that may be held; larger sets are encoded batch by batch in the training step.
        compute_device: where to encode.

    Attributes:
        posterior: (N, 1 or 2 with the mirrored, 2 with means and standard deviations, c, h, w) float32, or None.

    Raises:
        ValueError: ``text`` is given, and the data has no captions.
    """

    def __init__(
        self,
        data: ImageDataset,
        autoencoder: Autoencoder,
        text: PromptEmbeddings | None,
        mirrored: bool,
        memory_limit: float,
        compute_device: torch.device,
    ) -> None:
        self.data = data
        self.posterior: Tensor | None = None
        self._prompts = None if text is None else _numbers(data, text).to(data.device)
        size = data.image_size // autoencoder.downsampling
        n_bytes = len(data) * (1 + mirrored) * 2 * autoencoder.latent_channels * size**2 * 4
        if n_bytes <= memory_limit * 2**30:
            self.posterior = _encode_all(data, autoencoder, mirrored, compute_device)

    def __len__(self) -> int:
        return len(self.data)

    @property
    def device(self) -> torch.device:
        """Where the tensors lie; ``batch`` wants its indices there."""
        return self.data.device

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """``posterior`` or, where latents are not held, ``image``; ``label`` and ``prompts`` (B, K) where there are.

        ``prompts`` are numbers of the captions, filled up with -1.
        """
        if self.posterior is None:
            batch = self.data.batch(indices)
        else:
            batch = {"posterior": self.posterior[indices]}
            if self.data.labels is not None:
                batch["label"] = self.data.labels[indices]
        if self._prompts is not None:
            batch["prompts"] = self._prompts[indices]
        return batch


def _encode_all(data: ImageDataset, autoencoder: Autoencoder, mirrored: bool, device: torch.device) -> Tensor:
    parts = []
    batches = torch.arange(len(data), device=data.device).split(ENCODED_AT_ONCE)
    for indices in tqdm(batches, desc="encode", unit="batch", leave=False, disable=None):
        images = data.batch(indices)["image"].to(device)
        views = [images, images.flip(-1)] if mirrored else [images]
        parts.append(torch.stack([autoencoder.posterior(view) for view in views], dim=1).to(data.device))
    return torch.cat(parts)


def _numbers(data: ImageDataset, text: PromptEmbeddings) -> Tensor:
    """Numbers of every image's captions, (N, K) int64 filled up with -1."""
    if data.captions is None:
        raise ValueError(f"model.captions=true: {data.source['name']} has no captions (dataset.caption_column)")
    most = max(len(captions) for captions in data.captions)
    rows = [text.number(captions) for captions in data.captions]
    return torch.tensor([row + [-1] * (most - len(row)) for row in rows])

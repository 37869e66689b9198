"""A frozen autoencoder as a space to diffuse in (Rombach et al., 2022)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from image_diffusion.frozen import Frozen, frozen_inference, load_weights
from image_diffusion.image_bytes import from_bytes, to_bytes

NO_VAE = "latent diffusion needs an autoencoder: python scripts/train_vae.py trains one on your images"
# Pixels that go through the autoencoder at once: 32 images of 256x256.
CHUNK_PIXELS = 2**21


class Autoencoder(Frozen):
    """diffusers' AutoencoderKL, frozen. Latents are ``(z - shift_factor) scaling_factor``, as diffusers trains on them.

    Attributes:
        channels: of the images. latent_channels: of the latents. downsampling: pixels of a latent's side.
    """

    def __init__(self, vae: Any) -> None:
        super().__init__(vae)
        self.channels, self.latent_channels = int(vae.config.in_channels), int(vae.config.latent_channels)
        self.downsampling = 2 ** (len(vae.config.block_out_channels) - 1)
        self._scale = float(vae.config.scaling_factor)
        self._shift = float(getattr(vae.config, "shift_factor", None) or 0.0)

    def digest(self) -> bytes:
        """SHA-256 of the weights and of how latents are scaled."""
        return hashlib.sha256(super().digest() + repr((self._scale, self._shift)).encode()).digest()

    def posterior(self, images: Tensor) -> Tensor:
        """Mean and standard deviation of the latents of images (n, C, H, W) uint8, (n, 2, c, h, w) float32."""
        vae = self.on(images.device)
        parts = []
        with frozen_inference(images.device):
            for chunk in images.split(self._chunk(images.shape[-1])):
                found = vae.encode(from_bytes(chunk)).latent_dist
                mean = (found.mean.float() - self._shift) * self._scale
                parts.append(torch.stack([mean, found.std.float() * self._scale], dim=1))
        return torch.cat(parts)

    def decode(self, latents: Tensor) -> Tensor:
        """Images (n, C, H, W) uint8 on the CPU of latents (n, c, h, w)."""
        vae = self.on(latents.device)
        parts = []
        with frozen_inference(latents.device):
            for chunk in latents.float().split(self._chunk(latents.shape[-1] * self.downsampling)):
                parts.append(to_bytes(vae.decode(chunk / self._scale + self._shift).sample))
        return torch.cat(parts)

    def _chunk(self, size: int) -> int:
        return max(1, CHUNK_PIXELS // size**2)

    def check(self, image_size: int, channels: int) -> None:
        """Raise a ValueError for images that it cannot encode."""
        if channels != self.channels:
            raise ValueError(
                f"the autoencoder takes images of {self.channels} channels, the data's have {channels}: "
                f"dataset.channels={self.channels}, or another model.vae"
            )
        if image_size % self.downsampling:
            raise ValueError(
                f"image_size={image_size}: the autoencoder makes a latent of {self.downsampling}x{self.downsampling} "
                f"pixels, so it must be a multiple of {self.downsampling}"
            )


def load_autoencoder(path: str | Path | None, name: str = "model.vae") -> Autoencoder:
    """The autoencoder in a folder: of an AutoencoderKL, or of a pipeline or run that has one in ``vae/``.

    Raises:
        ValueError: there is none.
    """
    if path is None:
        raise ValueError(f"{name} is not set: {NO_VAE}")
    top = Path(path).expanduser()
    if not top.is_dir():
        raise ValueError(f"{name}={path}: no such folder; {NO_VAE}")
    folder = next((place for place in (top, top / "vae") if _class_name(place) == "AutoencoderKL"), None)
    if folder is None:
        raise ValueError(f"{name}={path}: neither it nor its vae/ holds an AutoencoderKL (config.json); {NO_VAE}")
    return Autoencoder(load_weights(AutoencoderKL, folder, f"{name}={path}").float())


def _class_name(folder: Path) -> str | None:
    try:
        return json.loads((folder / "config.json").read_text()).get("_class_name")
    except (OSError, json.JSONDecodeError):
        return None

"""Training an autoencoder for latent diffusion: Rombach et al. (2022), section 3.1, without its perceptual and
adversarial terms.

The loss is L1 plus a Kullback-Leibler term of weight 1e-6, both summed over an image, as in their KL-regularised
autoencoders. LPIPS and the discriminator are left out, since they need pretrained weights and many more steps:
reconstructions of large pictures are blurrier than theirs, those of small ones need neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from omegaconf import DictConfig
from torch import Tensor, nn

from image_diffusion.data import RUN_RECORD, ImageDataset, ImageSource, load_images, recorded_images
from image_diffusion.image_bytes import from_bytes, mirror_at_random, to_bytes
from image_diffusion.sampling import save_grid
from immiscible_policy.checks import check_integer, is_integer
from immiscible_policy.coupling import Coupling, Independent
from immiscible_policy.files import replace_folder, staging_folder, write_json
from immiscible_policy.run_setup import (
    begin_run,
    check_dataset,
    fit,
    is_main_process,
    plain_settings,
    prepare_run_dir,
    process_device,
    trainer_config,
)
from immiscible_policy.training import Trainer

ENCODED_AT_ONCE = 64
# Images that the scale of the latents is measured on.
N_MEASURED = 5_000
# Settings of an autoencoder that are not the user's.
_FOLLOWING = ("down_block_types", "up_block_types", "in_channels", "out_channels", "sample_size")


class VaeTraining(nn.Module):
    """An autoencoder whose call is its loss.

    Args:
        settings: of ``AutoencoderKL``.
        image_size, channels: of the images.
        kl_weight: of the divergence of the posterior from N(0, I), beside an L1 error of weight 1.
        flip: mirror training images at random.

    Raises:
        ValueError: a setting is unknown, or does not fit the images.
    """

    def __init__(
        self, settings: Mapping[str, Any], image_size: int, channels: int, kl_weight: float = 1e-6, flip: bool = True
    ) -> None:
        super().__init__()
        if not 0 <= kl_weight < float("inf"):
            raise ValueError(f"vae.kl_weight={kl_weight}: must be at least 0")
        self.kl_weight, self.flip = kl_weight, flip
        _check_settings(settings)
        widths = list(settings.get("block_out_channels", (64,)))
        halved = 2 ** (len(widths) - 1)
        if image_size % halved:
            raise ValueError(
                f"vae.block_out_channels={widths} halves images {len(widths) - 1} times: image_size={image_size} must "
                f"be a multiple of {halved}"
            )
        blocks = {
            "down_block_types": ["DownEncoderBlock2D"] * len(widths),
            "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        }
        sizes = {"in_channels": channels, "out_channels": channels, "sample_size": image_size}
        try:
            self.vae = AutoencoderKL(**{**settings, **blocks, **sizes})
        except (TypeError, ValueError) as error:
            raise ValueError(f"vae: {error}") from error

    def forward(
        self, batch: Mapping[str, Tensor], coupling: Coupling | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Loss of ``image`` (B, C, H, W) uint8 over the number of its values, a scalar.

        Args:
            coupling: not used; there is no diffusion here.
            generator: for flips and for the latents that are drawn from the posterior.
        """
        images = from_bytes(batch["image"])
        if self.flip:
            images = mirror_at_random(images, generator)
        posterior = self.vae.encode(images).latent_dist
        noise = torch.randn(posterior.mean.shape, device=images.device, generator=generator)
        decoded = self.vae.decode(posterior.mean + posterior.std * noise).sample
        error = (decoded.float() - images).abs().sum()
        return (error + self.kl_weight * posterior.kl().float().sum()) / images.numel()

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """Images (n, C, H, W) uint8 through the mean of their latents and back, on the CPU."""
        device = next(self.parameters()).device
        parts = []
        for chunk in images.split(ENCODED_AT_ONCE):
            latents = self.vae.encode(from_bytes(chunk.to(device))).latent_dist.mean
            parts.append(to_bytes(self.vae.decode(latents).sample))
        return torch.cat(parts)

    @torch.no_grad()
    def latent_std(self, data: ImageDataset, generator: torch.Generator | None = None) -> float:
        """Standard deviation of latents drawn from the posteriors of up to 5,000 images, all entries together."""
        device = next(self.parameters()).device
        chosen = torch.linspace(0, len(data) - 1, min(len(data), N_MEASURED)).long().unique().to(data.device)
        total, square, count = 0.0, 0.0, 0
        for part in chosen.split(ENCODED_AT_ONCE):
            images = from_bytes(data.batch(part)["image"].to(device))
            posterior = self.vae.encode(images).latent_dist
            noise = torch.randn(posterior.mean.shape, device=device, generator=generator)
            latents = (posterior.mean + posterior.std * noise).double()
            total, square = total + float(latents.sum()), square + float(latents.square().sum())
            count += latents.numel()
        return (square / count - (total / count) ** 2) ** 0.5

    def set_scaling(self, data: ImageDataset, seed: int = 0) -> float:
        """Note the factor that latent diffusion multiplies latents by, and return their standard deviation.

        The factor is 1 over the deviation in ``data``, as in Rombach et al., appendix G; until it is set,
        ``save_pretrained`` writes diffusers' own, which is Stable Diffusion's.
        """
        device = next(self.parameters()).device
        std = self.latent_std(data, torch.Generator(device).manual_seed(seed))
        self.vae.register_to_config(scaling_factor=1 / std)
        return std

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a diffusers AutoencoderKL."""
        self.vae.save_pretrained(folder)


def _check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse settings of ``AutoencoderKL`` that follow from others, and numbers that it would build nonsense of."""
    for name in _FOLLOWING:
        if name in settings:
            raise ValueError(
                f"vae.{name}={settings[name]}: follows from the images and vae.block_out_channels; leave it out"
            )
    for name in ("layers_per_block", "latent_channels", "norm_num_groups"):
        if name in settings:
            check_integer(f"vae.{name}", settings[name], 1)
    widths = settings.get("block_out_channels", (64,))
    if not isinstance(widths, list | tuple) or not widths or not all(is_integer(width, 1) for width in widths):
        raise ValueError(f"vae.block_out_channels={widths}: must be a list of integers of at least 1")


def psnr(images: Tensor, others: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of bytes (n, C, H, W), from their mean square difference over all images."""
    error = (images.double() - others.double()).square().mean()
    return float(10 * torch.log10(255**2 / error.clamp_min(1e-12)))


def train_vae(cfg: DictConfig, run_dir: Path, resume: bool = False) -> dict[str, Any]:
    """Train an autoencoder and write it to ``run_dir/vae``; returns what ``summary.json`` holds.

    Every autoencoder that it writes, those in ``checkpoints`` too, has the scaling factor of its own latents.
    """
    begin_run(cfg, run_dir, resume)
    check_dataset(cfg, "format", "images")
    check_integer("evaluate_on", cfg.evaluate_on, 1)
    source = ImageSource.from_config(plain_settings(cfg.dataset))
    recorded = recorded_images(run_dir) if resume else None
    data = load_images(source, recorded)
    settings = plain_settings(cfg.vae)
    kl_weight = settings.pop("kl_weight")
    model = VaeTraining(settings, data.image_size, data.channels, kl_weight, data.flip)
    config = trainer_config(cfg, len(data))
    run_dir = prepare_run_dir(run_dir, cfg.device)
    if is_main_process() and recorded is None:
        write_json(run_dir / RUN_RECORD, data.source)
    test = data if source.test_split is None else load_images(source.for_test())
    shown = torch.linspace(0, len(test) - 1, min(len(test), cfg.evaluate_on)).long().unique()
    images = torch.cat([test.batch(part)["image"] for part in shown.split(ENCODED_AT_ONCE)])
    data.to(process_device(cfg.device))

    def evaluate(averaged: VaeTraining, step: int) -> dict[str, float]:
        averaged.set_scaling(data, cfg.seed)  # the trainer saves it next
        found = averaged.reconstruct(images)
        pairs = torch.cat([images[:8], found[:8]])
        save_grid(pairs, run_dir / "media" / f"reconstructions_step={step:07d}.png", columns=min(8, len(images)))
        return {"evaluation/psnr": psnr(images, found)}

    trainer = Trainer(model, data, Independent(), config, run_dir, evaluate=evaluate, headline="evaluation/psnr")
    if not fit(trainer, resume):
        return {}
    averaged = trainer.averaged_model()
    std = averaged.set_scaling(data, cfg.seed)
    staging = staging_folder(run_dir / "vae")
    averaged.save_pretrained(staging)
    replace_folder(staging, run_dir / "vae")
    halved = 2 ** (len(averaged.vae.config.block_out_channels) - 1)
    size = data.image_size // halved
    summary = {
        "data": data.source,
        "seed": cfg.seed,
        "steps": trainer.step,
        "training_seconds": {"wall": trainer.seconds.wall, "cpu": trainer.seconds.cpu},
        "parameters": sum(p.numel() for p in model.parameters()),
        "latent_shape": [averaged.vae.config.latent_channels, size, size],
        "latent_std": std,
        "scaling_factor": 1 / std,
        "psnr": psnr(images, averaged.reconstruct(images)),
        "psnr_of": f"{len(images)} images, {source.test_split or source.split}",
    }
    write_json(run_dir / "summary.json", summary)
    return summary

"""In- and out-painting with a trained model, without training for it.

Improved Immiscible Diffusion (2025), table 1: the centre of an image, or all but the centre, is replaced by Gaussian
noise and sampled, while the rest is kept. Before every network call the kept part is put in with the noise that belongs
there (``diffusion.Hold``; the replacement method of Song et al., 2021, appendix I.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from image_diffusion.base_model import ImageModel, Labels, generators_of
from image_diffusion.data import ImageDataError, ImageDataset, ImageSource, load_images
from immiscible_policy.diffusion import Hold

MASKS = ("centre", "surroundings")


def centre_mask(size: int, share: float = 0.5) -> Tensor:
    """Where the square in the middle is, (size, size) bool.

    Args:
        share: its side in units of the image's; the papers do not give theirs.
    """
    if not 0 < share < 1:
        raise ValueError(f"share={share}: must be between 0 and 1")
    side = max(1, round(size * share))
    start = (size - side) // 2
    inside = torch.zeros(size, dtype=torch.bool)
    inside[start : start + side] = True
    return inside[:, None] & inside[None, :]


def read_mask(path: Path, size: int) -> Tensor:
    """Where a mask file is white, (size, size) bool: what is painted anew, as in diffusers' inpainting.

    Raises:
        ValueError: the file is no image, has another size, or is black or white throughout.
    """
    try:
        with Image.open(path) as image:
            mask = np.asarray(image.convert("L")) >= 128
    except OSError as error:
        raise ValueError(f"mask={path}: not an image ({error})") from error
    if mask.shape != (size, size):
        raise ValueError(f"mask={path}: is {mask.shape[1]}x{mask.shape[0]} pixels, the images are {size}x{size}")
    if mask.all() or not mask.any():
        raise ValueError(
            f"mask={path}: white is painted anew, black is kept; this one is all {'white' if mask.all() else 'black'}"
        )
    return torch.from_numpy(mask)


def build_mask(name: str, size: int, share: float = 0.5) -> Tensor:
    """Where images are painted anew, (size, size) bool: ``centre``, ``surroundings``, or a mask file."""
    if name in MASKS:
        centre = centre_mask(size, share)
        return centre if name == "centre" else ~centre
    if not Path(name).is_file():
        raise ValueError(f"mask={name!r}: choose {', '.join(MASKS)} or an image file")
    return read_mask(Path(name), size)


def load_folder(model: ImageModel, folder: Path, class_names: Sequence[str] | None) -> ImageDataset:
    """Pictures of a folder in the model's size.

    Args:
        class_names: of the data that the model was trained on, in the order of its labels. The folder's own are taken
            for labels only where all of them are among these: its own order would number them otherwise.

    Raises:
        ImageDataError: not a folder of images.
    """
    source = ImageSource(
        folder.name,
        format="folder",
        path=str(folder),
        image_size=model.image_size,
        channels=model.channels,
        label_column=None,
    )
    if class_names is not None:
        try:
            return load_images(replace(source, label_column="auto", class_names=class_names))
        except ImageDataError:  # its subfolders are no classes; if more is wrong, that shows below
            pass
    return load_images(source)


@torch.no_grad()
def paint(
    model: ImageModel,
    images: Tensor,
    mask: Tensor,
    seeds: Sequence[int],
    labels: Labels | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float = 1.0,
) -> Tensor:
    """Images with the masked part painted anew; the rest is that of ``images`` to the bit.

    Latents that hold any masked pixel are sampled. They are encoded with the masked part in grey, so that nothing of it
    shows in those that are kept.

    Args:
        images: (n, C, H, W) uint8.
        mask: (H, W) or (n, 1, H, W) bool, True where to paint.
        seeds: one for each image.
        labels: one for each image, for conditional models; None: by the seeds, see ``ImageModel.sample``.
        num_inference_steps: network calls; default the model's.
        guidance_scale: see ``ImageModel.sample``.

    Returns:
        (n, C, H, W) uint8 on the CPU.

    Raises:
        ValueError: images that the model does not make, not as many seeds as images, a seed below 0, or a mask that
            keeps nothing.
    """
    shape = (model.channels, model.image_size, model.image_size)
    if images.dtype != torch.uint8 or tuple(images.shape[1:]) != shape:
        raise ValueError(
            f"images: {images.dtype} {tuple(images.shape)}; this model makes uint8 (n, {shape[0]}, ...{shape[1:]})"
        )
    if len(seeds) != len(images):
        raise ValueError(f"seeds: {len(images)} images need as many, got {len(seeds)}")
    images = images.cpu()
    generators = generators_of(seeds)
    held = torch.cat([torch.randn(model.sample_shape(1), generator=generator) for generator in generators])
    known = model.encode(torch.where(mask, 127, images).to(model.device))
    sampled = model.sample_mask(mask)
    if (sampled.flatten(-2).all(-1) & ~mask.flatten(-2).all(-1)).any():
        raise ValueError("mask: keeps nothing of an image: every latent holds pixels that are to be painted")
    hold = Hold(known, ~sampled.to(model.device), held.to(model.device))
    labels = model.seed_labels(seeds) if labels is None else labels
    painted = model.draw(generators, labels, num_inference_steps, guidance_scale, hold=hold)
    return torch.where(mask, painted, images)

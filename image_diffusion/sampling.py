"""Samples of a model on disk: a grid to look at, one file for each seed, or one array for other programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.utils import make_image_grid
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from image_diffusion.base_model import ImageModel, Labels
from immiscible_policy.files import complete_or_absent, write_json

FORMATS = ("png", "npz")
RECORD = "samples.json"
_SHOWN_SIZE = 64  # pixels that an image of a grid has at least


def to_picture(image: Tensor) -> Image.Image:
    """One image (C, H, W) uint8, grey or RGB."""
    array = image.permute(1, 2, 0).numpy()
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)


def save_pictures(images: Tensor, paths: Sequence[Path]) -> None:
    """Write images (n, C, H, W) uint8 as PNG files, each atomically."""
    for image, path in zip(images, paths, strict=True):
        with complete_or_absent(path) as partial:
            to_picture(image).save(partial, format="PNG")


def save_grid(images: Tensor, path: Path, columns: int | None = None) -> None:
    """Write images (n, C, H, W) uint8 as one PNG, small ones enlarged without smoothing.

    Args:
        columns: default as many as make the grid nearly square.
    """
    columns = int(np.ceil(np.sqrt(len(images)))) if columns is None else columns
    rows = -(-len(images) // columns)
    factor = max(1, round(_SHOWN_SIZE / images.shape[-1]))
    pictures = [to_picture(image).convert("RGB") for image in images]
    shown = [p.resize((p.width * factor, p.height * factor), Image.Resampling.NEAREST) for p in pictures]
    shown += [Image.new("RGB", shown[0].size, "white")] * (rows * columns - len(shown))
    with complete_or_absent(path) as partial:
        make_image_grid(shown, rows, columns).save(partial, format="PNG")


def save_samples(
    model: ImageModel,
    seeds: Sequence[int],
    folder: Path,
    format: str = "png",
    labels: Labels | None = None,
    batch_size: int = 250,
    record: dict[str, Any] | None = None,
    progress: bool = True,
    **options: Any,
) -> list[Path]:
    """Sample an image for each seed and write them into ``folder``; a killed call goes on where it was.

    Args:
        format: png: ``<seed>.png`` each | npz: ``samples.npz`` with ``arr_0`` (n, H, W, 3 or 1) uint8 in the order of
            the seeds, as guided-diffusion's evaluations read it, and ``seeds``.
        labels: one for each seed, see ``ImageModel.sample``.
        record: more to note in ``samples.json`` beside the settings of the samples.
        options: further arguments of ``ImageModel.sample``.

    Returns:
        the files, in the order of the seeds.

    Raises:
        ValueError: an unknown format, a seed twice, or a folder with samples of other settings.
    """
    if format not in FORMATS:
        raise ValueError(f"format={format!r}: choose one of {', '.join(FORMATS)}")
    if len(set(seeds)) < len(seeds):
        raise ValueError("seeds: every image needs one of its own, and one is given twice")
    labels = model.default_labels(len(seeds)) if labels is None else labels
    settings = {
        "model": model.config,
        "num_inference_steps": options.get("num_inference_steps") or model.num_inference_steps,
        "sampler": model.objective.sampler,
        "guidance_scale": options.get("guidance_scale", 1.0),
        **(record or {}),
    }
    _note_settings(folder, settings)
    parts = folder / "parts" if format == "npz" else folder
    paths = [parts / f"{seed:08d}.png" for seed in seeds]
    missing = [i for i, path in enumerate(paths) if not path.is_file()]
    bar = tqdm(total=len(seeds), initial=len(seeds) - len(missing), desc="sample", unit="image", disable=not progress)
    for start in range(0, len(missing), batch_size):
        chosen = missing[start : start + batch_size]
        picked: Any = None if labels is None else [labels[i] for i in chosen]
        images = model.sample([seeds[i] for i in chosen], labels=picked, **options)
        save_pictures(images, [paths[i] for i in chosen])
        bar.update(len(chosen))
    bar.close()
    if format == "png":
        return paths
    everything = load_pictures(paths).permute(0, 2, 3, 1).numpy()
    target = folder / "samples.npz"
    with complete_or_absent(target) as partial, partial.open("wb") as file:
        np.savez(file, arr_0=everything, seeds=np.array(seeds))
    for path in paths:
        path.unlink()
    parts.rmdir()
    return [target]


def load_pictures(paths: Sequence[Path]) -> Tensor:
    """Pictures of one size as (n, C, H, W) uint8."""
    arrays = [np.asarray(Image.open(path)) for path in paths]
    stacked = np.stack([array[..., None] if array.ndim == 2 else array for array in arrays])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous()


def _note_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Write ``samples.json``, or refuse a folder whose images were made otherwise."""
    path, plain = folder / RECORD, json.loads(json.dumps(settings))
    if path.is_file():
        before = json.loads(path.read_text())
        changed = [name for name in {**before, **plain} if before.get(name) != plain.get(name)]
        if changed:
            raise ValueError(
                f"{folder} holds samples with another {', '.join(sorted(changed))}: take another folder, or remove it"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, plain)

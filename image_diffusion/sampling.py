"""Samples of a model on disk: a grid to look at, one file for each seed, or one array for other programs."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
import torch
from diffusers.utils import make_image_grid
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from image_diffusion.base_model import ImageModel
from image_diffusion.label_mix import AS_IN_DATA, IN_TURN, MIXES
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


def grid_path(output: Path) -> Path:
    """Where the grid of a folder of pictures goes: ``<output>_grid.png`` beside it, so not among them.

    Raises:
        ValueError: the root, beside which nothing is.
    """
    named = output if output.name not in ("", "..") else output.resolve()
    if not named.name:
        raise ValueError(f"output={output}: choose a folder with a name")
    return named.with_name(f"{named.name}_grid.png")


def save_samples(
    model: ImageModel,
    seeds: Sequence[int],
    folder: Path,
    format: str = "png",
    labels_in_turn: Sequence[int | str] | None = None,
    mix: str = "turn",
    batch_size: int = 250,
    record: dict[str, Any] | None = None,
    progress: bool = True,
    **options: Any,
) -> list[Path]:
    """Sample an image for each seed and write them into ``folder``; what is there already is not drawn again.

    A seed is an image, whatever else is drawn: labels follow the seeds, and ``objective.sampler=adaptive`` solves each
    image by itself.

    Args:
        format: png: ``<seed>.png`` each | npz: ``samples.npz`` with ``arr_0`` (n, H, W, 3 or 1) uint8 in the order of
            the seeds, as guided-diffusion's evaluations read it, and ``seeds``. Images of an earlier such file in the
            folder are taken into the new one.
        labels_in_turn: what ``ImageModel.sample`` takes as labels; seed s shows ``labels_in_turn[s % n]`` of these n.
            None: the model's own classes or prompts, see ``mix``.
        mix: of these: turn: all in turn (``ImageModel.seed_labels``) | data: as frequent as in the training data
            (``ImageModel.data_labels``), for sets that are compared with it.
        batch_size: images at once.
        record: more to note in ``samples.json`` beside the settings of the samples.
        options: further arguments of ``ImageModel.sample``, not ``labels``.

    Returns:
        the files, in the order of the seeds.

    Raises:
        ValueError: an unknown format, a seed twice, no labels, a mix beside given labels or that the model does not
            know, or a folder with samples of other settings. An earlier ``samples.npz`` that holds other seeds, too, or
            none: a file is the set that was asked for, and no image is thrown away.
    """
    if format not in FORMATS:
        raise ValueError(f"format={format!r}: choose one of {', '.join(FORMATS)}")
    if len(set(seeds)) < len(seeds):
        raise ValueError("seeds: every image needs one of its own, and one is given twice")
    if labels_in_turn is not None and not labels_in_turn:
        raise ValueError("labels_in_turn: needs at least one, or None")
    if mix not in MIXES:
        raise ValueError(f"mix={mix!r}: choose one of {', '.join(MIXES)}")
    if labels_in_turn is not None and mix != "turn":
        raise ValueError(f"mix={mix!r}: labels_in_turn are given, and leave only mix='turn'")
    if labels_in_turn is None:
        labels: Any = model.data_labels(seeds) if mix == "data" else model.seed_labels(seeds)
    else:
        labels = [labels_in_turn[seed % len(labels_in_turn)] for seed in seeds]
    settings = {
        "model": model.config,
        "num_inference_steps": options.get("num_inference_steps") or model.num_inference_steps,
        "sampler": model.objective.sampler,
        "guidance_scale": options.get("guidance_scale", 1.0),
        **(record or {}),
    }
    if labels is not None:
        own = AS_IN_DATA if mix == "data" else IN_TURN
        settings["labels_by_seed"] = own if labels_in_turn is None else list(labels_in_turn)
    if model.objective.sampler == "adaptive":
        settings["batch_size"] = batch_size = 1  # it solves a batch as one system, so company would change the image
    settings = json.loads(json.dumps(settings))
    _check_settings(folder, settings)
    target = folder / "samples.npz"
    drawn = _drawn_before(target, seeds) if format == "npz" else {}
    if list(drawn) == list(seeds):
        return [target]
    parts = folder / "parts" if format == "npz" else folder
    paths = [parts / f"{seed:08d}.png" for seed in seeds]
    missing = [i for i, path in enumerate(paths) if seeds[i] not in drawn and not path.is_file()]
    bar = tqdm(total=len(seeds), initial=len(seeds) - len(missing), desc="sample", unit="image", disable=not progress)
    for start in range(0, len(missing), batch_size):
        chosen = missing[start : start + batch_size]
        picked = None if labels is None else [labels[i] for i in chosen]
        images = model.sample([seeds[i] for i in chosen], labels=picked, **options)
        if not (folder / RECORD).is_file():  # not before now: what cannot be drawn is not noted
            write_json(folder / RECORD, settings)
        save_pictures(images, [paths[i] for i in chosen])
        bar.update(len(chosen))
    bar.close()
    if format == "png":
        return paths
    _write_npz(paths, seeds, target, drawn)
    shutil.rmtree(parts, ignore_errors=True)  # with what killed calls and calls of other seeds left in it
    return [target]


def _drawn_before(path: Path, seeds: Sequence[int]) -> dict[int, int]:
    """Places of the images in an earlier ``samples.npz`` by their seeds, in its order; none where there is no file.

    Raises:
        ValueError: the file cannot be read, names no seeds, or holds images of others than ``seeds``.
    """
    if not path.is_file():
        return {}
    try:
        with np.load(path) as content:
            found = content["seeds"].tolist()
    except (BadZipFile, EOFError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: no samples with their seeds ({error}): take another folder, or remove it") from error
    others = sorted(set(found) - set(seeds))
    if others:
        raise ValueError(
            f"{path} holds {len(others)} images of other seeds ({others[0]} to {others[-1]}), which would be lost: ask "
            "for these, too, or take another folder"
        )
    return {seed: place for place, seed in enumerate(found)}


def _write_npz(paths: Sequence[Path], seeds: Sequence[int], target: Path, drawn: Mapping[int, int]) -> None:
    """Images of one size as ``arr_0`` (n, H, W, C) and their seeds, one image in memory at a time.

    Args:
        paths: of the seeds' pictures.
        drawn: places in an earlier ``target`` of seeds whose images are taken from there.
    """
    with ExitStack() as stack:
        earlier = _ImagesOf(stack.enter_context(ZipFile(target))) if drawn else None
        shape = _read_picture(paths[0]).shape if earlier is None else earlier.shape
        archive = stack.enter_context(ZipFile(stack.enter_context(complete_or_absent(target)), "w"))
        with archive.open("arr_0.npy", "w", force_zip64=True) as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": (len(paths), *shape)}
            np.lib.format.write_array_header_1_0(file, header)
            for seed, path in zip(seeds, paths, strict=True):
                if earlier is not None and seed in drawn:
                    file.write(earlier.read(drawn[seed]))
                else:
                    file.write(_read_picture(path).tobytes())
        with archive.open("seeds.npy", "w") as file:
            np.lib.format.write_array(file, np.array(seeds))


class _ImagesOf:
    """Bytes of single images in an open ``samples.npz``, whose array may be larger than the memory."""

    def __init__(self, archive: ZipFile) -> None:
        self._file = archive.open("arr_0.npy")
        np.lib.format.read_magic(self._file)
        self.shape = np.lib.format.read_array_header_1_0(self._file)[0][1:]
        self._start, self._bytes = self._file.tell(), math.prod(self.shape)

    def read(self, place: int) -> bytes:
        self._file.seek(self._start + place * self._bytes)
        return self._file.read(self._bytes)


def load_pictures(paths: Sequence[Path]) -> Tensor:
    """Pictures of one size as (n, C, H, W) uint8."""
    return torch.from_numpy(np.stack([_read_picture(path) for path in paths])).permute(0, 3, 1, 2).contiguous()


def _read_picture(path: Path) -> np.ndarray:
    """A picture as (H, W, C) uint8."""
    with Image.open(path) as image:
        array = np.asarray(image)
    return array[..., None] if array.ndim == 2 else array


def _check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Refuse a folder whose ``samples.json`` says that its images were made otherwise."""
    path = folder / RECORD
    if not path.is_file():
        return
    before = json.loads(path.read_text())
    changed = [name for name in {**before, **settings} if before.get(name) != settings.get(name)]
    if changed:
        raise ValueError(
            f"{folder} holds samples with another {', '.join(sorted(changed))}: take another folder, or remove it"
        )

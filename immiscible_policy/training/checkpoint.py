"""Checkpoints that survive a kill at any moment: safetensors and JSON, written aside and renamed into place."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from immiscible_policy.files import replace_folder, set_aside, staging_folder

TENSORS, VALUES = "state.safetensors", "state.json"


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or belongs to another configuration."""


def flatten(tree: Any, tensors: dict[str, Tensor], prefix: str = "") -> Any:
    """Move every tensor of a nested structure into ``tensors``; what remains is JSON with references to them.

    Mappings become lists of pairs because optimisers key their state by integers, which JSON objects cannot.
    """
    if isinstance(tree, Tensor):
        tensors[prefix] = tree.detach().cpu().clone().contiguous()
        return {"tensor": prefix}
    if isinstance(tree, Mapping):
        return {"dict": [[key, flatten(value, tensors, f"{prefix}/{key}")] for key, value in tree.items()]}
    if isinstance(tree, list | tuple):
        return {"list": [flatten(value, tensors, f"{prefix}/{i}") for i, value in enumerate(tree)]}
    if tree is None or isinstance(tree, bool | int | float | str):
        return {"value": tree}
    raise TypeError(f"checkpoint entry {prefix} is a {type(tree).__name__}: only tensors and JSON values are stored")


def unflatten(node: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of ``flatten`` (tuples come back as lists)."""
    kind, value = next(iter(node.items()))
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {key: unflatten(child, tensors) for key, child in value}
    if kind == "list":
        return [unflatten(child, tensors) for child in value]
    return value


def saved_models(checkpoints: Path) -> list[Path]:
    """The ``step=...`` model folders of a run, oldest first, without those that a kill left unfinished."""
    return sorted(checkpoints.glob("step=*[0-9]"))


def save_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Write a nested structure of tensors and JSON values as ``folder``, atomically."""
    tensors: dict[str, Tensor] = {}
    values = flatten(state, tensors)
    staging = staging_folder(folder)
    save_file(tensors, staging / TENSORS)
    (staging / VALUES).write_text(json.dumps(values))
    for name in (TENSORS, VALUES):
        with open(staging / name, "rb") as file:
            os.fsync(file.fileno())
    replace_folder(staging, folder)


def checkpoint_exists(folder: Path) -> bool:
    """Whether ``load_state`` has anything to read."""
    return folder.exists() or set_aside(folder).exists()


def load_value(folder: Path, name: str) -> Any:
    """A top-level JSON value of what ``save_state`` wrote, without its tensors; None where it cannot be read."""
    try:
        entries = dict(json.loads((_readable(folder) / VALUES).read_text())["dict"])
        return entries[name]["value"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _readable(folder: Path) -> Path:
    """The folder, or the copy set aside if a kill hit between the two renames."""
    return folder if folder.exists() or not set_aside(folder).exists() else set_aside(folder)


def load_state(folder: Path) -> Any:
    """Read what ``save_state`` wrote; falls back to the copy set aside if a kill hit between the two renames."""
    folder = _readable(folder)
    for name in (TENSORS, VALUES):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"checkpoint {folder}: {name} is missing, so there is nothing complete to resume from"
            )
    try:
        tensors = load_file(folder / TENSORS)
        return unflatten(json.loads((folder / VALUES).read_text()), tensors)
    except (
        SafetensorError,
        json.JSONDecodeError,
        KeyError,
        StopIteration,
        AttributeError,
        ValueError,
    ) as error:
        raise CheckpointError(f"checkpoint {folder}: damaged or half-written ({error})") from error


def rng_state(generator: torch.Generator) -> dict[str, Tensor]:
    """Every random state a training step draws from: the loop's generator, and torch's own (dropout).

    Of a GPU only where the loop draws on one: to ask it takes up some of its memory.
    """
    state = {"generator": generator.get_state(), "torch": torch.get_rng_state()}
    if generator.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(generator.device)
    return state


def set_rng_state(generator: torch.Generator, state: Mapping[str, Tensor]) -> None:
    """The inverse of ``rng_state``."""
    generator.set_state(state["generator"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state and generator.device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], generator.device)

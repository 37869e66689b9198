"""What stands beside an exported policy: ``policy.json``, an example to check it by, and a program that runs it."""

import hashlib
import json
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from safetensors.torch import save
from torch import nn

from immiscible_policy.files import file_sha256
from immiscible_policy.policy import run_policy
from immiscible_policy.policy.diffusion_policy import DiffusionPolicy
from immiscible_policy.policy.export_onnx import PACKAGES
from immiscible_policy.policy.exportable import example_inputs, predict

FILES = {"torch": "policy.pt2", "onnx": "policy.onnx"}

PIXELS = "pixels of the 512 x 512 window, x to the right and y downwards"
ENTRIES = {
    "keypoints": "x, y of nine points on the block, then x, y of the agent",
    "state": "x, y of the agent; x, y of the block; angle of the block in [0, 2 pi) radians",
    "environment_state_agent_pos": "x, y of the block's eight vertices, then x, y of the agent",
    "pixels_agent_pos": "agent_pos: x, y of the agent; pixels: height, width, RGB, 0 to 255",
}


def describe(
    policy: DiffusionPolicy,
    folder: Path,
    steps: int,
    format: str,
    batch: int | str,
    source: Path | None,
    noise_scale: float,
) -> None:
    """``policy.json``, ``example.npz`` and ``run_policy.py``."""
    inputs = example_inputs(policy, batch if isinstance(batch, int) else 1)
    arrays = {name: value.cpu().numpy() for name, value in inputs.items()}
    np.savez(folder / "example.npz", **arrays, actions=predict(policy, inputs, steps).cpu().numpy())  # type: ignore[arg-type]
    shutil.copyfile(Path(run_policy.__file__), folder / "run_policy.py")
    count = batch if isinstance(batch, int) else "batch"
    sequence = [policy.horizon, policy.action_dim]
    obs_type = policy.task.get("obs_type")
    about = {
        "format": format,
        "file": FILES[format],
        "inputs": [
            {"name": name, "shape": [count, *array.shape[1:]], "dtype": array.dtype.name}
            for name, array in arrays.items()
        ],
        "outputs": [
            {"name": "actions", "shape": [count, policy.n_action_steps, policy.action_dim], "dtype": "float32"},
            {"name": "sequence", "shape": [count, *sequence], "dtype": "float32"},
        ],
        "meaning": {
            "observation": "the last n_obs_steps observations, oldest first",
            "noise": "standard normal times noise_scale, fresh for every chunk: where the sampler starts. A coupling "
            "may choose it by data_scale times the last sequence, moved by n_action_steps, its last action repeated",
            "actions": "the next n_action_steps actions, the first one for the newest observation",
            "sequence": "the whole plan of horizon actions, mapped from action_range to [-1, 1]; its first action "
            "belongs to the oldest observation",
        },
        "horizon": policy.horizon,
        "n_obs_steps": policy.n_obs_steps,
        "n_action_steps": policy.n_action_steps,
        "obs_type": obs_type,
        "observation_entries": ENTRIES.get(str(obs_type)),
        "units": {"observation": _units(policy), "action": action_unit(policy)},
        "observation_range": _range(policy.observation_normalizer),
        "action_range": _range(policy.action_normalizer),
        "num_inference_steps": steps,
        "noise_scale": noise_scale,
        "objective": type(policy.objective).__name__,
        "sampler": policy.objective.sampler,
        "data_scale": policy.objective.data_scale,
        "precision": "fp32",
        "batch": batch,
        "device": str(policy.device),
        "task": policy.task,
        "coupling": policy.coupling,
        "source": None if source is None else _source_name(source.resolve()),
        "sha256": {"weights": _weights_hash(policy), FILES[format]: file_sha256(folder / FILES[format])},
        "versions": _versions(format),
    }
    (folder / "policy.json").write_text(json.dumps(about, indent=2) + "\n")


def _range(normalizer: nn.Module) -> dict[str, list[float]]:
    return {name: getattr(normalizer, name).tolist() for name in ("low", "high")}


def _is_pusht(policy: DiffusionPolicy) -> bool:
    return "PushT" in str(policy.task.get("env_id"))


def _units(policy: DiffusionPolicy) -> str:
    return PIXELS if _is_pusht(policy) else "those of the demonstrations"


def action_unit(policy: DiffusionPolicy) -> str:
    """How differences between actions are to be read."""
    return "px" if _is_pusht(policy) else "action units"


def _source_name(folder: Path) -> str:
    """The policy folder's name, after that of its run."""
    return "/".join(folder.parts[-3:] if folder.parent.name == "checkpoints" else folder.parts[-1:])


def _weights_hash(policy: DiffusionPolicy) -> str:
    """That of the ``model.safetensors`` which ``save_pretrained`` writes."""
    weights = {name: value.detach().cpu().contiguous() for name, value in policy.state_dict().items()}
    return hashlib.sha256(save(weights)).hexdigest()


def _versions(format: str) -> dict[str, str]:
    names = (
        "immiscible-policy",
        "torch",
        "numpy",
        *(PACKAGES if format == "onnx" else ()),
    )
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed as a package"
    return found

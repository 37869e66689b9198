"""Data to analyse couplings on: PushT's action windows as a policy is trained on them, or arrays from a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_CONDITION_NAMES = ("condition", "labels")


@dataclass(frozen=True)
class NamedData:
    """Normalised data (N, ...) float32, its condition (N, ...) or (N,) labels if any, and what it is in words."""

    data: Tensor
    condition: Tensor | None
    description: str


def pusht_data(path: str | None = None) -> NamedData:
    """All training windows of the default PushT configuration, normalised as ``DiffusionPolicy`` normalises them.

    Args:
        path: of the demonstrations; None is where ``scripts/download_pusht.py`` puts the human ones.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from immiscible_policy.cli import CONFIG_DIR
    from immiscible_policy.policy_data import load_data
    from immiscible_policy.policy_run import build_policy

    GlobalHydra.instance().clear()
    overrides = ["dataset=human", *([] if path is None else [f"dataset.path={Path(path).expanduser().resolve()}"])]
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        cfg = compose("train_policy", overrides)
    loaded = load_data(cfg)
    policy = build_policy(cfg, loaded)
    batch = loaded.train.batch(torch.arange(len(loaded.train)))
    action = policy.action_normalizer.normalize(batch["action"]) * policy.objective.data_scale
    observation = policy.observation_normalizer.normalize(batch["observation"])
    source = f"the {loaded.source['n_episodes']} episodes of {Path(loaded.source['path']).name}"
    described = (
        f"PushT: {len(action):,} training windows of {cfg.policy.horizon} actions from {source}; actions and "
        f"observations ({cfg.task.obs_type}) in [-1, 1]"
    )
    return NamedData(action, observation, described)


def array_data(path: Path) -> NamedData:
    """Data of a ``.npy`` file, or of a ``.npz`` file with an array ``data`` and perhaps ``condition`` or ``labels``.

    Raises:
        ValueError: the file is something else, or its arrays are not floats (N, ...) with conditions for each.
    """
    try:
        content: Any = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} cannot be read as .npy or .npz ({error})") from error
    condition = None
    if isinstance(content, np.ndarray):
        data = content
    else:
        if "data" not in content:
            raise ValueError(f"{path} must hold an array named data, it holds {sorted(content)}")
        data = content["data"]
        name = next((name for name in _CONDITION_NAMES if name in content), None)
        condition = None if name is None else content[name]
    if data.ndim < 1 or data.dtype.kind != "f":
        raise ValueError(f"{path}: data must be normalised floats (N, ...), got {data.dtype} of shape {data.shape}")
    if condition is not None and (condition.dtype.kind not in "iubf" or condition.shape[:1] != data.shape[:1]):
        raise ValueError(
            f"{path}: condition must be numbers, one row for each of {len(data)} data, got {condition.dtype} of shape "
            f"{condition.shape}"
        )
    return NamedData(
        torch.from_numpy(data.astype(np.float32)),
        None if condition is None else _as_condition(condition),
        f"{path.name}: {len(data):,} data of shape {data.shape[1:]}",
    )


def _as_condition(condition: np.ndarray) -> Tensor:
    """Labels as int64, anything else as float32."""
    is_labels = condition.ndim == 1 and condition.dtype.kind in "iub"
    return torch.from_numpy(condition.astype(np.int64 if is_labels else np.float32))

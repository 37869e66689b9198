"""What every training run begins with, of policies and of images: settings and a folder."""

import os
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from omegaconf import DictConfig, OmegaConf

from immiscible_policy.training import TrainerConfig
from immiscible_policy.training.precision import resolve_device


def plain_settings(node: DictConfig) -> dict[str, Any]:
    """A part of the configuration as a dictionary, interpolations resolved."""
    content = OmegaConf.to_container(node, resolve=True)
    if not isinstance(content, dict):
        raise ValueError(f"expected a mapping in the configuration, found {content!r}")
    return {str(key): value for key, value in content.items()}


def trainer_config(cfg: DictConfig, n_data: int) -> TrainerConfig:
    """``cfg.trainer`` with ``cfg.epochs``, where given, turned into steps, and a warm-up no longer than the run."""
    options = plain_settings(cfg.trainer)
    if cfg.epochs is not None:
        options["steps"] = max(1, int(cfg.epochs * (n_data // (options["batch_size"] * options["gradient_accumulation"]))))
    options["warmup_steps"] = min(options["warmup_steps"], options["steps"])
    return TrainerConfig(**options)


def prepare_run_dir(run_dir: Path, device: str) -> Path:
    """The main process' run folder, made by it alone: each process has named one after its own clock."""
    together = int(os.environ.get("WORLD_SIZE", "1")) > 1
    state = PartialState(cpu=resolve_device(device) == "cpu") if together else None
    if state is None or state.is_main_process:
        (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
    return Path(broadcast_object_list([str(run_dir)])[0]) if together else run_dir

"""What every training run begins and ends with, of policies and of images: settings, processes, a folder."""

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import yaml  # type: ignore[import-untyped]
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, set_seed
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from immiscible_policy.checks import check_seed, is_integer
from immiscible_policy.training import Trainer, TrainerConfig
from immiscible_policy.training.memory import keep_freed_memory
from immiscible_policy.training.precision import resolve_device

# One process evaluates, or makes demonstrations, while the others wait, which torch lets them do for 10 minutes.
PATIENCE = timedelta(hours=12)


def plain_settings(node: DictConfig) -> dict[str, Any]:
    """A part of the configuration as a dictionary, interpolations resolved."""
    content = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    if not isinstance(content, dict):
        raise ValueError(f"expected a mapping in the configuration, found {content!r}")
    return {str(key): value for key, value in content.items()}


def made_by(run_dir: Path) -> str | None:
    """The script that a run was started with, such as ``train_policy``; None where Hydra's record does not say.

    It is known by its configuration's name.
    """
    record = run_dir / ".hydra" / "hydra.yaml"
    try:
        name = OmegaConf.select(OmegaConf.load(record), "hydra.job.config_name")
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException):  # absent, or damaged
        return None
    return name if isinstance(name, str) else None


def holds_run(run_dir: Path) -> bool:
    """Whether training has begun in a folder: to begin it once more would mix two runs."""
    return (run_dir / "metrics.jsonl").exists() or any((run_dir / "checkpoints").glob("*"))


def refuse_run(run_dir: Path) -> None:
    """Raise a ValueError if a folder holds a run."""
    if holds_run(run_dir):
        raise ValueError(f"{run_dir} already holds a run: continue it with resume={run_dir}, or choose another")


def trainer_config(cfg: DictConfig, n_data: int) -> TrainerConfig:
    """``cfg.trainer`` with ``cfg.epochs``, where given, turned into steps, and a warm-up no longer than the run."""
    options = plain_settings(cfg.trainer)
    if cfg.epochs is not None:
        if not isinstance(cfg.epochs, int | float) or not cfg.epochs > 0:
            raise ValueError(f"epochs={cfg.epochs!r}: must be positive, or null to train for steps")
        # Each process takes a batch of its own.
        steps_per_epoch = n_data // (options["batch_size"] * options["gradient_accumulation"] * n_processes())
        options["steps"] = max(1, int(cfg.epochs * steps_per_epoch))
    options["warmup_steps"] = min(options["warmup_steps"], options["steps"])
    return TrainerConfig(**options)


def begin_run(cfg: DictConfig, run_dir: Path, resume: bool) -> None:
    """Set the CPU threads, the memory and the random seed of this process.

    Raises:
        ValueError: the folder holds a run that is not to be resumed, there is no such device, or a setting of the
            training is out of range.
    """
    if not resume:
        refuse_run(run_dir)
    # Before any data are loaded, or made.
    set_threads(cfg.num_threads)
    check_seed(cfg.seed)
    resolve_device(cfg.device)
    trainer_config(cfg, n_data=2**62)
    keep_freed_memory()
    set_seed(cfg.seed)


def set_threads(num_threads: int | None) -> None:
    """Let torch use so many CPU threads; None leaves it the number it has.

    Raises:
        ValueError: the number is out of range.
    """
    if num_threads is None:
        return
    if not is_integer(num_threads, 1):
        raise ValueError(f"num_threads={num_threads!r}: must be an integer of at least 1, or null for all cores")
    torch.set_num_threads(num_threads)


def fit(trainer: Trainer, resume: bool) -> bool:
    """Train to the end; returns whether this is the process that evaluates and writes."""
    if resume and trainer.can_resume:  # a run killed before its first checkpoint starts again
        trainer.resume()
    trainer.fit()
    return bool(trainer.accelerator.is_main_process)


def check_dataset(cfg: DictConfig, key: str, kind: str) -> None:
    """Refuse the other kind of data: policies and images share the configuration group ``dataset``.

    Args:
        key: that the settings of the wanted kind have, and the others do not. kind: what they are called.

    Raises:
        ValueError: ``cfg.dataset`` lacks the key; names those that have it.
    """
    if key in cfg.dataset:
        return
    folder = Path(__file__).resolve().parents[1] / "configs" / "dataset"
    suited = [path.stem for path in sorted(folder.glob("*.yaml")) if key in OmegaConf.load(path)]
    raise ValueError(f"dataset: these settings are not of a set of {kind}; choose one of {', '.join(suited)}")


def n_processes() -> int:
    """Processes of this run, by what their launcher has told them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this is the process that evaluates and writes, known before they are joined."""
    return os.environ.get("RANK", "0") == "0"


def process_device(device: str) -> str:
    """The device of this process, by its number where several processes have a GPU each.

    Args:
        device: as in the configuration.
    """
    resolved = resolve_device(device)
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if n_processes() > 1 and resolved == "cuda" else resolved


def joint_state(device: str) -> PartialState | None:
    """What the processes of a run know of each other; None for one alone."""
    if n_processes() == 1:
        return None
    return PartialState(cpu=resolve_device(device) == "cpu", timeout=PATIENCE)


def prepare_run_dir(run_dir: Path, device: str) -> Path:
    """The main process' run folder, made by it alone: each process has named one after its own clock."""
    together = joint_state(device)
    if together is None or together.is_main_process:
        (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
    return run_dir if together is None else Path(broadcast_object_list([str(run_dir)])[0])

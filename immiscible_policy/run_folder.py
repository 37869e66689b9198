"""The folder that a command works in: its alone, never one that holds something else's results, with Hydra's records.

Hydra writes its records into a folder before the program begins, over those of a run that may be there; so the
configurations of what writes results say ``hydra.output_subdir: null``, and the records are written here, where it is
known that the folder is this run's.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from immiscible_policy.files import locked, write_text
from immiscible_policy.run_setup import holds_run, is_main_process, refuse_run

LOCK = ".lock"


@contextmanager
def training_folder(cfg: DictConfig) -> Iterator[Path]:
    """The folder to train in, locked as long as the body runs.

    Of several processes of a run the main one has it; the others learn of it when they are joined.

    Raises:
        ValueError: another process trains there, or it holds a run that is not to be resumed.
    """
    named = _named()
    if not is_main_process():
        yield named
        return
    if cfg.get("resume") is not None:
        with locked(named, LOCK) as lock:
            if lock is None:
                raise ValueError(f"resume={named}: another process trains there; wait for it, or stop it")
            yield named
        return
    with _unused(named, holds_run) as folder:
        if folder is None:
            refuse_run(named)
            raise ValueError(f"{named}: another process trains there; choose another folder, or wait for it")
        _write_records(cfg, folder)
        yield folder


@contextmanager
def results_folder(cfg: DictConfig, result: str) -> Iterator[Path]:
    """A folder to write ``result``, a file, into, locked as long as the body runs.

    Raises:
        ValueError: the folder that was asked for holds such a file, or another process works there.
    """
    named = _named()
    with _unused(named, lambda folder: (folder / result).exists()) as folder:
        if folder is None:
            raise ValueError(f"{named} already holds {result}, or will: choose another folder, hydra.run.dir=...")
        _write_records(cfg, folder)
        yield folder


def _named() -> Path:
    return Path(HydraConfig.get().runtime.output_dir)


@contextmanager
def _unused(named: Path, is_used: Callable[[Path], bool]) -> Iterator[Path | None]:
    """The folder, locked, or None. One that is named after the clock alone gets a number where it is taken."""
    hydra = HydraConfig.get()
    asked_for = hydra.mode == RunMode.MULTIRUN or any(
        override.lstrip("+").startswith("hydra.run.dir=") for override in hydra.overrides.hydra
    )
    for number in count(1):
        folder = named if number == 1 else named.with_name(f"{named.name}_{number}")
        with locked(folder, LOCK) as lock:
            if lock is not None and not is_used(folder):
                yield folder
                return
        if asked_for:
            yield None
            return


def _write_records(cfg: DictConfig, folder: Path) -> None:
    """``.hydra/`` as Hydra has it: the configuration, Hydra's own, and what was said on the command line."""
    hydra = HydraConfig.get()
    records = {"config": cfg, "hydra": OmegaConf.create({"hydra": hydra}), "overrides": hydra.overrides.task}
    for name, content in records.items():
        write_text(folder / ".hydra" / f"{name}.yaml", OmegaConf.to_yaml(content))

"""Runs of the command-line scripts inside the test process."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from hydra.core.global_hydra import GlobalHydra

from immiscible_policy import cli

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
Runner = Callable[..., int]

# A training of images in seconds.
TINY_IMAGES = (
    "dataset.split=train",
    "steps=4",
    "batch_size=8",
    "network.block_out_channels=[8,16]",
    "network.norm_num_groups=4",
    "network.attention_head_dim=8",
    "model.num_inference_steps=2",
    "samples.n=2",
    "monitor.n_samples=8",
    "monitor.extractor=pixels",
    "evaluation.n_samples=8",
    "trainer.warmup_steps=1",
    "trainer.evaluate_every=4",
    "trainer.validate_every=4",
    "trainer.checkpoint_every=2",
    "trainer.tensorboard=false",
    "num_threads=1",
    "device=cpu",
)


def load_script(name: str) -> ModuleType:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(f"script_{name}", SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny_images() -> tuple[str, ...]:
    """Settings of ``train_image`` that end in seconds."""
    return TINY_IMAGES


@pytest.fixture
def run_script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Runner:
    """run_script(name, *arguments) -> exit status, with a fresh folder as the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)

    def run(name: str, *arguments: str) -> int:
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", [str(SCRIPTS / f"{name}.py"), *arguments])
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
        module = load_script(name)
        try:
            if name in ("train_policy", "train_image", "train_vae"):
                sys.argv = cli.point_hydra_at_resumed_run(sys.argv)
            if name in ("train_policy", "eval_policy", "train_image", "train_vae", "analyze_images", "reproduce"):
                cli.run(module.main, name)
            else:
                return cli.interruptible(module.main)
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    return run

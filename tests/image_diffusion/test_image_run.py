"""Image training runs: every method from configuration to summary, exact resume, settings that do not fit."""

import json
from pathlib import Path

import pytest
import torch
from composing import composed
from PIL import Image

from image_diffusion.data import ImageSource, load_images
from image_diffusion.image_run import build_image_model, train_images
from image_diffusion.model import load_image_model
from immiscible_policy.cli import CONFIG_DIR
from immiscible_policy.run_setup import plain_settings, trainer_config
from immiscible_policy.training import trainer
from immiscible_policy.training.metrics import read_metrics

TINY = (
    "dataset.max_items=40",
    "steps=4",
    "batch_size=8",
    "network.block_out_channels=[8,16]",
    "network.norm_num_groups=4",
    "network.attention_head_dim=8",
    "model.num_inference_steps=2",
    "samples.n=3",
    "monitor.n_samples=8",
    "monitor.extractor=pixels",
    "evaluation.n_samples=8",
    "trainer.warmup_steps=1",
    "trainer.evaluate_every=4",
    "trainer.validate_every=4",
    "trainer.checkpoint_every=2",
    "trainer.log_every=2",
    "trainer.tensorboard=false",
    "trainer.mixed_precision=fp32",
    "num_threads=1",
    "device=cpu",
)


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIG_DIR / group).glob("*.yaml"))


@pytest.mark.parametrize("coupling", ["none", "knn", "assignment"])
@pytest.mark.parametrize("method", ["ddim", "fm", "cm"])
def test_every_method_trains_samples_and_summarises_under_any_coupling(
    method: str, coupling: str, tmp_path: Path
) -> None:
    small = ("objective.s0=2", "objective.s1=4") if method == "cm" else ()
    summary = train_images(composed("train_image", f"method={method}", f"coupling={coupling}", *TINY, *small), tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text())["coupling"] == summary["coupling"]
    assert summary["data"]["name"] == "digits"
    with Image.open(tmp_path / "media" / "samples_step=0000004.png") as picture:
        assert picture.size == (128, 128)
    model = load_image_model(tmp_path / "checkpoints" / "step=0000004")
    assert model.coupling == summary["coupling"]
    assert model.sample([0]).shape == (1, 1, 8, 8)
    last = read_metrics(tmp_path / "metrics.jsonl")[-1]
    assert last["train/loss"] > 0
    assert last["validation/loss_independent"] > 0
    assert ("validation/loss_coupled" in last) == (coupling != "none")


class _KilledError(Exception):
    """Stands for whatever ends a process without warning."""


@pytest.mark.parametrize("method", ["ddim", "cm"])
def test_a_killed_run_ends_with_the_same_weights(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = ("objective.schedule=cm", "objective.s0=2", "objective.s1=4") if method == "cm" else ()
    cfg = composed("train_image", f"method={method}", "coupling=knn", "network.dropout=0.1", *TINY, *small)
    train_images(cfg, tmp_path / "whole")
    save_state = trainer.save_state

    def save_and_die(folder: Path, state: dict) -> None:
        save_state(folder, state)
        raise _KilledError

    monkeypatch.setattr(trainer, "save_state", save_and_die)
    with pytest.raises(_KilledError):
        train_images(cfg, tmp_path / "broken")
    monkeypatch.setattr(trainer, "save_state", save_state)
    with pytest.raises(ValueError, match="already holds a run"):
        train_images(cfg, tmp_path / "broken")
    train_images(cfg, tmp_path / "broken", resume=True)
    weights = [
        load_image_model(tmp_path / name / "checkpoints" / "step=0000004").state_dict() for name in ("whole", "broken")
    ]
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name


def test_labels_are_used_where_asked_for(tmp_path: Path) -> None:
    train_images(composed("train_image", "model.class_conditional=true", *TINY), tmp_path)
    model = load_image_model(tmp_path / "checkpoints" / "step=0000004")
    assert model.n_classes == 10
    assert model.label_dropout == 0.1
    assert model.sample([0, 1], labels=[3, 9], guidance_scale=2.0).shape == (2, 1, 8, 8)


@pytest.mark.parametrize("method", choices("method"))
def test_every_method_is_complete(method: str) -> None:
    cfg = composed("train_image", f"method={method}")
    trainer_config(cfg, 50_000)
    if method.endswith("_paper"):
        assert cfg.trainer.ema_max_decay == 0.9999
        assert cfg.batch_size * cfg.trainer.gradient_accumulation in (256, 512)


@pytest.mark.parametrize(
    ("method", "size"), [("ddim_paper", 35_746_307), ("fm_paper", 35_746_307), ("ddim", 700_000), ("cm", 700_000)]
)
def test_networks_have_their_sizes(method: str, size: int) -> None:
    data = load_images(ImageSource.from_config(plain_settings(composed("train_image").dataset)))
    if method.endswith("_paper"):
        data.image_size, data.channels = 32, 3
    model = build_image_model(composed("train_image", f"method={method}"), data)
    found = sum(p.numel() for p in model.parameters())
    assert found == size if method.endswith("_paper") else abs(found - size) < 50_000


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("batch_size=41",), "batch_size=41 on 1 processes needs at least 41 data, the dataset has 40"),
        (("dataset.split=training",), "split"),
        (("network.block_out_channels=[8,8,8,8,8]",), "image_size=8 must be a multiple of 16"),
        (("model.num_inference_steps=0",), "num_inference_steps=0: choose 1"),
        (("model.class_conditional=true", "dataset.label_column=null"), "digits has no classes"),
    ],
)
def test_settings_that_do_not_fit_are_named(overrides: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        train_images(composed("train_image", *TINY, *overrides), tmp_path / "run")


def test_demonstrations_are_no_images(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"dataset: these settings are not of a set of images; choose one of .*cifar10.*digits"
    ):
        train_images(composed("train_image", "dataset=human"), tmp_path / "run")

"""Runs of latent diffusion: from an autoencoder to samples, measurements and paintings, exact resume, bad settings."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from composing import composed
from killing import killed_at_the_first_checkpoint
from PIL import Image
from safetensors.torch import load_file

from image_diffusion import image_run
from image_diffusion.evaluation import ImageEvaluation, build_extractor, data_reference, evaluate_model
from image_diffusion.image_run import train_images
from image_diffusion.latent_model import LatentModel
from image_diffusion.model import load_image_model
from image_diffusion.painting import build_mask, paint
from image_diffusion.sampling import save_samples
from immiscible_policy.diffusion import FlowMatching
from immiscible_policy.training.metrics import read_metrics

TINY = (
    "steps=4",
    "batch_size=8",
    "network.block_out_channels=[8,16]",
    "network.norm_num_groups=4",
    "network.attention_head_dim=4",
    "model.num_inference_steps=2",
    "samples.n=3",
    "monitor.n_samples=8",
    "monitor.extractor=pixels",
    "evaluation.n_samples=8",
    "evaluation.metrics=[fd]",
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
DIGITS = ("dataset.max_items=40",)


@pytest.fixture
def captioned(tmp_path: Path) -> Path:
    """Twelve pictures with one to three captions each."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(12):
        Image.new("L", (8, 8), 20 * i).save(folder / f"{i:02d}.png")
        (folder / f"{i:02d}.txt").write_text("\n".join(f"shade {i} by {j}" for j in range(1 + i % 3)))
    return folder


@pytest.mark.parametrize(
    ("coupling", "conditional", "cached"), [("none", True, True), ("knn", False, True), ("assignment", True, False)]
)
def test_a_run_trains_samples_measures_and_paints(
    coupling: str, conditional: bool, cached: bool, make_vae: Callable[..., Path], tmp_path: Path
) -> None:
    settings = (f"model.class_conditional={conditional}", f"model.cache_latents={cached}", f"model.vae={make_vae()}")
    cfg = composed("train_image", "method=sd", f"coupling={coupling}", *TINY, *DIGITS, *settings)
    summary = train_images(cfg, tmp_path / "run")
    assert summary["final"]
    last = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]
    assert last["train/loss"] > 0
    assert last["validation/loss_independent"] > 0
    model = load_image_model(tmp_path / "run" / "checkpoints" / "step=0000004")
    assert isinstance(model, LatentModel)
    assert (model.coupling, model.n_classes) == (summary["coupling"], 10 if conditional else None)
    files = save_samples(model, [3, 5], tmp_path / "drawn", progress=False)
    with Image.open(files[0]) as picture:
        assert picture.size == (8, 8)
    data = image_run.load_images(image_run.ImageSource("digits", format="digits", split="test"))
    config = ImageEvaluation(("fd",), 6, "pixels")
    extractor = build_extractor(config, 8, 1)
    measured = evaluate_model(
        model, data_reference(data, extractor, config, progress=False), extractor, config, progress=False
    )
    assert measured["fd_pixels_6"].value > 0
    pictures, mask = data.batch(torch.arange(2))["image"], build_mask("surroundings", 8)
    painted = paint(model, pictures, mask, [0, 1], model.labels_of(data, torch.arange(2)))
    assert torch.equal(painted[:, :, ~mask], pictures[:, :, ~mask])


def same_weights(*runs: Path) -> bool:
    name = Path("checkpoints") / "step=0000004" / "unet" / "diffusion_pytorch_model.safetensors"
    first, second = (load_file(run / name) for run in runs)
    return set(first) == set(second) and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("cached", [True, False])
def test_a_killed_run_ends_with_the_same_weights(cached: bool, make_vae: Callable[..., Path], tmp_path: Path) -> None:
    settings = (f"model.vae={make_vae()}", f"model.cache_latents={cached}", "network.dropout=0.1", "dataset.flip=true")
    cfg = composed("train_image", "method=sd", "coupling=knn", *TINY, *DIGITS, *settings)
    train_images(cfg, tmp_path / "whole")
    with killed_at_the_first_checkpoint():
        train_images(cfg, tmp_path / "broken")
    train_images(cfg, tmp_path / "broken", resume=True)
    assert same_weights(tmp_path / "whole", tmp_path / "broken")
    trained = load_image_model(tmp_path / "whole" / "checkpoints" / "step=0000004")
    assert trained.network.unet.conv_out.weight.any()  # where it began at zero


def test_a_run_does_not_go_on_with_another_autoencoder(make_vae: Callable[..., Path], tmp_path: Path) -> None:
    cfg = composed("train_image", "method=sd", *TINY, *DIGITS, f"model.vae={make_vae()}")
    with killed_at_the_first_checkpoint():
        train_images(cfg, tmp_path / "run")
    make_vae(scaling_factor=0.7, layers_per_block=2)
    with pytest.raises(ValueError, match="another autoencoder"):
        train_images(cfg, tmp_path / "run", resume=True)


@pytest.mark.parametrize("encoder", ["clip", "bert"])
def test_captions_train_a_model_of_prompts(
    encoder: str,
    make_vae: Callable[..., Path],
    captioned: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    cfg = composed(
        "train_image",
        "method=sd_text",
        "dataset=folder",
        f"dataset.path={captioned}",
        "dataset.image_size=8",
        "model.captions=true",
        f"model.vae={make_vae()}",
        f"model.text_encoder={request.getfixturevalue(f'{encoder}_folder')}",
        "coupling=knn",
        "monitor.guidance_scale=2",
        *TINY,
    )
    train_images(cfg, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints" / "step=0000004"
    model = load_image_model(folder)
    assert model.default_labels(13) == [*range(12), 0]
    by_number, by_text = (model.sample([1], labels=label) for label in ([3], ["shade 3 by 0"]))
    assert torch.equal(by_number, by_text)
    kind = json.loads((folder / "model_index.json").read_text())["_class_name"]
    assert kind == ("StableDiffusionPipeline" if encoder == "clip" else ["pipeline", "LatentDiffusionPipeline"])
    with killed_at_the_first_checkpoint():
        train_images(cfg, tmp_path / "broken")
    train_images(cfg, tmp_path / "broken", resume=True)
    assert same_weights(tmp_path / "run", tmp_path / "broken")


def test_fine_tuning_runs_from_a_pipeline(stable_diffusion_folder: Path, tmp_path: Path) -> None:
    options = [option for option in (*TINY, *DIGITS) if not option.startswith("network")]
    small = ("dataset=digits", "dataset.image_size=null", "batch_size=4", "trainer.learning_rate=1e-9")
    cfg = composed(
        "train_image", "method=sd_finetune_paper", f"model.pretrained={stable_diffusion_folder}", *options, *small
    )
    train_images(cfg, tmp_path / "run")
    name = Path("unet") / "diffusion_pytorch_model.safetensors"
    start = load_file(stable_diffusion_folder / name)
    end = load_file(tmp_path / "run" / "checkpoints" / "step=0000004" / name)
    assert all(torch.allclose(value, end[key], atol=1e-6) for key, value in start.items())
    index = json.loads((tmp_path / "run" / "checkpoints" / "step=0000004" / "model_index.json").read_text())
    assert (index["_class_name"], index["scheduler"][1]) == ("StableDiffusionPipeline", "PNDMScheduler")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((), r"model\.vae is not set: .*scripts/train_vae\.py"),
        (("model.vae=nowhere",), r"model\.vae=nowhere: no such folder"),
        (("model.pretrained=./nowhere",), r"model\.pretrained=\./nowhere: no such folder"),
        (("model.vae=x", "model.space=pixels"), "only models of latents have it"),
    ],
)
def test_what_is_missing_shows_before_data_is_read(
    overrides: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(source: object) -> None:
        raise AssertionError("data was read")

    monkeypatch.setattr(image_run, "load_images", read)
    with pytest.raises(ValueError, match=message):
        train_images(composed("train_image", "method=sd", *TINY, *overrides), tmp_path / "run")


def test_guidance_that_a_model_cannot_have_shows_before_training(make_vae: Callable[..., Path], tmp_path: Path) -> None:
    settings = (f"model.vae={make_vae()}", "model.class_conditional=false", "evaluation.guidance_scale=2")
    with pytest.raises(ValueError, match=r"guidance_scale=2 needs a model trained with classes"):
        train_images(composed("train_image", "method=sd", *TINY, *DIGITS, *settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_flow_of_latents_trains(make_vae: Callable[..., Path], tmp_path: Path) -> None:
    cfg = composed("train_image", "method=sd", "objective=flow_matching", *TINY, *DIGITS, f"model.vae={make_vae()}")
    assert train_images(cfg, tmp_path / "run")["final"]
    model = load_image_model(tmp_path / "run" / "checkpoints" / "step=0000004")
    assert isinstance(model.objective, FlowMatching)
    assert not model.objective.clip_sample


def test_latents_too_small_for_the_network_are_named(make_vae: Callable[..., Path], tmp_path: Path) -> None:
    settings = (f"model.vae={make_vae()}", "network.block_out_channels=[8,8,8,8]")
    with pytest.raises(ValueError, match=r"image_size / \(pixels of a latent\)=4 must be a multiple of 8"):
        train_images(composed("train_image", "method=sd", *TINY, *DIGITS, *settings), tmp_path / "run")

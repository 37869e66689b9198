"""Training an autoencoder: the loss, what is written, exact resume, settings that do not fit."""

import json
from pathlib import Path

import pytest
import torch
from composing import composed
from diffusers import AutoencoderKL
from killing import killed_at_the_first_checkpoint
from PIL import Image

from image_diffusion.autoencoder import load_autoencoder
from image_diffusion.data import ImageSource, load_images
from image_diffusion.vae_training import VaeTraining, psnr, train_vae

SETTINGS = {"block_out_channels": [8, 8], "latent_channels": 2, "norm_num_groups": 4, "mid_block_add_attention": False}
TINY = (
    "dataset.max_items=40",
    "steps=4",
    "batch_size=8",
    "evaluate_on=10",
    "vae.block_out_channels=[8,8]",
    "vae.norm_num_groups=4",
    "vae.latent_channels=2",
    "trainer.warmup_steps=1",
    "trainer.evaluate_every=2",
    "trainer.checkpoint_every=2",
    "trainer.tensorboard=false",
    "trainer.mixed_precision=fp32",
    "num_threads=1",
    "device=cpu",
)


def pictures(n: int) -> torch.Tensor:
    return torch.randint(0, 256, (n, 1, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def test_the_loss_is_l1_and_a_little_divergence() -> None:
    torch.manual_seed(0)
    model, images = VaeTraining(SETTINGS, 8, 1, kl_weight=0.5, flip=False), pictures(6)
    found = model({"image": images}, generator=torch.Generator().manual_seed(2))
    data = images / 127.5 - 1
    posterior = model.vae.encode(data).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(2))
    decoded = model.vae.decode(posterior.mean + posterior.std * noise).sample
    variance = posterior.std.square()
    divergence = 0.5 * (posterior.mean.square() + variance - 1 - variance.log()).sum()
    torch.testing.assert_close(found, (decoded - data).abs().mean() + 0.5 * divergence / data.numel())


def test_psnr_is_that_of_its_formula() -> None:
    black = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    assert psnr(black, black + 255) == pytest.approx(0.0)
    assert psnr(black, black + 51) == pytest.approx(13.979, abs=1e-3)  # 20 log10(5)


def test_a_run_writes_an_autoencoder_whose_latents_have_unit_variance(tmp_path: Path) -> None:
    cfg = composed("train_vae", *TINY)
    summary = train_vae(cfg, tmp_path)
    assert summary["latent_shape"] == [2, 4, 4]
    data = load_images(ImageSource("digits", format="digits", max_items=40))
    found = load_autoencoder(tmp_path)
    posterior = found.posterior(data.batch(torch.arange(40))["image"])
    noise = torch.randn(posterior[:, 0].shape, generator=torch.Generator().manual_seed(0))
    assert float((posterior[:, 0] + posterior[:, 1] * noise).std()) == pytest.approx(1.0, abs=0.05)
    for name in ("best", "step=0000004"):  # as many images, other weights
        saved = load_autoencoder(tmp_path / "checkpoints" / name).posterior(data.batch(torch.arange(40))["image"])
        assert float((saved[:, 0] + saved[:, 1] * noise).std()) == pytest.approx(1.0, abs=0.05)
    assert AutoencoderKL.from_pretrained(tmp_path / "vae").config.scaling_factor == summary["scaling_factor"]
    with Image.open(tmp_path / "media" / "reconstructions_step=0000004.png") as picture:
        assert picture.size == (8 * 64, 2 * 64)
    with pytest.raises(ValueError, match="already holds a run"):
        train_vae(cfg, tmp_path)


def test_training_makes_reconstructions_better(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = VaeTraining(SETTINGS, 8, 1, flip=False)
    images = load_images(ImageSource("digits", format="digits", max_items=64)).batch(torch.arange(64))["image"]
    before = psnr(images, model.reconstruct(images))
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(30):
        optimizer.zero_grad()
        model({"image": images}).backward()
        optimizer.step()
    assert psnr(images, model.reconstruct(images)) > before + 3


def test_a_killed_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    cfg = composed("train_vae", *TINY)
    train_vae(cfg, tmp_path / "whole")
    with killed_at_the_first_checkpoint():
        train_vae(cfg, tmp_path / "broken")
    record = tmp_path / "broken" / "images.json"
    began_with = record.read_text()
    record.write_text(json.dumps({**json.loads(began_with), "n": 39}))
    with pytest.raises(ValueError, match=r"the images at digits .* began with: n=40 \(began with 39\); restore them"):
        train_vae(cfg, tmp_path / "broken", resume=True)
    record.write_text(began_with)
    train_vae(cfg, tmp_path / "broken", resume=True)
    assert load_autoencoder(tmp_path / "whole").digest() == load_autoencoder(tmp_path / "broken").digest()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("vae.block_out_channels=[8,8,8,8,8]",), "image_size=8 must be a multiple of 16"),
        (("vae.norm_num_groups=3",), "vae: "),
        (("+vae.depth=3",), "depth"),
        (("vae.kl_weight=-1",), r"vae\.kl_weight=-1: must be at least 0"),
        (("evaluate_on=0",), r"evaluate_on=0: must be an integer of at least 1"),
        (("evaluate_on=-1",), r"evaluate_on=-1: must be an integer of at least 1"),
        (("vae.latent_channels=0",), r"vae\.latent_channels=0: must be an integer of at least 1"),
        (("vae.layers_per_block=0",), r"vae\.layers_per_block=0: must be an integer of at least 1"),
        (("vae.norm_num_groups=0",), r"vae\.norm_num_groups=0: must be an integer of at least 1"),
        (("vae.block_out_channels=[]",), r"vae\.block_out_channels=\[\]: must be a list of integers of at least 1"),
        (("+vae.in_channels=3",), r"vae\.in_channels=3: follows from the images and .*; leave it out"),
        (("+vae.sample_size=64",), r"vae\.sample_size=64: follows from"),
        (("+vae.down_block_types=[DownEncoderBlock2D]",), r"vae\.down_block_types=\['DownEncoderBlock2D'\]: follows"),
        (("dataset=human",), "these settings are not of a set of images"),
    ],
)
def test_settings_that_do_not_fit_are_named(overrides: tuple[str, ...], message: str, tmp_path: Path) -> None:
    tiny = () if "dataset=human" in overrides else TINY
    with pytest.raises(ValueError, match=message):
        train_vae(composed("train_vae", *tiny, *overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()

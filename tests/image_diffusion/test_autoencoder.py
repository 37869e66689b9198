"""The frozen autoencoder: the latents that diffusers trains on, and back."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from image_diffusion import autoencoder as module
from image_diffusion.autoencoder import load_autoencoder


def pictures(n: int = 5, channels: int = 1, size: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (n, channels, size, size), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("shift", [None, 0.25])
def test_latents_are_those_that_diffusers_trains_on(shift: float | None, make_vae: Callable[..., Path]) -> None:
    folder = make_vae(shift_factor=shift)
    found, vae = load_autoencoder(folder), AutoencoderKL.from_pretrained(folder)
    images = pictures()
    with torch.no_grad():
        expected = vae.encode(images / 127.5 - 1).latent_dist
        decoded = vae.decode(expected.mean).sample
    posterior = found.posterior(images)
    assert posterior.shape == (5, 2, 2, 4, 4)
    torch.testing.assert_close(posterior[:, 0], (expected.mean - (shift or 0.0)) * 0.7)
    torch.testing.assert_close(posterior[:, 1], expected.std * 0.7)
    wanted = ((decoded + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    assert int((found.decode(posterior[:, 0]).int() - wanted.int()).abs().max()) <= 1


def test_large_batches_go_through_in_parts(make_vae: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    found = load_autoencoder(make_vae())
    whole = found.posterior(pictures())
    seen: list[int] = []
    encode = found.network.encode
    monkeypatch.setattr(found.network, "encode", lambda images: seen.append(len(images)) or encode(images))
    monkeypatch.setattr(module, "CHUNK_PIXELS", 2 * 8 * 8)
    torch.testing.assert_close(found.posterior(pictures()), whole)
    assert seen == [2, 2, 1]
    assert found.decode(whole[:, 0]).shape == (5, 1, 8, 8)


def test_copies_share_the_weights_which_are_not_trained(make_vae: Callable[..., Path]) -> None:
    found = load_autoencoder(make_vae())
    assert copy.deepcopy(found) is found
    assert not any(parameter.requires_grad for parameter in found.network.parameters())
    assert not found.network.training
    same, other = load_autoencoder(make_vae("same")), load_autoencoder(make_vae("other"))
    assert found.digest() == same.digest()
    with torch.no_grad():
        other.network.decoder.conv_out.bias[0] += 1e-3
    assert found.digest() != other.digest()
    assert found.digest() != load_autoencoder(make_vae("scaled", scaling_factor=0.8)).digest()


def test_it_is_found_in_pipelines_and_runs(make_vae: Callable[..., Path], tmp_path: Path) -> None:
    make_vae("run/vae")
    assert load_autoencoder(tmp_path / "run").digest() == load_autoencoder(tmp_path / "run" / "vae").digest()


def test_what_is_no_autoencoder_is_named(make_vae: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.vae is not set: .*scripts/train_vae\.py"):
        load_autoencoder(None)
    with pytest.raises(ValueError, match=r"model\.vae=nowhere: no such folder; .*scripts/train_vae\.py"):
        load_autoencoder("nowhere")
    with pytest.raises(ValueError, match=r"neither it nor its vae/ holds an AutoencoderKL"):
        load_autoencoder(tmp_path)
    folder = make_vae()
    (folder / "diffusion_pytorch_model.safetensors").write_bytes(b"123")
    with pytest.raises(ValueError, match=r"model\.vae=.*vae: "):
        load_autoencoder(folder)


def test_images_that_do_not_fit_are_named(make_vae: Callable[..., Path]) -> None:
    found = load_autoencoder(make_vae())
    found.check(10, 1)
    with pytest.raises(ValueError, match=r"takes images of 1 channels, the data's have 3: dataset\.channels=1"):
        found.check(8, 3)
    with pytest.raises(ValueError, match=r"image_size=9: .* 2x2 pixels, so it must be a multiple of 2"):
        found.check(9, 1)

"""Latents computed beforehand: the same batches and losses as without."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from image_diffusion.autoencoder import load_autoencoder
from image_diffusion.data import ImageDataset, ImageSource, load_images
from image_diffusion.latent_data import LatentImages
from image_diffusion.latent_model import LatentModel
from image_diffusion.networks import build_network
from immiscible_policy.coupling import KNN

CPU = torch.device("cpu")
UNET = {
    "block_out_channels": [8],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"],
    "zero_init": False,
}


@pytest.fixture(scope="module")
def digits() -> ImageDataset:
    return load_images(ImageSource("digits", format="digits", split="test"))


class Numbered:
    """Stands in for prompt embeddings."""

    def number(self, prompts: Sequence[str]) -> list[int]:
        return [len(prompt) for prompt in prompts]


@pytest.mark.parametrize("flip", [True, False])
def test_held_latents_train_as_images_do(flip: bool, digits: ImageDataset, make_vae: Callable[..., Path]) -> None:
    torch.manual_seed(0)
    objective = {"name": "flow_matching", "clip_sample": False}
    network = build_network(UNET, 4, 2, 11)
    model = LatentModel(8, load_autoencoder(make_vae()), network, objective, n_classes=10, flip=flip)
    held, read = (model.training_set(digits, limit, "cpu") for limit in (1.0, 0.0))
    assert held.posterior is not None
    assert held.posterior.shape == (297, 1 + flip, 2, 2, 4, 4)
    assert read.posterior is None
    indices = torch.tensor([5, 2, 290, 5])
    assert set(held.batch(indices)) == {"posterior", "label"}
    assert set(read.batch(indices)) == {"image", "label"}
    losses = [
        model({**data.batch(indices), "index": indices}, KNN(k=4), torch.Generator().manual_seed(0))
        for data in (held, read)
    ]
    torch.testing.assert_close(losses[0], losses[1])


def test_latents_are_held_up_to_the_limit(digits: ImageDataset, make_vae: Callable[..., Path]) -> None:
    autoencoder = load_autoencoder(make_vae())
    need = 297 * 2 * 2 * 4 * 4 * 4 / 2**30
    for limit, held in ((need, True), (need * 0.99, False)):
        data = LatentImages(digits, autoencoder, None, False, limit, CPU)
        assert (data.posterior is not None) == held


def test_captions_come_by_number(digits: ImageDataset, make_vae: Callable[..., Path]) -> None:
    autoencoder = load_autoencoder(make_vae())
    with pytest.raises(ValueError, match=r"model\.captions=true: digits has no captions"):
        LatentImages(digits, autoencoder, Numbered(), False, 1.0, CPU)  # type: ignore[arg-type]
    captioned = load_images(ImageSource("digits", format="digits", split="test"))
    captioned.captions = [["a", "bbb"] if i % 2 else ["cc"] for i in range(297)]
    data = LatentImages(captioned, autoencoder, Numbered(), False, 1.0, CPU)  # type: ignore[arg-type]
    assert data.batch(torch.tensor([0, 3]))["prompts"].tolist() == [[2, -1], [1, 3]]
    assert len(data) == 297

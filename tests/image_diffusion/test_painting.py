"""In- and out-painting: what is kept, what is painted, which masks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from image_diffusion.model import PixelModel
from image_diffusion.painting import build_mask, centre_mask, load_folder, paint

UNET = {
    "block_out_channels": [8],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"],
    "zero_init": False,
}
OBJECTIVES = {
    "ddim": {"name": "ddpm", "num_train_timesteps": 20},
    "ddpm": {"name": "ddpm", "num_train_timesteps": 20, "sampler": "ddpm"},
    "fm": {"name": "flow_matching"},
    "cm": {"name": "consistency"},
}


def model(method: str = "ddim", **options: Any) -> PixelModel:
    torch.manual_seed(0)
    return PixelModel(8, 3, UNET, OBJECTIVES[method], num_inference_steps=2, **options).eval()


def pictures(n: int) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


@pytest.mark.parametrize("method", OBJECTIVES)
@pytest.mark.parametrize("name", ["centre", "surroundings"])
def test_what_is_not_masked_stays_to_the_bit(method: str, name: str) -> None:
    images, mask = pictures(3), build_mask(name, 8)
    painted = paint(model(method), images, mask, seeds=[1, 2, 3])
    assert painted.dtype == torch.uint8
    assert torch.equal(painted[:, :, ~mask], images[:, :, ~mask])
    assert (painted[:, :, mask] != images[:, :, mask]).float().mean() > 0.5


def test_a_seed_paints_the_same_in_any_company() -> None:
    images, mask = pictures(3), build_mask("centre", 8)
    together = paint(model(), images, mask, seeds=[1, 2, 3])
    alone = paint(model(), images[2:], mask, seeds=[3])
    assert int((together[2:].int() - alone.int()).abs().max()) <= 1
    other = paint(model(), images, mask, seeds=[4, 5, 6])
    assert not torch.equal(other[:, :, mask], together[:, :, mask])


def test_without_labels_a_seed_paints_its_own_class() -> None:
    trained, images, mask = model(n_classes=3), pictures(1), build_mask("centre", 8)
    painted = paint(trained, images, mask, seeds=[5])
    assert torch.equal(painted, paint(trained, images, mask, seeds=[5], labels=[2]))
    assert not torch.equal(painted, paint(trained, images, mask, seeds=[5], labels=[0]))


def test_a_folder_has_labels_only_where_its_classes_are_known(tmp_path: Path) -> None:
    for name in ("dog", "cat"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "a.png")
    found = load_folder(model(), tmp_path, ["bird", "dog", "cat"])  # sorted, cat/ is the first file
    assert found.labels is not None
    assert found.labels.tolist() == [2, 1]
    assert load_folder(model(), tmp_path, None).labels is None
    assert load_folder(model(), tmp_path, ["bird", "dog"]).labels is None
    assert load_folder(model(), tmp_path / "dog", ["bird", "dog"]).labels is None
    with pytest.raises(ValueError, match="no such folder"):
        load_folder(model(), tmp_path / "owl", ["bird", "dog"])


@pytest.mark.parametrize(("size", "share", "side"), [(8, 0.5, 4), (32, 0.5, 16), (9, 0.5, 4), (8, 0.01, 1)])
def test_the_centre_is_a_square_in_the_middle(size: int, share: float, side: int) -> None:
    mask = centre_mask(size, share)
    assert int(mask.sum()) == side**2
    if (size - side) % 2 == 0:
        assert torch.equal(mask, mask.flip(0))
        assert torch.equal(mask, mask.flip(1))


def test_a_mask_file_is_white_where_to_paint(tmp_path: Path) -> None:
    array = np.zeros((8, 8), np.uint8)
    array[2:4, 5:] = 255
    Image.fromarray(array).save(tmp_path / "mask.png")
    assert torch.equal(build_mask(str(tmp_path / "mask.png"), 8), torch.from_numpy(array > 0))
    with pytest.raises(ValueError, match="is 8x8 pixels, the images are 16x16"):
        build_mask(str(tmp_path / "mask.png"), 16)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "black.png")
    with pytest.raises(ValueError, match="this one is all black"):
        build_mask(str(tmp_path / "black.png"), 8)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match="not an image"):
        build_mask(str(tmp_path / "text.png"), 8)
    with pytest.raises(ValueError, match="mask='border': choose centre, surroundings or an image file"):
        build_mask("border", 8)
    with pytest.raises(ValueError, match=r"share=1\.0"):
        build_mask("centre", 8, share=1.0)


def test_wrong_images_are_named() -> None:
    mask = build_mask("centre", 8)
    with pytest.raises(ValueError, match=r"images: torch\.float32"):
        paint(model(), pictures(1).float(), mask, [0])
    with pytest.raises(ValueError, match="this model makes uint8"):
        paint(model(), pictures(1)[:, :1], mask, [0])
    with pytest.raises(ValueError, match="seeds: 2 images need as many, got 1"):
        paint(model(), pictures(2), mask, [0])
    with pytest.raises(ValueError, match="seed=-5: must be an integer of at least 0"):
        paint(model(), pictures(1), mask, [-5])
    with pytest.raises(ValueError, match="seed=-5: must be an integer of at least 0"):
        model().sample([3, -5])

"""Evaluations: which extractor, which images, and that equal settings give equal numbers."""

from pathlib import Path

import numpy as np
import pytest
import torch

from image_diffusion.data import ImageSource, load_images
from image_diffusion.evaluation import (
    ImageEvaluation,
    batches_of,
    build_extractor,
    data_reference,
    evaluate_model,
    find_images,
    measure,
    measurement_table,
)
from image_diffusion.model import PixelModel
from image_diffusion.sampling import save_pictures

UNET = {
    "block_out_channels": [8],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"],
    "zero_init": False,
}


@pytest.fixture(scope="module")
def digits():
    return load_images(ImageSource("digits", format="digits", split="test", flip=False))


def test_a_models_numbers_do_not_depend_on_the_batches_it_draws_in(digits) -> None:
    torch.manual_seed(0)
    model = PixelModel(8, 1, UNET, {"name": "flow_matching"}, num_inference_steps=2).eval()
    values = []
    for batch_size in (7, 100):
        config = ImageEvaluation(("fd",), 90, "pixels", batch_size=batch_size)
        extractor = build_extractor(config, 8, 1)
        reference = data_reference(digits, extractor, config, progress=False)
        measured = evaluate_model(model, reference, extractor, config, {"step": 5}, progress=False)
        values.append(measured["fd_pixels_90"].value)
        record = measured["fd_pixels_90"].record
        assert record.reference == "digits test (297 of 8x8)"
        assert record.run["num_inference_steps"] == 2
        assert record.run["step"] == 5
    assert values[0] == pytest.approx(values[1], rel=1e-2)
    assert "fd_pixels_90" in measurement_table(measured)
    assert "compare at equal n only" in measurement_table(measured)


def test_images_of_other_programs_are_found(digits, tmp_path: Path) -> None:
    images = next(iter(batches_of(digits, 50)))
    save_pictures(images, [tmp_path / "folder" / f"{i}.png" for i in range(50)])
    np.savez(tmp_path / "array.npz", arr_0=images.permute(0, 2, 3, 1).numpy())
    config = ImageEvaluation(("fd",), extractor="pixels")
    extractor = build_extractor(config, 8, 1)
    reference = data_reference(digits, extractor, config, progress=False)
    values = [
        measure(find_images(tmp_path / name), reference, extractor, config, {}, progress=False)["fd_pixels_50"].value
        for name in ("folder", "array.npz")
    ]
    assert values[0] == pytest.approx(values[1])
    with pytest.raises(ValueError, match="neither a run, a model, a folder of pictures nor"):
        next(iter(find_images(tmp_path / "nothing")))
    np.savez(tmp_path / "other.npz", images=np.zeros(3))
    with pytest.raises(ValueError, match="needs arr_0"):
        next(iter(find_images(tmp_path / "other.npz")))


def test_the_extractor_follows_the_images() -> None:
    assert build_extractor(ImageEvaluation(), 8, 1).name == "digits-cnn"
    assert build_extractor(ImageEvaluation(extractor="random-conv"), 16, 3).name.startswith("random-conv")
    assert build_extractor(ImageEvaluation(extractor="pixels"), 16, 3).dim == 3 * 16 * 16
    with pytest.raises(ValueError, match="extractor=clip needs weights"):
        build_extractor(ImageEvaluation(extractor="clip"), 32, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ("fid",)}, r"metrics=\['fid'\]: choose some of fd"),
        ({"metrics": ()}, r"metrics=\[\]"),
        ({"extractor": "vgg"}, "extractor='vgg': choose one of auto"),
        ({"n_samples": 1}, "n_samples=1: must be at least 2"),
        ({"batch_size": 0}, "batch_size=0: must be at least 1"),
        ({"num_inference_steps": 0}, "num_inference_steps=0: must be at least 1, or null"),
        ({"max_features": 1}, "max_features=1: must be at least 2, or null"),
    ],
)
def test_bad_settings_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageEvaluation(**options)

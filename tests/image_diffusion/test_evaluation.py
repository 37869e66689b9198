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
        assert "labels" not in record.run
    assert values[0] == pytest.approx(values[1], rel=1e-2)
    assert "fd_pixels_90" in measurement_table(measured)
    assert "compare at equal n only" in measurement_table(measured)


def test_labels_of_a_measured_set_are_as_frequent_as_in_the_training_data(monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_images(ImageSource("digits", format="digits", flip=False))
    assert data.labels is not None
    few = torch.cat([(data.labels == 0).nonzero()[:20, 0], (data.labels == 1).nonzero()[:140, 0]])
    assert data.images is not None
    data.images, data.labels, data.n_classes, data._n = data.images[few], data.labels[few], 2, len(few)
    data.source["pixels_hash"] = None
    counts = data.class_counts()
    assert counts == [20, 140]
    config = ImageEvaluation(("fd",), 400, "pixels", batch_size=150)
    extractor = build_extractor(config, 8, 1)
    reference = data_reference(data, extractor, config, progress=False)

    def measured(class_counts: list[int] | None) -> tuple[float, dict, dict[int, int]]:
        """Distance, record and labels by seed of a model that draws exactly the data of each class."""
        model = PixelModel(8, 1, UNET, {"name": "flow_matching"}, n_classes=2, class_counts=class_counts)
        drawn: dict[int, int] = {}

        def sample(seeds: list[int], labels: list[int] | None = None, **options: object) -> torch.Tensor:
            labels = model.seed_labels(seeds) if labels is None else labels
            assert labels is not None
            drawn.update(zip(seeds, labels, strict=True))
            first = {0: 0, 1: 20}
            return torch.stack([data.images[first[c] + s % counts[c]] for s, c in zip(seeds, labels, strict=True)])

        monkeypatch.setattr(model, "sample", sample)
        found = evaluate_model(model, reference, extractor, config, progress=False)["fd_pixels_400"]
        return found.value, dict(found.record.run), drawn

    distance, record, drawn = measured(counts)
    assert sum(drawn.values()) == 350
    assert record["labels"] == "as frequent as in the training data"
    unknown, record, drawn = measured(None)  # a model of an earlier version
    assert drawn == {seed: seed % 2 for seed in range(1_000_000, 1_000_400)}
    assert record["labels"] == "all in turn"
    assert unknown > 20 * distance


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
        ({"seed": -1}, "seed=-1: must be an integer of at least 0, and with the 1999 that follow it below"),
        ({"seed": 2**32 - 5, "n_samples": 6}, "seed=4294967291: must be .* with the 5 that follow it below 2"),
        ({"seed": None}, "seed=None: must be an integer"),
    ],
)
def test_bad_settings_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageEvaluation(**options)

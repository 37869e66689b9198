"""Perturbed noise: distances against closed forms of networks whose images are known functions of the noise."""

import json
import math

import numpy as np
import pytest
import torch

from image_diffusion.analysis.perturbation import (
    Perturbation,
    PerturbedImages,
    _perturbations,
    distances,
    perturbation_stability,
    perturbed_images,
)
from image_diffusion.metrics import DigitsCnn, Pixels

PIXELS = Pixels((1, 2, 2))
SEEDS = list(range(40))


@pytest.mark.parametrize("mixing", ["added", "normalised"])
def test_distances_are_those_of_the_noises_where_images_are_the_noises(toys, mixing: str) -> None:
    """Images 0.25 n: RMSE = 0.125 |n_W - n| / sqrt(4), up to rounding to bytes and clipping of nothing."""
    model = toys.image_model(toys.Straight(0.25))
    settings = Perturbation((0.0, 0.3, 1.0), n_draws=50, mixing=mixing)
    result = perturbation_stability({"a": [model]}, SEEDS, PIXELS, settings)
    table = result.values["pixel_rmse"]["a"][0]
    assert table.shape == (4, 40)
    assert np.array_equal(table[0], np.zeros(40))
    rms = math.sqrt(2) * math.gamma(2.5) / math.gamma(2.0) / 2  # E |n'| / sqrt(4)
    for weight, measured in zip(settings.weights[1:], table[1:], strict=False):
        norm = 1.0 if mixing == "added" else math.sqrt(1 + weight**2)
        spread = math.hypot(1 - 1 / norm, weight / norm)
        assert measured.mean() == pytest.approx(0.125 * spread * rms, rel=0.04)
    assert table[3].mean() == pytest.approx(0.125 * math.sqrt(2) * rms, rel=0.15)


def test_an_image_that_ignores_its_noise_is_stable_under_any_perturbation(toys) -> None:
    models = {"constant": [toys.image_model(toys.Straight(0.0, 0.5))], "noise": [toys.image_model(toys.Straight(0.3))]}
    result = perturbation_stability(models, SEEDS[:5], PIXELS, Perturbation((3.0,), n_draws=3))
    assert not result.values["pixel_rmse"]["constant"][0].any()
    assert not result.values["feature_distance"]["constant"][0].any()
    difference = result.comparisons("pixel_rmse")[0]["noise"].difference
    assert difference is not None
    assert difference.low > 0


def test_perturbations_are_the_same_for_all_models_weights_and_batches(toys) -> None:
    model = toys.image_model(toys.Straight(0.1))
    drawn = [
        perturbed_images(model, SEEDS[:7], Perturbation((0.1, 0.2), 4, batch_size=size)).perturbed for size in (3, 250)
    ]
    assert torch.equal(*drawn)
    assert drawn[0].shape == (2, 7, 4, 1, 2, 2)
    moved = (drawn[0].float() - perturbed_images(model, SEEDS[:7], Perturbation()).original[None, :, None]).flatten()
    first, second = moved.view(2, -1)
    assert float((2 * first - second).abs().max()) <= 2.0  # bytes are rounded
    assert len(drawn[0][1].flatten(2).unique(dim=1)[0]) == 4  # draws differ


@pytest.mark.parametrize("shape", [(1, 2, 2), (1, 8, 8), (3, 16, 16)])
@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_perturbations_are_independent_of_the_noise(shape: tuple[int, int, int], seed: int) -> None:
    """Also of what a sampler draws after it, from the same generator."""
    own = torch.randn((40, *shape), generator=torch.Generator().manual_seed(seed)).flatten(1)
    perturbations = _perturbations(seed, torch.Size(shape), 40).flatten(1)
    correlation = torch.nn.functional.normalize(own) @ torch.nn.functional.normalize(perturbations).T
    n = own.shape[1]
    assert float(correlation.mean()) == pytest.approx(0.0, abs=5 / 40 / math.sqrt(n))
    assert float(correlation.square().mean()) * n == pytest.approx(1.0, abs=0.25)


def test_labels_stay_with_their_images(toys) -> None:
    class Label(toys.Straight):
        def forward(self, noisy, time, condition=None):
            return noisy - condition.view(-1, 1, 1, 1) / 4

    model = toys.image_model(Label(0.0), n_classes=3)
    images = perturbed_images(model, [1, 2, 3], Perturbation((0.5,), 2), labels=[2, 0, 1])
    expected = torch.tensor([191, 128, 159], dtype=torch.uint8)
    assert torch.equal(images.original[:, 0, 0, 0], expected)
    assert torch.equal(images.perturbed[0, :, :, 0, 0, 0], expected[:, None].expand(3, 2))
    default = perturbed_images(model, [1, 2, 3], Perturbation((0.5,), 2))
    assert default.perturbed[0, :, 1, 0, 0, 0].tolist() == [159, 191, 128]  # by seed


def test_samplers_own_draws_are_shared(toys) -> None:
    """With an ancestral sampler an unperturbed noise gives the same image, although the sampler draws."""
    torch.manual_seed(0)
    model = toys.image_model(objective={"name": "ddpm", "num_train_timesteps": 8, "sampler": "ddpm"})
    images = perturbed_images(model, [3, 4], Perturbation((0.0,), 2, num_inference_steps=8))
    assert torch.equal(images.original, model.sample([3, 4], None, 8))
    assert torch.equal(images.perturbed[0], images.original[:, None].expand(-1, 2, -1, -1, -1))


class Threshold:
    """Features and classes of the mean pixel."""

    name, dim, canonical, weights_sha256, resize = "threshold", 1, False, None, "none"

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean((1, 2, 3))[:, None]

    def classify(self, images: torch.Tensor) -> torch.Tensor:
        return (self(images)[:, 0] > 100).long()


def test_kept_class_and_unrelated_images() -> None:
    original = torch.tensor([50, 150, 200], dtype=torch.uint8).view(3, 1, 1, 1)
    perturbed = torch.tensor([[60, 110], [150, 150], [90, 10]], dtype=torch.uint8).view(1, 3, 2, 1, 1, 1)
    table = distances(PerturbedImages(original, perturbed), Threshold(), batch_size=2)
    assert table["kept_class"].tolist() == [[0.5, 1.0, 0.0], [0.0, 1.0, 0.0]]
    assert table["feature_distance"].tolist() == [[35.0, 0.0, 150.0], [100.0, 50.0, 150.0]]
    assert table["pixel_rmse"] * 255 == pytest.approx(table["feature_distance"])


def test_tables_and_json_say_what_was_done(toys) -> None:
    models = {"none": [toys.image_model(toys.Straight(0.2))], "knn": [toys.image_model(toys.Straight(0.1))]}
    result = perturbation_stability(models, [0, 1, 2], PIXELS, Perturbation((0.1, 0.25), 2, "normalised"))
    content = json.loads(json.dumps(result.to_json()))
    assert list(content["rows"]["pixel_rmse"]) == ["10%", "25%", "unrelated"]
    assert content["settings"]["mixing"] == "normalised"
    assert np.shape(content["values"]["pixel_rmse"]["knn"]["0"]) == (3, 3)
    text = result.markdown()
    assert "(n + W n') / sqrt(1 + W²)" in text
    assert "kept class" not in text
    rows = [line for line in text.splitlines() if line.startswith("| 25% | `knn`")]
    assert len(rows) == 1
    assert rows[0].count("[") == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": ()}, "weights"),
        ({"weights": (-0.1,)}, "weights"),
        ({"weights": (math.nan,)}, "weights"),
        ({"n_draws": 0}, "n_draws"),
        ({"mixing": "both"}, "added, normalised"),
    ],
)
def test_bad_settings(options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Perturbation(**options)


def test_bad_seeds(toys) -> None:
    for seeds in ([1], [1, 1]):
        with pytest.raises(ValueError, match="seeds"):
            perturbation_stability({"a": [toys.image_model()]}, seeds, PIXELS)


def test_digits_cnn_classifies() -> None:
    """The extractor of the digits is one that `distances` asks for classes."""
    assert callable(DigitsCnn.classify)

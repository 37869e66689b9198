"""Distances at every call, against the closed form for a Gaussian whose optimal denoiser is known."""

import json
import math

import pytest
import torch

from image_diffusion.analysis.step_distance import step_distance
from image_diffusion.evaluation import ImageEvaluation, evaluate_model
from image_diffusion.metrics import Pixels, RandomConv, ReferenceStatistics, reference_statistics

STD = 0.3
PIXELS = Pixels((1, 2, 2))


@pytest.fixture(scope="module")
def reference() -> ReferenceStatistics:
    data = STD * torch.randn(20_000, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    images = data.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    return reference_statistics(images, PIXELS, "Gaussian", progress=False)


def test_distances_are_those_of_the_predictions_variances(toys, reference: ReferenceStatistics) -> None:
    """At s = 1 the prediction is the mean, at s it has the deviation (1 - s) STD^2 / sd(s); 4 pixels in [0, 1]."""
    steps = 100
    model = toys.image_model(toys.OptimalVelocity(0.0, STD), num_inference_steps=steps)
    config = ImageEvaluation(n_samples=4000, batch_size=1500)
    curves = step_distance({"a": [model]}, reference, PIXELS, config)
    assert curves.key == "fd_pixels_4000"
    assert curves.points == tuple(range(1, 101))
    for call in (0, 20, 50, 80, 99):
        s = 1 - call / steps
        predicted = (1 - s) * STD**2 / math.hypot((1 - s) * STD, s)
        measurement = curves.measurements["a"][0][call]
        assert measurement.value == pytest.approx(4 * ((STD - predicted) / 2) ** 2, rel=0.05, abs=2e-4)
        assert measurement.record.run["network_call"] == call + 1
        assert measurement.record.run["network_time"] == pytest.approx(1000 * s, rel=1e-5)
    first = curves.measurements["a"][0][0].record
    assert (first.n_generated, first.n_reference, first.reference) == (4000, 20_000, "Gaussian")


def test_arms_are_paired_by_training_seed_and_tables_written(toys, reference: ReferenceStatistics) -> None:
    models = {
        "good": {
            3: toys.image_model(toys.OptimalVelocity(0.0, STD)),
            4: toys.image_model(toys.OptimalVelocity(0.0, STD)),
        },
        "shifted": {4: toys.ddim_model(0.4, STD)},
    }
    curves = step_distance(models, reference, PIXELS, ImageEvaluation(n_samples=200, num_inference_steps=8))
    last = curves.comparisons()[-1]["shifted"]
    assert last.difference is not None
    # The other arm's training seeds 3 and 4 are equal networks over equal noises.
    assert curves.comparisons()[-1]["good"].mean.high == pytest.approx(curves.comparisons()[-1]["good"].mean.low)
    assert last.difference.mean == pytest.approx(last.mean.mean - curves.comparisons()[-1]["good"].mean.mean)
    assert last.mean.mean > 0.1
    content = json.loads(json.dumps(curves.to_json()))
    assert content["measurements"]["shifted"]["4"][7]["record"]["run"]["sampler"] == "ddim"
    assert content["measurements"]["shifted"]["4"][7]["record"]["run"]["training_seed"] == 4
    text = curves.markdown()
    assert "| network call: | training seeds | 1 | 2 |" in text
    assert text.count("| difference |") == 1
    assert "compare at equal n only" in text
    assert "| network call: | training seeds | 8 |" in curves.markdown([8])


@pytest.mark.parametrize(
    ("counts", "mix"), [([900, 100], "as frequent as in the training data"), (None, "all in turn")]
)
def test_labels_are_those_of_an_evaluation(toys, counts: list[int] | None, mix: str) -> None:
    """A network that draws its label, of which 9 in 10 are 0, is at no distance of such data."""

    class Told(toys.Straight):
        def forward(self, noisy, time, condition=None):
            data = 0.8 * (2.0 * condition - 1).view(-1, 1, 1, 1)
            return (noisy - data) / (time.view(-1, 1, 1, 1) / 1000)

    images = torch.full((1000, 1, 2, 2), 26, dtype=torch.uint8)
    images[900:] = 230
    data = reference_statistics(images, PIXELS, progress=False)
    model = toys.image_model(Told(0.0), n_classes=2, class_counts=counts, num_inference_steps=2)
    config = ImageEvaluation(n_samples=1000)
    (last,) = step_distance({"a": [model]}, data, PIXELS, config).measurements["a"][0][-1:]
    (whole,) = evaluate_model(model, data, PIXELS, config, progress=False).values()
    assert (last.value < 0.01) == (counts is not None)
    assert last.value == pytest.approx(whole.value, abs=1e-3)
    assert last.record.run["labels"] == whole.record.run["labels"] == mix


def test_distances_of_few_images_carry_an_evaluation_s_notes(toys, reference: ReferenceStatistics) -> None:
    model = toys.image_model(toys.OptimalVelocity(0.0, STD))
    with pytest.warns(UserWarning, match="4 images for the 4 dimensions of pixels: the covariance is singular"):
        curves = step_distance({"a": [model]}, reference, PIXELS, ImageEvaluation(n_samples=4))
    assert "the covariance is singular" in curves.markdown()


def test_predictions_with_nan_have_no_distance(toys, reference: ReferenceStatistics) -> None:
    class Broken(toys.Straight):
        def forward(self, noisy, time, condition=None):
            return torch.where(time.view(-1, 1, 1, 1) < 600, torch.nan, 0.5) * noisy

    model = toys.image_model(Broken(0.0), num_inference_steps=2)
    curves = step_distance({"a": [model]}, reference, PIXELS, ImageEvaluation(n_samples=50))
    values = [measurement.value for measurement in curves.measurements["a"][0]]
    assert math.isfinite(values[0])
    assert math.isnan(values[1])
    assert "n/a" in curves.markdown()
    json.dumps(curves.to_json(), allow_nan=True)


def test_what_cannot_be_measured_is_refused_before_any_work(toys, reference: ReferenceStatistics) -> None:
    model = toys.image_model(toys.Straight(0.1))
    with pytest.raises(ValueError, match="guidance_scale"):
        step_distance({"a": [model]}, reference, PIXELS, ImageEvaluation(guidance_scale=2.0))
    with pytest.raises(ValueError, match="random-conv"):
        step_distance({"a": [model]}, reference, RandomConv(1), ImageEvaluation())

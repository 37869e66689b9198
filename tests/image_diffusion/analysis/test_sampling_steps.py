"""Distances against sampling steps, with closed-form samplers."""

import pytest
import torch

from image_diffusion.analysis.sampling_steps import sampling_steps
from image_diffusion.evaluation import ImageEvaluation
from image_diffusion.metrics import Pixels, reference_statistics

STD = 0.3
PIXELS = Pixels((1, 2, 2))
CONFIG = ImageEvaluation(("fd", "kid"), n_samples=1500, batch_size=700)


@pytest.fixture(scope="module")
def reference():
    data = STD * torch.randn(10_000, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    return reference_statistics(data.add(1).mul(127.5).round().to(torch.uint8), PIXELS, "Gaussian", progress=False)


def test_distance_falls_with_the_steps_from_the_closed_form_of_one(toys, reference) -> None:
    """One Euler step ends at the mean: 4 (STD / 2)^2. A network that needs one step does not care."""
    models = {
        "curved": [toys.image_model(toys.OptimalVelocity(0.0, STD))] * 2,
        "one step": [toys.image_model(toys.Straight(STD))],
    }
    curves = sampling_steps(models, reference, PIXELS, CONFIG, (32, 4, 1), {"note": "x"}, progress=False)
    values = [m.value for m in curves.measurements["curved"][0]]
    assert curves.key == "fd_pixels_1500"
    assert values[2] == pytest.approx(STD**2, rel=0.03)
    assert values[0] < values[1] / 3 < values[2] / 3
    difference = curves.comparisons()[2]["one step"].difference
    assert difference is not None
    assert difference.mean == pytest.approx(-(STD**2), rel=0.03)
    run = curves.measurements["curved"][1][1].record.run
    assert (run["num_inference_steps"], run["training_seed"], run["arm"], run["note"]) == (4, 1, "curved", "x")
    assert "| sampling steps: | training seeds | 32 | 4 | 1 |" in curves.markdown()


def test_what_was_measured_is_not_measured_again(toys, reference) -> None:
    network = toys.Straight(STD)
    models = {"a": [toys.image_model(network)]}
    kept = {}
    first = sampling_steps(
        models,
        reference,
        PIXELS,
        CONFIG,
        (2, 3),
        on_measured=lambda *key, m=None: kept.update({key[:3]: key[3]}),
        progress=False,
    )
    assert set(kept) == {("a", 0, 2), ("a", 0, 3)}
    network.forward = None  # type: ignore[assignment]
    again = sampling_steps(models, reference, PIXELS, CONFIG, (2, 3), known=kept, progress=False)
    assert again == first


def test_steps_that_cannot_be_taken_are_refused(toys, reference) -> None:
    model = toys.ddim_model(0.0, STD)
    for steps, message in (((), "steps"), ((5, 5), "steps"), ((0,), "steps"), ((51, 5), "trained with 50 steps")):
        with pytest.raises(ValueError, match=message):
            sampling_steps({"a": [model]}, reference, PIXELS, CONFIG, steps)
    adaptive = toys.image_model(objective={"name": "flow_matching", "sampler": "adaptive"})
    with pytest.raises(ValueError, match="adaptive"):
        sampling_steps({"a": [adaptive]}, reference, PIXELS, CONFIG, (5,))

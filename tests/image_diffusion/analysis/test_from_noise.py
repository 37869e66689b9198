"""Drawing from a given noise is the model's own sampling."""

import pytest
import torch

from image_diffusion.analysis.from_noise import draw_from, start_noise


@pytest.mark.parametrize(
    "objective",
    [
        {"name": "flow_matching", "sampler": "heun"},
        {"name": "ddpm", "num_train_timesteps": 20, "sampler": "ddpm"},
        {"name": "consistency", "s0": 2, "s1": 8},
    ],
)
def test_images_are_those_of_the_seeds(toys, objective) -> None:
    """Also where the sampler draws on its own: ancestral, and consistency in several steps."""
    torch.manual_seed(0)
    model = toys.image_model(objective=objective, n_classes=3, num_inference_steps=4)
    seeds, labels = [4, 9, 2], [2, 0, 1]
    noise, generators = start_noise(model, seeds)
    assert torch.equal(draw_from(model, noise, generators, labels), model.sample(seeds, labels))
    noise, generators = start_noise(model, seeds)
    assert torch.equal(draw_from(model, noise, generators, None, 2), model.sample(seeds, None, 2))

"""LPIPS as a training distance, with a stand-in for the package that shows what it was given."""

import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from immiscible_policy.diffusion import Consistency
from immiscible_policy.diffusion.perceptual import _network, perceptual_distance


class StandIn(nn.Module):
    """Mean square difference, in LPIPS's form."""

    shapes: list[torch.Size]

    def __init__(self, net: str, verbose: bool) -> None:
        super().__init__()
        assert net == "vgg"
        StandIn.shapes = []

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        StandIn.shapes.append(a.shape)
        return (a - b).square().mean((1, 2, 3), keepdim=True)


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    module = ModuleType("lpips")
    module.LPIPS = StandIn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lpips", module)
    _network.cache_clear()
    yield
    _network.cache_clear()


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_compared_at_224_pixels_in_colour(channels: int) -> None:
    a = torch.full((5, channels, 8, 8), 0.5)
    distance = perceptual_distance(a, torch.zeros_like(a))
    assert StandIn.shapes == [torch.Size((5, 3, 224, 224))]
    torch.testing.assert_close(distance, torch.full((5,), 0.25))


@pytest.mark.usefixtures("package")
def test_consistency_training_takes_it_on_unscaled_images() -> None:
    data = torch.rand(4, 3, 8, 8) * 2 - 1
    noise, time = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])

    def network(noisy: Tensor, time: Tensor, condition: Tensor | None) -> Tensor:
        return torch.zeros_like(noisy)

    losses = {}
    for distance in ("lpips", "l2"):
        objective = Consistency(distance=distance, s0=4, s1=8, weighting="uniform", data_scale=2.0)
        losses[distance] = objective.loss(network, data, noise, time=time)
    # Enlarging by interpolation smooths; on images of 224 pixels the two are the same.
    assert 0 < losses["lpips"] < losses["l2"] / 4
    large, large_noise = data.repeat(1, 1, 28, 28), noise.repeat(1, 1, 28, 28)
    for distance in ("lpips", "l2"):
        objective = Consistency(distance=distance, s0=4, s1=8, weighting="uniform", data_scale=2.0)
        losses[distance] = objective.loss(network, large, large_noise, time=time)
    torch.testing.assert_close(4 * losses["lpips"], losses["l2"])  # data_scale squared


def test_without_the_package_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    _network.cache_clear()
    with pytest.raises(ValueError, match=r"distance=lpips needs the package lpips.*pseudo_huber or l2"):
        perceptual_distance(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))


def test_what_is_no_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"distance=lpips compares images .* got \(2, 16, 2\)"):
        perceptual_distance(torch.zeros(2, 16, 2), torch.zeros(2, 16, 2))

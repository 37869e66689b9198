"""Random convolutions: a function of the seed, for images of any size."""

import pytest
import torch

from image_diffusion.metrics.extractor import FeatureExtractor
from image_diffusion.metrics.random_conv import RandomConv

IMAGES = torch.randint(0, 256, (4, 3, 9, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_features_depend_on_the_seed_alone():
    first, again, other = RandomConv(), RandomConv(), RandomConv(seed=1)
    assert isinstance(first, FeatureExtractor)
    assert torch.equal(first(IMAGES), again(IMAGES))
    assert first.weights_sha256 == again.weights_sha256 != other.weights_sha256
    assert (first.name, other.name, first.canonical) == ("random-conv-0", "random-conv-1", False)
    assert not torch.allclose(first(IMAGES), other(IMAGES))


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (8, 8), (33, 17)])
def test_any_size_and_no_image_depends_on_its_neighbours(shape):
    images = torch.randint(0, 256, (3, 1, *shape), dtype=torch.uint8)
    extractor = RandomConv(channels=1)
    features = extractor(images)
    assert features.shape == (3, extractor.dim)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features[1:2], extractor(images[1:2]))


def test_variance_is_kept_through_the_layers():
    features = RandomConv()(IMAGES)
    first, last = features[:, :32].square().mean(), features[:, -128:].square().mean()
    assert 0.1 < float(last / first) < 10


def test_other_channels_are_refused():
    with pytest.raises(ValueError, match="channels must be 1 or 3, got 2"):
        RandomConv(2)
    with pytest.raises(ValueError, match="random-conv-0 takes images of 1 channels"):
        RandomConv(1)(IMAGES)

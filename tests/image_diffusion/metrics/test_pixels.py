"""Pixels as features."""

import pytest
import torch

from image_diffusion.metrics.extractor import FeatureExtractor
from image_diffusion.metrics.pixels import Pixels


def test_flattened_in_0_to_1():
    extractor = Pixels((3, 2, 2))
    assert isinstance(extractor, FeatureExtractor)
    assert (extractor.name, extractor.dim, extractor.canonical, extractor.weights_sha256) == ("pixels", 12, False, None)
    images = torch.randint(0, 256, (5, 3, 2, 2), dtype=torch.uint8)
    features = extractor(images)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features * 255, images.flatten(1).float())


def test_other_sizes_and_channels_are_refused():
    with pytest.raises(ValueError, match=r"compares images of \(1, 8, 8\), got \(1, 8, 9\)"):
        Pixels((1, 8, 8))(torch.zeros(1, 1, 8, 9, dtype=torch.uint8))
    with pytest.raises(ValueError, match="pixels takes images of 1 channels"):
        Pixels((1, 8, 8))(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="shape must be"):
        Pixels((0, 8, 8))


def test_images_whose_covariance_would_not_fit_are_refused():
    assert Pixels((1, 64, 64)).dim == 4096
    with pytest.raises(ValueError, match=r"at most 4,096 values, \(3, 256, 256\) have 196,608"):
        Pixels((3, 256, 256))

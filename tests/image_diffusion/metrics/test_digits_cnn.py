"""The digits network: the same twice, good at digits, kept in a file."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from image_diffusion.metrics.digits_cnn import DigitsCnn, train_digits_classifier
from image_diffusion.metrics.extractor import FeatureExtractor, tensors_sha256


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> DigitsCnn:
    return DigitsCnn(tmp_path_factory.mktemp("weights") / "deep" / "digits.safetensors")


def digits() -> tuple[torch.Tensor, np.ndarray]:
    data = load_digits()
    return torch.from_numpy(np.rint(data.images * 255 / 16).astype(np.uint8))[:, None], data.target


def test_training_anew_gives_the_same_network_and_leaves_generators_alone(kept, monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("GPUs were seeded"))
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    assert tensors_sha256(train_digits_classifier().state_dict().values()) == kept.weights_sha256
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_digits_are_recognized(kept):
    images, labels = digits()
    assert (kept.classify(images).numpy() == labels).mean() > 0.99


def test_features(kept):
    assert isinstance(kept, FeatureExtractor)
    images, _ = digits()
    features = kept(images[:10])
    assert features.shape == (10, kept.dim)
    assert features.dtype == torch.float32
    assert not features.requires_grad
    torch.testing.assert_close(features[3:4], kept(images[3:4]))
    with pytest.raises(ValueError, match="digits-cnn takes images of 8x8, got 9x8"):
        kept(torch.zeros(1, 1, 9, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="digits-cnn takes images of 1 channels"):
        kept(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


def test_kept_weights_are_used_and_broken_ones_named(tmp_path, monkeypatch, kept):
    from image_diffusion.metrics import digits_cnn

    monkeypatch.setattr(digits_cnn, "train_digits_classifier", lambda: kept._network)
    monkeypatch.setenv("IMMISCIBLE_WEIGHTS", str(tmp_path))
    assert DigitsCnn().weights_sha256 == kept.weights_sha256
    assert [path.name for path in tmp_path.iterdir()] == ["digits-cnn-v1.safetensors"]
    monkeypatch.setattr(digits_cnn, "train_digits_classifier", lambda: pytest.fail("trained again"))
    assert DigitsCnn().weights_sha256 == kept.weights_sha256
    (tmp_path / "digits-cnn-v1.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match="delete it to train anew"):
        DigitsCnn()


def test_features_have_the_scale_of_the_cubic_kernel(kept):
    assert float(kept(digits()[0]).square().mean()) == pytest.approx(1, rel=1e-4)

"""What every extractor refuses, and hashes."""

import hashlib

import pytest
import torch

from image_diffusion.metrics.extractor import as_rgb, check_images, tensors_sha256, weights_folder
from immiscible_policy.files import file_sha256


def test_uint8_batches_of_allowed_channels_pass():
    check_images(torch.zeros(2, 3, 4, 5, dtype=torch.uint8), (1, 3), "net")


def test_float_images_are_refused_with_the_way_out():
    with pytest.raises(TypeError, match=r"must be uint8 .*got torch.float32; from \[-1, 1\]: \(127.5 \* images"):
        check_images(torch.zeros(2, 3, 4, 4), (3,), "net")
    with pytest.raises(TypeError, match="got list"):
        check_images([1], (3,), "net")


@pytest.mark.parametrize("shape", [(3, 4, 4), (2, 4, 4, 3), (0, 3, 4, 4), (2, 2, 4, 4)])
def test_other_shapes_and_channels_are_refused(shape):
    with pytest.raises(ValueError, match=r"got (shape )?\("):
        check_images(torch.zeros(shape, dtype=torch.uint8), (1, 3), "net")


def test_greyscale_is_repeated():
    grey = torch.arange(4, dtype=torch.uint8).view(1, 1, 2, 2)
    assert torch.equal(as_rgb(grey), torch.cat([grey] * 3, 1))
    colour = torch.zeros(1, 3, 2, 2)
    assert as_rgb(colour) is colour


def test_hashes(tmp_path):
    (tmp_path / "file").write_bytes(b"weights")
    assert file_sha256(tmp_path / "file") == hashlib.sha256(b"weights").hexdigest()
    flat, square = torch.arange(4.0), torch.arange(4.0).view(2, 2)
    assert tensors_sha256([flat]) == tensors_sha256([flat.clone()])
    assert len({tensors_sha256(tensors) for tensors in ([flat], [square], [flat, flat], [flat + 1])}) == 4


def test_where_weights_are_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("IMMISCIBLE_WEIGHTS", raising=False)
    assert weights_folder() == tmp_path / "immiscible-policy" / "weights"
    monkeypatch.setenv("IMMISCIBLE_WEIGHTS", str(tmp_path / "mine"))
    assert weights_folder() == tmp_path / "mine"

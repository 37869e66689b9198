"""The canonical extractor with a stand-in of the same signature: where weights come from, and when it is canonical."""

import hashlib
from pathlib import Path

import pytest
import torch

from image_diffusion.metrics import inception as module
from image_diffusion.metrics.extractor import FeatureExtractor
from image_diffusion.metrics.inception import FILE, Inception
from immiscible_policy.download import DownloadError, HostError


class StandIn(torch.nn.Module):
    """2,048 features of uint8 colour images, only if they are asked for."""

    def forward(self, img: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        assert img.dtype == torch.uint8
        assert img.shape[1] == 3
        if not return_features:
            return img.float().mean((1, 2, 3))[:, None]
        return img.double().mean((2, 3)).repeat(1, 683)[:, :2048]


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "stand-in.pt"
    torch.jit.script(StandIn()).save(str(path))
    return path


@pytest.fixture(scope="module")
def digest(weights) -> str:
    return hashlib.sha256(weights.read_bytes()).hexdigest()


def test_features_of_a_local_file(weights, digest):
    extractor = Inception(weights, sha256=digest.upper())
    assert isinstance(extractor, FeatureExtractor)
    images = torch.randint(0, 256, (3, 3, 4, 4), dtype=torch.uint8)
    features = extractor(images)
    assert features.shape == (3, 2048)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features[:, :3], images.float().mean((2, 3)))
    grey = extractor(images[:, :1])
    torch.testing.assert_close(grey[:, :3], images[:, :1].float().mean((2, 3)).repeat(1, 3))
    with pytest.raises(TypeError, match="uint8"):
        extractor(images.float())


def test_only_the_published_weights_are_canonical(weights, digest, monkeypatch):
    other = Inception(weights, sha256=digest)
    assert other.weights_sha256 == digest
    assert not other.canonical
    monkeypatch.setattr(module, "SHA256", digest)
    assert Inception(weights, sha256=digest).canonical


def test_a_file_with_another_hash_is_not_run(weights, digest, monkeypatch):
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("it was run"))
    with pytest.raises(ValueError, match=f"has SHA-256 {digest}, expected {module.SHA256}; it was not loaded"):
        Inception(weights)


def test_downloaded_once_into_the_folder_of_weights(weights, digest, tmp_path, monkeypatch):
    monkeypatch.setenv("IMMISCIBLE_WEIGHTS", str(tmp_path / "cache"))
    Inception(url=weights.as_uri(), sha256=digest, progress=False)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [FILE]
    nowhere = (tmp_path / "nowhere").as_uri()
    assert Inception(url=nowhere, sha256=digest, progress=False).weights_sha256 == digest


def test_a_download_that_is_something_else_is_not_kept(weights, tmp_path, monkeypatch):
    monkeypatch.setenv("IMMISCIBLE_WEIGHTS", str(tmp_path))
    with pytest.raises(DownloadError, match=r"expected f58cb9b6.*By hand: fetch file://.* save it as"):
        Inception(url=weights.as_uri(), progress=False)
    assert not (tmp_path / FILE).exists()
    with pytest.raises(HostError, match="cannot download"):
        Inception(url=(tmp_path / "nowhere").as_uri(), progress=False)


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(ValueError, match=f"path must be {FILE}, there is no file at"):
        Inception(tmp_path / "absent.pt")
    (tmp_path / "text.pt").write_bytes(b"text")
    with pytest.raises(ValueError, match="cannot be loaded as TorchScript"):
        Inception(tmp_path / "text.pt", sha256=hashlib.sha256(b"text").hexdigest())


def test_the_pinned_hash_is_a_hash():
    assert len(bytes.fromhex(module.SHA256)) == 32

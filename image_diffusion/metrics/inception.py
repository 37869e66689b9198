"""The Inception network with which published distances are measured (Heusel et al. 2017), as TorchScript.

NVIDIA's translation of the 2015-12-05 TensorFlow graph, the one that StyleGAN, EDM and clean-fid's legacy mode use. It
resizes inside, as the graph does, so that no resizing library can change the result.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor

from image_diffusion.metrics.extractor import as_rgb, check_images, in_parts, weights_folder
from immiscible_policy.download import DownloadError, download
from immiscible_policy.files import file_sha256

FILE = "inception-2015-12-05.pt"
URL = f"https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/{FILE}"
# NVIDIA publishes no checksum. This is the one that k-diffusion (k_diffusion/evaluation.py) has pinned for this address
# since 2022, and that others have measured independently on their downloads (95,607,719 bytes).
SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"


class Inception:
    """Pool features of Inception-v3, as the TensorFlow graph gives them.

    Args:
        path: a copy of the TorchScript file. Without it ``$IMMISCIBLE_WEIGHTS/inception-2015-12-05.pt`` is used, or the
            same in the user's cache, and downloaded there (96 MB, once) if it is absent.
        url: where to download it from.
        sha256: expected hash. Another file than the canonical one has to be named by its own, and is not canonical.
        device: to compute on.
        progress: show the download's progress.

    Raises:
        ValueError: no file at ``path``, one with another hash (it is not run), or one that is no TorchScript.
        DownloadError: the host does not give the file; the message says how to place it by hand.
    """

    name = "inception"
    dim = 2048
    resize = "inside the network: bilinear to 299x299 as TensorFlow 1 does; greyscale repeated to 3 channels"

    def __init__(
        self,
        path: str | Path | None = None,
        url: str = URL,
        sha256: str = SHA256,
        device: str | torch.device = "cpu",
        progress: bool = True,
    ) -> None:
        file = _find(path, url, sha256, progress)
        self.weights_sha256 = file_sha256(file)
        if self.weights_sha256 != sha256.lower():
            raise ValueError(f"{file} has SHA-256 {self.weights_sha256}, expected {sha256.lower()}; it was not loaded")
        self.canonical = self.weights_sha256 == SHA256
        self.device = torch.device(device)
        try:
            with warnings.catch_warnings():
                # torch.jit.load announces its end; this file exists in no other form.
                warnings.simplefilter("ignore", DeprecationWarning)
                self._network = torch.jit.load(str(file), map_location=self.device).eval()
        except RuntimeError as error:
            raise ValueError(f"{file} cannot be loaded as TorchScript ({str(error).splitlines()[0]})") from error

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        check_images(images, (1, 3), self.name)
        features = in_parts(self._features, images, self.device)
        if features.shape != (len(images), self.dim):
            raise ValueError(
                f"the network must give features {(len(images), self.dim)}, it gave {tuple(features.shape)}"
            )
        return features.float()

    def _features(self, images: Tensor) -> Tensor:
        features: Tensor = self._network(as_rgb(images).to(self.device), return_features=True)
        return features


def _find(path: str | Path | None, url: str, sha256: str, progress: bool) -> Path:
    """The weights' file, downloaded if need be."""
    if path is not None:
        file = Path(path).expanduser()
        if not file.is_file():
            raise ValueError(f"path must be {FILE}, there is no file at {file} (without path it is downloaded)")
        return file
    file = weights_folder() / FILE
    try:
        return download(url, file, sha256, progress=progress)
    except DownloadError as error:
        raise type(error)(f"{error}. By hand: fetch {url} on any machine and save it as {file}") from error

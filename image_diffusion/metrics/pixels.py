"""The pixels themselves as features: for tiny images, where nothing else is at hand."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from image_diffusion.metrics.extractor import check_images


@dataclass(frozen=True)
class Pixels:
    """Flattened images, in [0, 1].

    The Frechet distance in this space sees means and covariances of pixels only, hence no objects: useful for images of
    some 8x8 pixels, and as a first check.

    Args:
        shape: (C, H, W) of every image.
    """

    shape: tuple[int, int, int]

    name = "pixels"
    canonical = False
    weights_sha256 = None
    resize = "none: all images must have the given size"

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError(f"shape must be (channels, height, width), each at least 1, got {tuple(self.shape)}")

    @property
    def dim(self) -> int:
        channels, height, width = self.shape
        return channels * height * width

    def __call__(self, images: Tensor) -> Tensor:
        check_images(images, (self.shape[0],), self.name)
        if tuple(images.shape[1:]) != tuple(self.shape):
            raise ValueError(f"pixels compares images of {tuple(self.shape)}, got {tuple(images.shape[1:])}")
        return images.flatten(1).float().div_(255.0)

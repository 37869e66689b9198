"""The pixels themselves as features: for tiny images, where nothing else is at hand."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from image_diffusion.metrics.extractor import check_images

# A Frechet distance takes some dim^2 numbers of memory and dim^3 of time: 0.4 GB and minutes at this one.
MAX_DIM = 4_096


@dataclass(frozen=True)
class Pixels:
    """Flattened images, in [0, 1].

    The Frechet distance in this space sees means and covariances of pixels only, hence no objects: useful for images of
    some 8x8 pixels, and as a first check.

    Args:
        shape: (C, H, W) of every image, of at most 4,096 values: 64x64 grey, 36x36 in colour.

    Raises:
        ValueError: another shape.
    """

    shape: tuple[int, int, int]

    name = "pixels"
    canonical = False
    weights_sha256 = None
    resize = "none: all images must have the given size"

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError(f"shape must be (channels, height, width), each at least 1, got {tuple(self.shape)}")
        if self.dim > MAX_DIM:
            raise ValueError(
                f"extractor=pixels is for images of at most {MAX_DIM:,} values, {tuple(self.shape)} have {self.dim:,}, "
                "whose covariances do not fit: choose another extractor, such as efficientnet-lite0"
            )

    @property
    def dim(self) -> int:
        channels, height, width = self.shape
        return channels * height * width

    def __call__(self, images: Tensor) -> Tensor:
        check_images(images, (self.shape[0],), self.name)
        if tuple(images.shape[1:]) != tuple(self.shape):
            raise ValueError(f"pixels compares images of {tuple(self.shape)}, got {tuple(images.shape[1:])}")
        return images.flatten(1).float().div_(255.0)

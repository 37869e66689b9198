"""An encoded image as (C, H, W) bytes: orientation, colour, crop, size. Pillow does the work."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from image_diffusion.data.raw import Encoded
from image_diffusion.data.source import CorruptImageError, ImageDataError

GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N", "F"})
_FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "box": Image.Resampling.BOX,
}


def open_image(encoded: Encoded) -> Image.Image:
    """The whole image, turned as its EXIF orientation says.

    Raises:
        CorruptImageError: it cannot be decoded.
    """
    if isinstance(encoded, np.ndarray):
        return Image.fromarray(encoded)
    if encoded == b"":
        raise CorruptImageError("no image")
    try:
        with Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded) as image:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return image
    except MemoryError:
        raise
    except UnidentifiedImageError as error:  # its text is an address in memory
        raise CorruptImageError("not an image") from error
    except Exception as error:  # broken files raise nearly anything: OSError, SyntaxError, struct.error, ...
        raise CorruptImageError(f"not a readable image ({' '.join(str(error).split())})") from error


def with_channels(image: Image.Image, channels: int) -> Image.Image:
    """Mode L (``channels`` 1: L = 0.299 R + 0.587 G + 0.114 B) or RGB (3: grey in all three), transparency over white.

    Of 16 bits the upper 8 are kept.

    Raises:
        ImageDataError: pixels of floating point, which have no known range.
    """
    if image.mode == "F":
        raise ImageDataError("floating-point pixels: save the image with 8 or 16 bits")
    if image.mode in GREY_MODES and image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if channels == 1 else "RGB")


def crop_box(width: int, height: int, crop: str | int | None) -> tuple[int, int, int, int]:
    """Left, upper, right and lower edge of what ``crop`` leaves; of an odd margin the upper left gets the smaller half.

    Raises:
        ImageDataError: an image smaller than the crop.
    """
    if crop is None:
        return 0, 0, width, height
    side = min(width, height) if crop == "center" else int(crop)
    if side > min(width, height):
        raise ImageDataError(f"{width}x{height}, which is smaller than crop={crop}")
    left, upper = (width - side) // 2, (height - side) // 2
    return left, upper, left + side, upper + side


class Decoder:
    """Encoded image -> (C, size, size) uint8; the same for the same input, whoever asks.

    Args:
        size: height and width of the result.
        channels, crop, resize_filter: see ``ImageSource``.
        resize: False takes only images that have the size already.
        strict_grey: with one channel, refuse images with colour instead of making them grey.
    """

    def __init__(
        self,
        size: int,
        channels: int,
        crop: str | int | None = "center",
        resize_filter: str = "bicubic",
        resize: bool = True,
        strict_grey: bool = False,
    ) -> None:
        self.size, self.channels, self.crop, self.resize_filter = size, channels, crop, resize_filter
        self.resize, self.strict_grey = resize, strict_grey
        self.enlarged = False  # told already

    def __call__(self, encoded: Encoded) -> np.ndarray:
        """Decode one image.

        Raises:
            CorruptImageError: it cannot be decoded. ImageDataError: it does not suit the settings.
        """
        image = open_image(encoded)
        if self.strict_grey and image.mode not in GREY_MODES:
            raise ImageDataError("has colour, though the images looked at to choose channels are grey: set channels")
        image = with_channels(image, self.channels)
        left, upper, right, lower = box = crop_box(*image.size, self.crop)
        found, wanted = (right - left, lower - upper), (self.size, self.size)
        if found != image.size:
            image = image.crop(box)
        if found != wanted:
            self._check_resizing(found)
            image = image.resize(wanted, _FILTERS[self.resize_filter])
        pixels = np.asarray(image)
        return pixels[None] if self.channels == 1 else pixels.transpose(2, 0, 1)

    def _check_resizing(self, found: tuple[int, int]) -> None:
        shape, wanted = f"{found[0]}x{found[1]}", f"{self.size}x{self.size}"
        if not self.resize:
            raise ImageDataError(
                f"{shape}, where the first image is {wanted}: set image_size (and crop) to make them alike"
            )
        if min(found) < self.size and not self.enlarged:
            self.enlarged = True
            warnings.warn(f"images are enlarged: one of {shape} to image_size={self.size}", stacklevel=2)

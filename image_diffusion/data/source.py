"""What to read and how: the settings of a data set of images, and its errors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from immiscible_policy.checks import is_integer

FORMATS = ("huggingface", "folder", "digits")
RESIZE_FILTERS = ("bicubic", "lanczos", "bilinear", "hamming", "box")
AUTO = "auto"


class ImageDataError(ValueError):
    """Data or settings that cannot be used; one line that says what to change."""


class CorruptImageError(ImageDataError):
    """An image that cannot be decoded."""


@dataclass(frozen=True)
class ImageSource:
    """Settings of ``load_images``, field by field those of ``configs/dataset/*.yaml``.

    Args:
        name: what records and errors call the data.
        format: huggingface: a data set of the Hub or a folder in its layout (parquet files, ...), through ``datasets``
            | folder: image files | digits: scikit-learn's 1,797 digits of 8x8.
        id: of the Hub (``uoft-cs/cifar10``). path: a folder, taken in place of the Hub's.
        config_name, revision: of a data set of the Hub that has several.
        split: which part, by the data set's own name. test_split: its part for testing (see ``for_test``), or None.
        image_column: None takes the first column of images.
        label_column: a column of class labels, integers or strings | auto: ``label``, where there is one (``folder``:
            the subfolders, or ``label`` in the metadata) | None: no classes.
        caption_column: a column of strings or of lists of strings | auto: ``caption``, ``captions`` or ``text``, where
            there is one (``folder``: ``text`` in the metadata, or .txt files beside the images) | None: no captions.
        class_names: in the order of the labels, where the data has none; for string labels, their order.
        image_size: height and width in pixels; None: as they are, all alike and square.
        crop: center: the largest square in the middle | so many pixels, of the middle | None: nothing, so that other
            shapes are squeezed to a square.
        resize_filter: bicubic | lanczos | bilinear | hamming | box: Pillow's, with antialiasing, its support widened by
            the scale. Bicubic is what clean-fid (Parmar et al., 2022) resizes with.
        channels: 1 (grey, ITU-R 601 luma) | 3 (RGB) | None: 1 if the images are grey, else 3. Transparent images are
            laid over white.
        flip: whether training should mirror images at random. A record only: ``batch`` never flips.
        max_items: use so many images, evenly spaced over the split; None: all.
        memory_limit: GiB of decoded images that may be held in memory; larger sets are decoded as they are asked for.
        on_corrupt: error | skip: leave out images that cannot be decoded (a larger set is decoded once to find them).
        decode_threads: None takes the available cores, at most 8.

    Raises:
        ImageDataError: a value that is not allowed.
    """

    name: str
    format: str = "huggingface"
    id: str | None = None
    path: str | None = None
    config_name: str | None = None
    revision: str | None = None
    split: str = "train"
    test_split: str | None = "test"
    image_column: str | None = None
    label_column: str | None = AUTO
    caption_column: str | None = AUTO
    class_names: Sequence[str] | None = None
    image_size: int | None = None
    crop: str | int | None = "center"
    resize_filter: str = "bicubic"
    channels: int | None = None
    flip: bool = True
    max_items: int | None = None
    memory_limit: float = 2.0
    on_corrupt: str = "error"
    decode_threads: int | None = None

    def __post_init__(self) -> None:
        self._check("format", self.format in FORMATS, f"choose one of {', '.join(FORMATS)}")
        self._check("split", isinstance(self.split, str) and self.split, "must be a name")
        for field in ("image_size", "max_items", "decode_threads"):
            self._check(field, _optional_count(getattr(self, field)), "must be an integer of at least 1, or null")
        crop_allowed = self.crop == "center" or _optional_count(self.crop)
        self._check("crop", crop_allowed, "choose center, a number of pixels of at least 1, or null")
        filters = ", ".join(RESIZE_FILTERS)
        self._check("resize_filter", self.resize_filter in RESIZE_FILTERS, f"choose one of {filters}")
        channels_allowed = self.channels is None or (is_integer(self.channels) and self.channels in (1, 3))
        self._check("channels", channels_allowed, "choose 1 (grey), 3 (RGB), or null")
        number = isinstance(self.memory_limit, int | float) and not isinstance(self.memory_limit, bool)
        self._check("memory_limit", number and self.memory_limit >= 0, "must be a number of GiB, 0 or more")
        self._check("on_corrupt", self.on_corrupt in ("error", "skip"), "choose error or skip")
        self._check("flip", isinstance(self.flip, bool), "choose true or false")
        if self.class_names is not None:
            names = isinstance(self.class_names, list | tuple) and all(isinstance(n, str) for n in self.class_names)
            self._check("class_names", names and len(set(self.class_names)), "must be a list of names, or null")
            self._check("class_names", len(set(self.class_names)) == len(self.class_names), "must differ")
            object.__setattr__(self, "class_names", tuple(self.class_names))
        if self.format == "folder" and self.path is None:
            raise ImageDataError("format=folder needs path, a folder of images: dataset.path=...")
        if self.format == "huggingface" and self.path is None and self.id is None:
            raise ImageDataError(
                "neither id nor path is set: give a data set of the Hugging Face Hub (dataset.id=ylecun/mnist) or a "
                "folder in its layout (dataset.path=...)"
            )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ImageSource:
        """The settings in a mapping.

        Raises:
            ImageDataError: an unknown name, answered with those that exist, or no ``name``.
        """
        fields = [field.name for field in dataclasses.fields(cls)]
        unknown = [key for key in config if key not in fields]
        if unknown:
            raise ImageDataError(
                f"unknown setting {unknown[0]!r} of a data set of images: choose from {', '.join(fields)}"
            )
        if not config.get("name"):
            raise ImageDataError("a data set of images needs a name")
        return cls(**config)

    def for_test(self) -> ImageSource:
        """The same data set's ``test_split``, with nothing left out.

        Raises:
            ImageDataError: there is none.
        """
        if self.test_split is None:
            raise ImageDataError(f"{self.name} has no split for testing: set test_split")
        return dataclasses.replace(self, split=self.test_split, max_items=None)

    def _check(self, field: str, allowed: object, rule: str) -> None:
        if not allowed:
            raise ImageDataError(f"{field}={getattr(self, field)!r}: {rule}")


def _optional_count(value: Any) -> bool:
    return value is None or is_integer(value, 1)

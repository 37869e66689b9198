"""scikit-learn's handwritten digits: 1,797 grey images of 8x8 that need no download."""

from __future__ import annotations

import numpy as np
import torch

from image_diffusion.data.labels import Labels
from image_diffusion.data.raw import RawImages, chosen_rows
from image_diffusion.data.source import ImageDataError, ImageSource

N_TEST = 297
SPLITS = ("train", "test", "all")


def read_digits(source: ImageSource) -> RawImages:
    """Read ``sklearn.datasets.load_digits``, its 17 shades spread over 0..255.

    The splits are ours (scikit-learn has none): 297 test images drawn by class with seed 0, the other 1,500 to train
    on, or ``all``; each in the order of the whole.

    Raises:
        ImageDataError: an unknown split, or columns, of which there are none.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    if source.split not in SPLITS:
        raise ImageDataError(f"split={source.split!r}: digits have {', '.join(SPLITS)}")
    for field in ("image_column", "label_column", "caption_column"):
        if getattr(source, field) not in (None, "auto"):
            raise ImageDataError(f"{field}={getattr(source, field)!r}: digits have no columns")
    data = load_digits()
    pixels = np.rint(data.images * (255 / 16)).astype(np.uint8)
    everything = np.arange(len(pixels))
    train, test = train_test_split(everything, test_size=N_TEST, stratify=data.target, random_state=0)
    members = {"train": np.sort(train), "test": np.sort(test), "all": everything}[source.split]
    rows = members[chosen_rows(len(members), source.max_items)]
    names = source.class_names or [str(name) for name in data.target_names]
    if len(names) != 10:
        raise ImageDataError(f"class_names: digits have 10 classes, got {len(names)} names")
    labels = None
    if source.label_column is not None:
        labels = Labels(torch.from_numpy(data.target[rows].astype(np.int64)), 10, tuple(names))
    return RawImages(
        rows=rows,
        read=lambda places: list(pixels[places]),
        describe=lambda place: f"digit {place}",
        labels=labels,
        captions=None,
        record={"package": "scikit-learn"},
    )

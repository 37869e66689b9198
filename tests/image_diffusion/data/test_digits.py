"""The digits: scikit-learn's, all of them, once."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from image_diffusion.data import ImageDataError, ImageSource, load_images


def digits(**settings):
    return load_images(ImageSource(name="digits", format="digits", **settings))


def test_the_splits_share_out_all_digits():
    everything, train, test = (digits(split=split) for split in ("all", "train", "test"))
    assert [len(data) for data in (everything, train, test)] == [1_797, 1_500, 297]
    original = load_digits()
    assert np.array_equal(everything.images[:, 0].numpy(), np.rint(original.images * 255 / 16))
    assert everything.labels.tolist() == original.target.tolist()
    assert (everything.image_size, everything.channels, everything.n_classes) == (8, 1, 10)
    assert everything.class_names == tuple("0123456789")

    def rows(data):
        return sorted(image.numpy().tobytes() for image in data.images)

    assert sorted(rows(train) + rows(test)) == rows(everything)
    assert test.labels.bincount().min() >= 28  # every class has its share


def test_the_content_is_pinned():
    data = digits()
    assert data.source["pixels_hash"].startswith("b484dcecb6edfc2d")
    assert data.source["content_hash"].startswith("8f581cbf2cae5365")
    assert digits(max_items=100).source["content_hash"] != data.source["content_hash"]


def test_digits_have_settings_like_other_images():
    with pytest.warns(UserWarning, match="one of 8x8 to image_size=16"):
        data = digits(image_size=16, channels=3, label_column=None, max_items=5, memory_limit=0)
    batch = data.batch(torch.arange(5))
    assert set(batch) == {"image"}
    assert batch["image"].shape == (5, 3, 16, 16)
    with pytest.raises(ImageDataError, match=r"split='valid': digits have train, test, all"):
        digits(split="valid")
    with pytest.raises(ImageDataError, match=r"caption_column='text': digits have no columns"):
        digits(caption_column="text")

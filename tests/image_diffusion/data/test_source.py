"""The settings: what they allow, and the files in configs/dataset."""

from dataclasses import fields, replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from image_diffusion.data import ImageDataError, ImageSource

CONFIGS = Path(__file__).resolve().parents[3] / "configs" / "dataset"
NAMES = ("celeba", "cifar10", "coco", "digits", "folder", "huggingface", "imagenet", "tiny_imagenet")


@pytest.mark.parametrize("name", NAMES)
def test_the_named_sets_are_settings(name):
    config = OmegaConf.load(CONFIGS / f"{name}.yaml")
    if name in ("folder", "huggingface"):
        config.path = "somewhere"
    source = ImageSource.from_config(OmegaConf.to_container(config, throw_on_missing=True))
    assert source.name == name
    assert source.split == "train"
    assert source.format == {"digits": "digits", "folder": "folder"}.get(name, "huggingface")
    if source.format == "huggingface":  # whatever can be set is there to be overridden
        assert set(config) == {field.name for field in fields(ImageSource)}
        assert name == "huggingface" or "/" in source.id


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "zip"}, "format='zip': choose one of huggingface, folder, digits"),
        ({"image_size": 0}, "image_size=0: must be an integer of at least 1, or null"),
        ({"image_size": 3.5}, "image_size=3.5: must be"),
        ({"max_items": True}, "max_items=True: must be"),
        ({"crop": "top"}, "crop='top': choose center, a number of pixels"),
        ({"crop": 0}, "crop=0: choose center"),
        ({"resize_filter": "nearest"}, "resize_filter='nearest': choose one of bicubic, lanczos"),
        ({"channels": 4}, r"channels=4: choose 1 \(grey\), 3 \(RGB\), or null"),
        ({"memory_limit": -1}, "memory_limit=-1: must be a number of GiB"),
        ({"on_corrupt": "ignore"}, "on_corrupt='ignore': choose error or skip"),
        ({"flip": "yes"}, "flip='yes': choose true or false"),
        ({"class_names": ["a", "a"]}, r"class_names=\['a', 'a'\]: must differ"),
        ({"class_names": "ab"}, "class_names='ab': must be a list of names"),
        ({"split": ""}, "split='': must be a name"),
        ({"format": "folder"}, "format=folder needs path"),
        ({"format": "huggingface"}, "neither id nor path is set"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ImageDataError, match=message):
        ImageSource(**{"name": "x", "format": "digits", **settings})


def test_unknown_settings_are_answered_with_those_that_exist():
    with pytest.raises(ImageDataError, match=r"unknown setting 'size' .*: choose from name, format, .*image_size"):
        ImageSource.from_config({"name": "x", "format": "digits", "size": 3})
    with pytest.raises(ImageDataError, match="needs a name"):
        ImageSource.from_config({"format": "digits"})


def test_the_data_for_testing_are_another_split():
    source = ImageSource(name="x", format="digits", test_split="valid", max_items=3)
    assert source.for_test() == replace(source, split="valid", max_items=None)
    with pytest.raises(ImageDataError, match="x has no split for testing: set test_split"):
        replace(source, test_split=None).for_test()

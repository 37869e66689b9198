"""Folders of images: order, classes, splits, captions, and what they lack."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from image_diffusion.data import CorruptImageError, ImageDataError, ImageSource, load_images


def folder(path, **settings):
    return load_images(ImageSource(name="mine", format="folder", path=str(path), **settings))


@pytest.fixture
def pets(tmp_path, write_image):
    """Two classes; names whose order differs between file systems, operating systems and sortings."""
    names = ["dog/b.png", "dog/a.PNG", "cat/10.png", "cat/9.jpg", "cat/deep/1.bmp", "cat/x.webp"]
    pixels = {name: write_image(tmp_path / "pets" / name, seed=number) for number, name in enumerate(names)}
    for hidden in (".cache/c.png", "cat/.d.png", "cat/notes.md"):
        (tmp_path / "pets" / hidden).parent.mkdir(exist_ok=True)
        (tmp_path / "pets" / hidden).write_bytes(b"no image")
    return tmp_path / "pets", pixels


def test_images_are_sorted_and_subfolders_are_classes(pets):
    path, pixels = pets
    data = folder(path)
    assert (len(data), data.image_size, data.channels, data.n_classes) == (6, 8, 3, 2)
    assert data.class_names == ("cat", "dog")
    assert data.labels.tolist() == [0, 0, 0, 0, 1, 1]
    order = ["cat/10.png", "cat/9.jpg", "cat/deep/1.bmp", "cat/x.webp", "dog/a.PNG", "dog/b.png"]
    images = data.batch(torch.arange(6))["image"]
    for number in (0, 2, 4, 5):  # the lossless ones
        assert np.array_equal(images[number].permute(1, 2, 0).numpy(), pixels[order[number]])
    assert data.captions is None
    assert folder(path).source == data.source
    assert data.source["path"] == str(path)


def test_without_labels_subfolders_are_only_folders(pets, write_image):
    path, _ = pets
    write_image(path / "stray.png")
    with pytest.raises(ImageDataError, match=r"stray.png lies beside class folders, in none of them"):
        folder(path)
    data = folder(path, label_column=None)
    assert (len(data), data.labels, data.n_classes, data.class_names) == (7, None, None, None)
    assert set(data.batch(torch.tensor([0]))) == {"image"}


def test_a_class_folder_without_images_is_named(pets):
    path, _ = pets
    (path / "bird").mkdir()
    with pytest.raises(ImageDataError, match=r"class folder .*bird holds no images"):
        folder(path)


def test_splits_are_folders_and_count_classes_alike(tmp_path, write_image):
    for name in ("train/a/1.png", "train/c/1.png", "test/b/1.png", "test/c/1.png"):
        write_image(tmp_path / name)
    train, test = folder(tmp_path), folder(tmp_path, split="test")
    assert (train.class_names, train.labels.tolist()) == (("a", "b", "c"), [0, 2])
    assert (test.class_names, test.labels.tolist()) == (("a", "b", "c"), [1, 2])
    with pytest.raises(ImageDataError, match=r"split='valid': .* has test, train"):
        folder(tmp_path, split="valid")
    with pytest.raises(ImageDataError, match=r"split='test': .* has train$"):
        folder(tmp_path / "train", split="test")


def test_captions_and_labels_from_metadata(tmp_path, write_image):
    for name in ("b.png", "a.png"):
        write_image(tmp_path / name)
    rows = [{"file_name": "b.png", "text": "bee", "label": "x"}, {"file_name": "a.png", "text": "ay", "label": "y"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = folder(tmp_path)
    assert (data.captions, data.labels.tolist(), data.class_names) == ([["ay"], ["bee"]], [1, 0], ("x", "y"))
    with pytest.raises(ImageDataError, match="has no column 'kind', it has file_name, label, text"):
        folder(tmp_path, label_column="kind")
    (tmp_path / "b.png").unlink()
    with pytest.raises(ImageDataError, match=r"lists b.png, which is not there or no image"):
        folder(tmp_path)


def test_max_items_are_spread_over_the_classes(tmp_path, write_image):
    for kind in "abc":
        for number in range(4):
            write_image(tmp_path / kind / f"{number}.png")
    data = folder(tmp_path, max_items=6)
    assert data.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.source["max_items"] == 6
    assert len(folder(tmp_path, max_items=100)) == 12


@pytest.mark.parametrize("memory_limit", [1.0, 0.0])
def test_corrupt_files_are_named_or_skipped(pets, memory_limit):
    path, pixels = pets
    (path / "cat" / "torn.png").write_bytes((path / "cat" / "10.png").read_bytes()[:100])
    (path / "dog" / "text.jpg").write_text("no image")
    lazy = {"memory_limit": memory_limit, "image_size": 8, "channels": 3}
    with pytest.raises(CorruptImageError, match=r"torn.png: not a"):
        folder(path, **lazy)
    with pytest.warns(UserWarning, match=r"2 of 8 images of mine skipped: .*torn.png, .*text.jpg$"):
        data = folder(path, on_corrupt="skip", **lazy)
    assert (len(data), data.labels.tolist()) == (6, [0, 0, 0, 0, 1, 1])
    assert (data.source["n"], data.source["n_skipped"]) == (6, 2)
    assert [name.rsplit("/")[-1] for name in data.source["skipped"]] == ["torn.png", "text.jpg"]
    assert np.array_equal(data.batch(torch.tensor([5]))["image"][0].permute(1, 2, 0), pixels["dog/b.png"])


def test_captions_stay_with_their_images_when_others_are_skipped(tmp_path, write_image):
    for name in "abc":
        write_image(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(f"the {name}")
    (tmp_path / "b.png").write_bytes(b"")
    with pytest.warns(UserWarning, match="1 of 3"):
        data = folder(tmp_path, on_corrupt="skip")
    assert data.captions == [["the a"], ["the c"]]


def test_channels_are_what_the_images_are(tmp_path, write_image):
    write_image(tmp_path / "a.png", channels=1)
    write_image(tmp_path / "b.png", channels=1)
    assert folder(tmp_path).channels == 1
    assert folder(tmp_path, channels=3).batch(torch.tensor([0]))["image"].shape == (1, 3, 8, 8)
    Image.new("RGBA", (8, 8)).save(tmp_path / "c.png")
    data = folder(tmp_path)
    assert data.channels == 3
    assert data.batch(torch.tensor([2]))["image"].eq(255).all()


def test_images_that_differ_need_a_size(tmp_path, write_image):
    write_image(tmp_path / "a.png", 8, 8)
    write_image(tmp_path / "b.png", 8, 12)
    assert folder(tmp_path).image_size == 8
    with pytest.raises(ImageDataError, match=r"b.png: 12x8, where the first image is 8x8: set image_size"):
        folder(tmp_path, crop=None)
    write_image(tmp_path / "a.png", 12, 8)
    with pytest.raises(ImageDataError, match=r"a.png: 8x12 is no square: set crop=center or image_size"):
        folder(tmp_path, crop=None)
    with pytest.raises(ImageDataError, match=r"a.png: 8x12, which is smaller than crop=10"):
        folder(tmp_path, crop=10)
    assert folder(tmp_path, crop=None, image_size=4).image_size == 4


def test_folders_that_hold_nothing(tmp_path):
    with pytest.raises(ImageDataError, match=r"absent: no such folder"):
        folder(tmp_path / "absent")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ImageDataError, match=r"holds no images \(.png, .jpg, .jpeg, .webp, .bmp\)"):
        folder(tmp_path)
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(CorruptImageError, match="none of the images of mine"):
        folder(tmp_path, on_corrupt="skip")
    with pytest.raises(CorruptImageError, match=r"none of the 1 images of mine can be decoded: .*a.png"):
        folder(tmp_path, on_corrupt="skip", image_size=8, channels=3)


def test_labels_of_the_metadata_come_before_subfolders(tmp_path, write_image):
    """As in Hugging Face's imagefolder, where pictures may lie in one folder for all."""
    rows = [{"file_name": f"images/{number}.png", "label": number % 3} for number in range(6)]
    for row in rows:
        write_image(tmp_path / row["file_name"])
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = folder(tmp_path)
    assert data.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert data.n_classes == 3


def test_integers_in_csv_are_numbers(tmp_path, write_image):
    """As text 10 sorts before 2."""
    labels = [0, 1, 2, 10, 9, 3]
    lines = [f"{number}.png,{label},7" for number, label in enumerate(labels)]
    for number in range(6):
        write_image(tmp_path / f"{number}.png")
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,label,text", *lines]))
    data = folder(tmp_path)
    assert data.labels.tolist() == labels
    assert (data.n_classes, data.class_names) == (11, None)
    assert data.captions == [["7"]] * 6

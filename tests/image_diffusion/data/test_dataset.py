"""What the training loop is given: batches, attributes, the record."""

import json

import torch

from image_diffusion.data import ImageSource, load_images


def digits(**settings):
    return load_images(ImageSource(name="digits", format="digits", **settings))


def test_batches_are_bytes_and_do_not_change():
    data = digits(flip=True)
    indices = torch.tensor([7, 3, 7])
    batch = data.batch(indices)
    assert (batch["image"].dtype, batch["label"].dtype) == (torch.uint8, torch.int64)
    assert batch["image"].shape == (3, 1, 8, 8)
    assert torch.equal(batch["image"][0], batch["image"][2])
    assert all(torch.equal(data.batch(indices)[key], batch[key]) for key in batch)
    batch["image"].zero_()
    assert data.batch(indices)["image"].any()  # a copy


def test_threads_do_not_change_what_is_decoded():
    alone, many = (digits(memory_limit=0, decode_threads=threads, max_items=101) for threads in (1, 4))
    indices = torch.randperm(101, generator=torch.Generator().manual_seed(0))
    assert torch.equal(alone.batch(indices)["image"], many.batch(indices)["image"])
    assert alone.source == many.source


def test_the_memory_limit_is_in_gib():
    bytes_needed = 100 * 64
    assert digits(max_items=100, memory_limit=bytes_needed / 2**30).images is not None
    assert digits(max_items=100, memory_limit=(bytes_needed - 1) / 2**30).images is None


def test_the_record_says_what_the_data_is():
    data = digits(flip=False, max_items=50)
    assert json.loads(json.dumps(data.source)) == data.source
    said = {key: data.source[key] for key in ("name", "split", "n", "image_size", "channels", "crop", "flip")}
    assert said == {
        "name": "digits",
        "split": "train",
        "n": 50,
        "image_size": 8,
        "channels": 1,
        "crop": "center",
        "flip": False,
    }
    assert data.flip is False


def test_the_hashes_see_pixels_labels_and_names(tmp_path, write_image):
    def record(**settings):
        return load_images(ImageSource(name="x", format="folder", path=str(tmp_path), **settings)).source

    write_image(tmp_path / "a" / "1.png", seed=1)
    write_image(tmp_path / "b" / "1.png", seed=2)
    first = record()
    assert record()["content_hash"] == first["content_hash"]
    unlabelled = record(label_column=None)
    assert unlabelled["content_hash"] != first["content_hash"]
    assert unlabelled["pixels_hash"] == first["pixels_hash"]
    for name in ("a", "b"):
        (tmp_path / name / "1.txt").write_text("text")
    assert record()["content_hash"] != first["content_hash"]
    assert record(caption_column=None) == first
    (tmp_path / "b").rename(tmp_path / "c")
    assert record(caption_column=None)["content_hash"] != first["content_hash"]
    write_image(tmp_path / "a" / "1.png", seed=3)
    assert record()["pixels_hash"] != first["pixels_hash"]


def test_the_content_hash_sees_labels_that_change_places(tmp_path, write_image):
    hashes = set()
    for number in "ab":
        write_image(tmp_path / f"{number}.png")
    for kinds in ("xy", "yx"):
        rows = [json.dumps({"file_name": f"{name}.png", "label": kind}) for name, kind in zip("ab", kinds, strict=True)]
        (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
        hashes.add(load_images(ImageSource(name="x", format="folder", path=str(tmp_path))).source["content_hash"])
    assert len(hashes) == 2


def test_moving_to_a_device_moves_the_tensors():
    data = digits(max_items=10)
    moved = data.to("meta")
    assert (moved.device.type, moved.images.device.type, moved.labels.device.type) == ("meta",) * 3
    lazy = digits(max_items=10, memory_limit=0).to("meta")
    assert lazy.device.type == lazy.labels.device.type == "cpu"

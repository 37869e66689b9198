"""Whether images are still those that a run began with."""

import json

import pytest

from image_diffusion.data import RUN_RECORD, ImageDataError, ImageSource, load_images, recorded_images

MESSAGE = "are no longer those that the run began with: "


def read(folder, began_with=None, **settings):
    source = ImageSource("x", format="folder", path=str(folder), label_column=None, **settings)
    return load_images(source, began_with).source


def test_images_that_changed_are_refused(tmp_path, write_image):
    for number in range(3):
        write_image(tmp_path / f"{number}.png", seed=number)
    began_with = json.loads(json.dumps(read(tmp_path)))
    assert read(tmp_path, began_with) == began_with
    write_image(tmp_path / "3.png", seed=3)
    with pytest.raises(ImageDataError, match=rf"the images at {tmp_path} {MESSAGE}n=4 \(began with 3\), content_hash="):
        read(tmp_path, began_with)
    with pytest.raises(ImageDataError, match=r"; restore them, or start a new run$"):
        read(tmp_path, began_with)
    (tmp_path / "3.png").unlink()
    write_image(tmp_path / "1.png", seed=9)
    with pytest.raises(ImageDataError, match=rf"{MESSAGE}content_hash=\w+ \(began with {began_with['content_hash']}\)"):
        read(tmp_path, began_with)
    with pytest.raises(ImageDataError, match=f"{MESSAGE}content_hash="):  # pixels that are not held have no hash
        read(tmp_path, began_with, memory_limit=0)
    assert read(tmp_path, {"name": "x", "n": 3})["n"] == 3  # a record of an earlier version says less


def test_a_run_s_record_is_that_of_its_start_or_else_its_summary(tmp_path):
    assert recorded_images(tmp_path) is None
    (tmp_path / "summary.json").write_text(json.dumps({"data": {"n": 3}}))
    assert recorded_images(tmp_path) == {"n": 3}
    (tmp_path / RUN_RECORD).write_text(json.dumps({"n": 4}))
    assert recorded_images(tmp_path) == {"n": 4}

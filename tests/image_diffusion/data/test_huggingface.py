"""Parquet folders in the layout of the Hub; the Hub itself only as far as it cannot be reached."""

import numpy as np
import pytest
import torch

from image_diffusion.data import CorruptImageError, ImageDataError, ImageSource, load_images


def read(path, **settings):
    return load_images(ImageSource(name="toy", path=str(path), **settings))


@pytest.fixture
def pictures(noise, encoded):
    """Pixels of some images, and the entries of a column that holds them."""

    def make(n: int, height: int = 8, width: int = 8, seed: int = 0):
        pixels = [noise(height, width, seed=seed + number) for number in range(n)]
        return pixels, [{"bytes": encoded(image), "path": f"{number}.png"} for number, image in enumerate(pixels)]

    return make


def test_class_labels_have_names_and_files_an_order(tmp_path, library, write_parquet, pictures):
    kinds = library.ClassLabel(names=["zebra", "ape"])
    features = library.Features({"img": library.Image(), "label": kinds, "other": library.Value("string")})
    everything = []
    for number in range(3):
        pixels, entries = pictures(2, seed=10 * number)
        everything += pixels
        columns = {"img": entries, "label": [1, number % 2], "other": ["x", "y"]}
        write_parquet(tmp_path / "data" / f"train-0000{number}-of-00003.parquet", columns, features)
    data = read(tmp_path)
    assert (len(data), data.image_size, data.channels) == (6, 8, 3)
    assert (data.n_classes, data.class_names, data.labels.tolist()) == (2, ("zebra", "ape"), [1, 0, 1, 1, 1, 0])
    assert np.array_equal(data.images.permute(0, 2, 3, 1).numpy(), np.stack(everything))
    columns = {name: data.source[f"{name}_column"] for name in ("image", "label", "caption")}
    assert columns == {"image": "img", "label": "label", "caption": None}
    named = read(tmp_path, class_names=["Zebra", "Ape"])
    assert (named.class_names, named.labels.tolist()) == (("Zebra", "Ape"), data.labels.tolist())
    with pytest.raises(ImageDataError, match="class_names: toy has 2 classes, got 1 names"):
        read(tmp_path, class_names=["Zebra"])


def test_plain_columns_splits_and_captions(tmp_path, write_parquet, pictures):
    (_, train), (_, test) = pictures(3), pictures(2, seed=5)
    texts = [["a", "b "], ["c"], ["d", None]]
    write_parquet(tmp_path / "train.parquet", {"image": train, "label": [0, 2, 1], "captions": texts})
    write_parquet(tmp_path / "test.parquet", {"image": test, "label": [0, 3], "captions": [["e"], []]})
    data = read(tmp_path)
    assert (data.n_classes, data.class_names, data.labels.tolist()) == (4, None, [0, 2, 1])
    assert data.captions == [["a", "b"], ["c"], ["d"]]
    assert read(tmp_path, max_items=2).captions == [["a", "b"], ["c"]]
    with pytest.raises(ImageDataError, match=r"toy, test row 1: column 'captions' holds no caption"):
        read(tmp_path, split="test")
    test_data = read(tmp_path, split="test", caption_column=None)
    assert (len(test_data), test_data.n_classes, test_data.captions) == (2, 4, None)
    with pytest.raises(ImageDataError, match=r"split='valid': toy has train, test"):
        read(tmp_path, split="valid")
    for field in ("image_column", "label_column", "caption_column"):
        with pytest.raises(ImageDataError, match=rf"{field}='x': the columns of toy are image, label, captions"):
            read(tmp_path, **{field: "x"})
    with pytest.raises(ImageDataError, match=r"image_column='label' of toy holds no images"):
        read(tmp_path, image_column="label")
    with pytest.raises(ImageDataError, match=r"label_column='captions' of toy must hold integers or strings"):
        read(tmp_path, label_column="captions")
    with pytest.raises(ImageDataError, match=r"caption_column='label' of toy must hold text"):
        read(tmp_path, caption_column="label")


def test_decoded_on_access_is_decoded_beforehand(tmp_path, write_parquet, pictures):
    """Also with rows that are skipped, and with sizes that differ."""
    entries = [entry for n, size in enumerate((9, 16, 30)) for entry in pictures(4, size, size + n, seed=n)[1]]
    entries[5] = {"bytes": b"broken", "path": None}
    write_parquet(tmp_path / "train.parquet", {"image": entries, "label": [f"class {n % 3}" for n in range(12)]})
    settings = {"image_size": 8, "channels": 3, "on_corrupt": "skip"}
    with pytest.warns(UserWarning, match="1 of 12 images of toy skipped: toy, train row 5$"):
        memory = read(tmp_path, **settings)
    with pytest.warns(UserWarning, match="1 of 12"):
        lazy = read(tmp_path, memory_limit=0, decode_threads=3, **settings)
    assert (memory.images is None, lazy.images is None, len(lazy)) == (False, True, 11)
    for indices in ([10, 0, 5, 5], [-1, -11], [], [4]):
        wanted = torch.tensor(indices, dtype=torch.int64)
        one, other = memory.batch(wanted), lazy.batch(wanted)
        assert one["image"].shape == (len(indices), 3, 8, 8)
        assert all(torch.equal(one[key], other[key]) for key in ("image", "label"))
    for data in (memory, lazy):
        with pytest.raises(IndexError):
            data.batch(torch.tensor([11]))
    same = {key for key in memory.source if memory.source[key] == lazy.source[key]}
    assert set(memory.source) - same == {"pixels_hash"}
    with pytest.raises(CorruptImageError, match="toy, train row 5: not an image"):
        read(tmp_path, memory_limit=0, image_size=8, channels=3)


def test_entries_without_bytes_are_files_or_missing(tmp_path, write_parquet, write_image):
    pixels = write_image(tmp_path / "elsewhere" / "a.png")
    entries = [{"bytes": None, "path": str(tmp_path / "elsewhere" / "a.png")}, {"bytes": None, "path": None}]
    write_parquet(tmp_path / "set" / "train.parquet", {"image": entries})
    with pytest.raises(CorruptImageError, match="toy, train row 1: no image"):
        read(tmp_path / "set")
    with pytest.warns(UserWarning, match="1 of 2"):
        data = read(tmp_path / "set", on_corrupt="skip")
    assert np.array_equal(data.images[0].permute(1, 2, 0).numpy(), pixels)


def test_the_working_directory_is_a_folder_too(tmp_path, write_parquet, pictures, monkeypatch):
    write_parquet(tmp_path / "train-0.parquet", {"image": pictures(2)[1]})
    monkeypatch.chdir(tmp_path)
    assert len(read(".")) == 2


def test_the_commit_that_hf_download_notes_is_recorded(tmp_path, write_parquet, pictures):
    write_parquet(tmp_path / "data" / "train.parquet", {"image": pictures(1)[1]})
    assert read(tmp_path).source["revision"] is None
    note = tmp_path / ".cache" / "huggingface" / "download" / "data" / "train.parquet.metadata"
    note.parent.mkdir(parents=True)
    note.write_text(f"{'0a' * 20}\netag\n1.0\n")
    assert read(tmp_path).source["revision"] == "0a" * 20


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no parquet", r"train-0.parquet cannot be read as parquet"),
        ({"image": [], "label": []}, r"train-0.parquet holds no rows"),
        ({"x": [1], "y": [2]}, r"toy has no column of images; its columns are x, y"),
        (None, r"no toy at .* get it with: hf download a/toy --repo-type dataset --local-dir .* dataset.path="),
    ],
)
def test_folders_that_cannot_be_used(tmp_path, write_parquet, content, message):
    if isinstance(content, bytes):
        (tmp_path / "train-0.parquet").write_bytes(content)
    elif content:
        write_parquet(tmp_path / "train-0.parquet", content)
    with pytest.raises(ImageDataError, match=message):
        read(tmp_path, id="a/toy")
    with pytest.raises(ImageDataError, match=r"no toy at .*absent: no such folder; .*hf download a/toy"):
        read(tmp_path / "absent", id="a/toy")


def test_a_hub_out_of_reach_is_answered_with_how_to_get_the_data(library, monkeypatch):
    monkeypatch.setattr(library.config, "HF_HUB_OFFLINE", True)
    expected = (
        r"cannot get nobody/toy from the Hugging Face Hub \(.+\); where there is a network, get it with: hf download "
    )
    expected += r"nobody/toy --repo-type dataset --local-dir data/toy \(and set dataset.path=data/toy\)$"
    with pytest.raises(ImageDataError, match=expected) as error:
        load_images(ImageSource(name="toy", id="nobody/toy"))
    assert "\n" not in str(error.value)

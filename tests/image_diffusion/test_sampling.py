"""Samples on disk: what the files hold, and that a killed call goes on."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from image_diffusion.model import PixelModel
from image_diffusion.sampling import grid_path, load_pictures, save_grid, save_samples

UNET = {
    "block_out_channels": [8],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"],
    "zero_init": False,
}


def model(channels: int = 3, **options: Any) -> PixelModel:
    torch.manual_seed(0)
    return PixelModel(4, channels, UNET, {"name": "flow_matching"}, num_inference_steps=2, **options).eval()


def seeds_asked_of(trained: PixelModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list to which every seed is added that the model draws from now on."""
    asked: list[int] = []
    sample = trained.sample

    def counted(seeds: list[int], **options: Any) -> torch.Tensor:
        asked.extend(seeds)
        return sample(seeds, **options)

    monkeypatch.setattr(trained, "sample", counted)
    return asked


@pytest.mark.parametrize("channels", [1, 3])
def test_files_hold_the_images_of_their_seeds(channels: int, tmp_path: Path) -> None:
    trained = model(channels)
    paths = save_samples(trained, [3, 11, 4], tmp_path / "png", batch_size=2, progress=False)
    assert [path.name for path in paths] == ["00000003.png", "00000011.png", "00000004.png"]
    images = load_pictures(paths)
    assert images.shape == (3, channels, 4, 4)
    assert int((images.int() - trained.sample([3, 11, 4]).int()).abs().max()) <= 1
    (path,) = save_samples(trained, [3, 11, 4], tmp_path / "npz", format="npz", batch_size=2, progress=False)
    with np.load(path) as content:
        assert content["seeds"].tolist() == [3, 11, 4]
        assert np.array_equal(content["arr_0"], images.permute(0, 2, 3, 1).numpy())
    assert sorted(p.name for p in path.parent.iterdir()) == ["samples.json", "samples.npz"]
    assert json.loads((tmp_path / "png" / "samples.json").read_text())["num_inference_steps"] == 2


def test_a_stopped_call_makes_only_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = model(n_classes=3)
    whole = load_pictures(save_samples(trained, range(6), tmp_path / "whole", progress=False))
    part = save_samples(trained, [0, 1, 2, 3], tmp_path / "part", progress=False)
    part[2].unlink()
    asked = seeds_asked_of(trained, monkeypatch)
    again = load_pictures(save_samples(trained, range(6), tmp_path / "part", progress=False))
    assert asked == [2, 4, 5]
    assert int((again.int() - whole.int()).abs().max()) <= 1


def test_an_npz_is_extended_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = model()
    asked = seeds_asked_of(trained, monkeypatch)

    def save(*seeds: int, name: str = "npz", **options: Any) -> tuple[np.ndarray, list[int], list[int]]:
        """Images and seeds of the file, and the seeds that were drawn for it."""
        asked.clear()
        (path,) = save_samples(trained, seeds, tmp_path / name, format="npz", progress=False, **options)
        with np.load(path) as content:
            return content["arr_0"], content["seeds"].tolist(), list(asked)

    first, seeds, drawn = save(7, 3)
    assert (seeds, drawn) == ([7, 3], [7, 3])
    more, seeds, drawn = save(3, 4, 7, 5)
    assert (seeds, drawn) == ([3, 4, 7, 5], [4, 5])
    assert np.array_equal(more[[2, 0]], first)
    assert np.abs(more.astype(int) - save(3, 4, 7, 5, name="whole")[0]).max() <= 1
    path = tmp_path / "npz" / "samples.npz"
    whole = path.read_bytes()
    assert save(3, 4, 7, 5)[2] == []
    turned, seeds, drawn = save(5, 7, 4, 3)
    assert (seeds, drawn) == ([5, 7, 4, 3], [])
    assert np.array_equal(turned, more[[3, 2, 1, 0]])

    path.write_bytes(whole)
    with pytest.raises(ValueError, match=r"samples\.npz holds 2 images of other seeds \(5 to 7\), which would be lost"):
        save(3, 4)
    with pytest.raises(ValueError, match="holds samples with another num_inference_steps"):
        save(3, 4, 5, 7, 8, num_inference_steps=3)
    monkeypatch.setattr(trained, "sample", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save(3, 4, 5, 7, 8)
    assert path.read_bytes() == whole
    np.savez(path, arr_0=more)
    with pytest.raises(ValueError, match=r"samples\.npz: no samples with their seeds"):
        save(3, 4)
    path.write_bytes(whole[:100])
    with pytest.raises(ValueError, match=r"samples\.npz: no samples with their seeds"):
        save(3, 4)


def test_labels_follow_the_seeds_wherever_a_call_begins(tmp_path: Path) -> None:
    trained = model(n_classes=3)
    whole = load_pictures(save_samples(trained, range(6), tmp_path / "whole", progress=False))
    expected = trained.sample(range(6), labels=[0, 1, 2, 0, 1, 2])
    assert int((whole.int() - expected.int()).abs().max()) <= 1
    assert int((whole[4].int() - trained.sample([4], labels=[0])[0].int()).abs().max()) > 1  # labels are to be seen
    save_samples(trained, [4], tmp_path / "part", progress=False)
    part = load_pictures(save_samples(trained, [1, 5, 4], tmp_path / "part", batch_size=2, progress=False))
    assert int((part.int() - whole[[1, 5, 4]].int()).abs().max()) <= 1
    assert json.loads((tmp_path / "part" / "samples.json").read_text())["labels_by_seed"] == "all in turn"

    given = load_pictures(save_samples(trained, [5, 4], tmp_path / "given", labels_in_turn=[2, 0], progress=False))
    expected = trained.sample([5, 4], labels=[0, 2])
    assert int((given.int() - expected.int()).abs().max()) <= 1
    save_samples(trained, [7], tmp_path / "given", labels_in_turn=[2, 0], progress=False)
    with pytest.raises(ValueError, match="holds samples with another labels_by_seed"):
        save_samples(trained, [7], tmp_path / "given", labels_in_turn=[0, 2], progress=False)
    with pytest.raises(ValueError, match="labels_in_turn: needs at least one"):
        save_samples(trained, [7], tmp_path / "none", labels_in_turn=[], progress=False)
    with pytest.raises(ValueError, match="labels: 1 of 0 to 2 are needed"):
        save_samples(trained, [7], tmp_path / "none", labels_in_turn=[3], progress=False)
    save_samples(trained, [7], tmp_path / "none", labels_in_turn=[1], progress=False)  # what failed was not noted


def test_labels_can_be_as_frequent_as_in_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = model(n_classes=3, class_counts=[6, 0, 2])
    drawn: dict[int, int] = {}

    def sample(seeds: list[int], labels: list[int], **options: Any) -> torch.Tensor:
        drawn.update(zip(seeds, labels, strict=True))
        return torch.zeros(len(seeds), 3, 4, 4, dtype=torch.uint8)

    monkeypatch.setattr(trained, "sample", sample)
    save_samples(trained, range(40), tmp_path / "data", mix="data", progress=False)
    first = dict(drawn)
    assert 28 <= list(first.values()).count(0) <= 32
    assert 1 not in first.values()
    assert json.loads((tmp_path / "data" / "samples.json").read_text())["labels_by_seed"].startswith("as frequent as")
    save_samples(trained, range(5, 50), tmp_path / "other", mix="data", progress=False)
    assert all(drawn[seed] == first[seed] for seed in first)
    with pytest.raises(ValueError, match="holds samples with another labels_by_seed"):
        save_samples(trained, range(8), tmp_path / "data", progress=False)
    with pytest.raises(ValueError, match="mix='equal': choose one of turn, data"):
        save_samples(trained, [0], tmp_path / "none", mix="equal", progress=False)
    with pytest.raises(ValueError, match="mix='data': labels_in_turn are given"):
        save_samples(trained, [0], tmp_path / "none", labels_in_turn=[1], mix="data", progress=False)
    with pytest.raises(ValueError, match="this model was saved without class_counts"):
        save_samples(model(n_classes=3), [0], tmp_path / "none", mix="data", progress=False)
    assert len(save_samples(model(), [0], tmp_path / "plain", mix="data", progress=False)) == 1  # its mix is the data's


def test_the_adaptive_sampler_solves_every_image_of_a_file_by_itself(tmp_path: Path) -> None:
    trained = model()
    trained.objective = dataclasses.replace(trained.objective, sampler="adaptive", rtol=0.1, atol=0.1)  # type: ignore[type-var]
    files = save_samples(trained, [3, 4, 5], tmp_path / "together", batch_size=3, progress=False)
    alone = torch.cat([trained.sample([seed]) for seed in (3, 4, 5)])
    assert torch.equal(load_pictures(files), alone)
    assert not torch.equal(trained.sample([3, 4, 5]), alone)  # as one system, they share their steps


def test_what_killed_calls_left_does_not_stop_an_npz(tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    parts.mkdir()
    (parts / ".00000000.png.1a2b3c4d.tmp").write_bytes(b"half")
    (parts / "00000099.png").write_bytes(b"of an earlier larger call")
    (path,) = save_samples(model(), [0, 1], tmp_path, format="npz", progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["samples.json", "samples.npz"]
    with np.load(path) as content:
        assert content["arr_0"].dtype == np.uint8
        assert content["arr_0"].shape == (2, 4, 4, 3)


def test_the_grid_lies_beside_the_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "below")
    assert grid_path(Path("a/drawn")) == Path("a/drawn_grid.png")
    assert grid_path(Path(".")) == tmp_path / "here" / "below_grid.png"
    assert grid_path(Path("..")) == tmp_path / "here_grid.png"
    with pytest.raises(ValueError, match="output=/: choose a folder with a name"):
        grid_path(Path("/"))


def test_samples_of_other_settings_are_not_mixed(tmp_path: Path) -> None:
    save_samples(model(), [0], tmp_path, progress=False)
    with pytest.raises(ValueError, match="holds samples with another num_inference_steps"):
        save_samples(model(), [1], tmp_path, num_inference_steps=3, progress=False)
    with pytest.raises(ValueError, match="one is given twice"):
        save_samples(model(), [1, 1], tmp_path / "other", progress=False)
    with pytest.raises(ValueError, match="format='jpg': choose one of png, npz"):
        save_samples(model(), [1], tmp_path / "other", format="jpg", progress=False)
    assert not (tmp_path / "other").exists()


def test_a_grid_shows_every_image_and_white_where_there_is_none(tmp_path: Path) -> None:
    images = torch.zeros(5, 1, 8, 8, dtype=torch.uint8)
    images[4] = 100
    save_grid(images, tmp_path / "media" / "grid.png")
    with Image.open(tmp_path / "media" / "grid.png") as picture:
        assert picture.size == (3 * 64, 2 * 64)
        assert picture.getpixel((10, 10)) == (0, 0, 0)
        assert picture.getpixel((100, 100)) == (100, 100, 100)
        assert picture.getpixel((180, 100)) == (255, 255, 255)

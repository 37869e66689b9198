"""The image scripts, from training to samples and painting, as a user calls them."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from composing import composed
from omegaconf import OmegaConf
from PIL import Image

from image_diffusion import evaluation
from immiscible_policy.download import DownloadError


def test_from_training_to_samples_and_painting(
    run_script, tiny_images: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_script("train_image", "coupling=knn", "k=8", "hydra.run.dir=run", *tiny_images) == 0
    printed = capsys.readouterr().out
    assert "KNN(k=8), seed 0, 4 steps" in printed
    assert "run/checkpoints/step=0000004" in printed
    assert run_script("train_image", "resume=run") == 0  # nothing is left to train

    assert run_script("sample_images", "run", "--output", "drawn", "-n", "5", "--seed", "7") == 0
    assert sorted(p.name for p in Path("drawn").glob("*.png")) == [f"{seed:08d}.png" for seed in range(7, 12)]
    assert Path("drawn_grid.png").is_file()
    assert run_script("sample_images", "run", "--output", "array", "-n", "3", "--format", "npz") == 0
    with np.load("array/samples.npz") as content:
        assert content["arr_0"].shape == (3, 8, 8, 1)

    measures = ("--extractor", "pixels", "--metrics", "fd")
    assert run_script("evaluate_images", "run", "-n", "6", *measures) == 0
    assert "fd_pixels_6 " in capsys.readouterr().out
    record = json.loads(Path("run/metrics_pixels.json").read_text())["fd_pixels_6"]["record"]
    assert record["run"]["coupling"] == "KNN(k=8)"
    assert record["reference"] == "digits train (1500 of 8x8)"
    assert run_script("evaluate_images", "run", "-n", "6", "--num-inference-steps", "1", *measures) == 0
    assert "fd_pixels_6 num_inference_steps=1 " in capsys.readouterr().out
    kept = json.loads(Path("run/metrics_pixels.json").read_text())
    assert list(kept) == ["fd_pixels_6", "fd_pixels_6 num_inference_steps=1"]
    assert kept["fd_pixels_6"]["record"] == record
    Path("notes.json").write_text("[]")
    assert run_script("evaluate_images", "run", "-n", "6", "--output", "notes.json", *measures) == 1
    assert "error: notes.json: holds something other than measurements" in capsys.readouterr().err
    for order in (("dataset.split=test", "--dataset", "digits"), ("--dataset", "digits", "dataset.split=test")):
        assert run_script("evaluate_images", "drawn", *order, *measures) == 0
        assert "digits test (297 of 8x8)" in capsys.readouterr().out
    assert run_script("evaluate_images", "run", "dataset.split=test", "-n", "4", "--batch-size", "3", *measures) == 0
    assert "digits test (297 of 8x8)" in capsys.readouterr().out
    assert run_script("evaluate_images", "run", "datset.split=test", *measures) == 1
    assert "error: datset.split=test: only settings of the reference data" in capsys.readouterr().err
    assert run_script("evaluate_images", "drawn", *measures) == 1
    assert "--dataset is not set, and drawn is no run folder" in capsys.readouterr().err
    began_with = Path("run/images.json").read_text()
    Path("run/images.json").write_text(json.dumps({**json.loads(began_with), "n": 1499}))
    assert run_script("evaluate_images", "run", *measures) == 1
    told = capsys.readouterr().err
    assert "the images at digits are no longer those that the run began with: n=1500 (began with 1499)" in told
    Path("run/images.json").write_text(began_with)

    assert run_script("paint", "run", "--output", "painted", "-n", "3") == 0
    assert len(list(Path("painted").glob("*.png"))) == 3
    Path("pictures").mkdir()
    Image.new("RGB", (20, 10), "red").save("pictures/red.png")
    assert (
        run_script("paint", "run", "--output", "own", "--images", "pictures", "-n", "1", "--mask", "surroundings") == 0
    )
    with Image.open("own/00000000.png") as picture:
        assert picture.size == (8, 8)
        assert picture.getpixel((4, 4)) == 76  # red as grey


def test_a_model_of_classes_is_told_what_to_show(
    run_script, tiny_images: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = ("method=ddim", "model.class_conditional=true", "hydra.run.dir=run", *tiny_images)
    assert run_script("train_image", *chosen) == 0, capsys.readouterr().err
    for seed, n in ((3, 3), (5, 2)):  # seed 5 is in both
        assert run_script("sample_images", "run", "--output", "drawn", "--seed", str(seed), "-n", str(n)) == 0
    assert run_script("sample_images", "run", "--output", "whole", "--seed", "3", "-n", "4") == 0
    for name in [f"{seed:08d}.png" for seed in range(3, 7)]:
        with Image.open(Path("drawn") / name) as one, Image.open(Path("whole") / name) as other:
            assert np.abs(np.asarray(one).astype(int) - np.asarray(other)).max() <= 1
    assert run_script("sample_images", "run", "--output", "drawn", "--label", "4") == 1
    assert "holds samples with another labels_by_seed" in capsys.readouterr().err
    assert run_script("sample_images", "run", "--output", "drawn", "--labels", "data") == 1
    assert "holds samples with another labels_by_seed" in capsys.readouterr().err
    assert run_script("sample_images", "run", "--output", "mix", "--labels", "data", "--label", "4") == 1
    assert "error: --labels data, --label and --prompt: give one of them" in capsys.readouterr().err
    assert run_script("sample_images", "run", "--output", "mix", "--labels", "data", "-n", "2") == 0
    assert json.loads(Path("mix/samples.json").read_text())["model"]["class_counts"][0] > 100
    Path("inside").mkdir()
    monkeypatch.chdir("inside")
    assert run_script("sample_images", "../run", "--output", ".", "-n", "2") == 0
    assert run_script("paint", "../run", "--output", ".", "-n", "2") == 0
    monkeypatch.chdir("..")
    assert Path("inside_grid.png").is_file()

    Path("pictures/9").mkdir(parents=True)
    for name in "ab":
        Image.new("L", (8, 8), 100).save(f"pictures/9/{name}.png")
    painting = ("paint", "run", "--images", "pictures", "-n", "2", "--output")
    capsys.readouterr()
    assert run_script(*painting, "none") == 1
    assert "error: --label: this model must be told what to paint, and pictures does not" in capsys.readouterr().err
    assert run_script(*painting, "none", "--label", "1", "2", "3") == 1
    assert "--label: give one, or one for each of 2 pictures (-n), got 3" in capsys.readouterr().err
    assert run_script(*painting, "none", "--label", "10") == 1
    assert "labels: 2 of 0 to 9 are needed" in capsys.readouterr().err
    assert run_script(*painting, "none", "--label", "1", "--prompt", "one") == 1
    assert "--label and --prompt: give one of them" in capsys.readouterr().err
    assert not Path("none").exists()
    assert run_script(*painting, "nines", "--label", "9") == 0
    assert run_script(*painting, "each", "--label", "9", "4") == 0

    def read(path: str) -> np.ndarray:
        with Image.open(path) as picture:
            return np.asarray(picture).astype(int)

    assert np.abs(read("nines/00000000.png") - read("each/00000000.png")).max() <= 1
    names = "[" + ",".join(f"'{digit}'" for digit in (9, *range(9))) + "]"  # 9 is the first class
    config = Path("run/.hydra/config.yaml")
    saved = OmegaConf.load(config)
    OmegaConf.update(saved, "dataset.class_names", OmegaConf.create(names), force_add=True)
    OmegaConf.save(saved, config)
    assert run_script(*painting, "known") == 0
    assert run_script(*painting, "zeros", "--label", "0") == 0
    assert np.abs(read("known/00000001.png") - read("zeros/00000001.png")).max() <= 1

    OmegaConf.update(saved, "dataset.test_split", None)
    OmegaConf.save(saved, config)
    assert run_script("paint", "run", "--output", "none") == 1
    told = capsys.readouterr().err
    assert "error: --images: give a folder of pictures, since digits, the data of run, has no test_split" in told


def test_what_cannot_be_measured_is_told_in_a_line(
    run_script, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measures = ("--dataset", "digits", "--extractor", "pixels", "--metrics", "fd")

    def refused(*arguments: str) -> str:
        capsys.readouterr()
        assert run_script("evaluate_images", *arguments, *measures) == 1
        told = capsys.readouterr().err.strip().splitlines()[-1]
        assert told.startswith("error: ")
        return told

    np.savez("bytes.npz", arr_0=np.zeros((3, 8, 8, 1), np.uint8))
    np.savez("floats.npz", arr_0=np.zeros((3, 8, 8, 1)))
    whole = Path("bytes.npz").read_bytes()
    Path("half.npz").write_bytes(whole[: len(whole) // 2])
    Path("empty.npz").write_bytes(b"")
    assert "uint8" in refused("floats.npz")
    assert "half.npz: damaged or half-written file" in refused("half.npz")
    assert "empty.npz: damaged or half-written file" in refused("empty.npz")
    assert "unknown setting 'splitt' in dataset: choose one of" in refused("bytes.npz", "dataset.splitt=test")
    assert "error: " in refused("bytes.npz", "dataset.split")
    measures = ("--dataset", "digitz", *measures[2:])
    assert "dataset=digitz: choose one of" in refused("bytes.npz")
    measures = ("--dataset", "digits", "--metrics", "fd", "--extractor", "inception")

    def without(error: Exception) -> Callable[..., None]:
        def build(*arguments: Any, **options: Any) -> None:
            raise error

        return build

    for error in (ImportError("pip install it"), DownloadError("get it by hand")):
        monkeypatch.setattr(evaluation, "Inception", without(error))
        assert refused("bytes.npz") == f"error: {error}"


def test_mistakes_are_told_in_a_line(run_script, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_script("train_image", "dataset=human") == 1
    assert "choose one of" in capsys.readouterr().err
    assert run_script("train_image", "method=gan") == 1
    assert "method=gan: choose one of" in capsys.readouterr().err
    assert run_script("sample_images", "nothing", "--output", "drawn") == 1
    assert "error: model=nothing: neither a model folder" in capsys.readouterr().err
    assert run_script("paint", "nothing", "--output", "drawn") == 1
    assert "neither a model folder" in capsys.readouterr().err


def test_latent_diffusion_from_an_autoencoder_to_painting(
    run_script, tiny_images: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    vae = ("vae.block_out_channels=[8,8]", "vae.norm_num_groups=4", "evaluate_on=16", "batch_size=8", "steps=4")
    shared = [setting for setting in tiny_images if setting.startswith(("trainer.", "num_threads", "device"))]
    assert run_script("train_vae", "hydra.run.dir=vae", *vae, *shared) == 0
    assert "dB" in capsys.readouterr().out
    assert Path("vae/vae/config.json").is_file()

    assert run_script("train_image", "method=sd", "coupling=knn", "k=8", "hydra.run.dir=run", *tiny_images) == 1
    assert "model.vae is not set" in capsys.readouterr().err
    chosen = ("method=sd", "model.vae=vae", "coupling=knn", "k=8", "hydra.run.dir=run")
    assert run_script("train_image", *chosen, *tiny_images) == 0, capsys.readouterr().err
    assert run_script("train_image", "resume=run") == 0
    assert run_script("sample_images", "run", "--output", "drawn", "-n", "3") == 0
    assert len(list(Path("drawn").glob("*.png"))) == 3
    assert run_script("evaluate_images", "run", "-n", "6", "--extractor", "pixels", "--metrics", "fd") == 0
    assert "fd_pixels_6 " in capsys.readouterr().out
    assert run_script("paint", "run", "--output", "painted", "-n", "2") == 0
    assert len(list(Path("painted").glob("*.png"))) == 2


def test_an_autoencoder_of_a_folder_is_followed_by_a_command_that_works(
    run_script, tiny_images: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("my pictures").mkdir()
    for shade in range(8):
        Image.new("L", (8, 8), 30 * shade).save(f"my pictures/{shade}.png")
    data = ("dataset=folder", "dataset.path='my pictures'", "dataset.image_size=8")
    vae = ("vae.block_out_channels=[8,8]", "vae.norm_num_groups=4", "evaluate_on=8", "batch_size=8", "steps=4")
    shared = [setting for setting in tiny_images if setting.startswith(("trainer.", "num_threads", "device"))]
    assert run_script("train_vae", *data, "hydra.run.dir=vae", *vae, *shared) == 0
    printed = capsys.readouterr().out
    assert run_script("train_vae", "resume=vae") == 0  # which names the data as the run did
    for text in (printed, capsys.readouterr().out):
        (told,) = [line for line in text.splitlines() if line.startswith("next ")]
        _, *command = shlex.split(told)
        assert command[:2] == ["python", "scripts/train_image.py"]
        cfg = composed("train_image", *command[2:])
        assert (cfg.dataset.format, cfg.dataset.path, cfg.dataset.image_size) == ("folder", "my pictures", 8)
        assert cfg.model.space == "latents"
        assert (Path(cfg.model.vae) / "vae" / "config.json").is_file()

"""The image scripts, from training to samples and painting, as a user calls them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


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
    assert run_script("evaluate_images", "drawn", "dataset.split=test", "--dataset", "digits", *measures) == 0
    assert "digits test (297 of 8x8)" in capsys.readouterr().out
    assert run_script("evaluate_images", "drawn", *measures) == 1
    assert "--dataset is not set, and drawn is no run folder" in capsys.readouterr().err

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

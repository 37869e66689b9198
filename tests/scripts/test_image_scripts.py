"""The image scripts, from training to samples and painting, as a user calls them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

TINY = (
    "dataset.split=train",
    "steps=4",
    "batch_size=8",
    "network.block_out_channels=[8,16]",
    "network.norm_num_groups=4",
    "network.attention_head_dim=8",
    "model.num_inference_steps=2",
    "samples.n=2",
    "monitor.n_samples=8",
    "monitor.extractor=pixels",
    "evaluation.n_samples=8",
    "trainer.warmup_steps=1",
    "trainer.evaluate_every=4",
    "trainer.validate_every=4",
    "trainer.checkpoint_every=2",
    "trainer.tensorboard=false",
    "num_threads=1",
    "device=cpu",
)


def test_from_training_to_samples_and_painting(run_script, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_script("train_image", "coupling=knn", "k=8", "hydra.run.dir=run", *TINY) == 0
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

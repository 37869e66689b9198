"""The benchmark of image training: the rebuilt example trains what ours trains, and the section runs at a toy size."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
NETWORK = {
    "block_out_channels": [8],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"],
}


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, ModuleType]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        yield {name: importlib.import_module(name) for name in ("benchmark", "benchmark_images")}
        for name in [name for name in sys.modules if name.split("_")[0] == "benchmark"]:
            del sys.modules[name]


def test_the_examples_pictures_are_those_that_ours_decodes(modules: dict[str, ModuleType]) -> None:
    images = modules["benchmark_images"]
    data = images.pictures(0)
    torch.manual_seed(0)
    mirrored = []
    for item in images.ExampleLoop._transform({"image": [data[i]["image"] for i in range(8)]})["input"]:
        assert item.shape == (3, 32, 32)
        mirrored.append(item)
    for i, item in enumerate(mirrored):
        upright = torch.from_numpy(np.array(data[i]["image"])).permute(2, 0, 1).float().div(127.5).sub(1)
        assert torch.allclose(item, upright, atol=1e-6) or torch.allclose(item.flip(-1), upright, atol=1e-6)


def test_the_example_learns(modules: dict[str, ModuleType]) -> None:
    images = modules["benchmark_images"]
    torch.manual_seed(0)
    network = UNet2DModel(sample_size=32, in_channels=3, out_channels=3, **NETWORK)
    before = [p.detach().clone() for p in network.parameters()]
    loop = images.ExampleLoop(network, images.pictures(0), 4, "cpu")
    for _ in range(2):
        loop.step()
    loop.close()
    assert loop.progress.n == 2
    moved = [not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True)]
    assert sum(moved) > len(moved) // 2
    assert loop.ema.optimization_step == 2


def test_the_section_prints_and_writes_ratios(
    modules: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = modules["benchmark_images"]
    configs = tmp_path / "configs"
    (configs / "network").mkdir(parents=True)
    (configs / "network" / "unet2d_small.yaml").write_text(json.dumps({**NETWORK, "zero_init": True}))
    monkeypatch.setattr(images, "CONFIG_DIR", configs)
    monkeypatch.setattr(images, "N_IMAGES", 16)
    output = tmp_path / "images.json"
    arguments = ["--only", "images", "--rounds", "2", "--image-batch", "4", "--output", str(output)]
    assert modules["benchmark"].main(arguments) == 0
    rows = {row["contender"]: row for row in json.loads(output.read_text())["images"]}
    assert rows["ours, none"]["time_over_plain"]["median"] == 1
    assert rows["diffusers' example"]["speed_over_example"]["median"] == 1
    assert {"ours, knn, k=8", "ours, assignment"} <= set(rows)
    assert "over ours, none" in capsys.readouterr().out

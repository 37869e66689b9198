"""CIFAR-10 from parquet files: that what is read is CIFAR-10, and the normalisations."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from image_diffusion.cifar10 import CLASSES, load_cifar10, normalized

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory):
    """Of the ``datasets`` library, thrown away afterwards."""
    datasets = pytest.importorskip("datasets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def pictures(n: int, seed: int = 0, size: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def write(path: Path, pixels: np.ndarray, labels: object, column: str = "img") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = [{"bytes": encoded(image), "path": None} for image in pixels]
    pq.write_table(pa.table({column: entries, "label": labels}), path)


def test_files_of_a_split_are_read_in_order(tmp_path):
    parts = [pictures(number + 1, seed=number) for number in range(6)]
    for number in (3, 0, 5, 1, 4, 2):
        write(tmp_path / f"train-0000{number}-of-00006.parquet", parts[number], [number] * (number + 1))
    write(tmp_path / "test-00000-of-00001.parquet", pictures(4, 9), [5, 5, 6, 7])
    found = load_cifar10(tmp_path)
    assert found.images.dtype == torch.uint8
    assert found.images.is_contiguous()
    assert np.array_equal(found.images.permute(0, 2, 3, 1).numpy(), np.concatenate(parts))
    assert found.labels.tolist() == [number for number in range(6) for _ in range(number + 1)]
    assert found.labels.dtype == torch.int64
    assert len(load_cifar10(str(tmp_path), "test")) == 4


def test_the_layout_of_the_hub_and_the_other_column_name_are_read(tmp_path):
    write(tmp_path / "plain_text" / "train-00000-of-00001.parquet", pictures(2), [0, 1], column="image")
    assert len(load_cifar10(tmp_path)) == 2


def test_greyscale_images_become_three_channels(tmp_path):
    grey = pictures(1)[0, :, :, 0]
    entry = {"bytes": encoded(grey), "path": None}
    pq.write_table(pa.table({"img": [entry], "label": [0]}), tmp_path / "train-0.parquet")
    assert np.array_equal(load_cifar10(tmp_path).images[0].numpy(), np.stack([grey] * 3))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no parquet", r"train-0.parquet cannot be read as parquet"),
        ({"img": [{"bytes": b"x"}], "lable": [0]}, r"the columns of CIFAR-10 are img, lable"),
        ({"img": [{"bytes": b"x"}], "label": [10]}, r"CIFAR-10, train row 0: .*labels must be 0 to 9"),
        ({"img": [{"bytes": b"x"}], "label": [0.5]}, r"label_column='label' of CIFAR-10 must hold integers"),
        ({"img": [{"bytes": b"x"}], "label": [0]}, r"CIFAR-10, train row 0: not an image"),
        ({"img": [{"bytes": encoded(pictures(1, size=28)[0])}], "label": [0]}, r"images must be 32x32, got 28x28"),
    ],
)
def test_what_is_no_cifar10_is_named(tmp_path, content, message):
    path = tmp_path / "train-0.parquet"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        pq.write_table(pa.table(content), path)
    with pytest.raises(ValueError, match=message):
        load_cifar10(tmp_path)


def test_an_empty_folder_is_answered_with_where_to_get_it(tmp_path):
    with pytest.raises(ValueError, match=r"no CIFAR-10 at .*absent.*hf download uoft-cs/cifar10 --repo-type dataset"):
        load_cifar10(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"split must be 'train' or 'test', got 'valid'"):
        load_cifar10(tmp_path, "valid")


def test_normalisations():
    images = torch.from_numpy(pictures(20)).permute(0, 3, 1, 2)
    images[:, 0] //= 2
    assert torch.equal(normalized(images, "unit"), images.float() / 255)
    symmetric = normalized(images)
    assert (float(symmetric.min()), float(symmetric.max())) == (-1.0, 1.0)
    standardized = normalized(images, "standardized")
    torch.testing.assert_close(standardized.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(standardized.std((0, 2, 3), correction=0), torch.ones(3))
    assert all(result.dtype == torch.float32 for result in (symmetric, standardized))
    assert torch.isfinite(normalized(torch.full((2, 3, 4, 4), 7, dtype=torch.uint8), "standardized")).all()


def test_bad_normalisations_are_named():
    with pytest.raises(TypeError, match=r"images must be uint8, got torch.float32"):
        normalized(torch.zeros(1, 3, 2, 2))
    with pytest.raises(ValueError, match="how must be one of symmetric, standardized, unit, got 'imagenet'"):
        normalized(torch.zeros(1, 3, 2, 2, dtype=torch.uint8), "imagenet")


def test_the_real_images_if_they_are_here():
    folders = [ROOT / "data" / "cifar10", ROOT.parent / "shared" / "data" / "cifar10"]
    folder = next((folder for folder in folders if folder.exists()), None)
    if folder is None:
        pytest.skip("CIFAR-10 not found in data/cifar10")
    test = load_cifar10(folder, "test")
    assert test.images.shape[1:] == (3, 32, 32)
    assert set(test.labels.tolist()) == set(range(len(CLASSES)))
    unit = normalized(test.images, "unit")
    torch.testing.assert_close(unit.mean((0, 2, 3)), torch.tensor([0.494, 0.485, 0.450]), atol=0.01, rtol=0)


def test_it_stands_on_its_own():
    """No torchvision, and neither the policy nor the environments."""
    code = "import sys, image_diffusion.cifar10; print([m for m in sys.modules if m.split('.')[0] in ('torchvision', "
    code += "'envs', 'diffusers') or m.startswith('immiscible_policy.policy')])"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"

"""Small images, as pixels and encoded, and a cache for ``datasets`` that is thrown away."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    """The ``datasets`` library without progress bars, with a cache of its own."""
    datasets = pytest.importorskip("datasets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        datasets.disable_progress_bars()
        yield datasets
        datasets.enable_progress_bars()


def encode(pixels: np.ndarray | Image.Image, kind: str = "PNG") -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def encoded() -> Callable[..., bytes]:
    return encode


@pytest.fixture(scope="session")
def noise() -> Callable[..., np.ndarray]:
    """(height, width, channels) or (height, width) random bytes; the same for the same arguments."""

    def pixels(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
        shape = (height, width, channels) if channels > 1 else (height, width)
        return np.random.default_rng([seed, height, width, channels]).integers(0, 256, shape, dtype=np.uint8)

    return pixels


@pytest.fixture
def write_image(noise) -> Callable[..., np.ndarray]:
    """Write random pixels as a file and return them."""

    def write(path: Path, height: int = 8, width: int = 8, channels: int = 3, seed: int = 0) -> np.ndarray:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = noise(height, width, channels, seed)
        Image.fromarray(pixels).save(path)
        return pixels

    return write


@pytest.fixture
def write_parquet(library) -> Callable[..., None]:
    """Write columns as a parquet file; ``features`` are kept in its schema as the Hub does."""

    def write(path: Path, columns: dict, features=None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        table = pa.table(columns)
        if features is not None:
            table = table.cast(features.arrow_schema)
        pq.write_table(table, path)

    return write

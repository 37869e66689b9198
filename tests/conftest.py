"""What every test shares: one thread, no display, no network; recorded and made-up demonstrations."""

import os
import shutil
import tempfile

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# What tests read or train must not end up among the user's own; removed at the end.
os.environ["TEST_CACHE"] = tempfile.mkdtemp(prefix="immiscible_tests_")
os.environ["HF_DATASETS_CACHE"] = os.environ["TEST_CACHE"] + "/datasets"
os.environ["IMMISCIBLE_WEIGHTS"] = os.environ["TEST_CACHE"] + "/weights"
os.environ["IMMISCIBLE_REFERENCES"] = os.environ["TEST_CACHE"] + "/references"

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

pytest_plugins = ["file_server"]

torch.set_num_threads(1)


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ["TEST_CACHE"], ignore_errors=True)


DATASET_NAME = "pusht_cchi_v7_replay.zarr"


@pytest.fixture(scope="session")
def pusht_demonstrations() -> Path:
    """The recorded human demonstrations; tests that need them skip where they are absent."""
    root = Path(__file__).resolve().parents[1]
    candidates = [root / "data" / "pusht" / DATASET_NAME, root.parent / "shared" / "data" / DATASET_NAME]
    for candidate in candidates:
        if candidate.exists():
            return candidate
    pytest.skip("human PushT demonstrations not found: run scripts/download_pusht.py")


StoreMaker = Callable[..., dict[str, np.ndarray]]


def _arrays(lengths: tuple[int, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    n = sum(lengths)
    return {
        "action": rng.uniform(10, 500, (n, 2)).astype(np.float32),
        "state": rng.uniform(10, 500, (n, 5)).astype(np.float32),
        "keypoint": rng.uniform(10, 500, (n, 9, 2)).astype(np.float32),
        "img": rng.integers(0, 256, (n, 96, 96, 3)).astype(np.float32),
        "episode_ends": np.cumsum(lengths).astype(np.int64),
    }


@pytest.fixture
def make_store() -> StoreMaker:
    """make_store(path, lengths=..., zarr_format=..., **replacements) writes a store, returns its arrays.

    A replacement replaces the array of that name; None leaves it out.
    """

    def make(
        path: Path, lengths: tuple[int, ...] = (12, 9, 20), zarr_format: int = 2, **replacements: object
    ) -> dict[str, np.ndarray]:
        arrays = {**_arrays(lengths), **replacements}
        kept = {name: np.asarray(values) for name, values in arrays.items() if values is not None}
        root = zarr.open_group(path, mode="w", zarr_format=zarr_format)
        data, meta = root.create_group("data"), root.create_group("meta")
        for name, values in kept.items():
            group = meta if name == "episode_ends" else data
            chunks = (16, *values.shape[1:])
            group.create_array(name, data=values, chunks=chunks, config={"write_empty_chunks": True})
        return kept

    return make

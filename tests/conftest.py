"""Settings that every test shares: one thread, no display, no network."""

import os

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)

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

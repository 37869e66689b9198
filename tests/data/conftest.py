"""Zipped stores."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def zip_folder() -> Callable[..., Path]:
    """zip_folder(folder, archive, prefix="") packs a folder's files under a prefix and returns the archive."""

    def pack(folder: Path, archive: Path, prefix: str = "") -> Path:
        with zipfile.ZipFile(archive, "w") as opened:
            for file in sorted(folder.rglob("*")):
                if file.is_file():
                    opened.write(file, f"{prefix}{file.relative_to(folder)}")
        return archive

    return pack

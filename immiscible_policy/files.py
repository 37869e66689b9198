"""Files that are whole or not there, and what they hold."""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically: readers see the old file or the new one. NaN and infinities become null."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(finite(content), indent=2, allow_nan=False) + "\n")
    os.replace(temporary, path)


def finite(content: Any) -> Any:
    """Nested mappings and sequences with None in the place of every number that JSON lacks."""
    if isinstance(content, Mapping):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def file_sha256(path: Path) -> str:
    """Hash of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

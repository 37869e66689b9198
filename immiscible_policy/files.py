"""Files that are whole or not there."""

import json
import math
import os
from pathlib import Path
from typing import Any


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically: readers see the old file or the new one. NaN, which JSON lacks, becomes null."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(_without_nan(content), indent=2) + "\n")
    os.replace(temporary, path)


def _without_nan(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and math.isnan(content) else content

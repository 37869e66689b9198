"""The images that a run began with: recorded at its start, and compared by whoever loads them for it again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from image_diffusion.data.source import ImageDataError
from immiscible_policy import checks

RUN_RECORD = "images.json"
# The hash of all pixels is None where they are not in memory; that of the content sees some, and labels and captions.
_COMPARED = ("n", "content_hash", "pixels_hash")


def recorded_images(run_dir: Path) -> dict[str, Any] | None:
    """``ImageDataset.source`` as a run recorded it; None where there is no record.

    Runs of earlier versions have it in their summary alone, once they have ended.
    """
    record, summary = run_dir / RUN_RECORD, run_dir / "summary.json"
    if record.is_file():
        return dict(json.loads(record.read_text()))
    return json.loads(summary.read_text()).get("data") if summary.is_file() else None


def check_unchanged(began_with: Mapping[str, Any], source: Mapping[str, Any]) -> None:
    """``checks.check_unchanged`` for images.

    Args:
        began_with: see ``recorded_images``; what an older record lacks is not compared.
        source: of the images as they are now.

    Raises:
        ImageDataError: they are others; says in what.
    """
    where = source.get("path") or source.get("id") or source["name"]
    known = [name for name in _COMPARED if None not in (source[name], began_with.get(name))]
    try:
        checks.check_unchanged(f"the images at {where}", began_with, {name: source[name] for name in known})
    except ValueError as error:
        raise ImageDataError(str(error)) from None

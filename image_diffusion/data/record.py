"""The images that a run began with: recorded at its start, and compared by whoever loads them for it again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from image_diffusion.data.source import ImageDataError

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
    """Refuse other images than a run began with: what came of both would be of neither.

    Args:
        began_with: see ``recorded_images``; what an older record lacks is not compared.
        source: of the images as they are now.

    Raises:
        ImageDataError: they are others; says in what.
    """
    changed = [
        f"{name}={source[name]} (began with {began_with[name]})"
        for name in _COMPARED
        if None not in (source[name], began_with.get(name)) and began_with[name] != source[name]
    ]
    if changed:
        where = source.get("path") or source.get("id") or source["name"]
        raise ImageDataError(
            f"the images at {where} are no longer those that the run began with: {', '.join(changed)}; restore them, "
            "or start a new run"
        )

"""Pictures, videos and Markdown files as parts of a report: embedded where they fit, linked where not."""

import base64
import io
from pathlib import Path
from typing import Any

from markdown import Markdown  # type: ignore[import-untyped]
from markupsafe import Markup
from PIL import Image

from immiscible_policy.evaluation.report_data import DAMAGE, damaged

# What Markdown would pass through or load: markup of its own, pictures and links.
_UNWANTED_MARKDOWN = (
    *("html", "image_link", "image_reference", "short_image_ref"),
    *("link", "reference", "short_reference", "autolink", "automail"),
)


class Media:
    """Pictures and videos of a folder, embedded as long as they fit; damaged ones are named in ``problems``."""

    def __init__(self, folder: Path, max_embedded_mb: float) -> None:
        self.folder, self.left = folder, max_embedded_mb * 1e6
        self.problems: list[str] = []

    def item(self, name: str, title: str) -> dict[str, Any] | None:
        """``src`` is a data URI, or None where only the relative path fits; None for a missing or damaged file."""
        path = self.folder / name
        try:
            content = path.read_bytes()
            if path.suffix == ".png":
                with Image.open(io.BytesIO(content)) as picture:
                    picture.load()
                kind = "image/png"
            elif _is_complete_mp4(content):
                kind = "video/mp4"
            else:
                raise ValueError("not a whole mp4 file")
        except (
            *DAMAGE,
            SyntaxError,
            Image.DecompressionBombError,
        ) as error:  # Pillow reports broken PNG files as syntax errors
            missing = isinstance(error, FileNotFoundError)
            self.problems.append(f"{name} is missing" if missing else damaged(name, error))
            return None
        fits = len(content) * 4 / 3 <= self.left
        if fits:
            self.left -= len(content) * 4 / 3
        src = Markup(f"data:{kind};base64,{base64.b64encode(content).decode()}") if fits else None
        return {"path": name, "title": title, "src": src, "megabytes": len(content) / 1e6}


def _is_complete_mp4(content: bytes) -> bool:
    """Whether the file's top-level boxes (ISO/IEC 14496-12, 4.2) fill it exactly and include an index (moov)."""
    position, kinds = 0, []
    while position + 8 <= len(content):
        size = int.from_bytes(content[position : position + 4], "big")
        kinds.append(content[position + 4 : position + 8])
        if size == 1:
            size = int.from_bytes(content[position + 8 : position + 16], "big")
        if size < 8:
            return False
        position += size
    return position == len(content) and b"ftyp" in kinds and b"moov" in kinds


def markdown_html(text: str) -> Markup:
    """Markdown as HTML; what would be markup of its own, a picture or a link stays text."""
    converter = Markdown(extensions=["tables"])
    converter.preprocessors.deregister("html_block")
    for name in _UNWANTED_MARKDOWN:
        converter.inlinePatterns.deregister(name)
    html = converter.convert(text).replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")
    return Markup(html)

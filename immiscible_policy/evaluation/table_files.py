"""Tables as files: the same rows in Markdown and LaTeX, and what they were made from in JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from immiscible_policy.files import write_json, write_text


def write_table(
    folder: Path, name: str, rows: Sequence[Sequence[str]], content: Sequence[dict[str, Any]], note: str
) -> list[Path]:
    """Write ``<name>.md``, ``.tex`` and ``.json`` into ``folder``; returns their paths.

    Args:
        rows: the first is the header.
        content: numbers of the rows, in full, for the JSON file.
        note: what a reader has to know, below the table.
    """
    paths = [folder / f"{name}.{kind}" for kind in ("md", "tex", "json")]
    write_text(paths[0], markdown(rows) + f"\n{note}\n")
    write_text(paths[1], latex(rows))
    write_json(paths[2], {"note": note, "rows": json.loads(json.dumps(list(content)))})
    return paths


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Rows, the first of them the header, as a Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]) + "\n"


def latex(rows: Sequence[Sequence[str]]) -> str:
    """Rows, the first of them the header, as a booktabs tabular."""
    escape = str.maketrans({"%": r"\%", "_": r"\_", "&": r"\&", "#": r"\#", "<": "$<$", ">": "$>$"})
    lines = [" & ".join(cell.translate(escape) for cell in row) + r" \\" for row in rows]
    head, body = lines[0], "\n".join(lines[1:])
    columns = "l" * len(rows[0])
    return f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{head}\n\\midrule\n{body}\n\\bottomrule\n\\end{{tabular}}\n"

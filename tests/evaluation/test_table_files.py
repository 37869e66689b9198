"""Tables as files."""

import json
from pathlib import Path

from immiscible_policy.evaluation.table_files import latex, markdown, write_table


def test_text_forms() -> None:
    rows = [["a_b", "50%"], ["1", "2"]]
    assert markdown(rows) == "| a_b | 50% |\n|---|---|\n| 1 | 2 |\n"
    assert "a\\_b & 50\\% \\\\" in latex(rows)
    assert "$<$ 0.001 & x $>$ y" in latex([["p", "arm"], ["< 0.001", "x > y"]])


def test_a_table_is_written_in_three_forms_with_what_it_was_made_from(tmp_path: Path) -> None:
    rows = [["arm", "score"], ["none", "0.5"]]
    paths = write_table(tmp_path / "tables", "scores", rows, [{"arm": "none", "score": 0.512345}], "A note.")
    assert [path.name for path in paths] == ["scores.md", "scores.tex", "scores.json"]
    assert paths[0].read_text() == markdown(rows) + "\nA note.\n"
    assert paths[1].read_text() == latex(rows)
    assert json.loads(paths[2].read_text()) == {"note": "A note.", "rows": [{"arm": "none", "score": 0.512345}]}

"""Captions of a folder, and what is wrong with them."""

import json
from pathlib import Path

import pytest

from image_diffusion.data.captions import as_captions, folder_captions, read_metadata
from image_diffusion.data.source import ImageDataError

NAMES = ["a.png", "sub/b.png"]


def lines(path: Path, *rows: object) -> None:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")


def test_metadata_gives_captions_in_the_order_of_the_images(tmp_path):
    lines(
        tmp_path / "metadata.jsonl",
        {"file_name": "sub/b.png", "text": ["two", " lines "]},
        "",
        {"file_name": "./a.png", "text": "ein Häuschen\u2028am See", "other": 1},
    )
    metadata = read_metadata(tmp_path)
    assert folder_captions(tmp_path, NAMES, metadata, "auto") == [["ein Häuschen\u2028am See"], ["two", "lines"]]
    assert folder_captions(tmp_path, NAMES, metadata, None) is None
    with pytest.raises(ImageDataError, match="has no column 'caption', it has file_name, other, text"):
        folder_captions(tmp_path, NAMES, metadata, "caption")


def test_metadata_as_csv_with_commas_and_lines_in_quotes(tmp_path):
    text = '\ufefffile_name,caption\na.png,"red, round\nand big"\nsub/b.png,blue\n'
    (tmp_path / "metadata.csv").write_text(text, encoding="utf-8")
    metadata = read_metadata(tmp_path)
    assert folder_captions(tmp_path, NAMES, metadata, "caption") == [["red, round\nand big"], ["blue"]]
    assert folder_captions(tmp_path, NAMES, metadata, "auto") is None  # there is no text column


def test_text_files_beside_the_images(tmp_path):
    (tmp_path / "sub").mkdir()
    assert folder_captions(tmp_path, NAMES, None, "auto") is None
    (tmp_path / "a.txt").write_text("one\n\n  another \n")
    with pytest.raises(ImageDataError, match=r"sub/b.png has no caption: b.txt is missing, though 1 images"):
        folder_captions(tmp_path, NAMES, None, "auto")
    (tmp_path / "sub" / "b.txt").write_text("blue")
    assert folder_captions(tmp_path, NAMES, None, "auto") == [["one", "another"], ["blue"]]
    (tmp_path / "sub" / "b.txt").write_text(" \n")
    with pytest.raises(ImageDataError, match=r"b.txt holds no caption"):
        folder_captions(tmp_path, NAMES, None, "auto")
    with pytest.raises(ImageDataError, match=r"caption_column='text': .* holds no metadata.jsonl or metadata.csv"):
        folder_captions(tmp_path, NAMES, None, "text")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["{"], "line 1: not JSON"),
        (["[1]"], "line 1: must be an object"),
        ([{"file_name": "a.png"}, {"name": "b.png"}], "line 2: no 'file_name', it has name"),
        ([{"file_name": "a.png"}, {"file_name": "./a.png"}], "line 2: a.png is there twice"),
    ],
)
def test_bad_metadata_is_named_by_line(tmp_path, rows, message):
    lines(tmp_path / "metadata.jsonl", *rows)
    with pytest.raises(ImageDataError, match=rf"metadata.jsonl, {message}"):
        read_metadata(tmp_path)


def test_two_metadata_files_or_a_torn_csv(tmp_path):
    assert read_metadata(tmp_path) is None
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,red, round\n")
    with pytest.raises(ImageDataError, match=r"metadata.csv, line 2: more fields than columns"):
        read_metadata(tmp_path)
    lines(tmp_path / "metadata.jsonl", {"file_name": "a.png"})
    with pytest.raises(ImageDataError, match="holds both"):
        read_metadata(tmp_path)


def test_images_without_a_caption_are_named(tmp_path):
    lines(tmp_path / "metadata.jsonl", {"file_name": "a.png", "text": "x"})
    with pytest.raises(ImageDataError, match=r"sub/b.png is not listed in the metadata, which should give its 'text'"):
        folder_captions(tmp_path, NAMES, read_metadata(tmp_path), "auto")
    lines(tmp_path / "metadata.jsonl", {"file_name": "a.png", "text": "x"}, {"file_name": "sub/b.png"})
    with pytest.raises(ImageDataError, match=r"sub/b.png: column 'text' holds no caption"):
        folder_captions(tmp_path, NAMES, read_metadata(tmp_path), "auto")


@pytest.mark.parametrize("value", [None, "", "  ", [], ["", None]])
def test_an_empty_caption_is_named(value):
    with pytest.raises(ImageDataError, match=r"row 3: column 'text' holds no caption"):
        as_captions(value, "text", "row 3")


def test_captions_are_text():
    with pytest.raises(ImageDataError, match=r"row 3: column 'text' must hold text or lists of text, got \[1\]"):
        as_captions([1], "text", "row 3")

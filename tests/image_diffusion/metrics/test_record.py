"""The one word that stands for a published protocol appears for that protocol only."""

import ast
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import image_diffusion.metrics
from image_diffusion.metrics.record import (
    Measurement,
    MetricRecord,
    add_measurements,
    as_json,
    read_measurements,
    result_key,
    save_measurements,
)

PACKAGE = Path(image_diffusion.metrics.__file__).parent
NAMES = [
    "inception",
    "efficientnet-lite0",
    "efficientnet-lite0-96px",
    "pixels",
    "random-conv-0",
    "digits-cnn",
    "clip-vit-large-patch14-336",
]
METRICS = ["fd", "fd_floor", "kid", "kid_full", "precision", "recall", "density", "coverage", "cmmd", "clipscore"]
SIZES = st.one_of(st.integers(2, 10**6), st.sampled_from([49_999, 50_000, 50_001]))


@given(
    metric=st.sampled_from(METRICS),
    extractor=st.one_of(st.sampled_from(NAMES), st.from_regex(r"[a-z0-9][a-z0-9.-]*", fullmatch=True)),
    n=SIZES,
    m=SIZES,
    canonical=st.booleans(),
)
def test_the_word_is_kept_for_the_published_protocol(metric, extractor, n, m, canonical):
    if "fid" in extractor:
        with pytest.raises(ValueError, match="must not have 'fid' in its name"):
            result_key(metric, extractor, n, m, canonical)
        return
    key = result_key(metric, extractor, n, m, canonical)
    assert ("fid" in key.lower()) == (metric == "fd" and canonical and n >= 50_000 and m >= 50_000)
    if "fid" not in key:
        assert key == f"{metric}_{extractor}_{n}"


def test_the_published_protocol():
    assert result_key("fd", "inception", 50_000, 50_000, True) == "fid"
    assert result_key("fd", "inception", 60_000, 50_000, True) == "fid_60000"
    assert result_key("fd", "inception", 50_000, 10_000, True) == "fd_inception_50000"
    assert result_key("fd", "inception", 50_000, 50_000, False) == "fd_inception_50000"


@pytest.mark.parametrize("name", ["", "My Net", "net_1", "-net", "nét"])
def test_names_that_break_a_key_are_refused(name):
    with pytest.raises(ValueError, match="extractor must be named by"):
        result_key("fd", name, 10, 10, False)


@pytest.mark.parametrize("name", ["fid", "my-fid-net", "fidelity"])
def test_names_that_contain_the_word_are_refused(name):
    with pytest.raises(ValueError, match=f"extractor must not have 'fid' in its name, got '{name}'"):
        result_key("kid", name, 10, 10, False)
    with pytest.raises(ValueError, match="metric must not have 'fid' in its name"):
        result_key(name, "pixels", 10, 10, False)


def strings(path: Path) -> list[str]:
    """What a module can print: its string constants without docstrings, and its names."""
    tree = ast.parse(path.read_text())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    found = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in docstrings]
    found += [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)]
    return [value for value in found if isinstance(value, str)]


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda path: path.name)
def test_no_other_source_says_the_word(path):
    said = [value for value in strings(path) if "fid" in value.lower()]
    # record.py has it once, as the constant that result_key returns.
    assert said == (["fid"] if path.name == "record.py" else [])


def test_measurements_as_json(tmp_path):
    record = MetricRecord("pixels", False, None, "none", 10, 20, "digits", {"k": 5}, {"steps": 4, "x": float("nan")})
    measurements = {"a": Measurement(1.5, record, 0.1, ("note",)), "b": Measurement(float("inf"), record)}
    path = save_measurements(tmp_path / "new" / "results.json", measurements)
    found = json.loads(path.read_text())
    assert found == as_json(measurements)
    assert found["a"]["value"] == 1.5
    assert found["a"]["notes"] == ["note"]
    assert found["a"]["record"]["run"] == {"steps": 4, "x": None}
    assert found["a"]["record"]["n_reference"] == 20
    assert found["b"]["value"] is None
    assert [file.name for file in path.parent.iterdir()] == ["results.json"]


def test_measurements_of_other_settings_are_added_and_none_is_lost(tmp_path):
    def measured(value, **run):
        settings = {"steps": 4, "guidance_scale": 1.0, **run}
        record = MetricRecord("pixels", False, None, "none", 10, 20, "digits train", {"seed": 0}, settings)
        return Measurement(value, record)

    path = tmp_path / "results.json"
    save_measurements(path, {"fd": measured(1.0), "kid": measured(math.nan)})  # as earlier versions wrote it
    before = json.loads(path.read_text())
    guided, model = measured(2.0, guidance_scale=2.0), measured(3.0)
    assert add_measurements(path, {"fd": guided}) == {"fd guidance_scale=2.0": guided}
    both = measured(2.5, guidance_scale=2.0, steps=9)
    assert add_measurements(path, {"fd": both}) == {"fd steps=9, guidance_scale=2.0": both}
    assert add_measurements(path, {"fd": model, "recall": model}) == {"fd (2)": model, "recall": model}
    found = read_measurements(path)
    assert {key: found[key] for key in before} == before
    assert list(found) == ["fd", "kid", "fd guidance_scale=2.0", "fd steps=9, guidance_scale=2.0", "fd (2)", "recall"]
    assert Measurement.from_json(found["fd guidance_scale=2.0"]) == guided

    for one in (measured(1.0), guided, both, model):  # once more: the same
        add_measurements(path, {"fd": one})
    add_measurements(path, {"kid": measured(math.nan)})
    assert read_measurements(path) == found
    assert read_measurements(tmp_path / "none.json") == {}


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"a": 1}', b'{"a": {"value": 1}}', b"\xff"])
def test_a_file_of_something_else_is_left_alone(content, tmp_path):
    path = tmp_path / "notes.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"notes\.json: holds something other than measurements"):
        add_measurements(path, {})
    assert path.read_bytes() == content

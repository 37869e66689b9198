"""Which of the logged numbers an analysis takes, and what a killed one keeps."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from image_diffusion.analysis import analyses
from image_diffusion.analysis.analyses import Place, _sampling_steps, _training_curves
from image_diffusion.analysis.study import ImageRun
from image_diffusion.evaluation import ImageEvaluation
from image_diffusion.metrics import Measurement, MetricRecord, Pixels, result_key


def finished(folder: Path, *measured: str) -> ImageRun:
    run = ImageRun(folder, {"coupling": "none"}, 0)
    run.run_dir.mkdir(parents=True)
    values = {name: 10.0 + number for number, name in enumerate(measured)}
    (run.run_dir / "summary.json").write_text(json.dumps({"final": values}))
    lines = [
        {"step": step, "train/fd_loss": 0.5, **{f"evaluation/{name}": value / step for name, value in values.items()}}
        for step in (1, 2)
    ]
    (run.run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


@pytest.mark.parametrize(
    ("measured", "metric", "expected"),
    [
        (("fd_floor_inception_900", "fd_inception_500"), "fd", "fd_inception_500"),
        (("fd_floor_inception_25000", result_key("fd", "inception", 50_000, 50_000, True)), "fd", "fid"),
        (("fd_floor_inception_25000", result_key("fd", "inception", 60_000, 60_000, True)), "fd", "fid_60000"),
        (("fd_floor_pixels_900", "fd_pixels_500"), "fd_floor", "fd_floor_pixels_900"),
        (("fd_pixels_500", "kid_pixels_500"), "kid", "kid_pixels_500"),
        (("fd_pixels_500", "kid_full_pixels_500", "kid_pixels_500"), "kid", "kid_pixels_500"),
    ],
)
def test_curves_are_of_the_metric_that_is_asked_for(
    measured: tuple[str, ...], metric: str, expected: str, tmp_path: Path
) -> None:
    run = finished(tmp_path / "none-seed0", *measured)
    table = _training_curves({"none": [run]}, Place(tmp_path, "all"), metric=metric)[0].read_text()
    assert f"`{expected}` of the averaged weights" in table


def test_a_metric_that_was_not_logged_is_named(tmp_path: Path) -> None:
    run = finished(tmp_path / "none-seed0", "fd_floor_pixels_900")
    with pytest.raises(ValueError, match=r"metric='fd': none-seed0 has logged .*fd_floor_pixels_900"):
        _training_curves({"none": [run]}, Place(tmp_path, "all"))


def test_sampling_steps_that_were_measured_before_a_kill_are_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ImageEvaluation(("fd",), 8, "pixels")
    run = SimpleNamespace(seed=0, folder=tmp_path / "ddim-none-seed0", provenance=lambda: {"command": "python"})
    record = MetricRecord("pixels", False, None, "none", 8, 9, "digits", {}, {"seed": 3})
    first, second = Measurement(1.5, record, None, ("biased",)), Measurement(math.nan, record)
    calls: list[dict] = []

    def measures(*_: object) -> SimpleNamespace:
        reference = SimpleNamespace(source="digits")
        return SimpleNamespace(reference=reference, extractor=Pixels((1, 2, 2)), config=config)

    def killed(*_: object, known, on_measured):
        calls.append(dict(known))
        on_measured("none", 0, 100, first)
        on_measured("none", 0, 50, second)
        raise KeyboardInterrupt

    def whole(*_: object, known, on_measured):
        calls.append(dict(known))

    monkeypatch.setattr(analyses, "_measures", measures)
    monkeypatch.setattr(analyses, "_models", lambda *_: {})
    monkeypatch.setattr(analyses, "_write_distances", lambda *_: [])
    monkeypatch.setattr(analyses, "sampling_steps", killed)
    place = Place(tmp_path, "ddim")
    with pytest.raises(KeyboardInterrupt):
        _sampling_steps({"none": [run]}, place)  # type: ignore[list-item]
    monkeypatch.setattr(analyses, "sampling_steps", whole)
    _sampling_steps({"none": [run]}, place)  # type: ignore[list-item]
    assert not list(tmp_path.iterdir())
    assert calls[0] == {}
    assert calls[1][("none", 0, 100)] == first
    assert math.isnan(calls[1][("none", 0, 50)].value)

    monkeypatch.setattr(analyses, "sampling_steps", killed)
    with pytest.raises(KeyboardInterrupt):
        _sampling_steps({"none": [run]}, place)  # type: ignore[list-item]
    config = ImageEvaluation(("fd",), 9, "pixels")
    monkeypatch.setattr(analyses, "sampling_steps", whole)
    _sampling_steps({"none": [run]}, place)  # type: ignore[list-item]
    assert calls[3] == {}  # of other settings

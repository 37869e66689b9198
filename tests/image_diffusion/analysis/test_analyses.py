"""Which of the logged numbers an analysis takes."""

import json
from pathlib import Path

import pytest

from image_diffusion.analysis.analyses import Place, _training_curves
from image_diffusion.analysis.study import ImageRun
from image_diffusion.metrics import result_key


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

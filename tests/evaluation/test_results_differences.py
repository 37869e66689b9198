"""The figure of differences shows the table's numbers, where they can be told apart."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kept_figures import kept_figures
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from immiscible_policy.evaluation.results_differences import differences_to_baseline


def row(arm: str, steps: int, coverage: float, success: float, seeds: int = 3) -> dict[str, Any]:
    """A row of the table of coverage whose intervals are 2 points to either side."""

    def interval(mean: float) -> dict[str, float]:
        return {"mean": mean, "low": mean - 0.02, "high": mean + 0.02}

    numbers = {"difference": interval(coverage), "success_difference": interval(success)}
    return {"arm": arm, "num_inference_steps": steps, "shared_seeds": list(range(seeds)), **numbers}


BASELINE = {
    "arm": "none|none",
    "num_inference_steps": 16,
    "shared_seeds": [],
    "difference": None,
    "success_difference": None,
}
CONTENT = [
    row("knn|none", 100, -0.05, -0.1),
    BASELINE,
    row("none|warm KNN(k=2)", 16, 0.01, 0.03),
    row("knn|none", 16, -0.05, -0.1),
    row("knn|warm", 16, 0.0, -0.02, seeds=1),
    row("knn|none", 1, -0.01, 0.0),
    row("knn|warm", 1, 0.02, 0.0),
]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    return kept_figures(monkeypatch, "results_differences")


def test_differences_stand_in_their_panels(figures: list[Figure], tmp_path: Path) -> None:
    assert differences_to_baseline(CONTENT, "none", tmp_path / "differences.png")
    titles = [axes.get_title().replace("\n", " ") for axes in figures[0].axes]
    # 100 steps have a single line, and success of one step is 0 throughout.
    assert titles == ["max coverage, 16 steps", "success, 16 steps", "max coverage, 1 step"]
    expected = {0: [1.0, -5.0, 0.0], 1: [3.0, -10.0, -2.0], 2: [-1.0, 2.0]}
    for panel, means in expected.items():
        marks = [line for line in figures[0].axes[panel].lines if line.get_marker() == "o"]
        assert sorted(float(line.get_xdata()[0]) for line in marks) == pytest.approx(sorted(means))
        bars = [c for c in figures[0].axes[panel].collections if isinstance(c, LineCollection)]
        ends = sorted(tuple(bar.get_segments()[0][:, 0]) for bar in bars)
        assert np.allclose(ends, sorted((mean - 2, mean + 2) for mean in means))
    assert [label.get_text() for label in figures[0].axes[0].get_yticklabels()] == ["none", "knn"]


def test_lines_of_one_coupling_stand_together_and_one_seed_is_open(figures: list[Figure], tmp_path: Path) -> None:
    assert differences_to_baseline(CONTENT, "none", tmp_path / "differences.png")
    axes = figures[0].axes[0]
    height = {
        float(line.get_xdata()[0]): (float(line.get_ydata()[0]), line.get_markerfacecolor())
        for line in axes.lines
        if line.get_marker() == "o"
    }
    assert height[1.0][0] < height[-5.0][0] < height[0.0][0]  # the axis goes down: none, then knn from N(0, I), warm
    assert axes.get_ylim()[0] > axes.get_ylim()[1]
    assert [mean for mean, (_, face) in height.items() if face == "white"] == [0.0]
    legend = figures[0].legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["N(0, I)", "warm as trained", "warm KNN(k=2)"]
    assert "open: one training seed" in legend.get_title().get_text()


def test_there_is_nothing_to_draw_without_a_comparison(tmp_path: Path) -> None:
    assert not differences_to_baseline([BASELINE], "none", tmp_path / "differences.png")
    assert not differences_to_baseline(CONTENT[:2], "none", tmp_path / "differences.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("success", "scale"), [(0.2, "linear"), (0.7, "symlog")])
def test_zero_and_all_intervals_are_in_view(figures: list[Figure], tmp_path: Path, success: float, scale: str) -> None:
    better = [row("knn|none", 16, 0.05, success), row("knn|warm", 16, 0.08, success)]
    assert differences_to_baseline([BASELINE, *better], "none", tmp_path / "differences.png")
    axes = figures[0].axes[0]
    assert axes.get_xscale() == scale
    assert axes.get_xlim()[0] < 0
    assert axes.get_xlim()[1] > 100 * success + 2

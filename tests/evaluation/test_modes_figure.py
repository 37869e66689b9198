"""The figure of the ways: what it draws and what it refuses."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from envs.pusht.modes import symmetric_starts
from immiscible_policy.evaluation.modes import Trajectories
from immiscible_policy.evaluation.modes_figure import COLORS, plot_modes

# An upright block at (256, 200), and from above it around the right, around the left, and straight down.
PATHS = {
    "clockwise": [(256.0, 120.0), (400.0, 180.0), (400.0, 360.0), (256.0, 360.0), (256.0, 334.0), (256.0, 334.0)],
    "counter_clockwise": [(256.0, 120.0), (112.0, 180.0), (112.0, 360.0), (256.0, 360.0), (256.0, 334.0), (9.0, 9.0)],
    "direct": [(256.0, 120.0), (256.0, 160.0), (256.0, 186.0), (256.0, 186.0), (256.0, 186.0), (256.0, 186.0)],
}


def trajectories(*rows: list[str]) -> Trajectories:
    states = np.array([[[(*agent, 256.0, 200.0, 0.0) for agent in PATHS[mode]] for mode in row] for row in rows])
    return Trajectories(states, np.full(states.shape[:2], 6))


def test_a_panel_for_each_policy_and_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Axes] = []
    save = Figure.savefig

    def saving(figure: Figure, *args: object, **options: object) -> None:
        drawn.extend(figure.axes)
        save(figure, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Figure, "savefig", saving)
    first = trajectories(["clockwise", "clockwise", "counter_clockwise", "direct"], ["direct"] * 4)
    second = trajectories(["counter_clockwise"] * 4, ["clockwise"] * 4)
    path = tmp_path / "modes.png"
    plot_modes({"none": first, "knn": second}, path, starts=(0, 1))
    assert [axes.get_title().strip() for axes in drawn] == [
        "67% clockwise (2 of 3)\n1 direct",
        "none went round\n4 direct",
        "0% clockwise (0 of 4)",
        "100% clockwise (4 of 4)",
    ]
    assert [axes.get_ylabel() for axes in drawn] == ["none", "", "knn", ""]
    colors = [to_hex(str(line.get_color())) for line in drawn[0].lines[::2]]
    assert colors == [COLORS[mode] for mode in ("clockwise", "clockwise", "counter_clockwise", "direct")]
    # Up to the first contact.
    assert [len(np.asarray(line.get_xdata())) for line in drawn[0].lines[::2]] == [5, 5, 5, 3]
    with Image.open(path) as picture:
        assert picture.size[0] > 400
    assert [file.name for file in tmp_path.iterdir()] == ["modes.png"]


def test_what_cannot_be_drawn_is_named(tmp_path: Path) -> None:
    path, arm = tmp_path / "modes.png", trajectories(["direct"])
    starts = np.tile(symmetric_starts(1, 0)[:, None, None], (1, 1, 6, 1))
    for arms, chosen, message in (
        ({}, (0,), "arms has 0 entries"),
        ({"none": arm}, (), "starts 0"),
        ({"none": arm}, (0, 1), r"starts has \[1\]; allowed: 0 to 0"),
        ({"none": arm, "knn": Trajectories(starts, arm.lengths)}, (0,), r"arms\['knn'\] begins in other states"),
    ):
        with pytest.raises(ValueError, match=message):
            plot_modes(arms, path, chosen)
    assert not path.exists()

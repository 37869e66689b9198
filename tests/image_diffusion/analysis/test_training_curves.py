"""Distance while training, against numbers worked out by hand."""

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from image_diffusion.analysis.plots import plot_training_curves
from image_diffusion.analysis.training_curves import TrainingCurves, final_table, steps_until

CURVES = {
    "none": {0: {100: 8.0, 200: 4.0, 300: 2.0}, 1: {100: 9.0, 200: 5.0, 300: 2.0}},
    "knn": {0: {100: 6.0, 200: 2.0, 300: 1.0}, 1: {100: 9.0, 200: 4.0, 300: 3.0}},
}


def test_steps_until_are_linear_between_measurements() -> None:
    curve = {100: 8.0, 200: 4.0, 300: 2.0}
    assert steps_until(curve, 8.0) == 100
    assert steps_until(curve, 10.0) == 100
    assert steps_until(curve, 5.0) == 175
    assert steps_until(curve, 2.0) == 300
    assert steps_until(curve, 1.9) == math.inf


def test_steps_until_take_the_first_time_of_a_curve_that_rises_again() -> None:
    assert steps_until({1: 5.0, 2: 3.0, 3: 4.0, 4: 1.0}, 3.5) == 1.75


def test_order_of_the_points_does_not_matter() -> None:
    assert steps_until({300: 2.0, 100: 8.0, 200: 4.0}, 5.0) == 175


def test_thresholds_are_in_units_of_what_the_baseline_ends_with() -> None:
    curves = TrainingCurves("fd_x_10", CURVES, (2.0, 1.0))
    assert curves.targets() == [4.0, 2.0]
    assert curves.steps_to(4.0) == {
        "none": {0: 200.0, 1: pytest.approx(233.333, abs=0.01)},
        "knn": {0: 150.0, 1: 200.0},
    }
    assert curves.steps_to(2.0)["knn"] == {0: 200.0, 1: math.inf}


def test_steps_are_those_that_every_run_has() -> None:
    shorter = {"none": CURVES["none"], "knn": {0: {100: 6.0, 200: 2.0}}}
    assert TrainingCurves("fd_x_10", shorter).steps == [100, 200]


def test_differences_are_paired_by_seed() -> None:
    row = TrainingCurves("fd_x_10", CURVES).comparisons()[300]["knn"]
    assert row.difference is not None
    assert row.difference.mean == 0.0  # -1 and +1
    half = stats.t.ppf(0.975, 1) * np.std([-1, 1], ddof=1) / np.sqrt(2)
    assert row.difference.high == pytest.approx(half)


def test_the_table_says_who_never_got_there_and_how_much_sooner_the_others_did() -> None:
    text = TrainingCurves("fd_x_10", CURVES, (2.0, 1.0)).markdown()
    speed = math.exp(np.mean(np.log([150 / 200, 200 / 233.3333])))
    assert f"175 [150, 200]; x {speed:.2f} [" in text
    assert "200 [200]; 1 of 2 never" in text
    never = TrainingCurves("fd_x_10", {"none": CURVES["none"], "bad": {0: {300: 9.0}}}, (1.0,))
    assert "not reached" in never.markdown()


def test_json_has_no_infinity() -> None:
    content = TrainingCurves("fd_x_10", CURVES, (1.0,)).to_json()
    assert content["steps_to"][0]["knn"] == {"0": 200.0, "1": None}


def test_one_training_seed_is_enough_to_look_at(tmp_path: Path) -> None:
    curves = TrainingCurves("fd_x_10", {arm: {0: seeds[0]} for arm, seeds in CURVES.items()})
    assert "| `knn` | 1 | 6 | 2 | 1 |" in curves.markdown()
    plot_training_curves({"digits": curves, "again": curves}, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("curves", "thresholds"), [({}, (1.0,)), ({"none": {}}, (1.0,)), (CURVES, ()), (CURVES, (0.0,))]
)
def test_what_cannot_be_compared_is_refused(curves: dict, thresholds: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="needs"):
        TrainingCurves("fd_x_10", curves, thresholds)


def test_final_table_has_all_numbers_and_keeps_the_floor_apart() -> None:
    scores = {
        "none": {
            0: {"fd_x_10": 1.0, "fd_floor_x_5": 0.25, "recall_x_10": 0.5},
            1: {"fd_x_10": 2.0, "recall_x_10": 0.7},
        },
        "knn": {0: {"fd_x_10": 0.5, "recall_x_10": 0.5}, 1: {"fd_x_10": 1.5, "recall_x_10": 0.7}},
    }
    table = final_table(scores)
    assert "fd_floor_x_5: 0.25 between halves of the data" in table.markdown
    assert "| arm | training seeds | fd_x_10 | recall_x_10 |" in table.markdown
    assert table.content["fd_x_10"]["knn"]["difference"]["mean"] == -0.5

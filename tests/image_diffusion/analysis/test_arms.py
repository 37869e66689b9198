"""Arms: shared training seeds are paired, numbers that are not known stay unknown."""

import math

import numpy as np
import pytest
from scipy import stats

from image_diffusion.analysis.arms import cell, compare, models_by_seed, spread


def test_means_and_paired_differences_are_those_of_student() -> None:
    rows = compare({"a": {0: [1.0], 1: [2.0], 2: [4.0]}, "b": {2: [9.0], 0: [3.0], 7: [5.0]}})
    a = np.array([1.0, 2.0, 4.0])
    expected = stats.t.interval(0.95, 2, a.mean(), a.std(ddof=1) / math.sqrt(3))
    assert (rows["a"].mean.low, rows["a"].mean.high) == pytest.approx(expected)
    assert rows["a"].difference is None
    difference = rows["b"].difference  # of the seeds 0 and 2: 3 - 1 and 9 - 4
    assert difference is not None
    assert difference.mean == pytest.approx(3.5)
    half = stats.t.ppf(0.975, 1) * np.std([2.0, 5.0], ddof=1) / math.sqrt(2)
    assert difference.high - difference.mean == pytest.approx(half)
    assert rows["b"].seeds == (2, 0, 7)


def test_arms_without_a_training_seed_in_common_have_no_difference() -> None:
    assert compare({"a": {0: [1.0]}, "b": {1: [1.0]}})["b"].difference is None


def test_one_value_that_is_not_finite_makes_the_mean_unknown_and_no_other() -> None:
    rows = compare({"a": {0: [1.0, 2.0]}, "b": {0: [1.0, math.nan]}, "c": {0: [2.0, 3.5]}})
    difference = rows["b"].difference
    assert difference is not None
    assert math.isnan(rows["b"].mean.mean)
    assert cell(rows["b"].mean) == cell(difference) == "n/a"
    assert cell(rows["c"].difference, "+.2f").startswith("+1.25 [")


def test_cells() -> None:
    rows = compare({"a": {0: [2.0]}, "b": {0: [2.0], 1: [3.0]}})
    assert cell(rows["a"].mean, ".1f") == "2.0"
    assert cell(rows["b"].mean, ".1f", factor=10) == "25.0 [-38.5, 88.5]"
    assert cell(None) == ""


def test_models_come_by_training_seed_and_make_equal_images(toys) -> None:
    small, large = toys.image_model(), toys.image_model(image_size=4)
    arms = models_by_seed({"a": [small, small], "b": {5: small, 2: small}})
    assert {name: list(arm) for name, arm in arms.items()} == {"a": [0, 1], "b": [2, 5]}
    with pytest.raises(ValueError, match=r"one shape.*'a': 1 x 2 x 2.*'b': 1 x 4 x 4"):
        models_by_seed({"a": [small], "b": [large]})
    with pytest.raises(ValueError, match="at least one arm"):
        models_by_seed({})
    with pytest.raises(ValueError, match=r"models\['b'\]"):
        models_by_seed({"a": [small], "b": []})


def test_spread_has_both_ends() -> None:
    assert spread(100, 3) == [0, 50, 99]
    assert spread(3, 8) == [0, 1, 2]
    assert spread(5, 1) == [0]

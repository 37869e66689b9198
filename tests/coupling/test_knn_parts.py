"""Which entries take part: axes, indices and weights checked, multiplied and grouped."""

import math

import numpy as np
import pytest
import torch

from immiscible_policy.coupling import KNN
from immiscible_policy.coupling._knn_parts import normalised_features, normalised_weights, parts_of, weight_row

CPU = torch.device("cpu")


def weights_of(features, weights, shape):
    """The weight of every entry, put together again from the parts."""
    row = torch.zeros(math.prod(shape), dtype=torch.float64)
    for part in parts_of(normalised_features(features), normalised_weights(weights), shape, CPU):
        if part.columns is None:
            return torch.full(shape, part.weight, dtype=torch.float64)
        assert (row[part.columns] == 0).all()
        row[part.columns] = part.weight
    return row.view(shape)


def test_all_entries_are_one_part_without_columns():
    assert parts_of(None, None, (4, 2), CPU)[0].columns is None
    assert weight_row(None, None, (4, 2), CPU) is None
    ones = normalised_weights({1: [3, 3], 2: [2, 2, 2]})
    everything = normalised_features({2: [0, 1, 2]})
    assert [part.columns for part in parts_of(everything, ones, (2, 3), CPU)] == [None]


@pytest.mark.parametrize(
    ("features", "weights", "wanted"),
    [
        ({1: [2, 0]}, None, [[1, 1], [0, 0], [1, 1]]),
        ({1: [1, 2], 2: [0]}, None, [[0, 0], [1, 0], [1, 0]]),
        (None, {1: [2, 1, 0]}, [[1, 1], [0.5, 0.5], [0, 0]]),
        (None, {2: [1, 4]}, [[0.25, 1]] * 3),
        (None, {1: [2, 1, 0], 2: [1, 4]}, [[0.25, 1], [0.125, 0.5], [0, 0]]),
        ({1: [1, 2]}, {1: [2, 1, 0], 2: [1, 4]}, [[0, 0], [0.25, 1], [0, 0]]),
    ],
)
def test_axes_multiply_and_the_largest_weight_is_one(features, weights, wanted):
    expected = torch.tensor(wanted, dtype=torch.float64)
    assert torch.equal(weights_of(features, weights, (3, 2)), expected)
    row = weight_row(normalised_features(features), normalised_weights(weights), (3, 2), CPU)
    assert torch.equal(row, expected.view(1, 6))


def test_parts_have_one_weight_each_heaviest_first():
    parts = parts_of(None, normalised_weights({1: [1, 2, 4], 2: [2, 1]}), (3, 2), CPU)
    assert [part.weight for part in parts] == [1.0, 0.5, 0.25, 0.125]
    assert [part.columns.tolist() for part in parts] == [[4], [2, 5], [0, 3], [1]]


def test_extreme_weights_stay_in_range():
    weights = weights_of(None, {1: [1e300, 0.25e300], 2: [1e300, 0]}, (2, 2))
    assert weights.tolist() == [[1.0, 0.0], [pytest.approx(0.25), 0.0]]


def test_values_are_hashable_and_normalising_twice_changes_nothing():
    features = normalised_features({2: [3, 1], 1: (0,)})
    assert features == ((1, (0,)), (2, (1, 3)))
    assert normalised_features(features) == features
    weights = normalised_weights({1: [1, 0]})
    assert weights == ((1, (1.0, 0.0)),)
    assert normalised_weights(weights) == weights
    assert normalised_features(None) is None
    assert normalised_weights(None) is None


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ([1, 2], TypeError, r"features must be a mapping from axes of data to sequences, got \[1, 2\]"),
        ("1", TypeError, r"features must be a mapping"),
        ({}, ValueError, r"features must name at least one axis of data, got \{\}"),
        ({0: [0]}, ValueError, r"features must name axes >= 1 of data \(axis 0 is the batch\), got 0"),
        ({-1: [0]}, ValueError, r"features must name axes >= 1 .*, got -1"),
        ({"1": [0]}, ValueError, r"features must name axes >= 1 .*, got '1'"),
        ({True: [0]}, ValueError, r"features must name axes >= 1 .*, got True"),
        (((1, (0,)), (1, (1,))), ValueError, r"features must name each axis once"),
        ({1: []}, ValueError, r"features\[1\] must hold distinct indices >= 0, at least one; got \[\]"),
        ({1: [0, 0]}, ValueError, r"features\[1\] must hold distinct indices"),
        ({1: [-1]}, ValueError, r"features\[1\] must hold distinct indices >= 0"),
        ({1: [0.5]}, ValueError, r"features\[1\] must hold distinct indices"),
        ({1: [True]}, ValueError, r"features\[1\] must hold distinct indices"),
        ({1: 3}, ValueError, r"features\[1\] must hold distinct indices .*; got 3"),
    ],
)
def test_bad_features_are_named(value, error, message):
    with pytest.raises(error, match=message):
        normalised_features(value)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (1.0, TypeError, r"weights must be a mapping from axes of data to sequences, got 1.0"),
        (
            {1: [1, -0.5]},
            ValueError,
            r"weights\[1\] must hold finite numbers >= 0, one of them positive; got \[1, -0.5\]",
        ),
        ({1: [0, 0]}, ValueError, r"weights\[1\] must hold finite numbers"),
        ({1: []}, ValueError, r"weights\[1\] must hold finite numbers"),
        ({1: [math.inf]}, ValueError, r"weights\[1\] must hold finite numbers"),
        ({1: [math.nan]}, ValueError, r"weights\[1\] must hold finite numbers"),
        ({1: ["a"]}, ValueError, r"weights\[1\] must hold finite numbers"),
        ({1: "12"}, ValueError, r"weights\[1\] must hold finite numbers"),
    ],
)
def test_bad_weights_are_named(value, error, message):
    with pytest.raises(error, match=message):
        normalised_weights(value)


@pytest.mark.parametrize(
    ("features", "weights", "message"),
    [
        ({3: [0]}, None, r"features names axis 3, but data \(B, 4, 2\) has axes up to 2"),
        ({1: [0, 4]}, None, r"features\[1\] must hold indices from 0 to 3 for data \(B, 4, 2\), got 4"),
        (None, {3: [1]}, r"weights names axis 3, but data \(B, 4, 2\) has axes up to 2"),
        (None, {1: [1, 1]}, r"weights\[1\] must hold 4 numbers, one for each entry along axis 1 .*; got 2"),
        ({1: [0]}, {1: [0, 1, 1, 1]}, r"must leave an entry of data \(B, 4, 2\) that counts, got none"),
    ],
)
def test_what_does_not_fit_the_data_is_named(features, weights, message):
    with pytest.raises(ValueError, match=message):
        parts_of(normalised_features(features), normalised_weights(weights), (4, 2), CPU)


@pytest.mark.parametrize("make", [list, tuple, np.array, torch.tensor])
def test_arrays_and_tensors_are_as_good_as_lists(make):
    plain = KNN(2, features={1: [0, 2]}, weights={2: [1.0, 0.25]})
    given = KNN(2, features={1: make([0, 2])}, weights={2: make([1.0, 0.25])})
    assert given == plain
    assert hash(given) == hash(plain)
    with pytest.raises(ValueError, match=r"features\[1\] must hold distinct indices >= 0"):
        KNN(2, features={1: make([0.5])})
    with pytest.raises(ValueError, match=r"weights\[1\] must hold finite numbers >= 0"):
        KNN(2, weights={1: make([-1.0])})

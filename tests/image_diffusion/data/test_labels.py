"""Labels: integers as they are, names in sorted order, the same in every split."""

import pytest
import torch

from image_diffusion.data.labels import encode_labels
from image_diffusion.data.source import ImageDataError


def encode(values, vocabulary=None, names=None):
    return encode_labels(values, values if vocabulary is None else vocabulary, names, "kind", lambda n: f"row {n}")


def test_integers_stay():
    labels = encode([3, 0, 1])
    assert labels.values.dtype == torch.int64
    assert (labels.values.tolist(), labels.n_classes, labels.names) == ([3, 0, 1], 4, None)


def test_a_split_that_lacks_a_class_counts_like_the_others():
    assert encode([0, 1], vocabulary=[0, 1, 5]).n_classes == 6
    labels = encode(["dog", "cat"], vocabulary=["dog", "bird", "cat", None])
    assert (labels.values.tolist(), labels.n_classes, labels.names) == ([2, 1], 3, ("bird", "cat", "dog"))


def test_booleans_are_two_classes():
    labels = encode([True, False], vocabulary=[False, True])
    assert (labels.values.tolist(), labels.names) == ([1, 0], ("False", "True"))


def test_given_names_are_the_order():
    labels = encode(["a", "b"], names=["b", "a", "c"])
    assert (labels.values.tolist(), labels.n_classes, labels.names) == ([1, 0], 3, ("b", "a", "c"))
    assert encode([1, 1], names=["b", "a", "c"]).n_classes == 3


@pytest.mark.parametrize(
    ("values", "names", "message"),
    [
        ([0, None], None, r"row 1: column 'kind' is empty \(label_column=null"),
        ([0, -1], None, "row 1: column 'kind' is -1: labels must be 0 or more"),
        ([0, 2], ["a", "b"], "row 1: column 'kind' is 2: labels must be 0 to 1"),
        ([0.5], None, "row 0: column 'kind' is 0.5: labels must be integers or strings"),
        (["a", "c"], ["a", "b"], "row 1: column 'kind' is 'c', which is none of class_names"),
    ],
)
def test_bad_labels_are_named(values, names, message):
    with pytest.raises(ImageDataError, match=message):
        encode(values, names=names)

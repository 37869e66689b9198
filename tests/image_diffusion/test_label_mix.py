"""Labels of images that nobody gave any: a function of the seed, with the shares of the data."""

import pytest

from image_diffusion.label_mix import check_counts, labels_as_in_data, labels_in_turn, labels_to_measure, shown_in_turn


@pytest.mark.parametrize("counts", [[1, 9], [3, 0, 5], [7], [183, 178, 174, 180, 182], [2] * 10])
@pytest.mark.parametrize("start", [0, 3, 1_000_000, 2**32 - 1_000])
def test_every_run_of_seeds_has_the_shares_of_the_data(counts: list[int], start: int) -> None:
    for n in (10, 137, 1_000):
        labels = labels_as_in_data(range(start, start + n), counts)
        for label, count in enumerate(counts):
            assert abs(labels.count(label) - n * count / sum(counts)) < 4
            assert count or label not in labels


def test_a_seed_has_its_label_in_any_company() -> None:
    counts = [5, 1, 3]
    whole = labels_as_in_data(range(100), counts)
    assert [labels_as_in_data([seed], counts)[0] for seed in range(100)] == whole
    assert labels_as_in_data([70, 3], counts) == [whole[70], whole[3]]


def test_few_images_of_many_classes_show_all_of_the_range() -> None:
    labels = labels_to_measure(range(2_000_000, 2_000_500), [1_300] * 1_000)
    assert len(set(labels)) == 500
    assert max(b - a for a, b in zip([0, *sorted(labels)], [*sorted(labels), 999], strict=True)) <= 4


def test_where_labels_in_turn_have_the_data_s_mix_they_stay() -> None:
    seeds = range(1_000_000, 1_002_000)
    assert labels_to_measure(seeds, [5_000] * 10) == labels_in_turn(seeds, 10) == [seed % 10 for seed in seeds]
    assert labels_to_measure(seeds, [5_000] * 9 + [4_999]) != labels_in_turn(seeds, 10)


def test_labels_that_the_data_does_not_show_have_no_turn() -> None:
    assert shown_in_turn(range(3, 9), 4, [0, 5, 0, 1]) == [3, 1, 3, 1, 3, 1]
    for counts in (None, [1, 2, 1]):
        assert shown_in_turn(range(7), 3, counts) == labels_in_turn(range(7), 3)


@pytest.mark.parametrize(("counts", "n_classes"), [([1, 2], 3), ([1], None), ([-1, 2], 2), ([0, 0], 2)])
def test_counts_that_are_none_are_named(counts: list[int], n_classes: int | None) -> None:
    with pytest.raises(ValueError, match=r"class_counts=\[.*needs a number of images for each of n_classes="):
        check_counts(counts, n_classes)
    check_counts(None, n_classes)

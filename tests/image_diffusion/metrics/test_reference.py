"""Reference statistics: contents, floor, files, and the refusal of another extractor's."""

import dataclasses

import numpy as np
import pytest
import torch

from image_diffusion.metrics.frechet import frechet_distance
from image_diffusion.metrics.pixels import Pixels
from image_diffusion.metrics.random_conv import RandomConv
from image_diffusion.metrics.reference import ReferenceStatistics, reference_statistics
from image_diffusion.metrics.statistics import RunningStatistics

EXTRACTOR = Pixels((1, 2, 2))
IMAGES = torch.randint(0, 256, (41, 1, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def collect(images, **options):
    return reference_statistics(images, EXTRACTOR, "noise", progress=False, **options)


def test_contents():
    found = collect(IMAGES)
    features = EXTRACTOR(IMAGES).double().numpy()
    assert (found.statistics.n, found.source, found.extractor) == (41, "noise", "pixels")
    np.testing.assert_allclose(found.statistics.mean, features.mean(0))
    np.testing.assert_allclose(found.statistics.covariance, np.cov(features.T))
    assert torch.equal(found.features, EXTRACTOR(IMAGES))
    assert found.floor_n == 20


def test_batches_and_halves_change_nothing():
    whole = collect(IMAGES)
    for sizes in ([1] * 41, [7, 3, 31]):
        cut = collect(IMAGES.split(sizes))
        assert cut.floor == pytest.approx(whole.floor, rel=1e-9)
        np.testing.assert_allclose(cut.statistics.covariance, whole.statistics.covariance, rtol=1e-9)
    without = collect(IMAGES, floor=False, keep_features=False)
    np.testing.assert_allclose(without.statistics.covariance, whole.statistics.covariance, rtol=1e-9)
    assert (without.floor, without.floor_n, without.features) == (None, 0, None)


def test_the_floor_is_between_halves_that_take_one_of_each_two_neighbours():
    # Neighbours are equal, so the halves are equal, whichever of the two goes where.
    twins = IMAGES.repeat_interleave(2, 0)
    assert collect(twins).floor == pytest.approx(0, abs=1e-12)
    assert collect(IMAGES).floor > 0.001
    assert collect(IMAGES).floor != collect(IMAGES, seed=1).floor
    # Not simply every second: images that alternate between two kinds reach both halves.
    black, white = (torch.full((400, 1, 2, 2), value, dtype=torch.uint8) for value in (0, 255))
    alternating = torch.stack([black, white], 1).flatten(0, 1)
    assert collect(alternating).floor < 0.1


def test_the_floor_of_an_odd_number_counts_its_halves():
    first, second = RunningStatistics(4), RunningStatistics(4)
    features = EXTRACTOR(IMAGES[:4])
    floors = []
    for one, two in ((0, 2), (0, 3)):
        first, second = RunningStatistics(4), RunningStatistics(4)
        first.add(features[[one, two]])
        second.add(features[[1 - one, 5 - two]])
        floors.append(frechet_distance(first.finish(), second.finish()))
    assert collect(IMAGES[:4]).floor in [pytest.approx(floor, rel=1e-9) for floor in floors]
    assert collect(IMAGES[:3]).floor is None


def test_a_file_keeps_everything(tmp_path):
    made = collect(IMAGES, max_features=10)
    path = made.save(tmp_path / "new" / "reference.npz")
    assert [file.name for file in path.parent.iterdir()] == ["reference.npz"]
    found = ReferenceStatistics.load(path)
    for field in dataclasses.fields(made):
        if field.name not in ("statistics", "features"):
            assert getattr(found, field.name) == getattr(made, field.name)
    np.testing.assert_array_equal(found.statistics.covariance, made.statistics.covariance)
    np.testing.assert_array_equal(found.statistics.mean, made.statistics.mean)
    assert found.statistics.n == 41
    assert torch.equal(found.features, made.features)
    assert len(found.features) == 10
    bare = ReferenceStatistics.load(collect(IMAGES, keep_features=False, floor=False).save(path))
    assert bare.features is None


def test_files_that_hold_something_else(tmp_path):
    with pytest.raises(ValueError, match="no reference statistics at"):
        ReferenceStatistics.load(tmp_path / "absent.npz")
    (tmp_path / "text.npz").write_text("text")
    np.savez(tmp_path / "other.npz", mean=np.zeros(3))
    for name in ("text.npz", "other.npz"):
        with pytest.raises(ValueError, match=f"{name} does not hold reference statistics"):
            ReferenceStatistics.load(tmp_path / name)


def test_another_extractor_is_named():
    reference = collect(IMAGES)
    reference.check(EXTRACTOR)
    with pytest.raises(ValueError, match=r"of pixels \(dim 4\) cannot .* features of random-conv-0 \(dim 224\)"):
        reference.check(RandomConv(1))
    with pytest.raises(ValueError, match=r"of pixels \(dim 4\) .* pixels \(dim 12\): the dim differ"):
        reference.check(Pixels((3, 2, 2)))
    other_weights = dataclasses.replace(reference, weights_sha256="abc")
    with pytest.raises(ValueError, match="the weights differ, abc and None"):
        other_weights.check(EXTRACTOR)


def test_too_few_images():
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        collect(IMAGES[:1])
    with pytest.raises(ValueError, match="max_features must be at least 2, got 1"):
        collect(IMAGES, max_features=1)

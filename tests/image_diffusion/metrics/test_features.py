"""Features of streams of images: order, sizes, what is refused, and samples that do not depend on batches."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from image_diffusion.metrics import features
from image_diffusion.metrics.features import FeatureSample, feature_batches
from image_diffusion.metrics.pixels import Pixels

EXTRACTOR = Pixels((1, 2, 2))
IMAGES = torch.randint(0, 256, (11, 1, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class Broken(Pixels):
    """Features of one image (the eighth) are NaN."""

    def __call__(self, images):
        features = super().__call__(images)
        features[(images == IMAGES[7]).flatten(1).all(1)] = torch.nan
        return features


class Narrow(Pixels):
    """Fewer features than it says."""

    def __call__(self, images):
        return super().__call__(images)[:, 1:]


def all_features(images, **options):
    return torch.cat(list(feature_batches(images, EXTRACTOR, progress=False, **options)))


@given(sizes=st.lists(st.integers(1, 5), max_size=4), batch_size=st.integers(1, 20))
@settings(max_examples=30, deadline=None)
def test_tensors_and_batches_of_any_sizes(sizes, batch_size):
    expected = EXTRACTOR(IMAGES)
    sizes = [*sizes, 11 - sum(sizes)] if sum(sizes) < 11 else [11]
    assert torch.equal(all_features(IMAGES, batch_size=batch_size), expected)
    assert torch.equal(all_features(iter(IMAGES.split(sizes)), batch_size=batch_size), expected)


def test_a_bar_counts_images_if_they_take_long(capsys, monkeypatch):
    list(feature_batches(IMAGES, EXTRACTOR))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(features, "BAR_AFTER", 0.0)
    list(feature_batches(IMAGES, EXTRACTOR, batch_size=4, label="generated"))
    assert "pixels, generated: 100%" in capsys.readouterr().err
    list(feature_batches(IMAGES, EXTRACTOR, progress=False))
    assert capsys.readouterr().err == ""


def test_nan_features_name_the_image():
    with pytest.raises(ValueError, match="pixels gives NaN or infinite features for reference image 7"):
        list(feature_batches(IMAGES.split(3), Broken((1, 2, 2)), 2, False, "reference"))


def test_what_is_no_batch_of_images_is_refused():
    with pytest.raises(TypeError, match="got a tuple among them"):
        list(feature_batches([(IMAGES, 3)], EXTRACTOR, progress=False))
    with pytest.raises(ValueError, match=r"must give features \(11, 4\) for 11 images, got \(11, 3\)"):
        list(feature_batches(IMAGES, Narrow((1, 2, 2)), progress=False))
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        list(feature_batches(IMAGES, EXTRACTOR, batch_size=0))


@given(sizes=st.lists(st.integers(1, 40), max_size=6), kept=st.integers(1, 60))
@settings(max_examples=40, deadline=None)
def test_a_sample_does_not_depend_on_the_batches(sizes, kept):
    features = torch.arange(50.0)[:, None]
    whole, cut = FeatureSample(kept, seed=1), FeatureSample(kept, seed=1)
    whole.add(features)
    for part in features.tensor_split([min(50, sum(sizes[: i + 1])) for i in range(len(sizes))]):
        if len(part):
            cut.add(part)
    assert torch.equal(whole.features(), cut.features())
    values = whole.features().flatten().tolist()
    assert len(values) == min(kept, 50)
    assert values == sorted(set(values))


def test_every_image_is_as_likely_in_a_sample():
    counts = torch.zeros(20)
    for seed in range(400):
        sample = FeatureSample(5, seed)
        for part in torch.arange(20)[:, None].split(3):
            sample.add(part)
        counts[sample.features().flatten()] += 1
    # Binomial(400, 1/4): 100 with a standard deviation of 8.7.
    assert (counts - 100).abs().max() < 4 * 8.7
    assert counts.sum() == 2000


def test_without_a_size_everything_is_kept():
    sample = FeatureSample()
    for part in IMAGES.flatten(1).split(4):
        sample.add(part)
    assert torch.equal(sample.features(), IMAGES.flatten(1))

"""One pass, all metrics: equal to each metric by itself, whatever the batches; keys, records, warnings, refusals."""

import io
import json
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from image_diffusion.metrics.evaluate import METRICS, check_measurable, evaluate_features
from image_diffusion.metrics.frechet import frechet_distance
from image_diffusion.metrics.kid import kernel_distance
from image_diffusion.metrics.pixels import Pixels
from image_diffusion.metrics.prdc import neighbourhood_scores
from image_diffusion.metrics.random_conv import RandomConv
from image_diffusion.metrics.record import as_json
from image_diffusion.metrics.reference import reference_statistics
from image_diffusion.metrics.statistics import RunningStatistics

ROOT = Path(__file__).resolve().parents[3]
EXTRACTOR = Pixels((1, 2, 2))
WITHOUT_CLIP = tuple(name for name in METRICS if name != "cmmd")


def noise(n: int, seed: int, low: int = 0) -> torch.Tensor:
    return torch.randint(low, 256, (n, 1, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


GENERATED, REFERENCE = noise(60, 0, low=60), noise(50, 1)


def evaluate(generated=GENERATED, reference=REFERENCE, extractor=EXTRACTOR, metrics=WITHOUT_CLIP, **options):
    options = {"progress": False, "kid_subsets": 3, "reference_source": "noise", **options}
    return evaluate_features(generated, reference, extractor, metrics, **options)


def moments(images: torch.Tensor):
    statistics = RunningStatistics(EXTRACTOR.dim)
    statistics.add(EXTRACTOR(images))
    return statistics.finish()


def test_each_metric_by_itself():
    found = evaluate(fixed_n=(10, 25), k=3)
    x, y = EXTRACTOR(GENERATED), EXTRACTOR(REFERENCE)
    kid = kernel_distance(x, y, 3, 50, 0)
    scores = neighbourhood_scores(x, y, 3)
    expected = {
        "fd_pixels_10": frechet_distance(moments(GENERATED[:10]), moments(REFERENCE)),
        "fd_pixels_25": frechet_distance(moments(GENERATED[:25]), moments(REFERENCE)),
        "fd_pixels_60": frechet_distance(moments(GENERATED), moments(REFERENCE)),
        "fd_floor_pixels_25": reference_statistics(REFERENCE, EXTRACTOR, progress=False).floor,
        "kid_pixels_60": kid.value,
        "kid_full_pixels_60": kid.full,
        "precision_pixels_60": scores.precision,
        "recall_pixels_60": scores.recall,
        "density_pixels_60": scores.density,
        "coverage_pixels_60": scores.coverage,
    }
    assert {key: measurement.value for key, measurement in found.items()} == pytest.approx(expected, rel=1e-9)
    assert found["kid_pixels_60"].standard_error == kid.standard_error
    assert found["kid_full_pixels_60"].standard_error == kid.full_standard_error


@settings(max_examples=15, deadline=None)
@given(sizes=st.lists(st.integers(1, 30), max_size=5), batch_size=st.integers(1, 70), fixed=st.integers(8, 60))
def test_batches_change_nothing(sizes, batch_size, fixed):
    cuts = [min(60, sum(sizes[: i + 1])) for i in range(len(sizes))]
    parts = [part for part in GENERATED.tensor_split(cuts) if len(part)]
    options = {"fixed_n": (fixed,), "max_features": 30}
    cut = evaluate(iter(parts), batch_size=batch_size, **options)
    assert {key: m.value for key, m in cut.items()} == pytest.approx(
        {key: m.value for key, m in evaluate(**options).items()}, rel=1e-7, abs=1e-9
    )


def test_statistics_stand_for_the_reference(tmp_path):
    statistics = reference_statistics(REFERENCE, EXTRACTOR, "noise", progress=False)
    kept = type(statistics).load(statistics.save(tmp_path / "reference.npz"))
    for given_reference in (statistics, kept):
        assert as_json(evaluate(reference=given_reference)) == as_json(evaluate())


def test_every_number_carries_its_record():
    found = evaluate(record={"sampler": "ddim", "steps": 20, "ema": 0.9999}, k=4, seed=5, max_features=30)
    for key, measurement in found.items():
        record = measurement.record
        assert (record.extractor, record.canonical, record.reference) == ("pixels", False, "noise")
        assert record.run == {"sampler": "ddim", "steps": 20, "ema": 0.9999}
        assert key.endswith(f"_pixels_{record.n_generated}")
    assert found["fd_pixels_60"].record.n_reference == 50
    assert found["kid_pixels_30"].record.n_reference == 30
    settings_of_kid = dict(found["kid_pixels_30"].record.settings)
    assert settings_of_kid.pop("subset_deviation") >= 0
    assert settings_of_kid == {"n_subsets": 3, "subset_size": 30, "seed": 5}
    assert found["coverage_pixels_30"].record.settings == {"k": 4}
    assert "compare at equal n only" in found["fd_pixels_60"].notes[0]
    json.dumps(as_json(found), allow_nan=False)


class Canonical(Pixels):
    """Says that it is the canonical one."""

    name = "inception"
    canonical = True
    weights_sha256 = "0" * 64


def test_the_published_name_needs_50000_images_either_side(capsys):
    few = evaluate(extractor=Canonical((1, 2, 2)))
    assert not any("fid" in key for key in few)
    many = noise(50_000, 3)
    reference = reference_statistics(many, Canonical((1, 2, 2)), progress=False, batch_size=10_000)
    found = evaluate(many, reference, Canonical((1, 2, 2)), ("fd", "fd_floor"), batch_size=10_000, fixed_n=(49_999,))
    assert set(found) == {"fid", "fd_inception_49999", "fd_floor_inception_25000"}
    assert found["fid"].value == pytest.approx(0, abs=1e-9)
    evaluate(progress=True)
    output = capsys.readouterr()
    assert "fid" not in (output.out + output.err).lower()


def test_fewer_images_than_dimensions_warn_and_are_noted():
    with pytest.warns(UserWarning, match="30 images for the 224 dimensions of random-conv-0: the covariance is singul"):
        found = evaluate(noise(30, 0), noise(30, 1), RandomConv(1), ("fd",))
    assert found["fd_random-conv-0_30"].value > 0
    assert "singular" in found["fd_random-conv-0_30"].notes[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate()


def test_sizes_beyond_the_images():
    with pytest.raises(ValueError, match="fixed_n asks for 100 generated images or more, got 60"):
        evaluate(fixed_n=(100,))
    with pytest.warns(UserWarning, match=r"fixed_n=\[100\] is beyond the 60 generated images"):
        assert "fd_pixels_100" not in evaluate(iter([GENERATED]), fixed_n=(100,), metrics=("fd",))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ("fd", "is")}, r"metrics must be a list of some of fd, fd_floor, .*got \['is'\]"),
        ({"metrics": ()}, r"got \(\)"),
        ({"metrics": "fd"}, "got 'fd'"),
        ({"metrics": ("cmmd",)}, "needs a ClipExtractor, got pixels"),
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"k": 60}, "k asks for 61 generated images or more, got 60"),
        ({"k": 55}, "k=55 needs more than 55 images on either side, got 50"),
        ({"kid_subset_size": 51}, "kid_subset_size must be from 2 to the smaller set's 50"),
        ({"kid_subset_size": 1}, "kid_subset_size must be at least 2, got 1"),
        ({"kid_subsets": 1}, "kid_subsets must be at least 2, got 1"),
        ({"max_features": 0}, "max_features must be at least 2, got 0"),
        ({"fixed_n": (10, 1)}, "fixed_n must be at least 2, got 1"),
        ({"generated": GENERATED[:1], "metrics": ("fd",)}, "generated must hold at least 2 images, got 1"),
        ({"generated": [], "metrics": ("fd",)}, "generated must hold at least 2 images, got 0"),
        ({"generated": GENERATED.repeat(1, 3, 1, 1)}, r"pixels takes images of 1 channels .*got \(60, 3, 2, 2\)"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        evaluate(**options)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(2, 9),
    m=st.integers(2, 9),
    metrics=st.lists(st.sampled_from(WITHOUT_CLIP), min_size=1, unique=True),
    k=st.integers(0, 5),
    kid_subset_size=st.none() | st.integers(1, 6),
    max_features=st.none() | st.integers(1, 8),
)
@example(n=9, m=3, metrics=["fd_floor"], k=1, kid_subset_size=None, max_features=None)
@example(n=2, m=4, metrics=["fd_floor"], k=1, kid_subset_size=None, max_features=None)
@example(n=2, m=9, metrics=["kid"], k=1, kid_subset_size=None, max_features=None)
@example(n=9, m=9, metrics=["kid"], k=1, kid_subset_size=4, max_features=3)
@example(n=9, m=5, metrics=["density_coverage"], k=5, kid_subset_size=None, max_features=None)
def test_what_is_refused_beforehand_is_what_would_be_refused(n, m, metrics, k, kid_subset_size, max_features):
    options = {"k": k, "kid_subset_size": kid_subset_size, "max_features": max_features}

    def refused(call, *arguments):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                call(*arguments, **options)
        except ValueError:
            return True
        return False

    afterwards = refused(evaluate, GENERATED[:n], REFERENCE[:m], EXTRACTOR, metrics)
    assert refused(check_measurable, metrics, EXTRACTOR, n, m) == afterwards


def test_cmmd_is_refused_beforehand():
    with pytest.raises(ValueError, match="needs a ClipExtractor, got pixels"):
        check_measurable(["cmmd"], EXTRACTOR, 100, 100)


def test_float_images_are_refused():
    with pytest.raises(TypeError, match="images must be uint8"):
        evaluate(generated=GENERATED / 255)


def test_a_reference_that_lacks_something_is_refused():
    bare = reference_statistics(REFERENCE, EXTRACTOR, floor=False, keep_features=False, progress=False)
    with pytest.raises(ValueError, match=r"fd_floor needs a reference .*floor=True"):
        evaluate(reference=bare, metrics=("fd_floor",))
    with pytest.raises(ValueError, match="kid, precision_recall need reference statistics made with keep_features"):
        evaluate(reference=bare, metrics=("precision_recall", "kid"))
    with pytest.raises(ValueError, match="cannot be compared with features of random-conv-0"):
        evaluate(reference=bare, extractor=RandomConv(1), metrics=("fd",))


def first_images(folder: Path, n: int) -> torch.Tensor:
    """(n, 3, 32, 32) uint8: the first of the test split, without decoding the rest."""
    file = next(iter(sorted(folder.rglob("test-*.parquet"))))
    rows = next(pq.ParquetFile(file).iter_batches(batch_size=n, columns=["img"])).to_pylist()
    images = [np.array(Image.open(io.BytesIO(row["img"]["bytes"]))) for row in rows]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def test_more_noise_on_real_images_is_farther_away():
    folders = [ROOT / "data" / "cifar10", ROOT.parent / "shared" / "data" / "cifar10"]
    folder = next((folder for folder in folders if folder.is_dir()), None)
    if folder is None:
        pytest.skip("CIFAR-10 not found in data/cifar10")
    real, other = first_images(folder, 1000).split(500)
    generator = torch.Generator().manual_seed(0)
    draw = torch.randn(other.shape, generator=generator)
    extractor = RandomConv()
    reference = reference_statistics(real, extractor, "cifar10 test", progress=False)
    found = []
    for deviation in (0, 10, 30, 80):
        noisy = (other + deviation * draw).round().clamp(0, 255).to(torch.uint8)
        scores = evaluate(noisy, reference, extractor, ("fd", "kid", "density_coverage"), batch_size=250)
        found.append([scores[f"{name}_random-conv-0_500"].value for name in ("fd", "kid", "coverage")])
    distances, kernel_distances, coverages = np.array(found).T
    assert (np.diff(distances) > 0).all()
    assert (np.diff(kernel_distances) > 0).all()
    assert (np.diff(coverages) <= 0).all()
    assert coverages[0] > 0.8 > coverages[-1]

"""All metrics of a set of generated images, in one pass over them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from image_diffusion.metrics.clip import ClipExtractor
from image_diffusion.metrics.cmmd import cmmd
from image_diffusion.metrics.extractor import FeatureExtractor
from image_diffusion.metrics.features import FeatureSample, Images, feature_batches
from image_diffusion.metrics.frechet import frechet_distance
from image_diffusion.metrics.kid import kernel_distance
from image_diffusion.metrics.prdc import neighbourhood_scores
from image_diffusion.metrics.record import Measurement, MetricRecord, result_key
from image_diffusion.metrics.reference import ReferenceStatistics, reference_statistics
from image_diffusion.metrics.statistics import FeatureStatistics, RunningStatistics

MEASURES = {
    "fd": ("fd",),
    "fd_floor": ("fd_floor",),
    "kid": ("kid", "kid_full"),
    "precision_recall": ("precision", "recall"),
    "density_coverage": ("density", "coverage"),
    "cmmd": ("cmmd",),
}
"""Metric -> what its numbers are called."""
METRICS = tuple(MEASURES)
_OF_PAIRS = {"kid", "precision_recall", "density_coverage", "cmmd"}
_OF_NEIGHBOURS = {"precision_recall", "density_coverage"}
FRECHET_BIAS = "biased upwards at any n, by an amount that depends on the images: compare at equal n only"


def evaluate_features(
    generated: Images,
    reference: Images | ReferenceStatistics,
    extractor: FeatureExtractor,
    metrics: Sequence[str] = ("fd",),
    record: Mapping[str, Any] | None = None,
    *,
    reference_source: str = "",
    fixed_n: Sequence[int] = (),
    k: int = 5,
    kid_subsets: int = 100,
    kid_subset_size: int | None = None,
    max_features: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = True,
) -> dict[str, Measurement]:
    """Compare generated images with a reference.

    The Frechet distance (``fd``) from few images is too large, and by how much depends on the model: distances at
    different n do not compare. ``fixed_n`` gives it at agreed sizes, and ``fd_floor`` the distance between two halves
    of the reference, which is what its own bias amounts to at their size. ``kid`` has no such bias. The four
    neighbourhood scores depend on n and k too.

    Args:
        generated: uint8 (N, C, H, W), or an iterable of such batches. In random order, if ``fixed_n`` is used.
        reference: the same of the reference images, or their statistics (``reference_statistics``).
        extractor: of the features to compare in.
        metrics: of :data:`METRICS`: ``fd``; ``fd_floor``; ``kid`` (gives ``kid``, the mean over subsets, and
            ``kid_full``, over all pairs); ``precision_recall``; ``density_coverage``; ``cmmd`` (CLIP extractors only).
        record: fields for the results' record: sampler, steps, seed, averaging of weights ...
        reference_source: which images the reference is; statistics know theirs.
        fixed_n: also the Frechet distance of the first n generated images, for each n of these.
        k: neighbours, for the neighbourhood scores.
        kid_subsets, kid_subset_size: as in ``kernel_distance``; subsets of 1,000, or of the smaller set, by default.
        max_features: metrics of pairs use a random sample of at most so many on either side; None for all. Their time
            grows with its square.
        seed: draws subsets, samples and halves.
        batch_size: images that the extractor gets at once.
        progress: show bars.

    Returns:
        Measurements by their key (:func:`result_key`).

    Raises:
        ValueError: a bad argument, too few images, NaN features, or statistics of another extractor.
        TypeError: images that are not uint8 tensors.
    """
    _check_arguments(metrics, extractor, fixed_n, k, kid_subsets, kid_subset_size, max_features, generated)
    with_pairs = bool(_OF_PAIRS & set(metrics))
    if not isinstance(reference, ReferenceStatistics):
        reference = reference_statistics(
            reference,
            extractor,
            reference_source,
            floor="fd_floor" in metrics,
            keep_features=with_pairs,
            max_features=max_features,
            seed=seed,
            batch_size=batch_size,
            progress=progress,
        )
    _check_reference(reference, extractor, metrics)
    total = RunningStatistics(extractor.dim)
    sample = FeatureSample(max_features, seed + 1)
    snapshots: dict[int, FeatureStatistics] = {}
    for features in feature_batches(generated, extractor, batch_size, progress, "generated"):
        if with_pairs:
            sample.add(features)
        for part in _cut_at(features, total.n, fixed_n):
            total.add(part)
            if total.n in fixed_n:
                snapshots[total.n] = total.finish()
    if total.n < 2:
        raise ValueError(f"generated must hold at least 2 images, got {total.n}")
    if missing := sorted(set(fixed_n) - set(snapshots)):
        warnings.warn(f"fixed_n={missing} is beyond the {total.n} generated images: left out", stacklevel=2)

    results = _Results(extractor, reference, record or {})
    if "fd" in metrics:
        for statistics in [*snapshots.values(), total.finish()]:
            distance = frechet_distance(statistics, reference.statistics)
            n, m = statistics.n, reference.statistics.n
            results.add("fd", distance, n, m, notes=frechet_notes(extractor, n, m))
    if "fd_floor" in metrics and reference.floor is not None:
        n = reference.floor_n
        notes = (*frechet_notes(extractor, n, n), "between two random halves of the reference")
        results.add("fd_floor", reference.floor, n, n, notes=notes)
    if with_pairs and reference.features is not None:
        settings = {"k": k, "n_subsets": kid_subsets, "subset_size": kid_subset_size, "seed": seed}
        _add_pair_metrics(results, sample.features(), reference.features, metrics, settings)
    return results.measurements


class _Results:
    """Measurements that share extractor, reference and run."""

    def __init__(self, extractor: FeatureExtractor, reference: ReferenceStatistics, run: Mapping[str, Any]) -> None:
        self.extractor, self.reference, self.run = extractor, reference, run
        self.measurements: dict[str, Measurement] = {}

    def add(
        self,
        metric: str,
        value: float,
        n: int,
        m: int,
        standard_error: float | None = None,
        notes: tuple[str, ...] = (),
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Keep a value over n generated and m reference images under its key."""
        extractor = self.extractor
        record = MetricRecord(
            extractor.name,
            extractor.canonical,
            extractor.weights_sha256,
            extractor.resize,
            n,
            m,
            self.reference.source,
            settings or {},
            self.run,
        )
        key = result_key(metric, extractor.name, n, m, extractor.canonical)
        self.measurements[key] = Measurement(value, record, standard_error, notes)


def _add_pair_metrics(
    results: _Results, generated: Tensor, reference: Tensor, metrics: Sequence[str], settings: Mapping[str, Any]
) -> None:
    n, m, k, seed = len(generated), len(reference), settings["k"], settings["seed"]
    if "kid" in metrics:
        size = settings["subset_size"] or min(1000, n, m)
        kid = kernel_distance(generated, reference, settings["n_subsets"], size, seed)
        drawn = {
            "n_subsets": kid.n_subsets,
            "subset_size": size,
            "subset_deviation": kid.subset_deviation,
            "seed": seed,
        }
        results.add("kid", kid.value, n, m, kid.standard_error, (), drawn)
        results.add("kid_full", kid.full, n, m, kid.full_standard_error)
    if _OF_NEIGHBOURS & set(metrics):
        scores = neighbourhood_scores(generated, reference, k)
        notes = ("depends on n and k: compare at equal ones only",)
        if "precision_recall" in metrics:
            results.add("precision", scores.precision, n, m, notes=notes, settings={"k": k})
            results.add("recall", scores.recall, n, m, notes=notes, settings={"k": k})
        if "density_coverage" in metrics:
            results.add("density", scores.density, n, m, notes=notes, settings={"k": k})
            results.add("coverage", scores.coverage, n, m, notes=notes, settings={"k": k})
    if "cmmd" in metrics:
        notes = ("published values use CLIP ViT-L/14 at 336 pixels",)
        results.add("cmmd", cmmd(generated, reference), n, m, notes=notes)


def frechet_notes(extractor: FeatureExtractor, n: int, m: int) -> tuple[str, ...]:
    """What a reader must know of a Frechet distance of n to m images; warns where it is mostly bias."""
    if min(n, m) > extractor.dim:
        return (FRECHET_BIAS,)
    singular = (
        f"{min(n, m)} images for the {extractor.dim} dimensions of {extractor.name}: the covariance is singular and "
        f"the distance mostly bias; more than {extractor.dim} images are needed on either side"
    )
    warnings.warn(singular, stacklevel=3)
    return (FRECHET_BIAS, singular)


def _cut_at(features: Tensor, done: int, fixed_n: Sequence[int]) -> Iterator[Tensor]:
    """A batch in pieces that end where the images so far number one of ``fixed_n``."""
    cuts = sorted({n - done for n in fixed_n if 0 < n - done < len(features)})
    for start, stop in zip([0, *cuts], [*cuts, len(features)], strict=True):
        yield features[start:stop]


def check_measurable(
    metrics: Sequence[str],
    extractor: FeatureExtractor,
    n_generated: int,
    n_reference: int,
    *,
    k: int = 5,
    kid_subset_size: int | None = None,
    max_features: int | None = None,
) -> None:
    """Refuse beforehand what ``evaluate_features`` would refuse of so many images.

    Raises:
        ValueError: an argument that it does not take, or too few images for a metric; says how many it needs.
    """
    _check_arguments(metrics, extractor, (), k, 2, kid_subset_size, max_features, ())
    least = {name: 2 for name in metrics}
    # Halves of two images each.
    least |= {"fd_floor": 4} if "fd_floor" in metrics else {}
    least |= {"kid": max(3, kid_subset_size or 3)} if "kid" in metrics else {}
    least |= {name: k + 1 for name in _OF_NEIGHBOURS & set(metrics)}
    sides = {"n_samples": n_generated, "the number of reference images": n_reference}
    for metric, needed in least.items():
        for side, n in sides.items():
            if n < needed and not (metric == "fd_floor" and side == "n_samples"):
                raise ValueError(f"{side} must be at least {needed} for {metric}, got {n}")
        if metric in _OF_PAIRS and max_features is not None and max_features < needed:
            raise ValueError(f"max_features must be at least {needed} for {metric}, got {max_features}")


def _check_arguments(
    metrics: Sequence[str],
    extractor: FeatureExtractor,
    fixed_n: Sequence[int],
    k: int,
    kid_subsets: int,
    kid_subset_size: int | None,
    max_features: int | None,
    generated: Images,
) -> None:
    if isinstance(metrics, str) or not metrics or (unknown := [name for name in metrics if name not in METRICS]):
        given = metrics if isinstance(metrics, str) or not metrics else unknown
        raise ValueError(f"metrics must be a list of some of {', '.join(METRICS)}, got {given!r}")
    # Refuses a name that no result could carry before anything is computed.
    result_key("fd", extractor.name, 0, 0, extractor.canonical)
    if "cmmd" in metrics and not isinstance(extractor, ClipExtractor):
        raise ValueError(f"cmmd is defined by CLIP embeddings: it needs a ClipExtractor, got {extractor.name}")
    limits: list[tuple[str, int | None, int]] = [("k", k, 1), ("kid_subsets", kid_subsets, 2)]
    limits += [("kid_subset_size", kid_subset_size, 2), ("max_features", max_features, 2)]
    limits += [("fixed_n", n, 2) for n in fixed_n]
    for name, value, least in limits:
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if isinstance(generated, Tensor):
        needed = {"fixed_n": max(fixed_n, default=0)}
        if _OF_NEIGHBOURS & set(metrics):
            needed["k"] = k + 1
        for name, least in needed.items():
            if len(generated) < least:
                raise ValueError(f"{name} asks for {least} generated images or more, got {len(generated)}")


def _check_reference(reference: ReferenceStatistics, extractor: FeatureExtractor, metrics: Sequence[str]) -> None:
    reference.check(extractor)
    if "fd_floor" in metrics and reference.floor is None:
        raise ValueError("fd_floor needs a reference of at least 4 images whose statistics were made with floor=True")
    if (asked := sorted(_OF_PAIRS & set(metrics))) and reference.features is None:
        raise ValueError(f"{', '.join(asked)} need reference statistics made with keep_features=True")

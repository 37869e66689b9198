"""How good the predicted images are at every call of a sampling (Improved Immiscible Diffusion, 2025, figure 3 d)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from image_diffusion.analysis.arms import Models, each_model, models_by_seed
from image_diffusion.analysis.curves import DistanceCurves
from image_diffusion.analysis.trajectory import Call, batches, check_same_calls, watched
from image_diffusion.base_model import ImageModel
from image_diffusion.evaluation import ImageEvaluation, measured_labels
from image_diffusion.metrics import (
    FeatureExtractor,
    Measurement,
    MetricRecord,
    ReferenceStatistics,
    RunningStatistics,
    frechet_distance,
    result_key,
)
from image_diffusion.metrics.evaluate import frechet_notes
from image_diffusion.metrics.features import feature_batches


def step_distance(
    models: Models,
    reference: ReferenceStatistics,
    extractor: FeatureExtractor,
    config: ImageEvaluation,
    record: Mapping[str, Any] | None = None,
) -> DistanceCurves:
    """Frechet distances between the data and the images that a model predicts at each network call.

    The first call sees pure noise; the last one's prediction is, but for the sampler's last step, the sample. Labels
    are those of an evaluation.

    Args:
        models: see ``arms.Models``; all are given the same noises.
        reference: of the data, ``evaluation.data_reference``.
        config: its ``n_samples``, ``seed``, ``num_inference_steps`` and ``batch_size`` are used.
        record: more for the records.

    Raises:
        ValueError: guidance, models that take different numbers of calls, or statistics of another extractor.
    """
    if config.guidance_scale != 1.0:
        raise ValueError(
            f"guidance_scale={config.guidance_scale}: predictions of single calls are without guidance (1)"
        )
    reference.check(extractor)
    arms = models_by_seed(models)
    calls = check_same_calls(arms, config.num_inference_steps)
    measured: dict[str, dict[int, tuple[Measurement, ...]]] = {arm: {} for arm in arms}
    for arm, seed, model in each_model(arms, "distances of predictions"):
        own = {"arm": arm, "training_seed": seed, **(record or {})}
        measured[arm][seed] = tuple(_distances(model, reference, extractor, config, calls, own))
    key = result_key("fd", extractor.name, config.n_samples, reference.statistics.n, extractor.canonical)
    return DistanceCurves(key, "network call", tuple(range(1, calls + 1)), measured)


def _distances(
    model: ImageModel,
    reference: ReferenceStatistics,
    extractor: FeatureExtractor,
    config: ImageEvaluation,
    calls: int,
    record: Mapping[str, Any],
) -> list[Measurement]:
    statistics = [RunningStatistics(extractor.dim) for _ in range(calls)]
    times = [math.nan] * calls
    finite = [True] * calls

    def keep(call: Call) -> None:
        times[call.index] = call.time
        finite[call.index] &= bool(torch.isfinite(call.data).all())
        for features in feature_batches(model.to_images(call.data), extractor, config.batch_size, progress=False):
            statistics[call.index].add(features)

    seeds = range(config.seed, config.seed + config.n_samples)
    labels, mix = measured_labels(model, seeds)
    for part, chosen in batches(model, seeds, labels, config.batch_size):
        with watched(model, keep):
            model.sample(part, chosen, config.num_inference_steps)
    notes = frechet_notes(extractor, config.n_samples, reference.statistics.n)
    measurements = []
    for index, running in enumerate(statistics):
        # An image with NaN becomes some image of bytes, whose distance would be a number about nothing.
        value = frechet_distance(running.finish(), reference.statistics) if finite[index] else math.nan
        run = {
            "sampler": model.objective.sampler,
            "num_inference_steps": config.num_inference_steps or model.num_inference_steps,
            "network_call": index + 1,
            "network_time": times[index],
            "seed": config.seed,
            "coupling": model.coupling,
            **({} if mix is None else {"labels": mix}),
            **record,
        }
        measurements.append(Measurement(value, _record(extractor, reference, config.n_samples, run), None, notes))
    return measurements


def _record(
    extractor: FeatureExtractor, reference: ReferenceStatistics, n: int, run: Mapping[str, Any]
) -> MetricRecord:
    return MetricRecord(
        extractor.name,
        extractor.canonical,
        extractor.weights_sha256,
        extractor.resize,
        n,
        reference.statistics.n,
        reference.source,
        {},
        run,
    )

"""Evaluation of image models: which features, which images, which numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from image_diffusion.base_model import ImageModel
from image_diffusion.data import ImageDataset
from image_diffusion.label_mix import AS_IN_DATA, IN_TURN, labels_to_measure
from image_diffusion.metrics import (
    METRICS,
    ClipExtractor,
    DigitsCnn,
    EfficientNetLite0,
    FeatureExtractor,
    Inception,
    Measurement,
    Pixels,
    RandomConv,
    ReferenceStatistics,
    check_measurable,
    evaluate_features,
    kept_reference,
)
from image_diffusion.model import sample_in_batches
from immiscible_policy.checks import check_seed

EXTRACTORS = ("auto", "inception", "efficientnet-lite0", "digits-cnn", "clip", "pixels", "random-conv")
_PAIRS = {"kid", "precision_recall", "density_coverage", "cmmd"}


@dataclass(frozen=True)
class ImageEvaluation:
    """Settings of an evaluation; two models are comparable only if these are equal.

    Args:
        metrics: of ``metrics.METRICS``.
        n_samples: images that the model draws.
        extractor: auto takes digits-cnn for grey images of 8x8 and efficientnet-lite0 otherwise | inception, with which
            published distances are measured | efficientnet-lite0 | digits-cnn | clip | pixels | random-conv.
        weights: path of the extractor's weights, for inception and clip (a folder).
        seed: of the first image; the others follow.
        num_inference_steps: network calls an image; None takes the model's own.
        guidance_scale: of classifier-free guidance.
        max_features: metrics of pairs look at so many images at most.
        batch_size: images at once.
    """

    metrics: tuple[str, ...] = ("fd",)
    n_samples: int = 2_000
    extractor: str = "auto"
    weights: str | None = None
    seed: int = 1_000_000
    num_inference_steps: int | None = None
    guidance_scale: float = 1.0
    max_features: int | None = 10_000
    batch_size: int = 250

    def __post_init__(self) -> None:
        object.__setattr__(self, "metrics", tuple(self.metrics))
        unknown = [name for name in self.metrics if name not in METRICS]
        if unknown or not self.metrics:
            raise ValueError(f"metrics={list(self.metrics)}: choose some of {', '.join(METRICS)}")
        if self.extractor not in EXTRACTORS:
            raise ValueError(f"extractor={self.extractor!r}: choose one of {', '.join(EXTRACTORS)}")
        for name in ("n_samples", "batch_size"):
            least = 2 if name == "n_samples" else 1
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least {least}")
        for name, least in (("num_inference_steps", 1), ("max_features", 2)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}={value}: must be at least {least}, or null")
        check_seeds("seed", self.seed, self.n_samples)


def check_seeds(name: str, first: int, n: int) -> None:
    """Raise a ValueError unless a setting is the first of n consecutive seeds of images."""
    try:
        check_seed(first)
        check_seed(first + n - 1)
    except ValueError:
        raise ValueError(
            f"{name}={first!r}: must be an integer of at least 0, and with the {n - 1} that follow it below 2^32"
        ) from None


def build_extractor(config: ImageEvaluation, image_size: int, channels: int, device: str = "cpu") -> FeatureExtractor:
    """The extractor of a configuration for images of this size.

    Raises:
        ValueError: weights are missing. ImportError: a package is.
    """
    name = config.extractor
    if name == "auto":
        name = "digits-cnn" if (image_size, channels) == (8, 1) else "efficientnet-lite0"
    if name == "inception":
        return Inception(config.weights, device=device)
    if name == "clip":
        if config.weights is None:
            raise ValueError("extractor=clip needs weights, a folder with a CLIP model: evaluation.weights=...")
        return ClipExtractor(config.weights, device=device)
    if name == "efficientnet-lite0":
        return EfficientNetLite0(device=device)
    if name == "digits-cnn":
        return DigitsCnn(config.weights, device=device)
    if name == "random-conv":
        return RandomConv(channels, device=device)
    return Pixels((channels, image_size, image_size))


def check_evaluation(
    config: ImageEvaluation,
    model: ImageModel,
    n_reference: int,
    device: str = "cpu",
    name: str = "evaluation",
    extractor: FeatureExtractor | None = None,
) -> FeatureExtractor:
    """Refuse, before the model is trained, what its evaluation would fail at; returns the extractor.

    Args:
        n_reference: images that the samples will be compared with.
        device: that the extractor computes on.
        name: of the settings, for messages.
        extractor: that of the settings, where it is built already.

    Raises:
        ValueError: settings that do not suit each other, the model or the images, or weights that are missing.
        ImportError: a package is missing.
    """
    most, steps = model.objective.max_steps, config.num_inference_steps
    if most is not None and steps is not None and steps > most:
        raise ValueError(f"{name}.num_inference_steps={steps}: this objective's sampler takes 1 to {most}, or null")
    try:
        model.check_guidance(config.guidance_scale)
        if extractor is None:
            extractor = build_extractor(config, model.image_size, model.channels, device)
        check_measurable(config.metrics, extractor, config.n_samples, n_reference, max_features=config.max_features)
        # What an extractor does not take shows in one image.
        extractor(torch.zeros(1, model.channels, model.image_size, model.image_size, dtype=torch.uint8))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return extractor


def batches_of(data: ImageDataset, batch_size: int = 250) -> Iterator[Tensor]:
    """All images of a data set, (n, C, H, W) uint8 on the CPU."""
    for part in torch.arange(len(data)).split(batch_size):
        yield data.batch(part.to(data.device))["image"].cpu()


def data_reference(
    data: ImageDataset, extractor: FeatureExtractor, config: ImageEvaluation, progress: bool = True
) -> ReferenceStatistics:
    """What an evaluation knows of the data, from an earlier run if that took long."""
    source = f"{data.source['name']} {data.source['split']} ({data.source['n']} of {data.image_size}x{data.image_size})"
    return kept_reference(
        lambda: batches_of(data),
        extractor,
        source,
        data.source["pixels_hash"],
        total=len(data),
        progress=progress,
        floor="fd_floor" in config.metrics,
        keep_features=bool(_PAIRS & set(config.metrics)),
        max_features=config.max_features,
    )


def measured_labels(model: ImageModel, seeds: Sequence[int]) -> tuple[list[int] | None, str | None]:
    """Labels of a set of images that is compared with the data, and what records call their mix; None without labels.

    They are as frequent as in the training data; models of earlier versions, which do not know that, show all in turn.
    """
    counts = model.label_counts
    labels = model.seed_labels(seeds) if counts is None else labels_to_measure(seeds, counts)
    return labels, None if labels is None else IN_TURN if counts is None else AS_IN_DATA


def evaluate_model(
    model: ImageModel,
    reference: ReferenceStatistics,
    extractor: FeatureExtractor,
    config: ImageEvaluation,
    record: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> dict[str, Measurement]:
    """Draw images and measure them.

    Labels are those of ``measured_labels``.

    Args:
        record: more for the numbers' record, beside the sampler's settings.

    Returns:
        Measurements by the names under which they may be quoted.
    """
    steps = config.num_inference_steps or model.num_inference_steps
    seeds = range(config.seed, config.seed + config.n_samples)
    labels, mix = measured_labels(model, seeds)
    drawn = sample_in_batches(
        model,
        seeds,
        config.batch_size,
        labels=labels,
        num_inference_steps=steps,
        guidance_scale=config.guidance_scale,
    )
    settings = {
        "sampler": model.objective.sampler,
        "num_inference_steps": steps,
        "seed": config.seed,
        "guidance_scale": config.guidance_scale,
        "weights": "exponential moving average",
        "coupling": model.coupling,
        **({} if mix is None else {"labels": mix}),
        **(record or {}),
    }
    return measure(drawn, reference, extractor, config, settings, progress)


def measure(
    images: Iterable[Tensor],
    reference: ReferenceStatistics,
    extractor: FeatureExtractor,
    config: ImageEvaluation,
    record: Mapping[str, Any],
    progress: bool = True,
) -> dict[str, Measurement]:
    """Measure images, (n, C, H, W) uint8 batches, wherever they are from."""
    return evaluate_features(
        images, reference, extractor, config.metrics, record, max_features=config.max_features, progress=progress
    )


def measurement_table(measurements: Mapping[str, Measurement]) -> str:
    """Measurements as aligned lines, with what a reader must know below."""
    width = max(len(key) for key in measurements)
    lines, notes = [], []
    for key, measurement in measurements.items():
        error = "" if measurement.standard_error is None else f" +- {measurement.standard_error:.4g} (standard error)"
        lines.append(f"  {key:<{width}}  {measurement.value:.6g}{error}")
        notes += [note for note in measurement.notes if note not in notes]
    record = next(iter(measurements.values())).record
    lines.append(f"  reference: {record.reference or 'as given'}")
    return "\n".join([*lines, *(f"  note: {note}" for note in notes)])


def find_images(path: Path) -> Iterator[Tensor]:
    """Images in an .npz file (``arr_0``, (n, H, W, C) uint8) or in a folder of pictures, in batches (n, C, H, W).

    Raises:
        ValueError: neither.
    """
    import numpy as np

    from image_diffusion.data import ImageSource, load_images

    if path.is_dir() and (path / "samples.npz").is_file():
        path = path / "samples.npz"
    if path.suffix == ".npz" and path.is_file():
        with np.load(path) as content:
            if "arr_0" not in content or content["arr_0"].ndim != 4:
                raise ValueError(f"{path}: needs arr_0 of shape (n, H, W, C)")
            yield from torch.from_numpy(content["arr_0"]).permute(0, 3, 1, 2).split(250)
        return
    if not path.is_dir():
        raise ValueError(f"{path}: neither a run, a model, a folder of pictures nor an .npz file")
    yield from batches_of(load_images(ImageSource(path.name, format="folder", path=str(path))))

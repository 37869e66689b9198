"""How far an image changes when the noise that it is sampled from is perturbed.

Improved Immiscible Diffusion (2025), section 3.1 and figure 2, which shows the images; here the distances are measured.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from image_diffusion.analysis.arms import Comparison, Models, cell, compare, each_model, models_by_seed
from image_diffusion.analysis.from_noise import draw_from, start_noise
from image_diffusion.base_model import ImageModel, Labels
from image_diffusion.metrics import FeatureExtractor
from image_diffusion.metrics.features import feature_batches
from immiscible_policy.evaluation.table_files import markdown

MIXINGS = ("added", "normalised")
MEASURES = {
    "pixel_rmse": "root mean square pixel difference, pixels in [0, 1]",
    "feature_distance": "distance of features",
    "kept_class": "share of draws that the classifier gives the class of the unperturbed image",
}


@dataclass(frozen=True)
class Perturbation:
    """Settings.

    Args:
        weights: W, the share of a perturbation's standard deviation in that of the noise.
        n_draws: perturbations for each image, the same for all weights and models.
        mixing: added: n + W n' (equation 1), whose norm is sqrt(1 + W^2) times as large | normalised: the same divided
            by sqrt(1 + W^2), which is N(0, I) again.
        num_inference_steps: network calls; None takes each model's own.
        batch_size: images at once.
    """

    weights: tuple[float, ...] = (0.1, 0.2, 0.3)
    n_draws: int = 10
    mixing: str = "added"
    num_inference_steps: int | None = None
    batch_size: int = 250

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", tuple(float(weight) for weight in self.weights))
        if not self.weights or not all(0 <= weight < math.inf for weight in self.weights):
            raise ValueError(f"weights={list(self.weights)}: needs one or more numbers, each at least 0")
        if self.mixing not in MIXINGS:
            raise ValueError(f"mixing={self.mixing!r}: choose one of {', '.join(MIXINGS)}")
        for name in ("n_draws", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")

    def mix(self, noise: Tensor, perturbation: Tensor, weight: float) -> Tensor:
        """The perturbed noise."""
        mixed = noise + weight * perturbation
        return mixed / math.sqrt(1 + weight**2) if self.mixing == "normalised" else mixed


@dataclass(frozen=True)
class PerturbedImages:
    """One model's images.

    Attributes:
        original: (n, C, H, W) uint8.
        perturbed: (n_weights, n, n_draws, C, H, W) uint8.
    """

    original: Tensor
    perturbed: Tensor


@dataclass(frozen=True)
class PerturbationStability:
    """Distances between the images of perturbed and of original noise.

    Attributes:
        settings: what was done.
        extractor: of the features.
        seeds: of the original noises.
        values: measure -> arm -> training seed -> (n_weights + 1, n) means over the draws; the last row is the distance
            to the image of the next seed, which is unrelated: what perturbation has at most to do.
    """

    settings: Perturbation
    extractor: str
    seeds: tuple[int, ...]
    values: dict[str, dict[str, dict[int, np.ndarray]]]

    def comparisons(self, measure: str) -> list[dict[str, Comparison]]:
        """For every weight, and then for unrelated images, arm -> mean and difference to the first arm."""
        arms = self.values[measure]
        return [
            compare({arm: {seed: table[i] for seed, table in by_seed.items()} for arm, by_seed in arms.items()})
            for i in range(len(self.settings.weights) + 1)
        ]

    @property
    def row_names(self) -> list[str]:
        """The weights as percentages, and the unrelated images."""
        return [*(f"{100 * weight:g}%" for weight in self.settings.weights), "unrelated"]

    def to_json(self) -> dict[str, Any]:
        """Settings, means with intervals, and the values that they are of."""
        settings = self.settings
        return {
            "settings": {
                "weights": list(settings.weights),
                "n_draws": settings.n_draws,
                "mixing": settings.mixing,
                "num_inference_steps": settings.num_inference_steps,
                "extractor": self.extractor,
                "seeds": list(self.seeds),
            },
            "measures": {measure: MEASURES[measure] for measure in self.values},
            "rows": {
                measure: {
                    name: {arm: row.to_json() for arm, row in rows.items()}
                    for name, rows in zip(self.row_names, self.comparisons(measure), strict=True)
                }
                for measure in self.values
            },
            "values": {
                measure: {arm: {str(s): table.tolist() for s, table in rows.items()} for arm, rows in arms.items()}
                for measure, arms in self.values.items()
            },
        }

    def markdown(self) -> str:
        """A row for every weight and arm, under a sentence that says what was done."""
        formula = "n + W n'" if self.settings.mixing == "added" else "(n + W n') / sqrt(1 + W²)"
        measures = list(self.values)
        lines = [
            f"Images of {len(self.seeds)} noises n and of {formula}, {self.settings.n_draws} draws of n' each; "
            f"features of {self.extractor}; mean over training seeds and images [95% interval]. The last rows are "
            "images of different noises. "
            + "; ".join(f"{name.replace('_', ' ')}: {MEASURES[name]}" for name in measures)
            + ".",
            "",
        ]
        head = ["W", "arm", "training seeds"]
        for measure in measures:
            head += [measure.replace("_", " "), "difference"]
        rows = []
        by_measure = {measure: self.comparisons(measure) for measure in measures}
        for i, name in enumerate(self.row_names):
            for arm, first in by_measure[measures[0]][i].items():
                cells = [name, f"`{arm}`", str(len(first.seeds))]
                for measure in measures:
                    row = by_measure[measure][i][arm]
                    cells += [cell(row.mean), cell(row.difference, "+.3g")]
                rows.append(cells)
        return "\n".join([*lines, markdown([head, *rows])])


def perturbed_images(
    model: ImageModel, seeds: Sequence[int], settings: Perturbation, labels: Labels | None = None
) -> PerturbedImages:
    """Images of the seeds' noises and of their perturbations.

    A sampler that draws noise of its own on the way (ancestral, consistency in several steps) draws the same for an
    image and its perturbations, so that the starting noise is all that differs.

    Args:
        seeds: one for each image.
        labels: one for each image, for conditional models; None takes the model's ``seed_labels``.
    """
    noise, _ = start_noise(model, seeds)
    draws = torch.stack([_perturbations(seed, noise.shape[1:], settings.n_draws) for seed in seeds])
    if labels is None:
        labels = model.seed_labels(seeds)
    everything = [noise[:, None]]
    everything += [settings.mix(noise[:, None], draws, weight) for weight in settings.weights]
    images = []
    for mixed in everything:
        repeats = mixed.shape[1]
        owners = [i for i in range(len(seeds)) for _ in range(repeats)]
        drawn = _draw_all(model, mixed.flatten(0, 1), seeds, owners, labels, settings)
        images.append(drawn.unflatten(0, (len(seeds), repeats)))
    return PerturbedImages(images[0][:, 0], torch.stack(images[1:]))


def perturbation_stability(
    models: Models,
    seeds: Sequence[int],
    extractor: FeatureExtractor,
    settings: Perturbation | None = None,
    labels: Labels | None = None,
) -> PerturbationStability:
    """Measure how far perturbed noise changes the images of every model.

    Args:
        models: see ``arms.Models``.
        seeds: of the noises, at least 2, the same for all models.
        extractor: whose features are compared; one that can ``classify`` also says how often the class is kept.
        labels: one for each image, for conditional models.

    Raises:
        ValueError: fewer than 2 seeds, a seed twice, or models of different images.
    """
    settings = Perturbation() if settings is None else settings
    if len(seeds) < 2 or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds: needs at least 2 different ones, got {list(seeds)}")
    values: dict[str, dict[str, dict[int, np.ndarray]]] = {}
    for arm, training_seed, model in each_model(models_by_seed(models), "perturbed images"):
        measured = distances(perturbed_images(model, seeds, settings, labels), extractor, settings.batch_size)
        for measure, table in measured.items():
            values.setdefault(measure, {}).setdefault(arm, {})[training_seed] = table
    return PerturbationStability(settings, extractor.name, tuple(seeds), values)


def distances(images: PerturbedImages, extractor: FeatureExtractor, batch_size: int = 250) -> dict[str, np.ndarray]:
    """``PerturbationStability.values`` of one model: measure -> (n_weights + 1, n)."""
    n_weights, n, n_draws = images.perturbed.shape[:3]
    neighbour = torch.arange(n).roll(-1)

    def compared(own: Tensor, moved: Tensor, distance: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Means over the draws, and the distance to the next image; own (n, D), moved (n_weights n n_draws, D)."""
        moved = moved.view(n_weights, n, n_draws, -1)
        return torch.cat([distance(moved, own[None, :, None]).mean(-1), distance(own[neighbour], own)[None]])

    def features(part: Tensor) -> Tensor:
        return torch.cat(list(feature_batches(part, extractor, batch_size, progress=False))).double()

    both = (images.original, images.perturbed.flatten(0, 2))
    own, moved = (part.flatten(1).double() / 255 for part in both)
    result = {"pixel_rmse": compared(own, moved, lambda a, b: (a - b).square().mean(-1).sqrt())}
    own, moved = (features(part) for part in both)
    result["feature_distance"] = compared(own, moved, lambda a, b: (a - b).norm(dim=-1))
    classify = getattr(extractor, "classify", None)
    if classify is not None:
        own, moved = (torch.cat([classify(part).cpu() for part in side.split(batch_size)])[:, None] for side in both)
        result["kept_class"] = compared(own, moved, lambda a, b: (a == b).double().squeeze(-1))
    return {name: table.numpy() for name, table in result.items()}


def _perturbations(seed: int, shape: torch.Size, n: int) -> Tensor:
    # Not the seed's own stream, of which the noise and the sampler's draws are. torch's generators tell only the low 32
    # bits of a seed apart on the CPU.
    other = int.from_bytes(hashlib.sha256(f"perturbations of {seed}".encode()).digest()[:4])
    return torch.randn((n, *shape), generator=torch.Generator().manual_seed(other))


def _draw_all(
    model: ImageModel,
    noise: Tensor,
    seeds: Sequence[int],
    owners: Sequence[int],
    labels: Labels | None,
    settings: Perturbation,
) -> Tensor:
    """Images of noise (N, ...), the i-th with label and generator of ``seeds[owners[i]]``."""
    images = []
    for start in range(0, len(noise), settings.batch_size):
        part = owners[start : start + settings.batch_size]
        _, generators = start_noise(model, [seeds[owner] for owner in part])
        chosen = None if labels is None else [labels[owner] for owner in part]
        images.append(
            draw_from(model, noise[start : start + len(part)], generators, chosen, settings.num_inference_steps)
        )
    return torch.cat(images)

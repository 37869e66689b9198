"""Arms of trained models, one model a training seed, and how their numbers are compared and written."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from image_diffusion.base_model import ImageModel
from image_diffusion.metrics.features import BAR_AFTER
from immiscible_policy.evaluation.variance_components import TInterval, mean_t, paired_difference_t

Models = Mapping[str, Sequence[ImageModel] | Mapping[int, ImageModel]]
"""Arm -> its models: of the training seeds 0, 1, ..., or a mapping from training seeds."""

Tables = Mapping[str, Mapping[int, Sequence[float] | np.ndarray]]
"""Arm -> training seed -> (n,) values, of which the i-th belong together in all arms (the same noise, say)."""


@dataclass(frozen=True)
class Comparison:
    """One arm's number beside the first arm's.

    Attributes:
        seeds: its training seeds.
        mean: over training seeds and values; NaN where a value is not finite.
        difference: its mean less the first arm's, paired by training seed and value; None in the first arm's own row,
            and where the two share no training seed.
    """

    seeds: tuple[int, ...]
    mean: TInterval
    difference: TInterval | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def models_by_seed(models: Models) -> dict[str, dict[int, ImageModel]]:
    """The models of every arm by training seed, in ascending order.

    Raises:
        ValueError: no arm, an arm without models, or models that make images of different shapes.
    """
    if not models:
        raise ValueError("models must hold at least one arm, got none")
    arms: dict[str, dict[int, ImageModel]] = {}
    shapes: dict[tuple[int, int], str] = {}
    for name, given in models.items():
        arm = dict(sorted(given.items())) if isinstance(given, Mapping) else dict(enumerate(given))
        if not arm:
            raise ValueError(f"models[{name!r}] must hold at least one model, got none")
        arms[name] = arm
        for model in arm.values():
            shapes.setdefault((model.channels, model.image_size), name)
    if len(shapes) > 1:
        said = ", ".join(f"{name!r}: {channels} x {size} x {size}" for (channels, size), name in shapes.items())
        raise ValueError(f"models must make images of one shape, got {said}")
    return arms


def each_model(arms: Mapping[str, Mapping[int, ImageModel]], label: str) -> Iterator[tuple[str, int, ImageModel]]:
    """Arm, training seed and model, under a bar if they take long."""
    models = [(arm, seed, model) for arm, by_seed in arms.items() for seed, model in by_seed.items()]
    with tqdm(total=len(models), desc=label, unit="model", delay=BAR_AFTER) as bar:
        for one in models:
            yield one
            bar.update()


def compare(tables: Tables, level: float = 0.95) -> dict[str, Comparison]:
    """Means with t intervals over training seeds and values, and paired differences to the first arm."""
    first: Mapping[int, Sequence[float] | np.ndarray] | None = None
    rows = {}
    for name, arm in tables.items():
        difference = None
        if first is None:
            first = arm
        elif shared := [seed for seed in arm if seed in first]:
            own, other = (np.array([side[seed] for seed in shared], dtype=float) for side in (arm, first))
            usable = bool(np.isfinite(own).all() and np.isfinite(other).all())
            difference = paired_difference_t(own, other, level) if usable else _unknown(own.shape, level)
        rows[name] = Comparison(tuple(arm), _mean(np.array(list(arm.values()), dtype=float), level), difference)
    return rows


def cell(interval: TInterval | None, form: str = ".3g", factor: float = 1.0) -> str:
    """``mean [low, high]`` for a table; without brackets where there is no interval, empty where there is no number."""
    if interval is None:
        return ""
    if math.isnan(interval.mean):
        return "n/a"
    mean = format(factor * interval.mean, form)
    if math.isnan(interval.low):
        return mean
    return f"{mean} [{format(factor * interval.low, form)}, {format(factor * interval.high, form)}]"


def spread(n: int, at_most: int) -> list[int]:
    """At most so many of the indices 0 to n - 1, evenly spread, with both ends."""
    return sorted(set(np.linspace(0, n - 1, min(n, at_most)).round().astype(int).tolist()))


def _mean(table: np.ndarray, level: float) -> TInterval:
    return mean_t(table, level) if np.isfinite(table).all() else _unknown(table.shape, level)


def _unknown(shape: tuple[int, ...], level: float) -> TInterval:
    """The mean of numbers some of which are not known."""
    nan = math.nan
    return TInterval(nan, nan, nan, math.prod(shape), level, nan, nan, nan, "nothing", shape[0], shape[1])

"""What a network says at every call of a sampling: the noise that it predicts, and the image that follows from it.

Improved Immiscible Diffusion (2025), section 3.2, equation 2 and figure 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from image_diffusion.analysis.arms import Comparison, Models, cell, compare, each_model, models_by_seed, spread
from image_diffusion.base_model import ImageModel, Labels
from immiscible_policy.diffusion import FlowMatching, Objective
from immiscible_policy.evaluation.table_files import markdown

STATISTICS = {
    "noise_norm": "|predicted noise| / sqrt(D), 1 for N(0, I)",
    "noise_variance": "variance of the predicted noise over the entries of an image",
    "data_change": "root mean square change of the predicted data since the call before, data in [-1, 1]",
}
_SHOWN_CALLS = 6  # in tables


@dataclass(frozen=True)
class Call:
    """One network call of a sampling.

    Attributes:
        index: 0 is the noisiest.
        time: that the network was given, in its objective's own units.
        noisy: (n, ...) its input.
        data: (n, ...) float32, the data that it predicts; in [-1, 1] where the objective clips samples.
        noise: (n, ...) float32, the noise that it predicts.
    """

    index: int
    time: float
    noisy: Tensor
    data: Tensor
    noise: Tensor


@dataclass(frozen=True)
class Trajectory:
    """All calls of a sampling, on the CPU; fields as in `Call`, of which S were made.

    Attributes:
        seeds: of the n images.
        times: (S,).
        noisy, data, noise: (S, n, ...) float32.
        images: (n, C, H, W) uint8, the samples.
    """

    seeds: tuple[int, ...]
    times: tuple[float, ...]
    noisy: Tensor
    data: Tensor
    noise: Tensor
    images: Tensor


def n_calls(model: ImageModel, num_inference_steps: int | None = None) -> int:
    """Network calls of a sample.

    Raises:
        ValueError: the sampler chooses them itself, so that the calls of different batches do not correspond.
    """
    steps = model.num_inference_steps if num_inference_steps is None else num_inference_steps
    return sampler_calls(model.objective, steps)


def sampler_calls(objective: Objective, steps: int) -> int:
    """Network calls of so many steps; the ValueError of ``n_calls``."""
    if isinstance(objective, FlowMatching) and objective.sampler == "adaptive":
        raise ValueError("sampler='adaptive' chooses its calls by the batch; choose euler, midpoint or heun")
    return steps + 1 if objective.sampler == "pndm" else steps


@contextmanager
def watched(model: ImageModel, keep: Callable[[Call], None]) -> Iterator[None]:
    """Hands every call of the model's network to ``keep`` while one batch is sampled, without guidance."""
    objective = model.objective
    count = 0

    def hook(module: torch.nn.Module, inputs: tuple[Any, ...], prediction: Tensor) -> None:
        nonlocal count
        noisy, time = inputs[:2]
        data = objective.predict_data(prediction, noisy, time)
        if getattr(objective, "clip_sample", False):
            data = data.clamp(-1, 1)
        noise = objective.predict_noise(prediction, noisy, time)
        keep(Call(count, float(time.flatten()[0]), noisy, data, noise))
        count += 1

    handle = model.network.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def record_trajectory(
    model: ImageModel, seeds: Sequence[int], labels: Labels | None = None, num_inference_steps: int | None = None
) -> Trajectory:
    """Sample one batch and keep everything: 3 tensors (S, n, ...) in memory.

    Args:
        seeds, labels, num_inference_steps: as in ``ImageModel.sample``.

    Raises:
        ValueError: see `n_calls`.
    """
    n_calls(model, num_inference_steps)
    calls: list[Call] = []

    def keep(call: Call) -> None:
        kept = (part.detach().float().cpu() for part in (call.noisy, call.data, call.noise))
        calls.append(Call(call.index, call.time, *kept))

    with watched(model, keep):
        images = model.sample(list(seeds), labels, num_inference_steps)
    noisy, data, noise = (torch.stack([getattr(call, name) for call in calls]) for name in ("noisy", "data", "noise"))
    return Trajectory(tuple(seeds), tuple(call.time for call in calls), noisy, data, noise, images)


@dataclass(frozen=True)
class TrajectoryStatistics:
    """Numbers of every call.

    Attributes:
        seeds: of the images.
        values: statistic (of `STATISTICS`) -> arm -> training seed -> (S, n); ``data_change`` is NaN at the first call.
    """

    seeds: tuple[int, ...]
    values: dict[str, dict[str, dict[int, np.ndarray]]]

    @property
    def calls(self) -> int:
        """S."""
        return len(next(iter(next(iter(self.values["noise_norm"].values())).values())))

    def comparisons(self, statistic: str) -> list[dict[str, Comparison]]:
        """For every call, arm -> mean over training seeds and images, and the paired difference to the first arm."""
        return [
            compare({arm: {seed: table[i] for seed, table in rows.items()} for arm, rows in arms.items()})
            for arms in [self.values[statistic]]
            for i in range(self.calls)
        ]

    def to_json(self) -> dict[str, Any]:
        """Means with intervals for every call; the first is the noisiest."""
        return {
            "seeds": list(self.seeds),
            "statistics": STATISTICS,
            "calls": {
                name: [{arm: row.to_json() for arm, row in rows.items()} for rows in self.comparisons(name)]
                for name in STATISTICS
            },
        }

    def markdown(self) -> str:
        """Some of the calls, the first and the last among them."""
        lines = [
            f"{self.calls} network calls from noise (1) to image ({self.calls}), {len(self.seeds)} images; mean over "
            "training seeds and images [95% interval]. "
            + "; ".join(f"{name.replace('_', ' ')}: {meaning}" for name, meaning in STATISTICS.items())
            + ".",
            "",
        ]
        shown = spread(self.calls, _SHOWN_CALLS)
        rows = []
        for statistic in STATISTICS:
            comparisons = self.comparisons(statistic)
            for arm in comparisons[0]:
                cells = [cell(comparisons[i][arm].mean) for i in shown]
                rows.append([statistic.replace("_", " "), f"`{arm}`", *cells])
        return "\n".join([*lines, markdown([["", "arm", *(f"call {i + 1}" for i in shown)], *rows])])


def trajectory_statistics(
    models: Models,
    seeds: Sequence[int],
    labels: Labels | None = None,
    num_inference_steps: int | None = None,
    batch_size: int = 250,
) -> TrajectoryStatistics:
    """Measure the calls of every model over the same noises.

    Args:
        models: see ``arms.Models``.
        seeds: of the noises.
        labels: one for each image, for conditional models; None takes the model's ``seed_labels``.
        num_inference_steps: network calls; None takes each model's own, which must be the same.

    Raises:
        ValueError: no seeds, or models that take different numbers of calls.
    """
    if not seeds:
        raise ValueError("seeds: needs at least one")
    arms = models_by_seed(models)
    check_same_calls(arms, num_inference_steps)
    values: dict[str, dict[str, dict[int, np.ndarray]]] = {name: {arm: {} for arm in arms} for name in STATISTICS}
    for arm, training_seed, model in each_model(arms, "predictions"):
        columns: dict[str, list[np.ndarray]] = {name: [] for name in STATISTICS}
        for part, chosen in batches(model, seeds, labels, batch_size):
            for name, table in _statistics(model, part, chosen, num_inference_steps).items():
                columns[name].append(table)
        for name, tables in columns.items():
            values[name][arm][training_seed] = np.concatenate(tables, axis=1)
    return TrajectoryStatistics(tuple(seeds), values)


def check_same_calls(arms: dict[str, dict[int, ImageModel]], num_inference_steps: int | None) -> int:
    """Network calls of a sample, the same for all models; a ValueError says which differ."""
    calls = {name: n_calls(model, num_inference_steps) for name, arm in arms.items() for model in arm.values()}
    if len(set(calls.values())) > 1:
        raise ValueError(f"models must take as many network calls to compare them call by call, got {calls}")
    return next(iter(calls.values()))


def batches(
    model: ImageModel, seeds: Sequence[int], labels: Labels | None, batch_size: int
) -> Iterator[tuple[list[int], Labels | None]]:
    """Seeds and labels in batches; the model's ``seed_labels`` where there are none."""
    if labels is None:
        labels = model.seed_labels(seeds)
    for start in range(0, len(seeds), batch_size):
        part = slice(start, start + batch_size)
        yield list(seeds[part]), None if labels is None else labels[part]


def _statistics(
    model: ImageModel, seeds: Sequence[int], labels: Labels | None, num_inference_steps: int | None
) -> dict[str, np.ndarray]:
    """Statistic -> (S, n) of one batch, of which no more than two calls are kept at a time."""
    rows: dict[str, list[Tensor]] = {name: [] for name in STATISTICS}
    before: list[Tensor] = []

    def keep(call: Call) -> None:
        noise, data = call.noise.flatten(1).double(), call.data.flatten(1)
        rows["noise_norm"].append(noise.norm(dim=1) / math.sqrt(noise.shape[1]))
        rows["noise_variance"].append(noise.var(1))
        change = (data - before.pop()).double().square().mean(1).sqrt() if before else torch.full((len(data),), np.nan)
        rows["data_change"].append(change)
        before.append(data)

    with watched(model, keep):
        model.sample(list(seeds), labels, num_inference_steps)
    return {name: torch.stack([value.double().cpu() for value in column]).numpy() for name, column in rows.items()}

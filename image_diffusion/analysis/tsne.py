"""A map of predicted images on their way through a sampling (Improved Immiscible Diffusion, 2025, figure 3 c and e)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from image_diffusion.analysis.arms import spread
from image_diffusion.analysis.trajectory import Trajectory
from immiscible_policy.evaluation.tsne import tsne_map

MAX_CALLS = 20  # of a path, on a map
MIN_POINTS = 4  # of a map


@dataclass(frozen=True)
class PathMap:
    """Paths of predicted images in two dimensions, in t-SNE's arbitrary units.

    Attributes:
        calls: (S,) the network calls that are shown, the noisiest first.
        points: (n, S, 2).
        classes: (n,) what an image shows in the end; its colour.
    """

    calls: tuple[int, ...]
    points: np.ndarray
    classes: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        return {"calls": list(self.calls), "points": self.points.tolist(), "classes": list(self.classes)}


def map_paths(
    trajectories: Mapping[str, Trajectory],
    classes: Mapping[str, Sequence[int]],
    max_calls: int = MAX_CALLS,
    seed: int = 0,
) -> dict[str, PathMap]:
    """t-SNE of each arm's predicted images of all calls together, every arm on its own.

    Args:
        trajectories: by arm.
        classes: by arm, one for each image: its label, or what a classifier sees (``DigitsCnn.classify(images)``).
        max_calls: show so many, evenly spread; time and clutter grow with them.

    Raises:
        ValueError: classes that do not fit the images, fewer than 4 points in all, or predictions that are not finite.
    """
    maps = {}
    for arm, trajectory in trajectories.items():
        chosen = tuple(int(value) for value in classes[arm])
        n = len(trajectory.seeds)
        if len(chosen) != n:
            raise ValueError(f"classes[{arm!r}]: {n} images need as many, got {len(chosen)}")
        calls = spread(len(trajectory.times), max_calls)
        data = trajectory.data[calls].transpose(0, 1).flatten(2)
        if not bool(data.isfinite().all()):
            raise ValueError(f"trajectories[{arm!r}]: holds NaN or infinity, which t-SNE cannot place")
        points = tsne_map(data.flatten(0, 1).numpy(), seed)
        maps[arm] = PathMap(tuple(calls), points.reshape(n, len(calls), 2), chosen)
    return maps

"""Maps of paths: every arm's points come back to their images and calls."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from image_diffusion.analysis.trajectory import Trajectory, record_trajectory
from image_diffusion.analysis.tsne import map_paths


def far_apart(n: int = 6, calls: int = 12) -> Trajectory:
    """Images whose predictions stay near a point of their own."""
    generator = torch.Generator().manual_seed(0)
    centres = 10 * torch.randn(1, n, 1, 3, 3, generator=generator)
    data = centres + 0.01 * torch.randn(calls, n, 1, 3, 3, generator=generator)
    images = torch.zeros(n, 1, 3, 3, dtype=torch.uint8)
    return Trajectory(tuple(range(n)), tuple(range(calls)), data, data, data, images)


def test_points_of_a_path_lie_together_where_paths_lie_apart() -> None:
    one = map_paths({"a": far_apart()}, {"a": range(6)}, max_calls=10)["a"]
    assert one.points.shape == (6, 10, 2)
    assert one.calls[0] == 0
    assert one.calls[-1] == 11
    flat, owner = one.points.reshape(-1, 2), np.repeat(np.arange(6), 10)
    distance = np.linalg.norm(flat[:, None] - flat[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    assert (owner[distance.argmin(1)] == owner).all()


def test_the_same_seed_gives_the_same_map(toys) -> None:
    trajectory = record_trajectory(toys.image_model(toys.OptimalVelocity(0.0, 0.3)), list(range(8)), None, 6)
    maps = [map_paths({"a": trajectory}, {"a": [1] * 8}, seed=3)["a"] for _ in range(2)]
    assert np.array_equal(maps[0].points, maps[1].points)
    assert json.loads(json.dumps(maps[0].to_json()))["classes"] == [1] * 8


def test_what_cannot_be_mapped_is_refused() -> None:
    trajectory = far_apart()
    with pytest.raises(ValueError, match=r"classes\['a'\]: 6 images"):
        map_paths({"a": trajectory}, {"a": [0]})
    broken = trajectory.data.clone()
    broken[0, 0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        map_paths({"a": replace(trajectory, data=broken)}, {"a": range(6)})
    with pytest.raises(ValueError, match="at least 4 points"):
        map_paths({"a": far_apart(1, 3)}, {"a": [0]})

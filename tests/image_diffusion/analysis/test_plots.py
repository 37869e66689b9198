"""Figures are drawn of whatever the analyses return, whole or not at all."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from image_diffusion.analysis import plots
from image_diffusion.analysis.curves import DistanceCurves
from image_diffusion.analysis.perturbation import Perturbation, perturbation_stability, perturbed_images
from image_diffusion.analysis.trajectory import record_trajectory, trajectory_statistics
from image_diffusion.analysis.tsne import PathMap
from image_diffusion.metrics import Measurement, MetricRecord, Pixels

RECORD = MetricRecord("pixels", False, None, "none", 100, 200, "digits")


def drawn(path: Path) -> np.ndarray:
    """Pixels of a figure that is not blank, and nothing beside it."""
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    pixels = np.asarray(Image.open(path).convert("L"))
    assert pixels.std() > 5
    return pixels


@pytest.mark.parametrize("values", [[3.0, 2.0, 1.0], [3.0, float("nan"), 1.0]])
def test_curves(values: list[float], tmp_path: Path) -> None:
    row = tuple(Measurement(value, RECORD) for value in values)
    curves = DistanceCurves("fd_pixels_100", "sampling steps", (100, 10, 1), {"a": {0: row, 1: row}, "b": {0: row}})
    plots.plot_curves(curves, tmp_path / "new" / "curves.png")
    drawn(tmp_path / "new" / "curves.png")


def test_trajectories(toys, tmp_path: Path) -> None:
    models = {"a": [toys.image_model(toys.OptimalVelocity(0.0, 0.3))], "b": [toys.ddim_model(0.0, 0.3)] * 2}
    plots.plot_statistics(trajectory_statistics(models, range(9), None, 6), tmp_path / "statistics.png")
    drawn(tmp_path / "statistics.png")
    (tmp_path / "statistics.png").unlink()
    trajectory = record_trajectory(models["b"][0], [1, 2, 3], None, 12)
    plots.plot_trajectory(trajectory, tmp_path / "trajectory.png", max_calls=4)
    drawn(tmp_path / "trajectory.png")


def test_perturbation(toys, tmp_path: Path) -> None:
    models = {"a": [toys.image_model(toys.Straight(0.4), channels=3)]}
    settings = Perturbation((0.1, 0.9), 4)
    stability = perturbation_stability(models, range(5), Pixels((3, 2, 2)), settings)
    plots.plot_stability(stability, tmp_path / "stability.png")
    drawn(tmp_path / "stability.png")
    (tmp_path / "stability.png").unlink()
    images = perturbed_images(models["a"][0], [1, 2], settings)
    plots.plot_perturbed(images, settings.weights, tmp_path / "images.png", index=1)
    drawn(tmp_path / "images.png")


def test_paths(tmp_path: Path) -> None:
    points = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0)).numpy()
    maps = {str(i): PathMap((0, 1, 2), points, (0, 1, 2, 13)) for i in range(5)}
    plots.plot_paths(maps, tmp_path / "paths.png")
    drawn(tmp_path / "paths.png")

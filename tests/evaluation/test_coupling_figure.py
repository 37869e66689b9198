"""Figures of an analysis: they show what was measured, and survive what was not."""

import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from immiscible_policy.evaluation.coupling_figure import plot_clusters, plot_statistics, plot_tsne


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved."""
    saved = []
    original = Figure.savefig

    def save(self, path, **options):
        saved.append(self)
        original(self, path, **options)

    monkeypatch.setattr(Figure, "savefig", save)
    return saved


def estimate(mean: float, half: float = 0.1) -> dict[str, float | None]:
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": 5}


def row(value: float) -> dict[str, dict[str, float | None]]:
    names = ("distance_change", "alignment", "noise_norm")
    missing = {name: {"mean": None, "low": None, "high": None} for name in ("condition_skew", "condition_alignment")}
    return {**{name: estimate(value + i) for i, name in enumerate(names)}, **missing}


def test_statistics_show_means_and_intervals_in_order(tmp_path, figures):
    rows = {"first": row(1.0), "second " * 12: row(2.0), "third": row(math.nan)}
    plot_statistics({"rows": rows}, tmp_path / "s.png")
    axes = figures[0].axes
    assert [a.get_title() for a in axes] == ["distance change, %", "alignment", "|n|² / D"]
    line, _, bars = axes[1].containers[0]
    np.testing.assert_allclose(line.get_xdata(), [2.0, 3.0, math.nan])
    np.testing.assert_allclose(line.get_ydata(), [2, 1, 0])
    np.testing.assert_allclose(bars[0].get_segments()[0][:, 0], [1.9, 2.1])
    labels = [label.get_text() for label in axes[0].get_yticklabels()]
    assert labels[0] == "first"
    assert max(len(part) for part in labels[1].split("\n")) <= 34
    assert [path.name for path in tmp_path.iterdir()] == ["s.png"]


def test_clusters_show_the_mean_of_each_coupling(tmp_path, figures):
    clusters = {
        name: {"pair_distances": values, "independent": 0.5, "n_noises": 100}
        for name, values in {"a": [1.0, 2.0, 3.0], "alone": [4.0], "equal": [1.0, 1.0]}.items()
    }
    plot_clusters(clusters, tmp_path / "c.png")
    axes = figures[0].axes[0]
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert [(float(dot.get_xdata()[0]), int(dot.get_ydata()[0])) for dot in dots] == [(2.0, 2), (4.0, 1), (1.0, 0)]
    assert "100 noises" in axes.get_xlabel()
    assert (tmp_path / "c.png").stat().st_size > 1_000


@pytest.mark.parametrize("dims", [3, 60])
def test_tsne_keeps_far_clusters_apart(tmp_path, figures, dims):
    generator = torch.Generator().manual_seed(0)
    apart = torch.randn(3, 20, dims, generator=generator) + 30.0 * torch.eye(3, dims)[:, None]
    plot_tsne({"mixed": torch.randn(3, 20, dims, generator=generator), "apart": apart}, tmp_path / "t.png")
    mixed, separate = (np.asarray(axes.collections[0].get_offsets()) for axes in figures[0].axes)
    colours = figures[0].axes[1].collections[0].get_array()
    assert np.array_equal(colours, np.repeat([0, 1, 2], 20))

    def same_neighbour(points: np.ndarray) -> float:
        distances = np.linalg.norm(points[:, None] - points[None], axis=2) + 1e9 * np.eye(60)
        return float(np.mean(colours[distances.argmin(1)] == colours))

    assert same_neighbour(separate) == 1.0
    assert same_neighbour(mixed) < 0.7

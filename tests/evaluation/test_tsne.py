"""Maps by t-SNE."""

import numpy as np
import pytest

from immiscible_policy.evaluation.tsne import tsne_map


@pytest.mark.parametrize(("n", "dims"), [(60, 80), (20, 80), (12, 3)])
def test_clusters_stay_clusters_and_the_seed_decides(n: int, dims: int) -> None:
    rng = np.random.default_rng(0)
    owner = np.arange(n) % 2
    points = (rng.normal(size=(n, dims)) + 50 * owner[:, None]).astype(np.float32)
    first, again = tsne_map(points, seed=1), tsne_map(points, seed=1)
    assert first.shape == (n, 2)
    assert np.array_equal(first, again)
    distance = np.linalg.norm(first[:, None] - first[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    assert (owner[distance.argmin(1)] == owner).mean() > 0.9


def test_too_few_points() -> None:
    with pytest.raises(ValueError, match="at least 4 points, got 3"):
        tsne_map(np.zeros((3, 2)))

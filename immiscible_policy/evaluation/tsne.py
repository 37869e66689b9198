"""t-SNE as every figure here uses it."""

import numpy as np


def tsne_map(points: np.ndarray, seed: int = 0) -> np.ndarray:
    """Points (N, D) in two dimensions, (N, 2): t-SNE of their first 50 principal components.

    The perplexity is 30, or (N - 1) / 3 for fewer than 91 points.

    Raises:
        ValueError: fewer than 4 points.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    if len(points) < 4:
        raise ValueError(f"t-SNE needs at least 4 points, got {len(points)}")
    if points.shape[1] > 50 and len(points) > 50:
        points = PCA(50, random_state=seed).fit_transform(points)
    perplexity = min(30.0, (len(points) - 1) / 3)
    return TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(points)

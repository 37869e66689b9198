"""The block's eight vertices: the `environment_state` of gym-pusht and of the LeRobot PushT data sets.

They are the four corners of the bar, then the four of the stem, each in the order of the physics engine. The nine
keypoints of the Diffusion Policy paper are others (`envs.pusht.keypoints`).
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from envs.pusht.geometry import BAR, STEM

BLOCK_VERTICES: NDArray[np.float64] = np.array(BAR + STEM)
"""Vertices in the block's frame, shape (8, 2), pixels: the bar's four, then the stem's four."""
BLOCK_VERTICES.setflags(write=False)

_FULL_TURN = 2.0 * math.pi
_CENTER = BLOCK_VERTICES.mean(axis=0)
_CENTERED = BLOCK_VERTICES - _CENTER


def points_in_world(points: ArrayLike, poses: ArrayLike) -> NDArray[np.float64]:
    """Points of the block's frame, (P, 2), in the window, for each pose (x, y, angle) of (N, 3): (N, P, 2)."""
    points, poses = np.asarray(points, np.float64), _checked("poses", poses, 3)
    cos, sin = np.cos(poses[:, 2, None]), np.sin(poses[:, 2, None])
    u, v = points[:, 0], points[:, 1]
    return np.stack([poses[:, 0, None] + cos * u - sin * v, poses[:, 1, None] + sin * u + cos * v], axis=-1)


def vertices_in_world(poses: ArrayLike) -> NDArray[np.float64]:
    """The eight vertices of blocks at poses (N, 3) of x, y in pixels and angle in radians (any real number).

    Returns:
        (N, 16): x0, y0, x1, y1, ... in window pixels, equal to gym-pusht's `environment_state`.
    """
    return points_in_world(BLOCK_VERTICES, poses).reshape(-1, BLOCK_VERTICES.size)


def pose_from_vertices(vertices: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The pose whose vertices come closest, in least squares, to the given ones: `vertices_in_world` undone.

    The best rotation of centred points in the plane is, in closed form, by the angle
    atan2(sum of u x w, sum of u . w) over the pairs of a vertex u in the block's frame and w in the window.

    Args:
        vertices: (N, 16) as from `vertices_in_world`.

    Returns:
        poses: (N, 3) x, y in pixels and angle in [0, 2 pi).
        residual: (N,) pixels, the largest distance of a given vertex from the one of that pose. It tells whether
            the vertices are those of a block at all: a mirrored, scaled or otherwise ordered T leaves tens of
            pixels. NaN in a row makes its pose and residual NaN.

    Raises:
        ValueError: another shape.
    """
    given = _checked("vertices", vertices, BLOCK_VERTICES.size).reshape(-1, *BLOCK_VERTICES.shape)
    center = given.mean(axis=1)
    centered = given - center[:, None]
    cross = np.einsum("i,ni->n", _CENTERED[:, 0], centered[..., 1]) - np.einsum(
        "i,ni->n", _CENTERED[:, 1], centered[..., 0]
    )
    dot = np.einsum("ij,nij->n", _CENTERED, centered)
    angle = np.mod(np.arctan2(cross, dot), _FULL_TURN)
    # The remainder of a tiny negative angle rounds up to a full turn.
    angle = np.where(angle >= _FULL_TURN, 0.0, angle)
    turned = points_in_world(_CENTER[None], np.column_stack([np.zeros_like(center), angle]))[:, 0]
    poses = np.column_stack([center - turned, angle])
    offset = given - points_in_world(BLOCK_VERTICES, poses)
    return poses, np.hypot(offset[..., 0], offset[..., 1]).max(axis=1)


def _checked(name: str, values: ArrayLike, width: int) -> NDArray[np.float64]:
    array = np.asarray(values, np.float64)
    if array.ndim != 2 or array.shape[1] != width:
        raise ValueError(f"{name} has shape {array.shape}; allowed: (N, {width})")
    return array

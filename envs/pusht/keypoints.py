"""Nine points on the block: the low-dimensional observation of the Diffusion Policy paper.

The original picks them at run time by farthest-point sampling over the drawn block, with a fixed seed. They
are written out here because that result depends on the drawing library. They agree with the keypoints
recorded in the paper's demonstrations to 0.001 px on average (root mean square 0.02 px).
"""

import math

import numpy as np
from numpy.typing import NDArray

BLOCK_KEYPOINTS: NDArray[np.float64] = np.array(
    [
        [9.26979, 90.04097],
        [-60.98347, -1.18673],
        [60.91276, -1.39336],
        [-0.27050, 25.54362],
        [-14.06493, 122.81586],
        [39.00274, 32.85740],
        [-39.96641, 32.72966],
        [-16.82434, 62.86318],
        [23.54146, -1.70029],
    ]
)
"""Keypoints in the block's frame, shape (9, 2), pixels."""
BLOCK_KEYPOINTS.setflags(write=False)

KEYPOINT_REACH = math.ceil(np.linalg.norm(BLOCK_KEYPOINTS, axis=1).max())
"""No keypoint is farther than this from the block's origin, pixels."""


def keypoints_in_world(x: float, y: float, angle: float) -> NDArray[np.float64]:
    """The nine keypoints, shape (9, 2), in window pixels, of a block at (x, y) turned by `angle` radians."""
    cos, sin = math.cos(angle), math.sin(angle)
    return BLOCK_KEYPOINTS @ np.array([[cos, sin], [-sin, cos]]) + (x, y)

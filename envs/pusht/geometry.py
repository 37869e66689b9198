"""Every constant of the PushT world, and how much of the goal the block covers.

Lengths are pixels of the 512 x 512 window (x to the right, y down, as on a screen), angles radians, times
seconds. The values are those of the Diffusion Policy paper's simulator (Chi et al. 2023, published code),
which descends from the task of Implicit Behavioral Cloning (Florence et al. 2021).
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Point = tuple[float, float]
Pose = tuple[float, float, float]
Polygon = tuple[Point, ...]
Color = tuple[int, int, int]

# --- window and time ---
WINDOW_SIZE = 512
# The agent is sent no farther outside the window than this. The original follows any target; ten times the window away
# numbers lose their digits, and many worlds in one space would meet.
TARGET_MARGIN = 256.0
CONTROL_HZ = 10
PHYSICS_HZ = 100
SUBSTEPS = PHYSICS_HZ // CONTROL_HZ
TIME_STEP = 1.0 / PHYSICS_HZ

# --- controller: acceleration = gain * (target - position) - damping * velocity ---
POSITION_GAIN = 100.0
VELOCITY_GAIN = 20.0

# --- agent ---
AGENT_RADIUS = 15.0
AGENT_START: Point = (256.0, 400.0)

# --- walls: segments of this radius, as (start, end) ---
WALL_RADIUS = 2.0
WALLS: tuple[tuple[Point, Point], ...] = (
    ((5.0, 506.0), (5.0, 5.0)),
    ((5.0, 5.0), (506.0, 5.0)),
    ((506.0, 5.0), (506.0, 506.0)),
    ((5.0, 506.0), (506.0, 506.0)),
)

# --- block: a bar and a stem that touch along y = 30 of the block's own frame ---
# The order of the vertices is the physics engine's: the recorded images were drawn in it.
BAR: Polygon = ((-60.0, 0.0), (60.0, 0.0), (60.0, 30.0), (-60.0, 30.0))
STEM: Polygon = ((-15.0, 30.0), (15.0, 30.0), (15.0, 120.0), (-15.0, 120.0))
OUTLINE: Polygon = (
    (-60.0, 0.0),
    (60.0, 0.0),
    (60.0, 30.0),
    (15.0, 30.0),
    (15.0, 120.0),
    (-15.0, 120.0),
    (-15.0, 30.0),
    (-60.0, 30.0),
)
BLOCK_AREA = 120.0 * 30.0 + 30.0 * 90.0
BLOCK_REACH = math.hypot(15.0, 120.0)  # farthest point of the block from the origin of its frame
BLOCK_START: Point = (256.0, 300.0)
BLOCK_MASS = 1.0
# Twice the bar's moment about the origin, and the plain mean of the two centroids: neither is that of a
# real T, but the demonstrations were recorded with both.
BLOCK_MOMENT = 3000.0
BLOCK_CENTER_OF_GRAVITY: Point = (0.0, 45.0)

# --- task ---
GOAL_POSE: Pose = (256.0, 256.0, math.pi / 4)
SUCCESS_COVERAGE = 0.95

# --- colours ---
BACKGROUND_COLOR: Color = (255, 255, 255)
GOAL_COLOR: Color = (144, 238, 144)  # LightGreen
AGENT_COLOR: Color = (65, 105, 225)  # RoyalBlue
BLOCK_COLOR: Color = (119, 136, 153)  # LightSlateGray
WALL_COLOR: Color = (211, 211, 211)  # LightGray
TARGET_COLOR: Color = (255, 0, 0)

# Bar and stem as x_min, x_max, y_min, y_max.
_RECTANGLES = ((-60.0, 60.0, 0.0, 30.0), (-15.0, 15.0, 30.0, 120.0))
# Square pixels. The contour integrals of shapes that do not overlap cancel up to rounding errors below this.
_ROUNDING_AREA = 1e-9
_OUTLINE_U, _OUTLINE_V = np.array(OUTLINE).T
_BEFORE = np.arange(-1, len(OUTLINE) - 1)
_RECTANGLE_COLUMNS = np.array(_RECTANGLES).T[:, :, None, None]


def to_world(points: Sequence[Point], x: float, y: float, angle: float) -> list[Point]:
    """Points of a body frame, (n, 2), in the window, for the frame at (x, y) turned by `angle` radians."""
    cos, sin = math.cos(angle), math.sin(angle)
    return [(x + cos * u - sin * v, y + sin * u + cos * v) for u, v in points]


def coverage(x: float, y: float, angle: float, goal_pose: Pose = GOAL_POSE) -> float:
    """Share of the goal's area, in [0, 1], that the block at pose (x, y, angle) lies on.

    Exact up to rounding. The bar and the stem of the goal are upright rectangles in the goal's frame, and
    they only touch, so their overlaps with the block add. Each overlap is a contour integral (Green's
    theorem): with c(x) = x limited to [x_min, x_max], the area of the block inside the rectangle is the
    integral of c(x) dy along the part of the block's outline with y in [y_min, y_max].
    """
    goal_x, goal_y, goal_angle = goal_pose
    dx, dy = x - goal_x, y - goal_y
    if dx * dx + dy * dy >= 4.0 * BLOCK_REACH * BLOCK_REACH:
        return 0.0
    cos, sin = math.cos(goal_angle), math.sin(goal_angle)
    outline = to_world(OUTLINE, cos * dx + sin * dy, cos * dy - sin * dx, angle - goal_angle)
    area = 0.0
    for x_min, x_max, y_min, y_max in _RECTANGLES:
        x0, y0 = outline[-1]
        for x1, y1 in outline:
            if not (y0 == y1 or (y0 <= y_min and y1 <= y_min) or (y0 >= y_max and y1 >= y_max)):
                area += _clamped_integral(x0, y0, x1, y1, x_min, x_max, y_min, y_max)
            x0, y0 = x1, y1
    return 0.0 if area < _ROUNDING_AREA else min(area / BLOCK_AREA, 1.0)


def _clamped_integral(
    x0: float, y0: float, x1: float, y1: float, x_min: float, x_max: float, y_min: float, y_max: float
) -> float:
    """Integral of clamp(x, x_min, x_max) dy along the part of the segment with y between y_min and y_max."""
    slope = (x1 - x0) / (y1 - y0)
    start_y = min(max(y0, y_min), y_max)
    end_y = min(max(y1, y_min), y_max)
    start_x = x0 if start_y == y0 else x0 + (start_y - y0) * slope
    end_x = x1 if end_y == y1 else x1 + (end_y - y1) * slope
    low, high = (start_x, end_x) if start_x <= end_x else (end_x, start_x)
    if low >= x_max:
        mean = x_max
    elif high <= x_min:
        mean = x_min
    elif x_min <= low and high <= x_max:
        mean = 0.5 * (low + high)
    else:
        # The parts left of, inside and right of the rectangle, by their lengths: these stay accurate for a
        # short segment, where a difference of antiderivatives would cancel.
        inside_low, inside_high = max(low, x_min), min(high, x_max)
        mean = (
            (inside_low - low) * x_min
            + (inside_high - inside_low) * 0.5 * (inside_low + inside_high)
            + (high - inside_high) * x_max
        ) / (high - low)
    return mean * (end_y - start_y)


def coverage_batch(poses: ArrayLike, goal_pose: Pose = GOAL_POSE) -> NDArray[np.float64]:
    """`coverage` of many blocks at once: poses (N, 3) of (x, y, angle) -> shares (N,).

    The same contour integral over all edges of all outlines; equal to `coverage` up to rounding.
    """
    poses = np.asarray(poses, np.float64)
    goal_x, goal_y, goal_angle = goal_pose
    dx, dy = poses[:, 0, None] - goal_x, poses[:, 1, None] - goal_y
    cos, sin = math.cos(goal_angle), math.sin(goal_angle)
    angle = poses[:, 2, None] - goal_angle
    block_cos, block_sin = np.cos(angle), np.sin(angle)
    # The corners in the goal's frame, one row a block.
    x1 = (cos * dx + sin * dy) + block_cos * _OUTLINE_U - block_sin * _OUTLINE_V
    y1 = (cos * dy - sin * dx) + block_sin * _OUTLINE_U + block_cos * _OUTLINE_V
    # Where the edges start that end in them; and both once the edges are cut to the rectangles' heights, from where on
    # the rectangles are an axis before the blocks.
    x0, y0 = np.take(x1, _BEFORE, axis=1), np.take(y1, _BEFORE, axis=1)
    rise = y1 - y0
    slope = (x1 - x0) / np.where(rise == 0.0, 1.0, rise)
    x_min, x_max, y_min, y_max = _RECTANGLE_COLUMNS
    end_y = np.minimum(np.maximum(y1, y_min), y_max)
    start_y = np.take(end_y, _BEFORE, axis=2)
    ends = np.stack([x0 + (start_y - y0) * slope, x1 + (end_y - y1) * slope])
    # Signed lengths of the parts left of, inside and right of the rectangles, as in `_clamped_integral`.
    left, right = np.minimum(ends, x_min), np.maximum(ends, x_max)
    inside = np.minimum(np.maximum(ends, x_min), x_max)
    sums = (left[1] - left[0]) * x_min + (right[1] - right[0]) * x_max
    sums += (inside[1] - inside[0]) * (0.5 * (inside[0] + inside[1]))
    width = ends[1] - ends[0]
    mean = np.divide(sums, width, out=inside[0], where=width != 0.0)
    area = np.einsum("rij,rij->i", mean, end_y - start_y)
    near = (dx * dx + dy * dy < 4.0 * BLOCK_REACH * BLOCK_REACH)[:, 0] & (area >= _ROUNDING_AREA)
    return np.where(near, np.minimum(area / BLOCK_AREA, 1.0), 0.0)

"""Coverage against shapely, and the block's mass properties against pymunk."""

import math

import numpy as np
import pymunk
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from shapely import MultiPolygon, Polygon, area, intersection, polygons
from shapely.affinity import rotate, translate

from envs.pusht import geometry
from envs.pusht.geometry import BAR, GOAL_POSE, OUTLINE, STEM, coverage, coverage_batch, to_world
from envs.pusht.vertices import points_in_world

TOLERANCE = 1e-9
GOAL = translate(
    rotate(MultiPolygon([Polygon(BAR), Polygon(STEM)]), GOAL_POSE[2], (0, 0), use_radians=True),
    *GOAL_POSE[:2],
)


def reference(x: float, y: float, angle: float) -> float:
    block = MultiPolygon([Polygon(to_world(part, x, y, angle)) for part in (BAR, STEM)])
    return GOAL.intersection(block).area / GOAL.area


def batch_reference(poses: NDArray[np.float64], goal_pose: geometry.Pose) -> NDArray[np.float64]:
    goal, *blocks = polygons(points_in_world(OUTLINE, np.vstack([goal_pose, poses])))
    return area(intersection(blocks, goal)) / area(goal)


def poses_around(goal_pose: geometry.Pose) -> NDArray[np.float64]:
    """3,700 poses: anywhere, far, nearly at the goal, turned by quarters, edges on edges."""
    random = np.random.default_rng(2)
    goal, span = np.array(goal_pose), np.array([150.0, 150.0, 10.0])
    quarters = random.integers(-8, 9, (1000, 1)) * math.pi / 2
    corners = random.choice([-120.0, -90.0, -75.0, -60.0, -30.0, -15.0, 0.0, 15.0, 30.0, 60.0, 75.0, 90.0], (1000, 2))
    nudges = random.choice([0.0, 1e-13, -1e-13, 1e-9, -1e-9, 1e-5], (1000, 3))
    [on_edges] = points_in_world(corners, [goal])
    return np.vstack(
        [
            random.uniform(goal - span, goal + span, (1000, 3)),
            random.uniform((-900, -900, -30), (1400, 1400, 30), (100, 3)),
            goal + random.normal(size=(600, 3)) * np.repeat([1e-14, 1e-12, 1e-9, 1e-6, 1e-3, 0.1], 100)[:, None],
            np.column_stack([random.uniform(goal[:2] - 150, goal[:2] + 150, (1000, 2)), goal[2] + quarters]),
            np.column_stack([on_edges, goal[2] + quarters]) + nudges,
        ]
    )


@pytest.mark.parametrize("goal_pose", [GOAL_POSE, (100.0, 400.0, 0.0), (300.5, 50.25, -20.0)])
def test_coverage_of_a_batch_equals_shapely_and_the_scalar_function(goal_pose: geometry.Pose) -> None:
    poses = poses_around(goal_pose)
    covered = coverage_batch(poses, goal_pose)
    assert covered.shape == (len(poses),)
    assert np.abs(covered - batch_reference(poses, goal_pose)).max() < TOLERANCE
    assert np.abs(covered - [coverage(*pose, goal_pose) for pose in poses.tolist()]).max() < 1e-13
    assert (covered == 0.0).mean() > 0.1
    assert (covered > 0.1).mean() > 0.3
    assert covered.max() == pytest.approx(1.0, abs=1e-9)
    assert ((covered >= 0.0) & (covered <= 1.0)).all()


def test_coverage_of_a_batch_has_known_values() -> None:
    far = [[10.0, 10.0, 0.0], [1e9, -1e9, 3.0], [GOAL_POSE[0] + 2 * geometry.BLOCK_REACH, *GOAL_POSE[1:]]]
    assert coverage_batch([GOAL_POSE, *far]).tolist() == [1.0, 0.0, 0.0, 0.0]
    assert coverage_batch(np.empty((0, 3))).shape == (0,)


def test_outline_is_the_union_of_bar_and_stem() -> None:
    union = Polygon(BAR).union(Polygon(STEM))
    assert Polygon(OUTLINE).equals(union)
    assert union.area == geometry.BLOCK_AREA == 6300.0
    assert max(math.hypot(*point) for point in OUTLINE) == geometry.BLOCK_REACH


def test_coverage_equals_shapely_near_the_goal() -> None:
    random = np.random.default_rng(0)
    poses = random.uniform((150, 150, -10), (360, 360, 10), size=(3000, 3))
    error = [abs(coverage(*pose) - reference(*pose)) for pose in poses.tolist()]
    assert max(error) < TOLERANCE
    covered = np.array([coverage(*pose) for pose in poses.tolist()])
    assert (covered == 0).any()
    assert covered.max() > 0.6


def test_coverage_equals_shapely_for_small_displacements_from_the_goal() -> None:
    random = np.random.default_rng(1)
    for scale in (1e-14, 1e-12, 1e-9, 1e-6, 1e-3, 1.0):
        for offset in (random.normal(size=(100, 3)) * scale).tolist():
            pose = [goal + delta for goal, delta in zip(GOAL_POSE, offset, strict=True)]
            assert coverage(*pose) == pytest.approx(reference(*pose), abs=TOLERANCE)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(
    st.floats(-50, 560),
    st.floats(-50, 560),
    st.one_of(st.floats(-20, 20), st.integers(-16, 16).map(lambda n: n * math.pi / 4)),
)
def test_coverage_equals_shapely_anywhere(x: float, y: float, angle: float) -> None:
    assert abs(coverage(x, y, angle) - reference(x, y, angle)) < TOLERANCE


@settings(max_examples=300, derandomize=True, deadline=None)
@given(
    st.sampled_from([0.0, 15.0, 30.0, 60.0, 75.0, 90.0, 120.0, 240.0]),
    st.sampled_from([0.0, 15.0, 30.0, 60.0, 90.0, 120.0]),
    st.integers(-4, 4),
    st.sampled_from([0.0, 1e-13, -1e-13, 1e-9, -1e-9, 1e-5]),
)
def test_coverage_equals_shapely_where_edges_coincide(u: float, v: float, quarter: int, nudge: float) -> None:
    [(x, y)] = to_world([(u + nudge, v)], *GOAL_POSE)
    angle = GOAL_POSE[2] + quarter * math.pi / 2 + nudge
    assert abs(coverage(x, y, angle) - reference(x, y, angle)) < TOLERANCE


def test_coverage_has_known_values() -> None:
    assert coverage(*GOAL_POSE) == 1.0
    assert coverage(GOAL_POSE[0], GOAL_POSE[1], GOAL_POSE[2] + 2 * math.pi) == pytest.approx(1.0, abs=1e-12)
    assert coverage(10.0, 10.0, 0.0) == 0.0
    # Sliding by 30 px along the stem uncovers a bar's width of the whole outline.
    [(x, y)] = to_world([(0.0, 30.0)], *GOAL_POSE)
    assert coverage(x, y, GOAL_POSE[2]) == pytest.approx((90 * 30) / 6300, abs=1e-12)


def test_block_has_the_mass_properties_of_the_original() -> None:
    assert pytest.approx(2 * pymunk.moment_for_poly(1, list(BAR))) == geometry.BLOCK_MOMENT == 3000.0
    body = pymunk.Body(1, 1)
    centers = [pymunk.Poly(body, list(part)).center_of_gravity for part in (BAR, STEM)]
    assert tuple((centers[0] + centers[1]) / 2) == geometry.BLOCK_CENTER_OF_GRAVITY == (0.0, 45.0)

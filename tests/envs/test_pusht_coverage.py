"""Coverage against shapely, and the block's mass properties against pymunk."""

import math

import numpy as np
import pymunk
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely import MultiPolygon, Polygon
from shapely.affinity import rotate, translate

from envs.pusht import geometry
from envs.pusht.geometry import BAR, GOAL_POSE, OUTLINE, STEM, coverage, to_world

TOLERANCE = 1e-9
GOAL = translate(
    rotate(MultiPolygon([Polygon(BAR), Polygon(STEM)]), GOAL_POSE[2], (0, 0), use_radians=True),
    *GOAL_POSE[:2],
)


def reference(x: float, y: float, angle: float) -> float:
    block = MultiPolygon([Polygon(to_world(part, x, y, angle)) for part in (BAR, STEM)])
    return GOAL.intersection(block).area / GOAL.area


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

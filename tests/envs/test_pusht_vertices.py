"""The block's vertices: gym-pusht's order and values, and the pose found back from them."""

import ast
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.pusht import vertices
from envs.pusht.geometry import BAR, STEM, to_world
from envs.pusht.vertices import BLOCK_VERTICES, points_in_world, pose_from_vertices, vertices_in_world

# Block pose (info["block_pose"]) and observation["environment_state"] that gym-pusht 0.1.8 with pymunk 6.11 returned
# after 20 random actions: for the seeds 0 to 2, and one with an angle beyond a turn set with reset_to_state.
RECORDED = [
    (
        [196.443043047, 345.432337306, -1.562049560],
        [
            195.918243749,
            405.430042142,
            196.967842346,
            285.434632469,
            226.966694765,
            285.697032118,
            225.917096167,
            405.692441792,
            226.310695641,
            360.694163164,
            226.573095291,
            330.695310746,
            316.569652546,
            331.482509694,
            316.307252897,
            361.481362112,
        ],
    ),
    (
        [302.842290438, 462.665384314, -2.339559289],
        [
            344.557087854,
            505.791660255,
            261.127493022,
            419.539108373,
            282.690630992,
            398.681709665,
            366.120225824,
            484.934261547,
            334.834127762,
            452.589554591,
            313.976729054,
            431.026416621,
            378.666142966,
            368.454220497,
            399.523541674,
            390.017358467,
        ],
    ),
    (
        [173.385411416, 251.670532588, 1.974338556],
        [
            196.946121533,
            196.489984033,
            149.824701299,
            306.851081142,
            122.234427021,
            295.070726084,
            169.355847256,
            184.709628975,
            151.685314668,
            226.095040391,
            139.904959609,
            253.685314668,
            57.134136778,
            218.344249492,
            68.914491836,
            190.753975215,
        ],
    ),
    (
        [296.618199579, 289.872747029, 9.500000000],
        [
            356.448528951,
            294.381814257,
            236.787870207,
            285.363679801,
            239.042403821,
            255.448515115,
            358.703062565,
            264.466649571,
            313.830315536,
            261.084849150,
            283.915150850,
            258.830315536,
            290.678751692,
            169.084821478,
            320.593916378,
            171.339355092,
        ],
    ),
]


@pytest.mark.parametrize(("pose", "expected"), RECORDED)
def test_order_and_values_are_those_of_gym_pusht(pose, expected):
    np.testing.assert_allclose(vertices_in_world([pose])[0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("pose", "expected"), RECORDED)
def test_the_pose_of_what_gym_pusht_returned(pose, expected):
    poses, residual = pose_from_vertices([expected])
    np.testing.assert_allclose(poses[0, :2], pose[:2], rtol=0, atol=1e-9)
    assert poses[0, 2] == pytest.approx(pose[2] % (2 * math.pi), abs=1e-9)
    assert residual[0] < 1e-6


def test_vertices_are_the_corners_of_bar_and_stem_and_cannot_be_changed():
    assert [tuple(point) for point in BLOCK_VERTICES] == [*BAR, *STEM]
    with pytest.raises(ValueError, match="read-only"):
        BLOCK_VERTICES[0, 0] = 1.0


def test_points_agree_with_the_scalar_transformation():
    poses = np.random.default_rng(0).uniform(-700, 700, (20, 3))
    expected = [to_world(BAR + STEM, *pose) for pose in poses]
    np.testing.assert_allclose(points_in_world(BLOCK_VERTICES, poses), expected, rtol=0, atol=1e-9)


COORDINATES = st.floats(-1000, 1000)


@given(COORDINATES, COORDINATES, st.floats(-100, 100))
def test_a_pose_survives_the_way_to_vertices_and_back(x, y, angle):
    poses, residual = pose_from_vertices(vertices_in_world([[x, y, angle]]))
    np.testing.assert_allclose(poses[0, :2], (x, y), rtol=0, atol=1e-8)
    assert 0.0 <= poses[0, 2] < 2 * math.pi
    assert math.remainder(poses[0, 2] - angle, 2 * math.pi) == pytest.approx(0, abs=1e-10)
    assert residual[0] < 1e-8


@given(COORDINATES, COORDINATES, st.floats(-10, 10), st.integers(0, 2**32 - 1))
def test_the_pose_is_the_one_of_least_squares(x, y, angle, seed):
    """No small change of the pose comes closer to noisy vertices."""
    noisy = vertices_in_world([[x, y, angle]]) + np.random.default_rng(seed).normal(0, 3, (1, 16))
    best = pose_from_vertices(noisy)[0]
    steps = np.concatenate([np.eye(3), -np.eye(3)]) * (0.01, 0.01, 1e-4)
    errors = ((vertices_in_world(best + np.vstack([np.zeros(3), steps])) - noisy) ** 2).sum(axis=1)
    assert (errors[1:] >= errors[0]).all()


def test_rows_do_not_mix():
    poses = np.random.default_rng(1).uniform(0, 500, (7, 3))
    together, _ = pose_from_vertices(vertices_in_world(poses))
    apart = np.concatenate([pose_from_vertices(vertices_in_world(pose[None]))[0] for pose in poses])
    np.testing.assert_array_equal(together, apart)
    assert pose_from_vertices(np.empty((0, 16)))[0].shape == (0, 3)


def test_the_residual_is_the_largest_distance_of_a_vertex():
    true = vertices_in_world([[200, 300, 1.0]])
    moved = true.copy()
    moved[0, 6:8] += (3.0, 4.0)
    poses, residual = pose_from_vertices(moved)
    offset = (moved - vertices_in_world(poses)).reshape(8, 2)
    assert residual[0] == pytest.approx(max(math.hypot(*vertex) for vertex in offset))
    assert 2.0 < residual[0] < 5.0


@pytest.mark.parametrize(
    "spoil",
    [
        lambda v: v[:, ::-1],  # y before x, and the last vertex first: a mirror image
        lambda v: v * 1.1,
        lambda v: np.roll(v, 1, axis=0),
        lambda v: v * (1, -1),
        lambda v: np.full_like(v, 7.0),
    ],
    ids=["mirrored", "scaled", "other order", "y upwards", "one point"],
)
def test_what_is_no_block_leaves_a_residual(spoil):
    true = vertices_in_world([[200, 300, 1.0]]).reshape(8, 2)
    spoilt = np.asarray(spoil(true)).reshape(1, 16)
    assert pose_from_vertices(spoilt)[1][0] > 1.0


def test_nan_stays_in_its_row():
    values = vertices_in_world([[200, 300, 1.0], [100, 50, 2.0]])
    values[0, 3] = np.nan
    poses, residual = pose_from_vertices(values)
    assert np.isnan(residual[0])
    assert residual[1] < 1e-8
    np.testing.assert_allclose(poses[1], (100, 50, 2.0), atol=1e-8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: vertices_in_world([1.0, 2.0, 3.0]), r"poses has shape \(3,\); allowed: \(N, 3\)"),
        (lambda: vertices_in_world(np.zeros((2, 5))), r"poses has shape \(2, 5\)"),
        (lambda: pose_from_vertices(np.zeros((4, 8, 2))), r"vertices has shape \(4, 8, 2\); allowed: \(N, 16\)"),
    ],
)
def test_other_shapes_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_only_numpy_and_geometry_are_imported():
    tree = ast.parse(Path(vertices.__file__).read_text())
    roots = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    assert roots - set(sys.stdlib_module_names) == {"numpy", "envs"}

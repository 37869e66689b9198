"""Ways to the block against shapely's geometry and shortest paths through the plane around the widened block."""

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.sparse.csgraph import dijkstra
from shapely.geometry import box
from shapely.ops import unary_union

from envs.pusht import ways
from envs.pusht.geometry import AGENT_RADIUS, BAR, OUTLINE, STEM
from envs.pusht.ways import CONTACTS, CORNERS

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

REACH = AGENT_RADIUS + ways.CLEARANCE
BLOCK = shapely.Polygon(OUTLINE)
WIDENED = [
    box(x0 - REACH, y0 - REACH, x1 + REACH, y1 + REACH)
    for x0, y0, x1, y1 in (shapely.Polygon(p).bounds for p in (BAR, STEM))
]
KEPT_OUT = unary_union(WIDENED)
INSIDE = shapely.buffer(KEPT_OUT, -1e-6)
ALL = np.ones(len(CORNERS), bool)
COORDINATES = st.floats(-300.0, 300.0)


def enters(starts: Floats, ends: Floats) -> Mask:
    """Whether segments share points with the inside of a widened rectangle, corners and edges not counted."""
    lines = shapely.linestrings(np.stack([starts, ends], axis=-2))
    return np.any([shapely.relate_pattern(lines, rectangle, "T********") for rectangle in WIDENED], axis=0)


def draw_outside(count: int, seed: int) -> Floats:
    points = np.random.default_rng(seed).uniform((-250, -200), (250, 300), (4 * count, 2))
    return points[~shapely.contains_properly(KEPT_OUT, shapely.points(points))][:count]


def shortest(agent: Floats, corners: Floats, sees: Mask, goals: Floats) -> Floats:
    """Lengths from `agent` to goals (M,) over corners (C, 2), by Dijkstra; `sees` are the pairs in sight."""
    nodes = np.concatenate([agent[None], corners, goals])
    length = np.linalg.norm(nodes[:, None] - nodes[None], axis=-1)
    # Ways end at goals and do not lead on from them.
    sees = sees.copy()
    sees[1 + len(corners) :] = False
    return dijkstra(np.where(sees, length, 0.0), indices=0)[1 + len(corners) :]


def in_sight(agent: Floats, corners: Floats, goals: Floats) -> Mask:
    nodes = np.concatenate([agent[None], corners, goals])
    first, second = np.triu_indices(len(nodes), 1)
    needed = first <= len(corners)
    sees = np.zeros((len(nodes), len(nodes)), bool)
    sees[first[needed], second[needed]] = ~enters(nodes[first[needed]], nodes[second[needed]])
    return sees | sees.T


def test_contacts_lie_on_the_outline_and_pushes_begin_before_them() -> None:
    points, starts = shapely.points(CONTACTS.point), shapely.points(CONTACTS.start)
    assert shapely.distance(BLOCK.boundary, points).max() < 1e-9
    np.testing.assert_allclose(np.linalg.norm(CONTACTS.inward, axis=1), 1.0)
    for depth in (0.01, 5.0):
        assert shapely.contains_properly(BLOCK, shapely.points(CONTACTS.point + depth * CONTACTS.inward)).all()
    np.testing.assert_allclose(CONTACTS.start, CONTACTS.point - (AGENT_RADIUS + ways.RUN_UP) * CONTACTS.inward)
    np.testing.assert_allclose(shapely.distance(BLOCK, starts), AGENT_RADIUS + ways.RUN_UP)
    assert not shapely.intersects(KEPT_OUT, starts).any()


def test_contacts_are_wherever_the_agent_can_push_against_an_edge() -> None:
    ring = BLOCK.exterior
    along = np.arange(0.05, ring.length, 0.1)
    ahead = shapely.get_coordinates(shapely.line_interpolate_point(ring, along + 0.01))
    here = shapely.get_coordinates(shapely.line_interpolate_point(ring, along))
    tangent = (ahead - here) / 0.01
    outward = np.stack([tangent[:, 1], -tangent[:, 0]], axis=1)
    agent = here + (AGENT_RADIUS + ways.RUN_UP) * outward
    reachable = shapely.distance(BLOCK, shapely.points(agent)) > AGENT_RADIUS + ways.RUN_UP - 1e-6
    nearest = np.linalg.norm(here[reachable, None] - CONTACTS.point, axis=-1).min(axis=1)
    assert 0.5 < reachable.mean() < 1.0
    assert nearest.max() < ways.CONTACT_SPACING
    neighbours = np.linalg.norm(np.diff(CONTACTS.point, axis=0), axis=1)
    assert np.median(neighbours) == pytest.approx(ways.CONTACT_SPACING)


@given(st.lists(st.tuples(COORDINATES, COORDINATES), min_size=1, max_size=20))
@settings(max_examples=50, deadline=None)
def test_nearest_point_on_the_block(places: list[tuple[float, float]]) -> None:
    points = np.array(places)
    nearest = ways.nearest_on_block(points)
    expected = shapely.distance(BLOCK, shapely.points(points))
    assert nearest.shape == points.shape
    assert shapely.distance(BLOCK, shapely.points(nearest)).max() < 1e-9
    np.testing.assert_allclose(np.linalg.norm(points - nearest, axis=1), expected, atol=1e-9)
    np.testing.assert_allclose(ways.distance_to_block(points), expected, atol=1e-9)
    np.testing.assert_array_equal(ways.nearest_on_block(points[:, None])[:, 0], nearest)
    np.testing.assert_array_equal(ways.nearest_on_block(points[0]), nearest[0])


@pytest.mark.parametrize("step", [1, 5, 10])
def test_blocked_segments(step: int) -> None:
    """On a grid, so that many run along edges, through corners, straight up or across, or end on an edge."""
    random = np.random.default_rng(step)
    grid = np.array([-60.0 - REACH, -REACH]) + step * random.integers(-120 // step, 280 // step, (2, 4000, 2))
    start, end = grid[:, (grid[0] != grid[1]).any(axis=1)]
    expected = enters(start, end)
    np.testing.assert_array_equal(ways.blocked(start, end), expected)
    np.testing.assert_array_equal(ways.blocked(end, start), expected)
    assert 0.2 < expected.mean() < 0.8


def test_a_segment_of_no_length_is_blocked_inside_only() -> None:
    on_edges = [(0.0, 120.0 + REACH), (60.0 + REACH, 0.0), (15.0 + REACH, 30.0 + REACH), (200.0, 200.0)]
    points = np.array([(0.0, 15.0), (0.0, 119.0 + REACH), (15.0, 29.0 + REACH), *on_edges])
    assert ways.blocked(points, points).tolist() == [True, True, True, False, False, False, False]


@given(COORDINATES, COORDINATES)
@settings(max_examples=200, deadline=None)
def test_retreat_is_the_nearest_place_outside(x: float, y: float) -> None:
    agent = np.array([x, y])
    place = ways.retreat(agent)
    inside = shapely.contains_properly(KEPT_OUT, shapely.Point(x, y))
    assert not shapely.contains_properly(INSIDE, shapely.Point(place))
    expected = shapely.distance(KEPT_OUT.boundary, shapely.Point(x, y)) if inside else 0.0
    assert np.linalg.norm(place - agent) == pytest.approx(expected, abs=1e-6)
    assert not ways.blocked(place, place)


def test_retreat_from_the_inner_corners_and_from_the_middle() -> None:
    corner = np.array([15.0 + REACH, 30.0 + REACH])
    assert ways.retreat(corner).tolist() == corner.tolist()
    assert ways.retreat(corner - 1.0).tolist() == corner.tolist()
    assert ways.retreat((corner - 1.0) * (-1.0, 1.0)).tolist() == [-corner[0], corner[1]]
    for agent in [(0.0, 15.0), (0.0, 75.0), (0.0, 30.0), (0.0, 30.0 + REACH)]:
        distance = shapely.distance(KEPT_OUT.boundary, shapely.Point(agent))
        assert np.linalg.norm(ways.retreat(np.array(agent)) - agent) == pytest.approx(distance, abs=1e-9)


def masks(seed: int) -> list[Mask]:
    random = np.random.default_rng(seed)
    return [ALL, ~ALL, *(random.random((3, len(CORNERS))) < 0.6)]


@pytest.mark.parametrize("seed", range(6))
def test_ways_are_the_shortest_over_usable_corners(seed: int) -> None:
    [agent] = draw_outside(1, seed)
    if seed >= 4:  # at the block, as after a push
        contact = 37 * seed % len(CONTACTS)
        agent = ways.retreat(CONTACTS.point[contact] - AGENT_RADIUS * CONTACTS.inward[contact])
    sees = in_sight(agent, CORNERS, CONTACTS.start)
    for usable in masks(seed):
        lengths, turns = ways.shortest_ways(agent, usable)
        assert lengths.shape == (len(CONTACTS),)
        assert turns.shape == (len(CONTACTS), len(CORNERS))
        allowed = np.concatenate([[True], usable, np.ones(len(CONTACTS), bool)])
        expected = shortest(agent, CORNERS, sees & allowed & allowed[:, None], CONTACTS.start)
        np.testing.assert_allclose(lengths, expected, atol=1e-6)
        assert (turns[~np.isfinite(lengths)] == -1).all()
        assert usable[turns[turns >= 0]].all()


@pytest.mark.parametrize("seed", range(4))
def test_ways_are_hardly_longer_than_the_shortest_around_the_widened_block(seed: int) -> None:
    [agent] = draw_outside(1, 100 + seed)
    x, y = 60.0 + REACH, 120.0 + REACH
    convex = np.array([(-x, -REACH), (x, -REACH), (x, 30.0 + REACH), (15.0 + REACH, y), (-15.0 - REACH, y)])
    convex = np.concatenate([convex, [(-x, 30.0 + REACH)]])
    least = shortest(agent, convex, in_sight(agent, convex, CONTACTS.start), CONTACTS.start)
    lengths, turns = ways.shortest_ways(agent, ALL)
    assert np.isfinite(lengths).all()
    assert (lengths >= least - 1e-9).all()
    # Each corner is passed a pixel farther out in x and in y.
    assert (lengths <= least + 2.0 * np.sqrt(2.0) * (turns >= 0).sum(axis=1) + 1e-9).all()


def test_ways_add_up_and_keep_out_of_the_widened_block() -> None:
    for agent in draw_outside(4, 7):
        lengths, turns = ways.shortest_ways(agent, ALL)
        assert (turns >= 0).any(axis=1).mean() > 0.2
        for contact in range(len(CONTACTS)):
            count = int((turns[contact] >= 0).sum())
            assert (turns[contact, :count] >= 0).all()
            line = shapely.LineString([agent, *CORNERS[turns[contact, :count]], CONTACTS.start[contact]])
            assert line.length == pytest.approx(lengths[contact])
            sampled = shapely.line_interpolate_point(line, np.linspace(0.0, line.length, 60))
            assert not shapely.contains_properly(INSIDE, sampled).any()


def test_what_lies_behind_unusable_corners_is_out_of_reach() -> None:
    above = np.array([0.0, -150.0])
    lengths, turns = ways.shortest_ways(above, ~ALL)
    bottom = CONTACTS.inward[:, 1] == -1.0
    assert not np.isfinite(lengths[bottom]).any()
    top = CONTACTS.inward[:, 1] == 1.0
    np.testing.assert_allclose(lengths[top], np.linalg.norm(CONTACTS.start[top] - above, axis=1))
    assert (turns == -1).all()
    upper = int(np.linalg.norm(CORNERS - (60.0, 0.0), axis=1).argmin())
    lengths, turns = ways.shortest_ways(above, np.arange(len(CORNERS)) == upper)
    right = CONTACTS.inward[:, 0] == -1.0
    bar_end = right & (CONTACTS.point[:, 0] == 60.0)
    assert np.isfinite(lengths[bar_end]).all()
    assert (turns[bar_end, 0] == upper).all()
    assert not np.isfinite(lengths[right & ~bar_end & (CONTACTS.point[:, 1] < 70.0)]).any()

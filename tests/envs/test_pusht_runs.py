"""Runs of pixels: they cover what is drawn, pixel for pixel."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pygame
import pytest

from envs.pusht import geometry
from envs.pusht.rendering import EDGE_OVERHANG, OUTSIDE, Renderer, draw_edge, lighter
from envs.pusht.runs import EdgeRuns, agent_runs, pixels_of, runs_of

START = (200, 180)


def edge_vectors(number: int) -> np.ndarray:
    """Vectors (number, 2) of edges of the block between rounded vertices."""
    random = np.random.default_rng(0)
    length, angle = random.choice([30.0, 90.0, 120.0], number), random.uniform(0.0, 7.0, number)
    start = random.uniform(0.0, 1.0, (2, number))
    end = start + length * np.stack([np.cos(angle), np.sin(angle)])
    return (np.rint(end) - np.rint(start)).astype(int).T


def drawn(vector: tuple[int, int]) -> np.ndarray:
    """Mask (400, 400) of the picture of an edge from START."""
    surface = pygame.Surface((400, 400), depth=32)
    draw_edge(surface, START, (START[0] + vector[0], START[1] + vector[1]))
    return pixels_of(surface, geometry.BLOCK_COLOR)


def covered(edges: EdgeRuns, number: int) -> np.ndarray:
    """The same mask from the runs and the gap of an edge."""
    rows, columns = np.arange(400)[:, None] - START[1], np.arange(400) - START[0]
    starts, stops = edges.runs(np.array(number), rows[:, 0])
    row, start, stop = edges.gaps(np.array(number))
    in_gap = (rows == row) & (columns >= start) & (columns < stop)
    return (columns >= starts[:, None]) & (columns < stops[:, None]) & ~in_gap


def test_runs_of_a_mask() -> None:
    mask = np.array([[0, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 1]], bool)
    starts, stops = runs_of(mask)
    assert starts[[0, 2]].tolist() == [1, 0]
    assert stops[[0, 2]].tolist() == [3, 4]
    assert starts[1] > 512 + OUTSIDE
    assert stops[1] < -OUTSIDE


def test_edges_are_known_to_the_pixel() -> None:
    # The first ones end in a disc that leaves a gap beside the rim.
    vectors = np.array([(33, -83), (-16, 24), (37, -113), (120, 0), (0, -121), (-85, 85), *edge_vectors(300)])
    edges = EdgeRuns()
    numbers = edges.numbers(*vectors.T)
    assert edges.regular[numbers].all()
    gaps = 0
    for number, vector in zip(numbers.tolist(), vectors.tolist(), strict=True):
        assert np.array_equal(covered(edges, number), drawn((vector[0], vector[1]))), vector
        gaps += edges.gaps(np.array(number))[0] < 400
    assert gaps > 20


def test_edges_keep_their_numbers_while_more_are_added() -> None:
    vectors = edge_vectors(3000)
    edges = EdgeRuns()
    few = edges.numbers(*vectors[:10].T)
    before = edges.runs(few, np.arange(-130, 130)).copy()
    numbers = edges.numbers(*vectors.T.reshape(2, 3, 1000))
    assert numbers.shape == (3, 1000)
    assert len(np.unique(numbers)) == len(np.unique(vectors, axis=0)) > 1024
    assert np.array_equal(numbers.reshape(-1)[:10], few)
    assert np.array_equal(edges.runs(few, np.arange(-130, 130)), before)


def test_edges_met_by_many_threads_at_once() -> None:
    vectors = edge_vectors(400).T
    alone, shared = EdgeRuns(), EdgeRuns()
    rows = np.arange(-125, 126)
    expected = alone.runs(alone.numbers(*vectors), rows)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: shared.runs(shared.numbers(*vectors), rows), range(8)))
    assert all(np.array_equal(runs, expected) for runs in found)


def test_no_edge_overhangs_by_more_than_it_says() -> None:
    for dx, dy in edge_vectors(200).tolist():
        rows, columns = np.nonzero(drawn((dx, dy)))
        assert columns.min() >= START[0] + min(dx, 0) - EDGE_OVERHANG
        assert columns.max() <= START[0] + max(dx, 0) + EDGE_OVERHANG
        assert rows.min() >= START[1] + min(dy, 0) - EDGE_OVERHANG
        assert rows.max() <= START[1] + max(dy, 0) + EDGE_OVERHANG


@pytest.mark.parametrize("center", [(256, 256), (40, 300)])
def test_the_agent_is_known_to_the_pixel(center: tuple[int, int]) -> None:
    picture = Renderer().draw(center, (OUTSIDE, OUTSIDE), 0.0)
    inside = pixels_of(picture, lighter(geometry.AGENT_COLOR))
    disc = inside | pixels_of(picture, geometry.AGENT_COLOR)
    starts, stops = agent_runs()
    height = starts.shape[1]
    assert (starts[:, [0, -1]] > stops[:, [0, -1]]).all()
    rows = slice(center[1] - height // 2, center[1] + height // 2 + 1)
    columns = np.arange(512) - center[0]
    runs = (columns >= starts[..., None]) & (columns < stops[..., None])
    assert np.array_equal(runs[0], inside[rows])
    assert np.array_equal(runs[1], disc[rows])
    assert disc.sum() == disc[rows].sum()

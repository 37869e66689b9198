"""The `pixels` observation of many worlds at once: the picture of `rendering` to the last bit, mostly without drawing.

Of the window's 512 x 512 pixels, a small picture samples only some (192 x 192 for 96 x 96), and only those near the
agent and the block change. In a row, a body covers a run of pixels. The runs of the sampled rows are looked up, become
bit masks over the sampled columns, and cover each other as masks, 64 samples in a machine word. Then each sample shows
one of a few colours, and the pixels, which mix four samples each, come from a table of all mixtures.

No shape is described here. The runs are read off pictures that `rendering` draws: of the agent once, and of each edge
of the block once per vector from its rounded start to its rounded end, some 3,500 in all. The inside of the bar and of
the stem lies between the runs of their edges. Pygame draws a shape differently where it crosses the window's edge, so
worlds whose block does are drawn by `Renderer`.
"""

import math
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from envs.pusht import geometry
from envs.pusht.geometry import WINDOW_SIZE, Pose
from envs.pusht.rendering import EDGE_OVERHANG, OUTSIDE, Pair, Renderer, bilinear, lighter, resized, taps
from envs.pusht.runs import Integers, agent_runs, edge_runs, pixels_of
from envs.pusht.task import require_positive

# Larger pictures, rarely observed, would need hundreds of MB for a while to prepare.
_MAX_PAINTED_SIZE = WINDOW_SIZE // 2
# A way to weigh four samples takes 12 KB. 96 x 96 has 9 ways, 84 x 84 has 441, 97 x 97 one for each pixel.
_MAX_WAYS = 512
# Worlds painted together: few enough that their masks stay in one core's cache.
_CHUNK = 32

# What a sample shows, by the number that its bits make: `first` counts 1, `second` 2, `third` 4. Walls set the
# last two over anything.
_COLORS = (
    geometry.BACKGROUND_COLOR,
    geometry.GOAL_COLOR,
    geometry.AGENT_COLOR,
    lighter(geometry.AGENT_COLOR),
    geometry.BLOCK_COLOR,
    lighter(geometry.BLOCK_COLOR),
    geometry.WALL_COLOR,
    geometry.WALL_COLOR,
)
_VERTICES = np.array(geometry.BAR + geometry.STEM)
# Where the edge from each vertex ends.
_NEXT = np.array([1, 2, 3, 0, 5, 6, 7, 4])
_BLOCK_SPAN = math.ceil(max(math.dist(a, b) for a in _VERTICES for b in _VERTICES)) + 2 + 2 * EDGE_OVERHANG
_NO_BITS = np.uint64(0)

Bits = NDArray[np.uint64]
Pictures = NDArray[np.uint8]
Floats = NDArray[np.float64]
Unsigned = NDArray[np.unsignedinteger]


class PixelObserver:
    """Pictures of many worlds, each equal to `resized(Renderer(goal_pose).draw(...), width, height)`.

    Args:
        width, height: size of the pictures in pixels, at least 1 each. Any size is right; fast are those up to
            256 in a simple ratio to 512 (96, 84, 64, 128, 224, ..., not 100).
        goal_pose: where the goal is drawn: x, y in pixels of the window and an angle in radians.

    ValueError for another size.
    """

    def __init__(self, width: int = 96, height: int = 96, goal_pose: Pose = geometry.GOAL_POSE) -> None:
        for name, size in (("width", width), ("height", height)):
            require_positive(name, size)
        width, height = int(width), int(height)
        self._size = (width, height)
        self._renderer = Renderer(goal_pose)
        still = self._renderer.draw((OUTSIDE, OUTSIDE), (OUTSIDE, OUTSIDE), 0.0)
        self._still = resized(still, width, height)
        ways = math.prod(len(_weights(size)[0][0]) for size in self._size)
        self._is_painted = max(self._size) <= _MAX_PAINTED_SIZE and ways <= _MAX_WAYS
        if self._is_painted:
            masks = np.stack([pixels_of(still, color) for color in (geometry.GOAL_COLOR, geometry.WALL_COLOR)])
            self._agent_tile = _Tile(width, height, agent_runs().shape[-1], masks)
            self._block_tile = _Tile(width, height, _BLOCK_SPAN, masks)

    def __call__(self, agent_positions: Floats, block_poses: Floats) -> Pictures:
        """Pictures of N worlds: (N, height, width, 3) uint8 RGB, a new array. N may be 0.

        Args:
            agent_positions: (N, 2): x, y in pixels of the window.
            block_poses: (N, 3): x, y in pixels of the window and the angle in radians.

        ValueError for other shapes and for numbers that are not finite.
        """
        agents, blocks = _checked("agent_positions", agent_positions, 2), _checked("block_poses", block_poses, 3)
        if len(agents) != len(blocks):
            raise ValueError(f"block_poses has {len(blocks)} rows; allowed: {len(agents)}, as in agent_positions")
        # Bodies far outside stay outside, in the range of integers.
        states = np.concatenate([agents, blocks], axis=1)
        states[:, :4] = states[:, :4].clip(-OUTSIDE, OUTSIDE)
        pictures = np.empty((len(agents), *self._still.shape), np.uint8)
        if not self._is_painted:
            self._draw(range(len(states)), pictures, states)
            return pictures
        pictures[:] = self._still
        for start in range(0, len(agents), _CHUNK):
            self._paint(pictures[start : start + _CHUNK], states[start : start + _CHUNK])
        return pictures

    def _draw(self, worlds: Iterable[int], pictures: Pictures, states: Floats) -> None:
        """Draws pictures of some worlds. `states` (N, 5): agent x, y, block x, y, angle."""
        for world in worlds:
            agent_x, agent_y, x, y, angle = states[world].tolist()
            pictures[world] = resized(self._renderer.draw((agent_x, agent_y), (x, y), angle), *self._size)

    def _paint(self, pictures: Pictures, states: Floats) -> None:
        """Does the same for all worlds, on pictures that show goal and walls only."""
        agent_x, agent_y = np.rint(states[:, :2].T).astype(np.intp)
        x, y = _vertices(states[:, 2:])
        left, top = np.minimum.reduce(x), np.minimum.reduce(y)

        # The agent first, as if no block were there: where the block's tile holds it, it is painted again.
        reach = agent_runs().shape[-1] // 2
        area = _Area(self._agent_tile, agent_x - reach, agent_y - reach)
        inside, disc = _agent_bits(area, agent_x, agent_y)
        area.paint(pictures, inside, disc, _NO_BITS)

        area = _Area(self._block_tile, left - EDGE_OVERHANG, top - EDGE_OVERHANG)
        inside, disc = _agent_bits(area, agent_x, agent_y)
        block, block_inside, as_drawn = _block_bits(area, x, y)
        area.paint(pictures, inside & ~block | block_inside, disc & ~block, block)

        right, bottom = np.maximum.reduce(x), np.maximum.reduce(y)
        margin = 2 * EDGE_OVERHANG
        as_drawn &= (np.minimum(left, top) >= margin) & (np.maximum(right, bottom) < WINDOW_SIZE - margin)
        if not as_drawn.all():
            is_outside = (np.maximum(left, top) > WINDOW_SIZE + margin) | (np.minimum(right, bottom) < -margin)
            self._draw(np.flatnonzero(~(as_drawn | is_outside)), pictures, states)


def _vertices(poses: Floats) -> tuple[Integers, Integers]:
    """x and y, (8, N), of the rounded vertices of bar and stem, by the arithmetic of `geometry.to_world`."""
    x, y, angles = poses.T
    turns = angles.tolist()
    # Not numpy's cosine: it may differ in the last bit.
    cos, sin = np.array([[math.cos(turn) for turn in turns], [math.sin(turn) for turn in turns]])
    u, v = _VERTICES[:, :1], _VERTICES[:, 1:]
    return np.rint(x + cos * u - sin * v).astype(np.intp), np.rint(y + sin * u + cos * v).astype(np.intp)


def _agent_bits(area: "_Area", x: Integers, y: Integers) -> tuple[Bits, Bits]:
    """The samples on the agent's inside and those on all of it."""
    runs = agent_runs()
    height = runs.shape[-1]
    rows = np.minimum(np.maximum(area.rows - (y - height // 2)[:, None], 0), height - 1)
    inside, disc = area.bits(area.before(runs.take(rows, axis=2) + x[:, None]))
    return inside, disc


def _block_bits(area: "_Area", x: Integers, y: Integers) -> tuple[Bits, Bits, NDArray[np.bool_]]:
    """The samples on the block, those on its inside, and whether that is surely as drawn, (N,)."""
    edges = edge_runs()
    numbers = edges.numbers(x[_NEXT] - x, y[_NEXT] - y)
    ends = area.before(edges.runs(numbers, area.rows - y[..., None]) + x[..., None])
    runs = area.bits(ends)
    gaps = edges.gaps(numbers)
    has_gap = area.rows == (gaps[0] + y)[..., None]
    gap = area.bits(area.before((gaps[1:] + x)[..., None]))
    rims = runs & ~np.where(has_gap[..., None], gap, _NO_BITS)

    # Of the four edges of the bar and of the stem.
    union = np.bitwise_or.reduce(runs.reshape(2, 4, *runs.shape[1:]), axis=1)
    rim = np.bitwise_or.reduce(rims.reshape(2, 4, *rims.shape[1:]), axis=1)
    start, stop = ends.reshape(2, 2, 4, *ends.shape[2:])
    inside = area.bits((np.minimum.reduce(start, axis=1), np.maximum.reduce(stop, axis=1))) & ~union
    bar, stem = rim | inside
    # The stem is drawn over the bar.
    block = bar | stem
    return block, block & ~(rim[1] | rim[0] & ~stem), np.logical_and.reduce(edges.regular[numbers])


class _Axis:
    """One axis of the picture, with tiles along it that hold any body of `span` of the window's pixels."""

    def __init__(self, size: int, span: int) -> None:
        self.samples = taps(WINDOW_SIZE, size)[0].reshape(2, size).T.ravel()
        # How many samples lie before a pixel of the window.
        self.before = np.searchsorted(self.samples, np.arange(WINDOW_SIZE + 1))
        first = self.before // 2
        behind = -(-self.before[np.minimum(np.arange(WINDOW_SIZE + 1) + span, WINDOW_SIZE)] // 2)
        self.length = int((behind - first).max())
        # First pixel of the tile for a body that starts at a pixel of the window.
        self.start = np.minimum(first, size - self.length)
        # The tile's pixels by its first one, (starts, length).
        self.pixels = np.arange(size - self.length + 1)[:, None] + np.arange(self.length)


class _Tile:
    """Tiles of the picture, one for each place, that hold a body; with the goal and the walls in them."""

    def __init__(self, width: int, height: int, span: int, goal_and_walls: NDArray[np.bool_]) -> None:
        self.columns, self.rows = columns, rows = _Axis(width, span), _Axis(height, span)
        self.mixtures, column_ways, row_ways = _mixtures(width, height)
        self.column_ways, self.row_ways = column_ways[columns.pixels], row_ways[rows.pixels]
        # Samples by row: first the upper ones of all pixels, then the lower ones.
        self.sample_rows = np.concatenate([2 * rows.pixels, 2 * rows.pixels + 1], axis=1)
        self.window_rows = rows.samples[self.sample_rows]

        samples = 2 * columns.length
        self.words = -(-samples // 64)
        self.up_to = _packed(np.tri(samples + 1, samples, -1, np.bool_), self.words)
        sampled = goal_and_walls[:, rows.samples[:, None], columns.samples]
        windows = np.lib.stride_tricks.sliding_window_view(sampled, samples, axis=2)[:, :, ::2]
        # (2, rows of samples x first columns, words)
        self.still = _packed(windows, self.words).reshape(2, -1, self.words)
        self.still_rows = self.sample_rows * windows.shape[2]


class _Area:
    """The tiles of N worlds that hold bodies from the window's pixels x, y (N,) on. `rows` (N, R) are sampled."""

    def __init__(self, tile: _Tile, x: Integers, y: Integers) -> None:
        self._tile = tile
        self._column = tile.columns.start.take(x, mode="clip")
        self._row = tile.rows.start.take(y, mode="clip")
        self._first_sample = 2 * self._column[:, None]
        self.rows = tile.window_rows.take(self._row, axis=0)

    def before(self, pixels: Integers) -> Integers:
        """How many samples of the tile lie before pixels (..., N, R); may be below 0 and above what there are."""
        before = self._tile.columns.before.take(pixels, mode="clip")
        before -= self._first_sample
        return before

    def bits(self, ends: Integers | tuple[Integers, Integers]) -> Bits:
        """Masks (..., words) of the samples from starts to before stops (2, ...)."""
        start, stop = (self._tile.up_to.take(end, axis=0, mode="clip") for end in ends)
        return stop & ~start

    def paint(self, pictures: Pictures, first: Bits, second: Bits, third: Bits | np.uint64) -> None:
        """Paints samples given by the bits of what they show, (N, R, words) each, over goal and under walls."""
        tile = self._tile
        index = tile.still_rows.take(self._row, axis=0) + self._column[:, None]
        goal, wall = tile.still.take(index, axis=1)
        planes = np.empty((3, *wall.shape), np.uint64)
        np.bitwise_or(second, wall, out=planes[1])
        np.bitwise_or(third, wall, out=planes[2])
        planes[0] = first | goal & ~(planes[1] | planes[2])
        bits = np.unpackbits(planes.view(np.uint8), bitorder="little").reshape(3, len(index), 2, -1, 64 * tile.words)
        codes = bits[0] + 2 * (bits[1] + 2 * bits[2])
        # Six bits for the two samples of a column, then twelve for the four of a pixel.
        pairs = (codes[:, 0] + 8 * codes[:, 1]).view(np.uint16)[..., : tile.columns.length]
        place = pairs - 192 * (pairs >> 8) + tile.column_ways.take(self._column, axis=0)[:, None]
        place += tile.row_ways.take(self._row, axis=0)[:, :, None]
        mixed = tile.mixtures.take(place, axis=0)
        height, width = mixed.shape[1:3]
        for picture, column, row, part in zip(pictures, self._column.tolist(), self._row.tolist(), mixed, strict=True):
            picture[row : row + height, column : column + width] = part


def _packed(masks: NDArray[np.bool_], words: int) -> Bits:
    packed = np.zeros((*masks.shape[:-1], 8 * words), np.uint8)
    packed[..., : -(-masks.shape[-1] // 8)] = np.packbits(masks, axis=-1, bitorder="little")
    return packed.view(np.uint64)


def _weights(size: int) -> tuple[Pair, Integers]:
    """The different weights of an axis of the picture: pairs (ways,), and which of them each pixel has (size,)."""
    first, second = taps(WINDOW_SIZE, size)[1]
    _, index, way = np.unique(second, return_index=True, return_inverse=True)
    return (first[index], second[index]), way


@lru_cache(maxsize=4)
def _mixtures(width: int, height: int) -> tuple[Pictures, Unsigned, Unsigned]:
    """Colours of all mixtures of four samples (n, 3), and where those of each column and of each row begin.

    The place of a mixture from there: upper left + 8 lower left + 64 upper right + 512 lower right.
    """
    (across, column_way), (down, row_way) = _weights(width), _weights(height)
    columns = len(across[0])
    colors = np.array(_COLORS, np.int32)
    # Axes: way of the row, way of the column, the four samples, colour channel.
    lower_right, upper_right, lower_left, upper_left = (
        colors.reshape([8 if axis == place else 1 for axis in range(4)] + [3]) for place in range(4)
    )
    mixed = bilinear(
        (upper_left, upper_right),
        (lower_left, lower_right),
        [weight.reshape(-1, 1, 1, 1, 1, 1) for weight in across],
        [weight.reshape(-1, 1, 1, 1, 1, 1, 1) for weight in down],
    ).reshape(-1, 3)
    index_type = np.min_scalar_type(len(mixed))
    return mixed, (column_way * 8**4).astype(index_type), (row_way * columns * 8**4).astype(index_type)


def _checked(name: str, values: ArrayLike, length: int) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] != length:
        raise ValueError(f"{name} has shape {array.shape}; allowed: (N, {length})")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has values that are not finite; allowed: finite numbers")
    return array

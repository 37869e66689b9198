"""How a policy splits between the two ways round PushT's block, beside what its demonstrations do.

A start that is its own mirror image has two equally good ways (``envs.pusht.modes.symmetric_starts``). A policy is run
from each many times, with other noise every time, until the agent first touches the block. One bit of entropy per start
is a policy that goes both ways equally often from everywhere; no entropy one that has lost a mode, or that has one way
for each start. Shares of the ways are over the repeats that went round at all; those that went straight at the block or
never touched it are counted apart.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom

from envs.pusht.geometry import GOAL_POSE, Pose
from envs.pusht.modes import DIRECT, MODES, SIDES, FirstWay, asymmetry, first_way
from immiscible_policy.data.replay import ReplayData
from immiscible_policy.evaluation.statistics import Interval, bootstrap_mean, success_interval

DEFINITIONS = {
    "p_clockwise": "share of clockwise among the repeats that went round the block, mean over starts",
    "entropy": "bits of that split per start, corrected for the number of repeats, mean over starts",
    "entropy_plug_in": "the same without the correction",
    "entropy_plug_in_fair": "what a fair coin's would be, uncorrected, with as many repeats",
    "imbalance": "|p_clockwise - 1/2| of a start, mean over starts; 0 goes both ways alike, 1/2 always one way",
    "imbalance_fair": "what a fair coin's would be with as many repeats",
    "direct": "share of all repeats that touched the block without going round",
    "none": "share of all repeats that did not touch the block",
}

NEAR_SYMMETRIC = (60.0, math.radians(30.0))
"""Of a demonstration's start: pixels of agent and block from the goal's axis, radians between the two axes."""


@dataclass(frozen=True)
class Trajectories:
    """Paths from given starts, each taken several times.

    Attributes:
        states: (n_starts, n_repeats, T, 5) agent x, y, block x, y, angle, a sample a control step, the start included.
        lengths: (n_starts, n_repeats) how many of the samples count, from 1 to T.
        contacts: (n_starts, n_repeats, T) the simulation's ``n_contacts``, or None; see ``first_contact``.

    Raises:
        ValueError: other shapes, or lengths out of range.
    """

    states: NDArray[np.float64]
    lengths: NDArray[np.int64]
    contacts: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        shape = self.states.shape
        if len(shape) != 4 or shape[-1] != 5 or 0 in shape:
            raise ValueError(f"states has shape {shape}; allowed: (n_starts, n_repeats, T, 5), none of them 0")
        for name, values, allowed in (("lengths", self.lengths, shape[:2]), ("contacts", self.contacts, shape[:3])):
            if values is not None and values.shape != allowed:
                raise ValueError(f"{name} has shape {values.shape}; allowed: {allowed}, that of states")
        if (self.lengths < 1).any() or (self.lengths > shape[2]).any():
            raise ValueError(f"lengths go from {self.lengths.min()} to {self.lengths.max()}; allowed: 1 to {shape[2]}")

    def first_way(self, start: int, repeat: int, direct: float = DIRECT) -> FirstWay:
        """Which way one of them went; ``direct`` is the least winding in radians that counts as going round."""
        steps = slice(int(self.lengths[start, repeat]))
        path = self.states[start, repeat, steps]
        contacts = None if self.contacts is None else self.contacts[start, repeat, steps]
        return first_way(path[:, :2], path[:, 2:], contacts, direct)


@dataclass(frozen=True)
class ModeCounts:
    """Result of ``count_modes``; ``DEFINITIONS`` says what the measures are.

    Intervals (95%) are over starts, of which each counts alike. ``counts`` (n_starts, 4) holds the repeats of each of
    ``envs.pusht.modes.MODES``, ``sides`` how many touched which side of the T first. Measures are NaN where no start
    has enough repeats that went round: one for ``p_clockwise`` and ``imbalance``, two for the entropies.
    """

    counts: NDArray[np.int64]
    sides: dict[str, int]
    direct_angle: float
    p_clockwise: Interval
    entropy: Interval
    entropy_plug_in: float
    entropy_plug_in_fair: float
    imbalance: Interval
    imbalance_fair: float
    direct: Interval
    none: Interval

    def as_dict(self) -> dict[str, Any]:
        """For JSON; NaN is left to the writer."""
        measures = {name: _plain(getattr(self, name)) for name in DEFINITIONS}
        n_starts, n_repeats = len(self.counts), int(self.counts[0].sum())
        per_start = [dict(zip(MODES, row, strict=True)) for row in self.counts.tolist()]
        settings = {"n_starts": n_starts, "n_repeats": n_repeats, "direct_angle": self.direct_angle}
        return {**measures, **settings, "sides": self.sides, "per_start": per_start, "definitions": DEFINITIONS}


@dataclass(frozen=True)
class Split:
    """First ways of episodes that begin in different states: ``counts`` by mode, ``sides`` by side touched first.

    ``p_clockwise`` is the share of clockwise among those that went round, with a Wilson interval.
    """

    counts: dict[str, int]
    sides: dict[str, int]
    p_clockwise: Interval

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"counts": self.counts, "sides": self.sides, "p_clockwise": _plain(self.p_clockwise)}


@dataclass(frozen=True)
class DemonstrationModes:
    """First ways of demonstrations: of all, and of those whose start is near to its own mirror image.

    ``overlapping`` of them begin with the agent in the block; they are among all, as direct. ``tolerance`` is in pixels
    and radians, as ``NEAR_SYMMETRIC``.
    """

    all: Split
    near_symmetric: Split
    overlapping: int
    tolerance: tuple[float, float]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "all": self.all.as_dict(),
            "near_symmetric": self.near_symmetric.as_dict(),
            "overlapping": self.overlapping,
            "tolerance": {"pixels": self.tolerance[0], "radians": self.tolerance[1]},
        }


def count_modes(trajectories: Trajectories, direct: float = DIRECT) -> ModeCounts:
    """The split of every start's repeats; ``direct`` is the least winding in radians that counts as going round."""
    n_starts, n_repeats = trajectories.lengths.shape
    counts, sides = np.zeros((n_starts, len(MODES)), np.int64), Counter(dict.fromkeys(sorted(set(SIDES)), 0))
    for start in range(n_starts):
        for repeat in range(n_repeats):
            way = trajectories.first_way(start, repeat, direct)
            counts[start, MODES.index(way.mode)] += 1
            sides.update([way.side] if way.side else [])
    clockwise, around = counts[:, 0], counts[:, 0] + counts[:, 1]
    went, twice = around >= 1, around >= 2
    share = clockwise[went] / around[went]
    return ModeCounts(
        counts=counts,
        sides=dict(sides),
        direct_angle=direct,
        p_clockwise=_mean(share),
        entropy=_mean(split_entropy(clockwise[twice], around[twice])),
        entropy_plug_in=_mean(plug_in_entropy(clockwise[twice], around[twice])).mean,
        entropy_plug_in_fair=_mean(_of_fair_coin(plug_in_entropy, around[twice])).mean,
        imbalance=_mean(np.abs(share - 0.5)),
        imbalance_fair=_mean(_of_fair_coin(lambda k, n: np.abs(k / n - 0.5), around[went])).mean,
        direct=_mean(counts[:, MODES.index("direct")] / n_repeats),
        none=_mean(counts[:, MODES.index("none")] / n_repeats),
    )


def plug_in_entropy(k: ArrayLike, n: ArrayLike) -> NDArray[np.float64]:
    """Bits of a coin that shows k of n, n >= 1; too low by about 0.72 / n on average where neither side is rare."""
    share = np.asarray(k, np.float64) / np.asarray(n, np.float64)
    both = np.stack([share, 1.0 - share])
    return -(both * np.log2(np.where(both > 0.0, both, 1.0))).sum(axis=0)


def split_entropy(k: ArrayLike, n: ArrayLike) -> NDArray[np.float64]:
    """``plug_in_entropy`` with the correction of Miller (1955) and Madow: plus 1 / (2 n ln 2) where both sides showed.

    The expectation is still too low, by at most 0.03 bits with 16 repeats and 0.06 with 8, where the rarer way has a
    probability of about 1 / (2 n); for a fair coin by 0.002 and 0.008. One start's value can exceed 1 bit: it is meant
    for means over starts.
    """
    heads, trials = np.asarray(k), np.asarray(n)
    both = (heads > 0) & (heads < trials)
    return plug_in_entropy(heads, trials) + np.where(both, 1.0 / (2.0 * math.log(2.0) * np.maximum(trials, 1)), 0.0)


def replay_episodes(replay: ReplayData) -> list[NDArray[np.float64]]:
    """The states (T, 5) of each episode of a replay store that was loaded with ``state``."""
    return [replay.arrays["state"][replay.episode(index)].astype(np.float64) for index in range(replay.n_episodes)]


def demonstration_modes(
    episodes: Sequence[ArrayLike],
    goal_pose: Pose = GOAL_POSE,
    direct: float = DIRECT,
    tolerance: tuple[float, float] = NEAR_SYMMETRIC,
) -> DemonstrationModes:
    """First ways of recorded episodes, each (T, 5) of agent x, y, block x, y, angle, from T of at least 1.

    Contacts are found from the states. ``direct`` as for ``count_modes``, ``tolerance`` as ``NEAR_SYMMETRIC``.
    """
    if not len(episodes):
        raise ValueError("episodes is empty: give at least one")
    paths = [np.asarray(states, np.float64) for states in episodes]
    found = [first_way(path[:, :2], path[:, 2:], direct=direct) for path in paths]
    distance, angle = asymmetry(np.array([path[0] for path in paths]), goal_pose)
    near = (distance <= tolerance[0]) & (angle <= tolerance[1])
    overlapping = sum(way.contact == 0 for way in found)
    close = [way for way, is_near in zip(found, near, strict=True) if is_near]
    return DemonstrationModes(_split(found), _split(close), overlapping, tolerance)


def _split(found: Sequence[FirstWay]) -> Split:
    counts = {mode: sum(way.mode == mode for way in found) for mode in MODES}
    sides = {side: sum(way.side == side for way in found) for side in sorted(set(SIDES))}
    around = [way.mode == "clockwise" for way in found if way.mode in ("clockwise", "counter_clockwise")]
    return Split(counts, sides, success_interval(around) if around else _mean(np.array([])))


def _of_fair_coin(
    measure: Callable[[NDArray[Any], NDArray[Any]], NDArray[np.float64]], n: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Expectation of measure(k, n) where k of n tosses of a fair coin are heads, for each n."""
    return np.array([binom.pmf(k, m, 0.5) @ measure(k, m) for m in n for k in [np.arange(m + 1)]])


def _mean(values: NDArray[np.float64]) -> Interval:
    return bootstrap_mean(values) if len(values) else Interval(math.nan, math.nan, math.nan, 0, 0.95)


def _plain(value: Interval | float) -> Any:
    if isinstance(value, Interval):
        return {"mean": value.mean, "low": value.low, "high": value.high, "n": value.n}
    return value

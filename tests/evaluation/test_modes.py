"""Splits of made-up trajectories with known ways; entropies against closed forms and exact expectations."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom

from envs.pusht.modes import mirror, symmetric_starts
from immiscible_policy.data.replay import load_replay
from immiscible_policy.evaluation.modes import (
    DEFINITIONS,
    Trajectories,
    count_modes,
    demonstration_modes,
    plug_in_entropy,
    replay_episodes,
    split_entropy,
)
from immiscible_policy.files import write_json

Floats = NDArray[np.float64]

# An upright block at (256, 200); its centre is at (256, 260), its top at y = 200, its stem's end at y = 320.
POSE = (256.0, 200.0, 0.0)
# From above it: down the right of the screen (clockwise) to the stem's end, straight onto the top, and nowhere.
PATHS = {
    "clockwise": [(256.0, 120.0), (400.0, 180.0), (400.0, 360.0), (256.0, 360.0), (256.0, 334.0)],
    "counter_clockwise": [(256.0, 120.0), (112.0, 180.0), (112.0, 360.0), (256.0, 360.0), (256.0, 334.0)],
    "direct": [(256.0, 120.0), (256.0, 160.0), (256.0, 186.0), (256.0, 186.0), (256.0, 186.0)],
    "none": [(256.0, 120.0), (400.0, 180.0), (400.0, 360.0), (256.0, 400.0), (112.0, 360.0)],
}


def path(mode: str) -> Floats:
    return np.array([(*agent, *POSE) for agent in PATHS[mode]])


def trajectories(rows: list[list[str]]) -> Trajectories:
    states = np.array([[path(mode) for mode in row] for row in rows])
    return Trajectories(states, np.full(states.shape[:2], 5))


def repeats(clockwise: int, counter: int, direct: int = 0, none: int = 0) -> list[str]:
    return ["clockwise"] * clockwise + ["counter_clockwise"] * counter + ["direct"] * direct + ["none"] * none


# --- entropy ---


def test_entropy_of_counts_in_closed_form() -> None:
    assert plug_in_entropy([8, 0, 16, 4], 16).tolist() == pytest.approx(
        [1.0, 0.0, 0.0, 0.25 * 2 + 0.75 * math.log2(4 / 3)]
    )
    correction = 1.0 / (2 * 16 * math.log(2.0))
    assert split_entropy([8, 0, 16], 16).tolist() == pytest.approx([1.0 + correction, 0.0, 0.0])
    np.testing.assert_array_equal(split_entropy([1, 5], 16), split_entropy([15, 11], 16))


@pytest.mark.parametrize(("n", "fair", "worst"), [(8, 0.0081, 0.058), (16, 0.0016, 0.0282), (32, 0.00037, 0.014)])
def test_bias_of_the_entropy_is_what_it_is_said_to_be(n: int, fair: float, worst: float) -> None:
    """Exact expectations over the binomial distribution; the documented numbers."""
    k, shares = np.arange(n + 1), np.linspace(0.0, 1.0, 401)
    weights = binom.pmf(k, n, shares[:, None])
    true = plug_in_entropy(shares, 1.0)
    corrected, plain = weights @ split_entropy(k, n) - true, weights @ plug_in_entropy(k, n) - true
    assert corrected.max() < 1e-12
    assert -corrected.min() == pytest.approx(worst, rel=0.02)
    assert -corrected[200] == pytest.approx(fair, rel=0.06)
    assert -plain[200] == pytest.approx(0.72 / n, rel=0.1)
    assert (np.abs(corrected) <= np.abs(plain) + 1e-12).all()


def test_counted_entropy_is_that_of_the_simulated_coins() -> None:
    """A policy that goes clockwise with probability p from every start."""
    random = np.random.default_rng(0)
    for p in (0.5, 0.8):
        heads = random.random((60, 16)) < p
        counted = count_modes(trajectories([["clockwise" if h else "counter_clockwise" for h in row] for row in heads]))
        true = float(plug_in_entropy(p, 1.0))
        assert counted.entropy.mean == pytest.approx(true, abs=0.05)
        assert counted.entropy.low < true < counted.entropy.high
        assert counted.entropy_plug_in < counted.entropy.mean - 0.03
        assert counted.p_clockwise.mean == heads.mean()
        assert counted.p_clockwise.low < p < counted.p_clockwise.high
        if p == 0.5:
            assert counted.entropy_plug_in == pytest.approx(counted.entropy_plug_in_fair, abs=0.02)
            assert counted.imbalance.mean == pytest.approx(counted.imbalance_fair, abs=0.02)
        else:
            assert counted.imbalance.mean == pytest.approx(0.3, abs=0.02)


# --- counting ---


def test_counts_by_start_and_mode() -> None:
    rows = [repeats(3, 1), repeats(0, 2, 2), repeats(0, 0, 1, 3), repeats(4, 0)]
    result = count_modes(trajectories(rows))
    assert result.counts.tolist() == [[3, 1, 0, 0], [0, 2, 2, 0], [0, 0, 1, 3], [4, 0, 0, 0]]
    assert result.sides == {"left": 0, "right": 0, "stem end": 10, "top": 3}
    # The third start went round in no repeat and does not count.
    assert (result.p_clockwise.mean, result.p_clockwise.n) == (pytest.approx((0.75 + 0.0 + 1.0) / 3), 3)
    assert result.imbalance.mean == pytest.approx((0.25 + 0.5 + 0.5) / 3)
    assert result.direct.mean == pytest.approx(3 / 16)
    assert result.none.mean == pytest.approx(3 / 16)
    assert result.entropy_plug_in == pytest.approx(float(plug_in_entropy(3, 4)) / 3)
    assert result.entropy.mean == pytest.approx((float(plug_in_entropy(3, 4)) + 1 / (8 * math.log(2.0))) / 3)
    # E|k / 4 - 1/2| = 3/16, E|k / 2 - 1/2| = 1/4.
    assert result.imbalance_fair == pytest.approx((3 / 16 + 1 / 4 + 3 / 16) / 3)
    # Two tosses give one bit in half of the cases.
    fair = (2 * (8 * float(plug_in_entropy(1, 4)) + 6) / 16 + 0.5) / 3
    assert result.entropy_plug_in_fair == pytest.approx(fair)


def test_one_way_for_each_start_is_told_apart_from_both_ways_from_each() -> None:
    fixed = count_modes(trajectories([repeats(8, 0), repeats(0, 8)] * 4))
    both = count_modes(trajectories([repeats(4, 4)] * 8))
    assert fixed.p_clockwise.mean == both.p_clockwise.mean == 0.5
    assert (fixed.entropy.mean, fixed.imbalance.mean) == (0.0, 0.5)
    assert both.entropy.mean > 1.0
    assert both.imbalance.mean == 0.0


def test_mirrored_trajectories_have_the_other_split() -> None:
    given = trajectories([repeats(5, 1, 2), repeats(2, 5, 0, 1)])
    there = count_modes(Trajectories(mirror(given.states), given.lengths))
    here = count_modes(given)
    np.testing.assert_array_equal(there.counts[:, [1, 0, 2, 3]], here.counts)
    assert there.p_clockwise.mean == pytest.approx(1.0 - here.p_clockwise.mean)
    assert there.entropy.mean == pytest.approx(here.entropy.mean)


def test_only_samples_within_the_lengths_and_windings_beyond_the_angle_count() -> None:
    given = trajectories([repeats(2, 2)])
    short = Trajectories(given.states, np.array([[5, 3, 5, 5]]))
    assert count_modes(short).counts.tolist() == [[1, 2, 0, 1]]
    assert count_modes(given, direct=math.radians(181.0)).counts.tolist() == [[0, 0, 4, 0]]
    assert count_modes(given, direct=math.radians(179.0)).counts.tolist() == [[2, 2, 0, 0]]


def test_contacts_rule_out_touches() -> None:
    given = trajectories([repeats(1, 1)])
    contacts = np.zeros((1, 2, 5), np.int64)
    contacts[0, 1, 4] = 1
    assert count_modes(Trajectories(given.states, given.lengths, contacts)).counts.tolist() == [[0, 1, 0, 1]]


def test_nothing_that_went_round_has_no_split() -> None:
    result = count_modes(trajectories([repeats(0, 0, 2, 0), repeats(0, 0, 1, 1)]))
    assert math.isnan(result.p_clockwise.mean)
    assert math.isnan(result.entropy.mean)
    assert math.isnan(result.entropy_plug_in_fair)
    assert math.isnan(result.imbalance.mean)
    assert result.direct.mean == 0.75
    # One of them alone has a share, but no entropy.
    one = count_modes(trajectories([repeats(1, 0, 1)]))
    assert one.p_clockwise.mean == 1.0
    assert math.isnan(one.entropy.mean)


def test_result_as_json(tmp_path: Path) -> None:
    result = count_modes(trajectories([repeats(3, 1), repeats(1, 1, 1, 1), repeats(0, 0, 4)]))
    write_json(tmp_path / "modes.json", result.as_dict())
    read = json.loads((tmp_path / "modes.json").read_text())
    assert set(DEFINITIONS) | {"n_starts", "n_repeats", "direct_angle", "sides", "per_start", "definitions"} == set(
        read
    )
    assert read["per_start"][1] == {"clockwise": 1, "counter_clockwise": 1, "direct": 1, "none": 1}
    assert read["entropy"]["mean"] == pytest.approx(result.entropy.mean)
    assert (read["n_starts"], read["n_repeats"]) == (3, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((2, 3, 5)), np.ones((2, 3), int)), r"states has shape \(2, 3, 5\)"),
        ((np.zeros((2, 3, 4, 5)), np.ones((3, 2), int)), r"lengths has shape \(3, 2\); allowed: \(2, 3\)"),
        ((np.zeros((2, 3, 4, 5)), np.full((2, 3), 5)), "lengths go from 5 to 5; allowed: 1 to 4"),
        ((np.zeros((2, 3, 4, 5)), np.zeros((2, 3), int)), "lengths go from 0 to 0"),
        ((np.zeros((2, 3, 4, 5)), np.ones((2, 3), int), np.zeros((2, 3))), r"contacts has shape \(2, 3\)"),
    ],
)
def test_wrong_trajectories_are_named(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Trajectories(*arguments)


# --- demonstrations ---


def test_demonstrations_and_those_from_near_symmetric_starts() -> None:
    [start] = symmetric_starts(1, 0)
    off = [
        (0.0, 0.0, 0.0, 0.0, 0.0),
        (20.0, 20.0, -10.0, -10.0, 0.3),
        (60.0, 60.0, 0.0, 0.0, 0.0),
        (0.0, 0.0, 0.0, 0.0, 0.9),
    ]
    still = [start[None] + np.array(offset) for offset in off]
    overlapping = np.array([(256.0, 210.0, *POSE)])
    result = demonstration_modes([path("clockwise"), path("counter_clockwise"), path("direct"), overlapping, *still])
    assert result.all.counts == {"clockwise": 1, "counter_clockwise": 1, "direct": 2, "none": 4}
    assert result.all.p_clockwise.mean == 0.5
    assert result.overlapping == 1
    assert result.near_symmetric.counts == {"clockwise": 0, "counter_clockwise": 0, "direct": 0, "none": 2}
    assert math.isnan(result.near_symmetric.p_clockwise.mean)
    wider = demonstration_modes(still, tolerance=(90.0, math.pi / 2))
    assert sum(wider.near_symmetric.counts.values()) == 4
    assert json.loads(json.dumps(result.as_dict()))["all"]["counts"]["none"] == 4
    with pytest.raises(ValueError, match="episodes is empty"):
        demonstration_modes([])


def test_the_human_demonstrations_go_both_ways(pusht_demonstrations: Path) -> None:
    result = demonstration_modes(replay_episodes(load_replay(pusht_demonstrations, ("state",))))
    assert result.all.counts == {"clockwise": 86, "counter_clockwise": 77, "direct": 43, "none": 0}
    assert result.overlapping == 17
    assert sum(result.near_symmetric.counts.values()) == 9

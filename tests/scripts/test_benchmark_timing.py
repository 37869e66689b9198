"""Rounds, quartiles and ratios, with made-up times."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture(scope="module")
def timing() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        import benchmark_timing

        yield benchmark_timing


def test_contenders_take_turns(timing):
    order = []
    measures = {name: lambda name=name: order.append(name) or float(len(order)) for name in "ab"}
    assert timing.interleaved(measures, 3) == {"a": [1, 3, 5], "b": [2, 4, 6]}
    assert order == list("ababab")


def test_seconds_per_call_repeats_short_calls_and_leaves_the_first_untimed(timing, monkeypatch):
    now, calls = [0.0], []

    def call():
        calls.append(now[0])
        # The first call after others have run is slow.
        now[0] += 1e-3 if len(calls) not in (1, 3) else 1.0

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    measure = timing.seconds_per_call(call)
    assert len(calls) == 2
    assert measure() == pytest.approx(1e-3)
    assert len(calls) == 2 + 1 + 2  # two calls of 1 ms make up the shortest timing, 2 ms


def test_ratios_are_taken_within_rounds(timing):
    """The second round ran on a machine three times as slow."""
    times = {"slow": [2.0, 6.0, 2.0], "fast": [1.0, 3.0, 1.0]}
    assert timing.ratio(times, "slow", "fast") == {"median": 2, "lower_quartile": 2, "upper_quartile": 2, "rounds": 3}


def test_quartiles_of_one_to_many_rounds(timing):
    assert timing.quartiles([5.0]) == {"median": 5, "lower_quartile": 5, "upper_quartile": 5, "rounds": 1}
    assert timing.quartiles([4.0, 1.0, 3.0]) == {"median": 3, "lower_quartile": 1, "upper_quartile": 4, "rounds": 3}
    assert (
        timing.spread({"median": 1234.5, "lower_quartile": 1, "upper_quartile": 4e6}, ",.0f") == "1,234 [1, 4,000,000]"
    )

"""Timing contenders side by side: what the sections of scripts/benchmark.py share.

Contenders take turns in rounds, so that a busy machine slows all of them alike; ratios are taken within a round.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

Quartiles = dict[str, float]
"""`median`, `lower_quartile` and `upper_quartile` over the `rounds`, and how many these were."""

SHORTEST_TIMING_S = 2e-3


def interleaved(measures: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each measurement returns (a time in seconds), one entry a round."""
    times: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(rounds):
        for name, measure in measures.items():
            times[name].append(measure())
    return times


def seconds_per_call(call: Callable[[], object], finish: Callable[[], object] = lambda: None) -> Callable[[], float]:
    """A measurement of `call` for `interleaved`; short calls are repeated within one measurement.

    `finish` waits for what the calls left running (a GPU's queue) before the clock is read.
    """
    call()
    finish()
    start = time.perf_counter()
    call()
    finish()
    repeats = max(1, round(SHORTEST_TIMING_S / max(time.perf_counter() - start, 1e-7)))

    def measure() -> float:
        # Untimed: the first call pays for the memory and caches that its predecessor took away.
        call()
        finish()
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        finish()
        return (time.perf_counter() - start) / repeats

    return measure


def quartiles(values: Sequence[float]) -> Quartiles:
    """Median and quartiles; of a single value, that value three times."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else [*values] * 3
    return {"median": middle, "lower_quartile": low, "upper_quartile": high, "rounds": len(values)}


def ratio(times: Mapping[str, Sequence[float]], slow: str, fast: str) -> Quartiles:
    """Median and quartiles over the rounds of time(slow) / time(fast)."""
    return quartiles([a / b for a, b in zip(times[slow], times[fast], strict=True)])


def spread(values: Quartiles, form: str = ".2f") -> str:
    """Quartiles as text, `median [lower, upper]`."""
    return f"{values['median']:{form}} [{values['lower_quartile']:{form}}, {values['upper_quartile']:{form}}]"

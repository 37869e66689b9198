"""The loop of a window at other speeds than a control step in 100 ms (those are tested with the teleoperation)."""

from collections.abc import Iterator

import pygame
import pytest

from envs.pusht.live_window import FRAMES_PER_SECOND, LiveWindow, run_live


class Counter:
    """Counts what it is asked to do, and ends after some pictures."""

    def __init__(self, pictures: int) -> None:
        self.steps, self.milliseconds, self._left = 0, 0.0, pictures
        self.fractions: list[float] = []

    @property
    def finished(self) -> bool:
        return self._left == 0

    def read(self, event: pygame.event.Event) -> None:
        pass

    def step(self) -> None:
        self.steps += 1

    def show(self, fraction: float, milliseconds: float) -> None:
        self.fractions.append(fraction)
        self.milliseconds += milliseconds
        self._left -= 1


@pytest.fixture(autouse=True)
def display() -> Iterator[None]:
    window = LiveWindow("a window", (8, 8))
    yield
    window.close()


@pytest.mark.parametrize("step_milliseconds", [5.0, 10.0, 40.0, 1000.0])
def test_time_passes_as_fast_as_asked(step_milliseconds: float) -> None:
    live = Counter(pictures=10 * FRAMES_PER_SECOND)
    run_live(live, step_milliseconds, lambda rate: 1000.0 / rate)
    assert live.milliseconds == pytest.approx(10_000)
    assert abs(live.steps - 10_000 / step_milliseconds) <= 1
    assert all(0 <= fraction < 1 for fraction in live.fractions)


def test_a_picture_that_took_long_is_not_made_up_for() -> None:
    live = Counter(pictures=3)
    durations = iter([1000.0, 16.0, 16.0])
    run_live(live, 10.0, lambda rate: next(durations))
    assert live.steps == 2 + 1 + 2

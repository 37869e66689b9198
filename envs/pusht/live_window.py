"""A window on the screen, and the loop that keeps a simulation going in it while a person watches and interferes."""

import math
import os
import sys
from collections.abc import Callable
from typing import Protocol

# Before the import that would print it.
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")

import pygame

FRAMES_PER_SECOND = 60
Tick = Callable[[int], float]
"""Waits for the next of so many frames a second; returns the milliseconds since the last one."""
# Drivers that SDL falls back to, without an error, where there is no screen.
_INVISIBLE_DRIVERS = ("offscreen", "dummy")


class NoDisplayError(RuntimeError):
    """There is no screen to show the window on."""


class LiveWindow:
    """A window for pictures of one size. NoDisplayError without a screen."""

    def __init__(self, caption: str, size: tuple[int, int]) -> None:
        chosen = os.environ.get("SDL_VIDEODRIVER")
        try:
            # Asked first, because libraries that look for a screen in vain print lines of their own.
            if sys.platform == "linux" and not (
                chosen or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
            ):
                raise pygame.error("neither DISPLAY nor WAYLAND_DISPLAY is set")
            pygame.display.init()
            if pygame.display.get_driver() in _INVISIBLE_DRIVERS and not chosen:
                raise pygame.error("no screen found")
            self._screen = pygame.display.set_mode(size)
        except pygame.error as error:
            pygame.display.quit()
            raise NoDisplayError(f"no window can be opened ({error}); run this where there is a screen") from error
        pygame.display.set_caption(caption)

    def show(self, surface: pygame.Surface) -> None:
        """Shows a picture."""
        self._screen.blit(surface, (0, 0))
        pygame.display.flip()

    def close(self) -> None:
        """Takes the window off the screen."""
        pygame.display.quit()


class Live(Protocol):
    """What goes on in a window."""

    @property
    def finished(self) -> bool: ...

    def read(self, event: pygame.event.Event) -> None:
        """A key or the mouse."""

    def step(self) -> None:
        """One control step."""

    def show(self, fraction: float, milliseconds: float) -> None:
        """Shows the moment when `fraction` in [0, 1] of the last step is over, so long after the last picture."""


def run_live(live: Live, step_milliseconds: float, tick: Tick | None = None) -> None:
    """Reads events, steps and shows, until it is finished.

    Args:
        live: what goes on.
        step_milliseconds: the time that a control step takes on the screen.
        tick: for tests that do not wait.
    """
    tick = tick or pygame.time.Clock().tick
    most = math.ceil(1000.0 / FRAMES_PER_SECOND / step_milliseconds)
    elapsed = 0.0
    while not live.finished:
        for event in pygame.event.get():
            live.read(event)
        milliseconds = tick(FRAMES_PER_SECOND)
        elapsed += milliseconds
        if elapsed >= step_milliseconds:
            # A machine too slow for that many steps a second makes fewer: it must not catch up in a rush.
            for _ in range(min(int(elapsed / step_milliseconds), most)):
                live.step()
            elapsed %= step_milliseconds
        live.show(elapsed / step_milliseconds, milliseconds)

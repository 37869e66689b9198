"""The window in which a person records PushT demonstrations with the mouse (`envs.pusht.teleoperation`)."""

import os

# Before the import that would print it.
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")

import pygame

from envs.pusht import geometry
from envs.pusht.geometry import Point
from envs.pusht.live_window import LiveWindow, NoDisplayError, Tick, run_live
from envs.pusht.picture import Picture
from envs.pusht.teleoperation import START_DISTANCE, Command, Phase, Teleoperation

__all__ = ["KEYS", "NoDisplayError", "TeleoperationWindow", "run"]

HELP = (
    "r restart    n, Enter save and go on    d delete the last saved one",
    "space, p pause    q quit (drops only the episode on the screen)",
)

KEYS = {
    pygame.K_r: Command.RESTART,
    pygame.K_n: Command.SAVE,
    pygame.K_RETURN: Command.SAVE,
    pygame.K_KP_ENTER: Command.SAVE,
    pygame.K_d: Command.DELETE,
    pygame.K_SPACE: Command.PAUSE,
    pygame.K_p: Command.PAUSE,
    pygame.K_q: Command.QUIT,
}


class TeleoperationWindow:
    """The window: the world above, what goes on and the keys below. NoDisplayError without a screen."""

    def __init__(self) -> None:
        self._picture = Picture(n_lines=2 + len(HELP))
        self._window = LiveWindow("PushT demonstrations", self._picture.surface.get_size())

    def show(self, session: Teleoperation, fraction: float) -> None:
        """Shows the session at a fraction of its last control step."""
        agent, block, angle = session.pose(fraction)
        self._picture.draw(agent, block, angle, self.lines(session))
        if session.phase is Phase.WAITING:
            self._picture.ring(agent, START_DISTANCE, geometry.TARGET_COLOR)
        self._window.show(self._picture.surface)

    @staticmethod
    def lines(session: Teleoperation) -> tuple[str, ...]:
        """The text below the world."""
        status = f"episode {session.number}   seed {session.seed}   step {session.n_steps}"
        return (f"{status}   coverage {session.coverage:.0%}   {session.phase.value}", session.message, *HELP)

    def close(self) -> None:
        """Takes the window off the screen."""
        self._window.close()


def run(session: Teleoperation, tick: Tick | None = None) -> None:
    """Shows a window until the session is finished.

    Args:
        session: gets the mouse and the keys.
        tick: for tests that do not wait, see `envs.pusht.live_window.Tick`.

    Raises:
        NoDisplayError: there is no screen.
    """
    if session.finished:
        return
    live = _Recording(session, TeleoperationWindow())
    try:
        run_live(live, 1000.0 / geometry.CONTROL_HZ, tick)
    finally:
        live.window.close()


class _Recording:
    """A session in its window, with the mouse where it was last seen."""

    def __init__(self, session: Teleoperation, window: TeleoperationWindow) -> None:
        self.session, self.window = session, window
        self._mouse: Point | None = None

    @property
    def finished(self) -> bool:
        return self.session.finished

    def read(self, event: pygame.event.Event) -> None:
        if event.type == pygame.QUIT:
            self.session.handle(Command.QUIT)
        elif event.type == pygame.KEYDOWN and event.key in KEYS:
            self.session.handle(KEYS[event.key])
        elif event.type == pygame.MOUSEMOTION:
            self._mouse = event.pos

    def step(self) -> None:
        self.session.step(self._mouse)

    def show(self, fraction: float, milliseconds: float) -> None:
        self.window.show(self.session, fraction)

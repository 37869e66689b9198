"""The window in which a person records PushT demonstrations with the mouse (`envs.pusht.teleoperation`)."""

import os
import sys
from collections.abc import Callable

# Before the import that would print it.
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")

import pygame

from envs.pusht import geometry
from envs.pusht.geometry import Point
from envs.pusht.rendering import Renderer
from envs.pusht.teleoperation import START_DISTANCE, Command, Phase, Teleoperation

FRAMES_PER_SECOND = 60
HELP = (
    "r restart    n, Enter save and go on    d delete the last saved one",
    "space, p pause    q quit (drops only the episode on the screen)",
)
# Drivers that SDL falls back to, without an error, where there is no screen.
_INVISIBLE_DRIVERS = ("offscreen", "dummy")
_STEP_MILLISECONDS = 1000.0 / geometry.CONTROL_HZ
_PANEL_HEIGHT, _MARGIN, _LINE_HEIGHT, _FONT_SIZE = 96, 8, 21, 20
_TEXT_COLOR, _PANEL_COLOR = (30, 30, 30), (240, 240, 240)

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


class NoDisplayError(RuntimeError):
    """There is no screen to show the window on."""


class TeleoperationWindow:
    """The window: the world above, what goes on and the keys below. NoDisplayError without a screen."""

    def __init__(self) -> None:
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
            self._screen = pygame.display.set_mode((geometry.WINDOW_SIZE, geometry.WINDOW_SIZE + _PANEL_HEIGHT))
        except pygame.error as error:
            pygame.display.quit()
            raise NoDisplayError(f"no window can be opened ({error}); run this where there is a screen") from error
        pygame.display.set_caption("PushT demonstrations")
        pygame.font.init()
        self._font = pygame.font.Font(None, _FONT_SIZE)
        self._renderer = Renderer()

    def show(self, session: Teleoperation, fraction: float) -> None:
        """Shows the session at a fraction of its last control step."""
        agent, block, angle = session.pose(fraction)
        self._screen.blit(self._renderer.draw(agent, block, angle), (0, 0))
        if session.phase is Phase.WAITING:
            center = (round(agent[0]), round(agent[1]))
            pygame.draw.circle(self._screen, geometry.TARGET_COLOR, center, round(START_DISTANCE), width=2)
        panel = pygame.Rect(0, geometry.WINDOW_SIZE, geometry.WINDOW_SIZE, _PANEL_HEIGHT)
        self._screen.fill(_PANEL_COLOR, panel)
        for index, line in enumerate(self.lines(session)):
            text = self._font.render(line, True, _TEXT_COLOR)
            self._screen.blit(text, (_MARGIN, panel.top + _MARGIN + index * _LINE_HEIGHT))
        pygame.display.flip()

    @staticmethod
    def lines(session: Teleoperation) -> tuple[str, ...]:
        """The text below the world."""
        status = f"episode {session.number}   seed {session.seed}   step {session.n_steps}"
        return (f"{status}   coverage {session.coverage:.0%}   {session.phase.value}", session.message, *HELP)

    def close(self) -> None:
        """Takes the window off the screen."""
        pygame.display.quit()


def run(session: Teleoperation, tick: Callable[[int], float] | None = None) -> None:
    """Shows a window until the session is finished.

    Args:
        session: gets the mouse and the keys.
        tick: waits for the next of so many frames a second and returns the milliseconds since the last one; for
            tests that do not wait.

    Raises:
        NoDisplayError: there is no screen.
    """
    if session.finished:
        return
    window = TeleoperationWindow()
    tick = tick or pygame.time.Clock().tick
    mouse: Point | None = None
    elapsed = 0.0
    try:
        while not session.finished:
            mouse = _read_events(session, mouse)
            elapsed += tick(FRAMES_PER_SECOND)
            if elapsed >= _STEP_MILLISECONDS:
                # A machine too slow for that many steps a second makes fewer: it must not catch up in a rush.
                elapsed %= _STEP_MILLISECONDS
                session.step(mouse)
            window.show(session, elapsed / _STEP_MILLISECONDS)
    finally:
        window.close()


def _read_events(session: Teleoperation, mouse: Point | None) -> Point | None:
    """Hands the keys pressed since the last call to the session; returns where the mouse is."""
    for event in pygame.event.get():
        if event.type == pygame.QUIT:
            session.handle(Command.QUIT)
        elif event.type == pygame.KEYDOWN and event.key in KEYS:
            session.handle(KEYS[event.key])
        elif event.type == pygame.MOUSEMOTION:
            mouse = event.pos
    return mouse

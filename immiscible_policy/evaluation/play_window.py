"""The window in which a person plays with trained policies (`immiscible_policy.evaluation.play`).

Inference runs in the window's own loop: a chunk of the default policy takes less than 0.1 s of one core at 10 inference
steps, every 0.8 s. With many more steps, or a large network on a CPU, the window stands still as long as that takes.
"""

import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

# Before the import that would print it.
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")

import pygame

from envs.pusht.geometry import CONTROL_HZ
from envs.pusht.live_window import LiveWindow, Tick, run_live
from immiscible_policy.evaluation.play import Command, PlaySession
from immiscible_policy.evaluation.play_picture import PlayPicture
from immiscible_policy.evaluation.play_recording import Sampler, require_positive
from immiscible_policy.evaluation.video import write_video

KEYS = {
    pygame.K_r: Command.NEXT_SEED,
    pygame.K_SPACE: Command.PAUSE,
    pygame.K_n: Command.SINGLE_STEP,
    pygame.K_TAB: Command.NEXT_POLICY,
    pygame.K_d: Command.DISTURB,
    pygame.K_PLUS: Command.MORE_STEPS,
    pygame.K_EQUALS: Command.MORE_STEPS,
    pygame.K_KP_PLUS: Command.MORE_STEPS,
    pygame.K_MINUS: Command.FEWER_STEPS,
    pygame.K_KP_MINUS: Command.FEWER_STEPS,
    pygame.K_q: Command.QUIT,
    pygame.K_ESCAPE: Command.QUIT,
}
WITH_SHIFT = {pygame.K_r: Command.SAME_SEED, pygame.K_TAB: Command.PREVIOUS_POLICY}
DIGITS = {code: index for start in (pygame.K_1, pygame.K_KP1) for index, code in enumerate(range(start, start + 9))}
# How much a new picture counts in the mean that is shown as pictures a second.
_RATE_WEIGHT = 0.05


class PlayWindow:
    """A session in its window.

    Args:
        session: gets the mouse and the keys.
        video_dir: where `v` puts its videos, `play_0001.mp4` and on.
        fps: frames a second of these.

    Attributes: `videos`, the paths written so far; `problems`, what went wrong with others.

    Raises:
        NoDisplayError: there is no screen.
    """

    def __init__(self, session: PlaySession, video_dir: Path, fps: float = CONTROL_HZ) -> None:
        self._session, self._video_dir, self._fps = session, video_dir, fps
        self._picture = PlayPicture(session)
        self._window = LiveWindow("PushT policies", self._picture.picture.surface.get_size())
        self._help = False
        self._fraction, self._frame_milliseconds = 1.0, 0.0
        self._sampler: Sampler | None = None
        # A video is encoded beside the loop, which goes on meanwhile.
        self._encoder = ThreadPoolExecutor(max_workers=1)
        self._encoding: list[Future[Path]] = []
        self._numbers = 0
        self.videos: list[Path] = []
        self.problems: list[str] = []

    @property
    def finished(self) -> bool:
        return self._session.finished

    def read(self, event: pygame.event.Event) -> None:
        """A key or the mouse."""
        if event.type == pygame.QUIT:
            self._session.handle(Command.QUIT)
        elif event.type == pygame.KEYDOWN:
            self._press(event.key, bool(event.mod & pygame.KMOD_SHIFT))
        elif event.type == pygame.MOUSEBUTTONDOWN and event.button == pygame.BUTTON_LEFT:
            self._session.press(event.pos, self._fraction)
        elif event.type == pygame.MOUSEMOTION:
            self._session.move(event.pos)
        elif event.type == pygame.MOUSEBUTTONUP and event.button == pygame.BUTTON_LEFT:
            self._session.release()

    def step(self) -> None:
        """One control step."""
        self._session.step()

    def show(self, fraction: float, milliseconds: float) -> None:
        """Shows a moment of the last control step, and takes it into the video that is being saved."""
        self._fraction = fraction
        mean = self._frame_milliseconds or milliseconds
        self._frame_milliseconds = mean + _RATE_WEIGHT * (milliseconds - mean)
        self._collect(wait=False)
        rate = f"{1000.0 / max(self._frame_milliseconds, 1.0):.0f} fps"
        saving = f"saving a video: {self._sampler.seconds:.0f} s" if self._sampler is not None else ""
        self._picture.draw(self._session, fraction, rate, saving, "h shows the keys", self._help)
        if self._sampler is not None:
            self._sampler.add(milliseconds, self._picture.array)
        self._window.show(self._picture.picture.surface)

    def close(self) -> None:
        """Takes the window off the screen, then writes what is left of videos."""
        self._window.close()
        self._stop_video()
        self._collect(wait=True)
        self._encoder.shutdown()

    def _press(self, code: int, shift: bool) -> None:
        if code == pygame.K_h:
            self._help = not self._help
        elif code == pygame.K_v:
            if self._sampler is None:
                self._sampler = Sampler(self._fps)
            else:
                self._stop_video()
        elif code in DIGITS:
            self._session.switch(DIGITS[code])
        elif shift and code in WITH_SHIFT:
            self._session.handle(WITH_SHIFT[code])
        elif code in KEYS:
            self._session.handle(KEYS[code])

    def _stop_video(self) -> None:
        if self._sampler is None:
            return
        frames, self._sampler = self._sampler.frames, None
        if len(frames) > 0:
            path = self._free_path()
            self._encoding.append(self._encoder.submit(write_video, frames, path, self._fps))
            self._session.say(f"writing {path} ...")

    def _free_path(self) -> Path:
        while True:
            self._numbers += 1
            path = self._video_dir / f"play_{self._numbers:04d}.mp4"
            if not path.exists():
                return path

    def _collect(self, wait: bool) -> None:
        """Tells what became of the videos that are written, or of all."""
        for future in [future for future in self._encoding if wait or future.done()]:
            self._encoding.remove(future)
            try:
                self.videos.append(future.result())
                self._session.say(f"saved {self.videos[-1]}")
            except OSError as error:
                self.problems.append(f"a video was not saved: {error}")
                self._session.say(self.problems[-1])


def play(
    session: PlaySession, video_dir: Path, fps: float = CONTROL_HZ, speed: float = 1.0, tick: Tick | None = None
) -> PlayWindow:
    """Shows a window until the session is finished, and returns it, closed.

    Args:
        session: gets the mouse and the keys.
        video_dir, fps: of the videos that are saved with `v`.
        speed: simulated seconds in a second, > 0.
        tick: for tests that do not wait, see `envs.pusht.live_window.Tick`.

    Raises:
        ValueError: fps or speed is not positive.
        NoDisplayError: there is no screen.
    """
    require_positive("fps", fps)
    require_positive("speed", speed)
    window = PlayWindow(session, video_dir, fps)
    try:
        run_live(window, 1000.0 / (CONTROL_HZ * speed), tick)
    finally:
        window.close()
    return window

"""Videos of a `PlaySession`: of a whole scripted one without a display, and of what a window shows."""

import zlib
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from envs.pusht.geometry import CONTROL_HZ
from immiscible_policy.evaluation.play import PlaySession
from immiscible_policy.evaluation.play_picture import PlayPicture
from immiscible_policy.evaluation.video import require_writable, write_video


class PackedFrames(Sequence[np.ndarray]):
    """Frames (H, W, 3) uint8 of one size, packed without loss: a drawn picture takes about a hundredth of its size."""

    def __init__(self) -> None:
        self._packed: list[bytes] = []
        self._shape: tuple[int, ...] = ()

    def append(self, frame: np.ndarray) -> None:
        """Adds a frame."""
        self._shape = frame.shape
        self._packed.append(zlib.compress(frame.tobytes(), 1))

    def __len__(self) -> int:
        return len(self._packed)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...

    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        return np.frombuffer(zlib.decompress(self._packed[index]), np.uint8).reshape(self._shape)


class Sampler:
    """Takes frames at a constant rate from a window that draws whenever it can.

    Args:
        fps: frames a second, > 0.
    """

    def __init__(self, fps: float) -> None:
        self.frames = PackedFrames()
        self._milliseconds, self._due = 0.0, 0.0
        self._period = 1000.0 / fps

    @property
    def seconds(self) -> float:
        """Length of the video so far."""
        return len(self.frames) * self._period / 1000.0

    def add(self, milliseconds: float, frame: Callable[[], np.ndarray]) -> None:
        """Looks at what is shown `milliseconds` after the last call; `frame` draws it if that is needed."""
        self._milliseconds += milliseconds if len(self.frames) > 0 else 0.0
        if self._milliseconds < self._due:
            return
        picture = frame()
        # A window slower than the video shows a picture for more than one frame.
        while self._milliseconds >= self._due:
            self.frames.append(picture)
            self._due += self._period


def record(
    session: PlaySession,
    path: Path,
    n_steps: int = 300,
    fps: float = CONTROL_HZ,
    speed: float = 1.0,
    disturb_at: Collection[int] = (),
    on_step: Callable[[int], Any] | None = None,
) -> Path:
    """Runs a session and writes what a window would show of it; no display is needed.

    Frame k shows the moment 10 k speed / fps control steps after the start, the last one at most at `n_steps`: with
    the defaults one frame a step, and the first state.

    Args:
        session: at its start.
        path: ends in .mp4; the file appears when it is complete.
        n_steps: control steps (0.1 s each), at least 1.
        fps: frames a second of the video, > 0.
        speed: simulated seconds in a second of the video, > 0.
        disturb_at: after so many steps the block is shifted and turned at random (`PlaySession.disturb`).
        on_step: called with the number of steps made.

    Returns:
        The path written.

    Raises:
        ValueError: an argument out of range.
        OSError: the file cannot be written; if that can be known, before the first step.
    """
    if path.suffix != ".mp4":
        raise ValueError(f"path is {path}; allowed: a name that ends in .mp4")
    if n_steps < 1:
        raise ValueError(f"n_steps is {n_steps}; allowed: integers of at least 1")
    require_positive("fps", fps)
    require_positive("speed", speed)
    late = [step for step in disturb_at if not 0 <= step < n_steps]
    if late:
        raise ValueError(f"disturb_at is {late[0]}; allowed: 0 to {n_steps - 1}, before the last of n_steps={n_steps}")
    require_writable(path)
    picture, frames = PlayPicture(session), PackedFrames()
    steps_per_frame = CONTROL_HZ * speed / fps

    def add(fraction: float) -> None:
        picture.draw(session, fraction, f"{fps:g} fps")
        frames.append(picture.array())

    add(1.0)
    for step in range(n_steps):
        if step in disturb_at:
            session.disturb()
        session.step()
        # With room for rounding: a frame at the end of a step belongs to that step.
        while (due := len(frames) * steps_per_frame - step) <= 1.0 + 1e-9:
            add(min(due, 1.0))
        if on_step is not None:
            on_step(step + 1)
    return write_video(frames, path, fps)


def require_positive(name: str, value: float) -> None:
    """ValueError unless `value` is a positive number."""
    if not 0.0 < value < float("inf"):
        raise ValueError(f"{name} is {value:g}; allowed: numbers above 0")

"""Videos (mp4) of episodes, and film strips like Figure 7 of Improved Immiscible Diffusion (2025)."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from immiscible_policy.files import complete_or_absent

_CAPTION_HEIGHT = 20
_MIN_CELL = 140  # room for the longest caption
_GAP = 6
_INK, _PAPER = (40, 40, 40), (255, 255, 255)


def write_video(frames: Sequence[np.ndarray], path: str | Path, fps: float = 10) -> Path:
    """Write frames as an H.264 mp4 (yuv420p) that browsers and players open.

    An odd height or width is made even, as yuv420p requires, by repeating the last row or column. The file
    appears under its name only when complete; missing folders are made.

    Args:
        frames: (H, W, 3) uint8 RGB arrays of one size, at least one.
        path: ends in .mp4.
        fps: frames per second, > 0; PushT acts at 10 Hz.

    Returns:
        The path written.

    Raises:
        ValueError: no frames, frames of another shape or dtype, fps <= 0, or another file ending.
        OSError: the folder cannot be written to, or the encoder failed.
    """
    path = Path(path)
    if path.suffix != ".mp4":
        raise ValueError(f"path must end in .mp4, got {path}")
    if not fps > 0:
        raise ValueError(f"fps must be positive, got {fps}")
    _check_frames("frames", frames, same_size=True)
    height, width = (side + side % 2 for side in frames[0].shape[:2])
    with complete_or_absent(path, keep_suffix=True) as partial:
        # macro_block_size=1: the sizes are even already, and the default of 16 would rescale the picture.
        # faststart puts the index in front, so that a browser plays it while loading.
        encoder = imageio_ffmpeg.write_frames(
            str(partial),
            (width, height),
            fps=fps,
            codec="libx264",
            pix_fmt_out="yuv420p",
            quality=8,
            macro_block_size=1,
            output_params=["-movflags", "+faststart"],
        )
        encoder.send(None)
        try:
            for frame in frames:
                encoder.send(np.ascontiguousarray(_even(frame)))
        except OSError as error:
            # What follows in its text is the encoder's whole command line.
            reason = str(error).partition("\n")[0]
            raise OSError(f"cannot write {path}: the video encoder has stopped ({reason})") from error
        finally:
            encoder.close()
        if not partial.is_file() or partial.stat().st_size == 0:
            raise OSError(f"the video encoder wrote nothing for {path}: is the disk full?")
    return path


def require_writable(path: Path) -> None:
    """OSError unless a video can be written there; missing folders are made. To be known before its frames are."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror}") from error


def film_strip(
    frames_per_episode: Sequence[Sequence[np.ndarray]],
    path: str | Path,
    n_frames: int = 8,
    titles: Sequence[str] | None = None,
    coverages: Sequence[Sequence[float]] | None = None,
    cell_size: int = 160,
) -> Path:
    """Write a PNG with a row an episode and columns equally spaced over each episode's own time.

    The first column is the first frame and the last column the last one; an episode with fewer frames than
    columns shows each frame once. Under every picture: its step (frame number from 0) and, if given, its
    coverage.

    Args:
        frames_per_episode: for each episode its (H, W, 3) uint8 RGB frames, at least one.
        path: ends in .png.
        n_frames: columns, >= 2.
        titles: a line above each row.
        coverages: for each episode the coverage (0..1) at each frame.
        cell_size: width and height of a picture in pixels, >= 140.

    Returns:
        The path written.

    Raises:
        ValueError: an argument out of range, or titles or coverages that do not match the frames.
    """
    path = Path(path)
    _check_strip(frames_per_episode, path, n_frames, titles, coverages, cell_size)
    n_rows = len(frames_per_episode)
    title_height = _CAPTION_HEIGHT if titles is not None else 0
    row_height = title_height + cell_size + _CAPTION_HEIGHT + _GAP
    strip = Image.new("RGB", (n_frames * (cell_size + _GAP) + _GAP, n_rows * row_height + _GAP), _PAPER)
    draw = ImageDraw.Draw(strip)
    font = ImageFont.load_default(size=12)

    for row, frames in enumerate(frames_per_episode):
        top = _GAP + row * row_height
        if titles is not None:
            draw.text((_GAP, top), titles[row], fill=_INK, font=font)
        for column, step in enumerate(_spaced_steps(len(frames), n_frames)):
            left = _GAP + column * (cell_size + _GAP)
            picture = _cell(frames[step], cell_size)
            strip.paste(picture, (left, top + title_height))
            draw.rectangle(
                (left, top + title_height, left + cell_size - 1, top + title_height + cell_size - 1),
                outline=(200, 200, 200),
            )
            caption = f"step {step}"
            if coverages is not None:
                caption += f"  coverage {coverages[row][step]:.2f}"
            draw.text((left + 2, top + title_height + cell_size + 2), caption, fill=_INK, font=font)
    with complete_or_absent(path, keep_suffix=True) as partial:
        strip.save(partial, format="PNG")
    return path


def _spaced_steps(length: int, n_frames: int) -> list[int]:
    """Up to n_frames different frame numbers from the first to the last, equally spaced."""
    if length <= n_frames:
        return list(range(length))
    return [int(step) for step in np.rint(np.linspace(0, length - 1, n_frames))]


def _cell(frame: np.ndarray, size: int) -> Image.Image:
    """The frame scaled to fit a square cell, its proportions kept."""
    height, width = frame.shape[:2]
    scale = size / max(height, width)
    fitted = (max(1, round(width * scale)), max(1, round(height * scale)))
    cell = Image.new("RGB", (size, size), _PAPER)
    picture = Image.fromarray(frame).resize(fitted, Image.Resampling.LANCZOS)
    cell.paste(picture, ((size - fitted[0]) // 2, (size - fitted[1]) // 2))
    return cell


def _even(frame: np.ndarray) -> np.ndarray:
    height, width = frame.shape[:2]
    return np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def _check_frames(name: str, frames: Sequence[np.ndarray], same_size: bool) -> None:
    if len(frames) == 0:
        raise ValueError(f"{name} is empty: at least one frame is needed")
    for number, frame in enumerate(frames):
        shape, dtype = np.shape(frame), getattr(frame, "dtype", type(frame).__name__)
        if len(shape) != 3 or shape[2] != 3 or dtype != np.uint8:
            raise ValueError(f"{name}[{number}] must be (H, W, 3) uint8, got {dtype} of shape {shape}")
        if same_size and shape != frames[0].shape:
            raise ValueError(f"{name}[{number}] has shape {shape}, unlike frame 0: {frames[0].shape}")


def _check_strip(
    frames_per_episode: Sequence[Sequence[np.ndarray]],
    path: Path,
    n_frames: int,
    titles: Sequence[str] | None,
    coverages: Sequence[Sequence[float]] | None,
    cell_size: int,
) -> None:
    if path.suffix != ".png":
        raise ValueError(f"path must end in .png, got {path}")
    if n_frames < 2:
        raise ValueError(f"n_frames must be at least 2, got {n_frames}")
    if cell_size < _MIN_CELL:
        raise ValueError(f"cell_size must be at least {_MIN_CELL}, got {cell_size}")
    if len(frames_per_episode) == 0:
        raise ValueError("frames_per_episode is empty: at least one episode is needed")
    for number, frames in enumerate(frames_per_episode):
        _check_frames(f"frames_per_episode[{number}]", frames, same_size=False)
    if titles is not None and len(titles) != len(frames_per_episode):
        raise ValueError(f"titles has {len(titles)} lines for {len(frames_per_episode)} episodes")
    if coverages is None:
        return
    lengths = [len(frames) for frames in frames_per_episode]
    if [len(coverage) for coverage in coverages] != lengths:
        found = [len(coverage) for coverage in coverages]
        raise ValueError(f"coverages must have a value a frame: lengths {lengths}, got {found}")

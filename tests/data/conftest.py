"""Zipped stores, and replacing folders that is interrupted."""

import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest


@pytest.fixture
def zip_folder() -> Callable[..., Path]:
    """zip_folder(folder, archive, prefix="") packs a folder's files under a prefix and returns the archive."""

    def pack(folder: Path, archive: Path, prefix: str = "") -> Path:
        with zipfile.ZipFile(archive, "w") as opened:
            for file in sorted(folder.rglob("*")):
                if file.is_file():
                    opened.write(file, f"{prefix}{file.relative_to(folder)}")
        return archive

    return pack


@pytest.fixture
def interrupted_replacing(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Iterator[bool]]:
    """interrupted_replacing(setup, action) runs both, the action stopped before or after each of its two renamings.

    Yields after each time whether it was killed, in a process of its own, or interrupted.
    """

    def run(setup: Callable[[], None], action: Callable[[], object]) -> Iterator[bool]:
        for moment in range(4):
            setup()
            with monkeypatch.context() as patch:
                patch.setattr(os, "replace", _stopping(os.replace, moment, _interrupt))
                with pytest.raises(KeyboardInterrupt):
                    action()
            yield False
            setup()
            with monkeypatch.context() as patch:
                patch.setattr(os, "replace", _stopping(os.replace, moment, _kill))
                _run_killed(action)
            yield True

    return run


def _stopping(replace: Callable[[Path, Path], None], moment: int, stop: Callable[[], None]) -> Callable[..., None]:
    """`replace` that stops before its first call (moment 0), after it (1), before the second (2), or after it (3)."""
    moments = count()

    def stopping(source: Path, target: Path) -> None:
        if next(moments) == moment:
            stop()
        replace(source, target)
        if next(moments) == moment:
            stop()

    return stopping


def _interrupt() -> None:
    raise KeyboardInterrupt


def _kill() -> None:
    os._exit(9)


def _run_killed(action: Callable[[], object]) -> None:
    """Runs an action that kills its process."""
    pid = os.fork()
    if pid == 0:
        with suppress(BaseException):
            action()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9

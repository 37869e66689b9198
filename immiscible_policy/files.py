"""Files that are whole or not there, and what they hold."""

import hashlib
import json
import math
import os
import shutil
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def complete_or_absent(path: Path, keep_suffix: bool = False) -> Iterator[Path]:
    """A temporary name beside ``path`` that becomes ``path`` only if the body succeeds.

    Readers see the old file or the new one; folders are made. What a kill leaves behind ends in ``.tmp``.

    Args:
        keep_suffix: give the temporary name the suffix of ``path``, for writers that choose the format by it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{path.suffix if keep_suffix else '.tmp'}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with complete_or_absent(path) as partial:
        partial.write_text(text, encoding="utf-8")


def save_figure(figure: Any, path: Path, dpi: int = 150) -> None:
    """Write a matplotlib figure atomically."""
    with complete_or_absent(path) as partial:
        figure.savefig(partial, dpi=dpi, format=path.suffix.removeprefix("."))


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically. NaN and infinities become null."""
    write_text(path, json.dumps(finite(content), indent=2, allow_nan=False) + "\n")


def finite(content: Any) -> Any:
    """Nested mappings and sequences with None in the place of every number that JSON lacks."""
    if isinstance(content, Mapping):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


@contextmanager
def alone(path: Path, other: str = "another process that writes") -> Iterator[None]:
    """Wait until no other process is alone with ``path``, and let no other begin before the end.

    The lock, a file beside ``path``, goes with the process that has it, however that ends. Where the system has no such
    locks, on Windows, nobody waits.

    Args:
        other: who is waited for, as it is said on stderr.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    lock = path.with_name(f"{path.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = lock.open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for {other} at {path}", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        # Who had it before has removed it: then this lock keeps nobody out.
        with suppress(FileNotFoundError):
            if os.path.samefile(file.fileno(), lock):
                break
        file.close()
    try:
        yield
    finally:
        lock.unlink()
        file.close()


@contextmanager
def locked(folder: Path, name: str = "lock") -> Iterator[int | None]:
    """Hold a folder's lock, a file descriptor; None where another process holds it. The folder is made.

    The system undoes it when the process, and those that have inherited the descriptor, end in whatever way. Windows
    has no such locks: there nobody is kept out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if sys.platform != "win32":
            import fcntl

            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
                return
        yield descriptor
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """Hash of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def replace_folder(source: Path, target: Path) -> None:
    """Put the finished folder ``source`` in the place of ``target``.

    A folder cannot be replaced in one system call, so the old one first moves aside; readers look there too. Of a link
    to a folder it is the link that is replaced.
    """
    old = set_aside(target)
    if target.exists() or target.is_symlink():
        _remove(old)
        os.replace(target, old)
    os.replace(source, target)
    _remove(old)


def _remove(folder: Path) -> None:
    """Remove a folder as far as that can be done; of a link to one, the link, which ``rmtree`` would leave there."""
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder, ignore_errors=True)


def staging_folder(target: Path) -> Path:
    """An empty folder beside ``target`` to write into before ``replace_folder``."""
    staging = staging_path(target)
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    return staging


def staging_path(target: Path) -> Path:
    """The name of that folder: hidden, as that of the old folder is, so that neither can be a folder of the user's."""
    return target.with_name(f".{target.name}.tmp")


def set_aside(folder: Path) -> Path:
    """Where ``replace_folder`` keeps the old folder until the new one is there, and where a kill can leave it."""
    return folder.with_name(f".{folder.name}.old")

"""Folders that are written anew: whole or not there, and never without either the old one or the new one."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from immiscible_policy.files import set_aside, staging_folder


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """An empty folder beside `target`, in which the body makes what it puts there with `replace_folder`.

    However the body ends, an interrupt included, the old folder or the new one is at `target`, and nothing else is
    left. What a killed process leaves has fixed names: the next call removes it, after `undo_replacing`.
    """
    staging = staging_folder(target)
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        undo_replacing(target)
        remove_replaced(target)


def undo_replacing(target: Path) -> None:
    """Bring the old folder back where a process was killed before the new one was there.

    To be called before anybody looks what is at `target`.
    """
    if not target.exists() and set_aside(target).exists():
        os.rename(set_aside(target), target)


def remove_replaced(target: Path) -> None:
    """Remove the old folder where a process was killed when the new one was there already."""
    if target.exists():
        shutil.rmtree(set_aside(target), ignore_errors=True)

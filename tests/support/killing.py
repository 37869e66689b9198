"""Runs that end as a killed process does: without warning, right after a checkpoint."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from immiscible_policy.training import trainer


class _KilledError(Exception):
    """Stands for whatever ends a process without warning."""


@contextmanager
def killed_at_the_first_checkpoint() -> Iterator[None]:
    """The body, which trains, ends as soon as its first checkpoint is there, and fails if it does not."""
    save_state = trainer.save_state

    def save_and_die(folder: Path, state: dict) -> None:
        save_state(folder, state)
        raise _KilledError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "save_state", save_and_die)
        with pytest.raises(_KilledError):
            yield

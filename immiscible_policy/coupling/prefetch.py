"""Coupling the next batch in a thread while the current training step runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

Batch = TypeVar("Batch")


def prefetch(batches: Iterable[Batch], couple: Callable[[Batch], Tensor]) -> Iterator[tuple[Batch, Tensor]]:
    """Yield ``(batch, couple(batch))``, with the next batch's noise computed in the background.

    An exact assignment is solved on the CPU, where scipy releases the interpreter: on a GPU, or with a core to spare,
    it costs a training step nothing as long as it takes less time. The noises are those of a plain loop, bit for bit,
    if ``couple`` has a generator of its own::

        generator = torch.Generator().manual_seed(0)
        for batch, noise in prefetch(loader, lambda batch: coupling(batch["x"], generator=generator)):
            ...

    (A generator that the loop draws from as well would be used by two threads at once.)

    Inside the loop the coupling's state and the generator are one batch ahead of the batch that is trained on: saved
    there, they resume with other noises. Save them after the loop, where they are those of a plain loop; a training
    that saves more often loops over parts of its batches::

        for part in parts:
            for batch, noise in prefetch(part, couple):
                ...
            save(coupling.state_dict(), generator.get_state())

    Args:
        batches: what the loop trains on; iterated in the caller's thread, one batch ahead.
        couple: batch -> noise, called in the background, one batch after another.

    Raises:
        Whatever ``batches`` or ``couple`` raise, where the loop reaches that batch.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="coupling", initializer=_use_device, initargs=(_device(),)) as worker:
        waiting: tuple[Batch, Future[Tensor]] | None = None
        try:
            for batch in _until_error(batches):
                coming = None if isinstance(batch, _Error) else (batch, worker.submit(couple, batch))
                if waiting is not None:
                    yield waiting[0], waiting[1].result()
                if isinstance(batch, _Error):
                    raise batch.error
                waiting = coming
            if waiting is not None:
                yield waiting[0], waiting[1].result()
        finally:
            worker.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True)
class _Error:
    error: Exception


def _until_error(batches: Iterable[Batch]) -> Iterator[Batch | _Error]:
    """The batches, and at the end the error that ended them: the batch before it is still to be trained on."""
    try:
        yield from batches
    except Exception as error:
        yield _Error(error)


def _device() -> int | None:
    return torch.cuda.current_device() if torch.cuda.is_initialized() else None


def _use_device(device: int | None) -> None:
    """The current GPU is a thread's own setting."""
    if device is not None:
        torch.cuda.set_device(device)

"""Turns of training loops that have processes of their own: what the section `training` measures by."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import psutil  # type: ignore[import-untyped]
import torch


class Loop(Protocol):
    """One contender's training: `step` takes one, `workers` are its other processes."""

    def step(self) -> None: ...

    @property
    def workers(self) -> Sequence[int]: ...

    def close(self) -> None: ...


class Turns:
    """One contender's turns: `take(steps)` gives (wall, processor) seconds of a step; its workers stop in between."""

    def __init__(self, loop: Loop, device: str) -> None:
        self.loop = loop
        self.finish: Callable[[], object] = torch.cuda.synchronize if device == "cuda" else lambda: None

    def take(self, steps: int) -> tuple[float, float]:
        self._signal(signal.SIGCONT)
        started, busy = time.perf_counter(), self._processor_time()
        for _ in range(steps):
            self.loop.step()
        self.finish()
        wall, busy = time.perf_counter() - started, self._processor_time() - busy
        self._rest()
        return wall / steps, busy / steps

    def _rest(self) -> None:
        """Stop the workers, and wait until they stand: a signal takes effect when its process is next scheduled."""
        self._signal(signal.SIGSTOP)
        resting = (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)
        while any(psutil.Process(worker).status() not in resting for worker in self.loop.workers):
            os.sched_yield()

    def _processor_time(self) -> float:
        spent = [psutil.Process(worker).cpu_times() for worker in self.loop.workers]
        return time.process_time() + sum(times.user + times.system for times in spent)

    def _signal(self, number: signal.Signals) -> None:
        for worker in self.loop.workers:
            os.kill(worker, number)

    def close(self) -> None:
        """Workers that stand still could not end."""
        self._signal(signal.SIGCONT)
        self.loop.close()


@contextlib.contextmanager
def lerobot_flags(active: bool) -> Iterator[None]:
    """What LeRobot sets for a GPU: cuDNN chooses by trying, fp32 matrix products in TF32."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.benchmark, matmul.allow_tf32
    if active:
        cudnn.benchmark = matmul.allow_tf32 = True
    try:
        yield
    finally:
        cudnn.benchmark, matmul.allow_tf32 = before

"""How long the steps of a run took."""

import time


class Stopwatch:
    """Time spent inside ``with`` blocks: by the clock on the wall, and of the processor over all threads."""

    def __init__(self) -> None:
        self.wall = 0.0
        self.cpu = 0.0

    def __enter__(self) -> None:
        self._start = time.perf_counter(), time.process_time()

    def __exit__(self, *exception: object) -> None:
        self.wall += time.perf_counter() - self._start[0]
        self.cpu += time.process_time() - self._start[1]

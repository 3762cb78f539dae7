"""Tiles on threads of their own.

One operation on a tile that fits the cache takes some tens of microseconds. Split over all cores, as torch splits it,
it makes them meet ten times per tile; and where another process holds a core, each meeting waits for the scheduler: on
two cores with such a process, a sweep took up to ten times as long. Here each thread takes whole tiles, and they meet
once per chunk.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

import torch

MOST_WORKERS = 8
"""Beyond this the interpreter's lock is the limit: further cores are given to the workers' own operations instead."""


def divide_threads(threads: int, tiles: int) -> tuple[int, int]:
    """(workers, threads of each): no more workers than tiles, and all threads at work."""
    workers = max(1, min(threads, tiles, MOST_WORKERS))
    return workers, max(1, threads // workers)


class TileWorkers:
    """Threads for the time of a `with` block; one worker is the calling thread itself.

    Work must not depend on another worker's. It runs without grad mode, and in inference mode if the caller is.
    """

    def __init__(self, workers: int, threads_each: int) -> None:
        self.workers, self.threads_each = workers, threads_each
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> TileWorkers:
        if self.workers > 1:
            threads = torch.get_num_threads()
            self._pool = ThreadPoolExecutor(self.workers, "potstill-tiles")
            all_started = threading.Barrier(self.workers)

            def prepare() -> None:
                # A thread takes the default over when it first asks; after that, what it sets stays.
                torch.get_num_threads()
                torch.set_num_threads(self.threads_each)
                all_started.wait()

            for started in [self._pool.submit(prepare) for _ in range(self.workers)]:
                started.result()
            # A thread's setting is also the default of threads to come. It is put back from a thread that ends at once,
            # so that nothing is set in the caller's.
            restore = threading.Thread(target=torch.set_num_threads, args=(threads,))
            restore.start()
            restore.join()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def run(self, work: Callable[[int], None]) -> None:
        """Calls `work(worker)` for each worker, and returns when all are done; the first error is raised."""
        if self._pool is None:
            work(0)
            return
        inference = torch.is_inference_mode_enabled()

        def guarded(worker: int) -> None:
            with torch.inference_mode() if inference else torch.no_grad():
                work(worker)

        for done in [self._pool.submit(guarded, worker) for worker in range(self.workers)]:
            done.result()

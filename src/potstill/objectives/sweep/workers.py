"""Worker threads, each with whole tiles.

One operation on a tile that fits the cache takes tens of microseconds. Split over all cores, as torch does, it needs
ten synchronisations per tile; if another process holds a core, each of them waits for the scheduler: on two cores with
such a process, a sweep took up to ten times as long. Here each thread takes whole tiles, and threads synchronise once
per chunk.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

import torch

MOST_WORKERS = 8
"""With more workers the interpreter's lock is the limit: further cores are given to the workers' own operations."""


def divide_threads(threads: int, tiles: int) -> tuple[int, int]:
    """(workers, threads of each): at most one worker per tile, with all threads in use."""
    workers = max(1, min(threads, tiles, MOST_WORKERS))
    return workers, max(1, threads // workers)


class TileWorkers:
    """Threads for the duration of a `with` block; one worker is the calling thread itself.

    A worker's function must not depend on another worker's. It runs without grad mode, and in inference mode if the
    caller does.
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
                # A thread reads the default on first use; after that, its own setting stays.
                torch.get_num_threads()
                torch.set_num_threads(self.threads_each)
                all_started.wait()

            for started in [self._pool.submit(prepare) for _ in range(self.workers)]:
                started.result()
            # A thread's setting is also the default of later threads. Restore it from a thread that ends at once, so
            # that the caller's own setting is not changed.
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
        """Call `work(worker)` for each worker, and return when all are done; the first error is raised."""
        if self._pool is None:
            work(0)
            return
        inference = torch.is_inference_mode_enabled()

        def guarded(worker: int) -> None:
            with torch.inference_mode() if inference else torch.no_grad():
                work(worker)

        for done in [self._pool.submit(guarded, worker) for worker in range(self.workers)]:
            done.result()

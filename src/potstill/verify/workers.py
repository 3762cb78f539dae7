"""Worker processes that judge one item at a time, each item under a hard deadline, and the verifiers that use them.

Judging may loop forever in C code, exhaust memory, or end the interpreter, and no timer inside the process stops all of
that. So the parent enforces the deadline: it kills and replaces a late process, and the pool keeps its size. Items and
results are lines of JSON over pipes.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import os
import queue
import resource
import selectors
import subprocess
import sys
import threading
import time
from importlib import metadata
from typing import Any, ClassVar, TypeVar

from potstill.errors import MissingExtra
from potstill.recipe.verify import WorkerSettings
from potstill.types import Verdict
from potstill.verify.base import BaseVerifier, WorkerUnavailable

START_SECONDS = 120.0
"""Time for a process to start and import, in seconds: `sympy` alone takes seconds on a busy machine."""

PIPE_BYTES = 1 << 15
"""Largest item that is written without a thread; a pipe buffers twice as much."""

MEMORY_BYTES = 4 << 30
"""Address space of a worker, in bytes."""


class Late(Exception):
    """The item was not judged before its deadline; its process is dead."""


class Died(Exception):
    """The process that judged the item ended."""


class Failed(Exception):
    """The function raised; its process continues."""


class WorkerPool:
    """`size` processes that each call `function`, named `package.module:function`, on the items they receive.

    Args:
        function: takes one JSON value, returns one. Importing its module is not part of the deadline.
        preload: a module that each process imports before its first item; not part of the deadline either.
        deadline_seconds: for one item, counted from when it is sent to a ready process.

    Raises:
        WorkerUnavailable: (on use) the processes do not start, with their error; or the pool is closed.
    """

    def __init__(self, function: str, *, size: int = 1, deadline_seconds: float = 5.0, preload: str = "") -> None:
        self.function, self.size, self.deadline_seconds, self.preload = function, size, deadline_seconds, preload
        self._free: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        self._all: set[_Worker] = set()
        self._lock = threading.Lock()
        self._closed = False
        # Workers start on first use: a verifier that never needs one costs nothing.
        for _ in range(size):
            self._free.put(None)

    def call(self, item: Any) -> Any:
        """The function's result for an item. Called from several threads, `size` items run concurrently.

        Raises:
            Late: past the deadline.
            Died: the process ended or ran out of memory.
            Failed: the function raised.
        """
        worker = self._free.get()
        try:
            if worker is None or not worker.is_alive():
                worker = self._replaced(worker)
            worker.wait_until_ready()
            return worker.call(item, self.deadline_seconds)
        except (Late, Died):
            # Start the replacement now, so that it is ready for the next item.
            worker = None if self._closed else self._replaced(worker)
            raise
        finally:
            self._free.put(worker)

    def close(self) -> None:
        """End all processes."""
        with self._lock:
            self._closed = True
            for worker in self._all:
                worker.kill()
            self._all.clear()

    @property
    def alive(self) -> int:
        """Number of live processes."""
        with self._lock:
            return sum(worker.is_alive() for worker in self._all)

    def _replaced(self, old: _Worker | None) -> _Worker:
        if old is not None:
            old.kill()
        with self._lock:
            if self._closed:
                raise WorkerUnavailable("the verifier is closed")
            if old is not None:
                self._all.discard(old)
            new = _Worker(self.function, self.deadline_seconds, self.preload)
            self._all.add(new)
        return new


class _Worker:
    """One process: a line in, a line out."""

    def __init__(self, function: str, deadline_seconds: float, preload: str) -> None:
        self.function = function
        arguments = f"{function!r}, {os.getpid()}, {deadline_seconds!r}, {preload!r}"
        code = f"from potstill.verify.workers import serve; serve({arguments})"
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-W", "ignore", "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # Some generators of reasoning-gym depend on the hash seed; numpy's threads would only compete.
            env={**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        if self.process.stdin is None or self.process.stdout is None:
            raise WorkerUnavailable("the worker's pipes were not made")
        self.input, self.output = self.process.stdin, self.process.stdout
        self.ready = False
        self.left = b""

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.input, self.output):
            try:
                pipe.close()
            except OSError:
                continue  # unread data for a process that is gone

    def wait_until_ready(self) -> None:
        if self.ready:
            return
        try:
            hello = json.loads(self._line(START_SECONDS))
        except Died:
            raise WorkerUnavailable(f"the worker of {self.function} does not start") from None
        if "failed" in hello:
            raise WorkerUnavailable(f"the worker of {self.function} does not start: {hello['failed']}")
        self.ready = True

    def call(self, item: Any, deadline_seconds: float) -> Any:
        line = json.dumps(item, ensure_ascii=True, default=str).encode() + b"\n"
        until = time.monotonic() + deadline_seconds
        if len(line) <= PIPE_BYTES:
            self._send(line)
        else:  # it does not fit into the pipe, and a stuck process would never drain it
            threading.Thread(target=self._send, args=(line,), daemon=True).start()
        result = json.loads(self._line(until - time.monotonic()))
        if "raised" in result:
            raise (Died if result["out_of_memory"] else Failed)(result["raised"])
        return result["returned"]

    def _send(self, line: bytes) -> None:
        try:
            self.input.write(line)
            self.input.flush()
        except (OSError, ValueError):
            return  # the process died; the reader of its answer reports that

    def _line(self, seconds: float) -> bytes:
        until = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self.output, selectors.EVENT_READ)
            while b"\n" not in self.left:
                left = until - time.monotonic()
                if left <= 0 or not selector.select(left):
                    raise Late(f"not judged within {seconds:.1f} s")
                piece = os.read(self.output.fileno(), 1 << 16)
                if not piece:
                    raise Died(f"its process ended (status {self.process.wait()})")
                self.left += piece
        line, _, self.left = self.left.partition(b"\n")
        return line


def serve(function: str, parent: int, deadline_seconds: float, preload: str = "") -> None:
    """Main loop of a worker, until its input ends. Only result lines reach standard output."""
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    limit = MEMORY_BYTES if most == resource.RLIM_INFINITY else min(most, MEMORY_BYTES)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value, default=str).encode() + b"\n")
        answers.flush()

    module, _, name = function.partition(":")
    try:
        if preload:
            importlib.import_module(preload)
        judge = getattr(importlib.import_module(module), name)
    except Exception as error:
        answer({"failed": f"{type(error).__name__}: {error}"})
        raise SystemExit(1) from error
    answer({"ready": True})
    for line in sys.stdin.buffer:
        _limit_cpu(deadline_seconds)
        try:
            result = {"returned": judge(json.loads(line))}
        except Exception as error:  # noqa: BLE001  # any failure concerns this item only
            result = {
                "raised": f"{type(error).__name__}: {error}"[:200],
                "out_of_memory": isinstance(error, MemoryError),
            }
        answer(result)


def _limit_cpu(deadline_seconds: float) -> None:
    """Limit the processor time of the next item: the kernel then ends this worker if its parent dies while it is stuck
    in C code."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    until = math.ceil(used.ru_utime + used.ru_stime + deadline_seconds) + 5
    resource.setrlimit(resource.RLIMIT_CPU, (until if most == resource.RLIM_INFINITY else min(until, most), most))


def _end_with(parent: int) -> None:
    """Exit when the parent has ended."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


# ---- verifiers that use workers ------------------------------------------------------------------------------

W = TypeVar("W", bound=WorkerSettings)


class WorkerVerifier(BaseVerifier[W]):
    """Base of the verifiers that judge in a worker. A worker that is late, dies, or raises gives `cannot_judge`.

    Raises:
        MissingExtra: the package that decides is not installed.
    """

    function: ClassVar[str]
    """What workers call, as `package.module:function`."""
    package: ClassVar[tuple[str, str, str]]
    """The package that decides: its import name, its name in the registry, and our extra that installs it."""

    def __init__(self, settings: W) -> None:
        super().__init__(settings)
        require(*self.package, f"the verifier {settings.kind!r}")
        self.pool = WorkerPool(
            self.function, size=settings.workers, deadline_seconds=settings.deadline_seconds, preload=self.package[0]
        )

    @property
    def version(self) -> str:
        return f"{self.contract}+{self.package[1]}-{metadata.version(self.package[1])}"

    def ask(self, item: Any) -> Any | Verdict:
        """The worker's result, or a `cannot_judge` verdict."""
        try:
            return self.pool.call(item)
        except Late as late:
            return self.cannot_judge(str(late))
        except (Died, Failed) as failed:
            return self.cannot_judge(f"judging it failed: {failed}")

    def close(self) -> None:
        self.pool.close()


def require(module: str, package: str, extra: str, needed_for: str) -> None:
    """Raise MissingExtra if a package is not installed. Does not import it."""
    if importlib.util.find_spec(module) is None:
        raise MissingExtra(package, extra, needed_for)

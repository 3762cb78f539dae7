"""Processes that judge one item at a time, each item under a hard deadline.

What is judged may loop for ever in C code, take all memory, or end the interpreter; no timer inside the process stops
all of that. So the deadline is kept from outside: a process that is late is killed and replaced, and the pool keeps its
size. Items and results are lines of JSON over pipes.
"""

from __future__ import annotations

import importlib
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
from typing import Any

START_SECONDS = 120.0
"""How long a process may take to start and import: on a busy machine `sympy` alone takes seconds."""

PIPE_BYTES = 1 << 15
"""What is written to a waiting process at once; a pipe holds twice as much."""

MEMORY_BYTES = 4 << 30
"""Address space of a worker."""


class Late(Exception):
    """The item was not judged before its deadline; its process is dead."""


class Died(Exception):
    """The process that judged the item ended."""


class Failed(Exception):
    """The function raised; its process goes on."""


class WorkerPool:
    """`size` processes that each call `function`, named `package.module:function`, on what they are sent.

    Args:
        function: takes one JSON value, returns one. Importing its module is not part of the deadline.
        deadline_seconds: for one item, counted from when it is sent to a process that is ready.

    Raises:
        RuntimeError: (on use) the processes do not start, with what they wrote; or the pool is closed.
    """

    def __init__(self, function: str, *, size: int = 1, deadline_seconds: float = 5.0) -> None:
        self.function, self.size, self.deadline_seconds = function, size, deadline_seconds
        self._free: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        self._all: set[_Worker] = set()
        self._lock = threading.Lock()
        self._closed = False
        # Started when first needed: a verifier that never comes to it costs nothing.
        for _ in range(size):
            self._free.put(None)

    def call(self, item: Any) -> Any:
        """What the function returns for an item. From several threads, `size` items run side by side.

        Raises:
            Late: past the deadline.
            Died: the process ended, by itself or for want of memory.
            Failed: the function raised.
        """
        worker = self._free.get()
        try:
            if worker is None or not worker.is_alive():
                worker = self._replaced(worker)
            worker.wait_until_ready()
            return worker.call(item, self.deadline_seconds)
        except (Late, Died):
            # The next one starts at once, so that it is ready when it is asked.
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
        """How many processes there are now."""
        with self._lock:
            return sum(worker.is_alive() for worker in self._all)

    def _replaced(self, old: _Worker | None) -> _Worker:
        if old is not None:
            old.kill()
        with self._lock:
            if self._closed:
                raise RuntimeError("the verifier is closed")
            if old is not None:
                self._all.discard(old)
            new = _Worker(self.function, self.deadline_seconds)
            self._all.add(new)
        return new


class _Worker:
    """One process: a line in, a line out."""

    def __init__(self, function: str, deadline_seconds: float) -> None:
        self.function = function
        code = f"from potstill.verify.workers import serve; serve({function!r}, {os.getpid()}, {deadline_seconds!r})"
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-W", "ignore", "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # Some generators of reasoning-gym depend on it; the threads of numpy would only take the processor away.
            env={**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        self.ready = False
        self.left = b""

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    continue  # a line that was never read: the process is gone

    def wait_until_ready(self) -> None:
        if self.ready:
            return
        try:
            hello = json.loads(self._line(START_SECONDS))
        except Died:
            raise RuntimeError(f"the worker of {self.function} does not start") from None
        if "failed" in hello:
            raise RuntimeError(f"the worker of {self.function} does not start: {hello['failed']}")
        self.ready = True

    def call(self, item: Any, deadline_seconds: float) -> Any:
        assert self.process.stdin is not None
        line = json.dumps(item, ensure_ascii=True, default=str).encode() + b"\n"
        until = time.monotonic() + deadline_seconds
        if len(line) <= PIPE_BYTES:
            self._send(line)
        else:  # the pipe does not hold it, and a process that is stuck would never empty it
            threading.Thread(target=self._send, args=(line,), daemon=True).start()
        result = json.loads(self._line(until - time.monotonic()))
        if "raised" in result:
            raise (Died if result["out_of_memory"] else Failed)(result["raised"])
        return result["returned"]

    def _send(self, line: bytes) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(line)
            self.process.stdin.flush()
        except (OSError, ValueError):
            return  # it died, or was killed: who waits for the answer hears of it

    def _line(self, seconds: float) -> bytes:
        assert self.process.stdout is not None
        until = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while b"\n" not in self.left:
                left = until - time.monotonic()
                if left <= 0 or not selector.select(left):
                    raise Late(f"not judged within {seconds:.1f} s")
                piece = os.read(self.process.stdout.fileno(), 1 << 16)
                if not piece:
                    raise Died(f"its process ended (status {self.process.wait()})")
                self.left += piece
        line, _, self.left = self.left.partition(b"\n")
        return line


def serve(function: str, parent: int, deadline_seconds: float) -> None:
    """What a worker does until its input ends. Only its own lines reach standard output."""
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
        judge = getattr(importlib.import_module(module), name)
    except Exception as error:
        answer({"failed": f"{type(error).__name__}: {error}"})
        raise SystemExit(1) from error
    answer({"ready": True})
    for line in sys.stdin.buffer:
        _limit_cpu(deadline_seconds)
        try:
            result = {"returned": judge(json.loads(line))}
        except Exception as error:  # noqa: BLE001  # whatever it is, the item is not judged
            result = {
                "raised": f"{type(error).__name__}: {error}"[:200],
                "out_of_memory": isinstance(error, MemoryError),
            }
        answer(result)


def _limit_cpu(deadline_seconds: float) -> None:
    """Should the parent be killed while this process is stuck where no other thread of it runs, the kernel ends it."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    until = math.ceil(used.ru_utime + used.ru_stime + deadline_seconds) + 5
    resource.setrlimit(resource.RLIMIT_CPU, (until if most == resource.RLIM_INFINITY else min(until, most), most))


def _end_with(parent: int) -> None:
    """A worker does not outlive who started it."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)

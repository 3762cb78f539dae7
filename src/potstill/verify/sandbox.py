"""Runs untrusted programs: isolated, limited, and killed at their deadline."""

from __future__ import annotations

import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Literal

from potstill.errors import RunError
from potstill.recipe.verify import SandboxSettings
from potstill.verify.isolation import (
    Limits,
    MemoryGroup,
    bare,
    bubblewrap,
    descendants,
    held_bytes,
    memory_group,
    unshare,
)

Method = Literal["bubblewrap", "unshare", "none"]
LOOK_SECONDS = 0.05
"""Interval between two samples of the memory of all processes, in seconds."""

PROBE_SECONDS = 10.0


@dataclass(frozen=True)
class Run:
    """Outcome of a run. `stopped` is the limit that it exceeded; empty if it ended by itself, with `status` (negative:
    the signal that ended it)."""

    status: int
    out: str
    err: str
    stopped: str
    seconds: float


@dataclass(frozen=True)
class Program:
    """A command, and the files in `/program`, by name."""

    command: Sequence[str]
    files: Mapping[str, str]


class Sandbox:
    """Runs programs. Safe to use from several threads.

    Raises:
        RunError: neither bubblewrap nor `unshare` works here, and the recipe does not say `unsafe: true`.
    """

    def __init__(self, settings: SandboxSettings) -> None:
        self.settings = settings
        self.method = choose(settings)
        self.python, self.readable = interpreter(settings.python)

    def run(self, program: Sequence[str], files: Mapping[str, str], stdin: str = "") -> Run:
        """Run a command in `/tmp` of a sandbox, with `files` in `/program`. Without a sandbox (`unsafe`), in a new
        folder with the files."""
        with tempfile.TemporaryDirectory(prefix="potstill-sandbox-") as made:
            given = Path(made) / "stdin"
            given.write_text(stdin, encoding="utf-8", errors="surrogatepass")
            command, cwd = self._prepared(Program(program, files), Path(made))
            with given.open("rb") as source, memory_group(_group_bytes(self.settings)) as group:
                return _watched(group.command(command), source.fileno(), self.settings, cwd=cwd, group=group)

    def run_pair(self, first: Program, second: Program) -> Run:
        """Run two programs, each in a sandbox, the standard output of one connected to the standard input of the other.
        The outcome is the first's, with its standard error only; both end together, and share the limits."""
        with (
            tempfile.TemporaryDirectory(prefix="potstill-sandbox-") as made,
            memory_group(_group_bytes(self.settings)) as group,
            ExitStack() as closing,
        ):
            commands = []
            for name, program in (("first", first), ("second", second)):
                (Path(made) / name).mkdir()
                commands.append(self._prepared(program, Path(made) / name))
            Path(made).chmod(0o711)
            to_first, from_second = os.pipe()
            to_second, from_first = os.pipe()
            other = subprocess.Popen(
                group.command(commands[1][0]),
                stdin=to_second,
                stdout=from_second,
                stderr=subprocess.DEVNULL,
                env=_environment(),
                cwd=commands[1][1],
                start_new_session=True,
            )
            closing.callback(_kill, other)
            os.close(to_second)
            os.close(from_second)
            command, cwd = commands[0]
            return _watched(group.command(command), to_first, self.settings, cwd, group, from_first, other)

    def _prepared(self, program: Program, made: Path) -> tuple[list[str], Path | None]:
        """The command that runs a program, and its working folder outside a sandbox."""
        folder = made / "program"
        folder.mkdir()
        for name, text in program.files.items():
            (folder / name).write_text(text, encoding="utf-8", errors="surrogatepass")
            (folder / name).chmod(0o644)
        made.chmod(0o711)
        folder.chmod(0o755)
        limits = _limits(self.settings)
        if self.method == "none":
            return bare([part.replace("/program", str(folder)) for part in program.command], limits), folder
        build = bubblewrap if self.method == "bubblewrap" else unshare
        return build(program.command, folder, self.readable, limits, root=os.geteuid() == 0), None


def _group_bytes(asked: SandboxSettings) -> int:
    """The limit of the control group: files in `/tmp` and `/dev/shm` are in memory and count too."""
    return (asked.memory_megabytes + 2 * asked.disk_megabytes) << 20


def _limits(asked: SandboxSettings) -> Limits:
    megabyte = 1 << 20
    return Limits(
        asked.memory_megabytes * megabyte, asked.disk_megabytes * megabyte, asked.processes, int(asked.wall_seconds) + 2
    )


def interpreter(chosen: Path | None) -> tuple[str, tuple[Path, ...]]:
    """An interpreter, and the folders that it needs beside the system's.

    Raises:
        RunError: there is none at that path.
    """
    if chosen is None:
        prefix = Path(sys.base_prefix).resolve()
        executable = getattr(sys, "_base_executable", None) or sys.executable
        return str(Path(executable).resolve()), _outside_system(prefix)
    if not chosen.exists():
        raise RunError("no interpreter here", where=str(chosen), fix="set sandbox.python to one, or leave it out")
    ask = "import sys; print(sys.prefix); print(sys.base_prefix)"
    done = subprocess.run([chosen, "-I", "-c", ask], capture_output=True, text=True, check=True)
    return str(chosen.absolute()), _outside_system(*(Path(p) for p in dict.fromkeys(done.stdout.split("\n")) if p))


def _outside_system(*prefixes: Path) -> tuple[Path, ...]:
    return tuple(p for p in prefixes if not p.is_relative_to("/usr"))


def choose(settings: SandboxSettings) -> Method:
    """The first method that works here.

    Raises:
        RunError: none does, and `unsafe` is not set; the message has the failure of each.
    """
    methods: tuple[Method, ...] = ("bubblewrap", "unshare") if settings.method == "auto" else (settings.method,)
    failures = {}
    for method in methods:
        failures[method] = why_not(method)
        if failures[method] is None:
            return method
    if settings.unsafe:
        return "none"
    raise RunError(
        "no sandbox for programs works here (" + "; ".join(f"{m}: {why}" for m, why in failures.items()) + ")",
        fix="apt-get install bubblewrap; or say unsafe: true, where nothing on the machine can be harmed",
    )


@cache
def why_not(method: Method) -> str | None:
    """Why a method does not work here; None if it does. Tried once, on a program that does nothing."""
    for tool in ("bwrap" if method == "bubblewrap" else "unshare", "prlimit", "setpriv"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    with tempfile.TemporaryDirectory(prefix="potstill-sandbox-") as made:
        Path(made).chmod(0o755)
        build = bubblewrap if method == "bubblewrap" else unshare
        limits = _limits(SandboxSettings())
        command = build(["/bin/sh", "-c", "exit 0"], Path(made), (), limits, root=os.geteuid() == 0)
        try:
            done = subprocess.run(
                command, env=_environment(), capture_output=True, text=True, timeout=PROBE_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            return f"did not end within {PROBE_SECONDS:g} s"
    last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
    return None if done.returncode == 0 else last


def _environment() -> dict[str, str]:
    """The environment of a program."""
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return {
        "PATH": path,
        "HOME": "/tmp",
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        **threads,
    }


def _watched(
    command: Sequence[str],
    stdin: int,
    asked: SandboxSettings,
    cwd: Path | None,
    group: MemoryGroup | None = None,
    stdout: int = subprocess.PIPE,
    beside: subprocess.Popen[bytes] | None = None,
) -> Run:
    """Run a command until it ends or exceeds a limit.

    Args:
        group: the control group that it enters.
        stdout: a descriptor for its standard output, which is then not kept.
        beside: another process that shares the limit on memory.
    """
    started = time.monotonic()
    process = subprocess.Popen(
        command,
        stdin=stdin,
        stdout=stdout,
        stderr=subprocess.PIPE,
        env=_environment(),
        cwd=cwd,
        start_new_session=True,
    )
    streams = {"out": process.stdout, "err": process.stderr}
    written = {name: bytearray() for name in streams}
    roots = [process.pid, *([beside.pid] if beside is not None else [])]
    try:
        if beside is not None:
            os.close(stdin)
            os.close(stdout)
        stopped = _read(process, {n: s for n, s in streams.items() if s is not None}, written, asked, started, roots)
    finally:
        _kill(process)
    if group is not None and group.exceeded():
        stopped = _too_much_memory(asked)
    texts = {name: bytes(data).decode("utf-8", errors="replace") for name, data in written.items()}
    return Run(process.wait(), texts["out"], texts["err"], stopped, time.monotonic() - started)


def _too_much_memory(asked: SandboxSettings) -> str:
    return f"its processes together took more than {asked.memory_megabytes} MB"


def _read(
    process: subprocess.Popen[bytes],
    streams: Mapping[str, IO[bytes]],
    written: dict[str, bytearray],
    asked: SandboxSettings,
    started: float,
    roots: Sequence[int],
) -> str:
    """Read its output until it ends or exceeds a limit. Returns the limit, or an empty text."""
    look = started + LOOK_SECONDS
    with selectors.DefaultSelector() as selector:
        for name, stream in streams.items():
            selector.register(stream, selectors.EVENT_READ, name)
        while selector.get_map():
            now = time.monotonic()
            if now - started >= asked.wall_seconds:
                return f"not done within {asked.wall_seconds:g} s"
            if now >= look:
                if held_bytes(roots) > asked.memory_megabytes << 20:
                    return _too_much_memory(asked)
                look = time.monotonic() + LOOK_SECONDS
            # After the program has ended, read only what is in the pipe: an orphan may hold it open.
            ended = process.poll() is not None
            wait = 0.0 if ended else max(0.0, min(look, started + asked.wall_seconds) - now)
            ready = selector.select(wait)
            if ended and not ready:
                break
            for key, _ in ready:
                piece = os.read(key.fd, 1 << 16)
                if not piece:
                    selector.unregister(key.fileobj)
                written[key.data] += piece
                if sum(map(len, written.values())) > asked.output_bytes:
                    del written[key.data][max(0, asked.output_bytes) :]
                    return f"wrote more than {asked.output_bytes} bytes"
    while process.poll() is None:  # it closed its output, but still runs
        now = time.monotonic()
        if now - started >= asked.wall_seconds:
            return f"not done within {asked.wall_seconds:g} s"
        if now >= look:
            if held_bytes(roots) > asked.memory_megabytes << 20:
                return _too_much_memory(asked)
            look = time.monotonic() + LOOK_SECONDS
        time.sleep(0.002)
    return ""


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the process group and every descendant, which may have left the group. Killing the first process of a PID
    namespace kills all others in it."""
    for pid in [*descendants(process.pid), process.pid]:
        with suppress(ProcessLookupError, PermissionError):  # it has ended
            os.kill(pid, signal.SIGKILL)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()

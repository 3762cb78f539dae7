"""Running a program that nobody has read: behind walls, within limits, and dead when its time is up."""

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
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from potstill.errors import RunError
from potstill.recipe.verify import SandboxSettings
from potstill.verify.isolation import Limits, bare, bubblewrap, unshare

Method = Literal["bubblewrap", "unshare", "none"]
LOOK_SECONDS = 0.05
"""How often the memory of all its processes together is looked at."""

PROBE_SECONDS = 10.0


@dataclass(frozen=True)
class Run:
    """What a run came to. `stopped` says why it was ended from outside; it is empty if it ended by itself, with
    `status` (negative: by that signal)."""

    status: int
    out: str
    err: str
    stopped: str
    seconds: float


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
        """Run a command in `/tmp` of the sandbox, with `files` in `/program`. Outside one (`unsafe`), in a fresh folder
        that holds the files."""
        asked = self.settings
        with tempfile.TemporaryDirectory(prefix="potstill-sandbox-") as made:
            folder = Path(made) / "program"
            folder.mkdir()
            for name, text in files.items():
                (folder / name).write_text(text, encoding="utf-8", errors="surrogatepass")
                (folder / name).chmod(0o644)
            Path(made).chmod(0o711)
            folder.chmod(0o755)
            given = Path(made) / "stdin"
            given.write_text(stdin, encoding="utf-8", errors="surrogatepass")
            limits = _limits(asked)
            if self.method == "none":
                command = bare([part.replace("/program", str(folder)) for part in program], limits)
            else:
                build = bubblewrap if self.method == "bubblewrap" else unshare
                command = build(program, folder, self.readable, limits, root=os.geteuid() == 0)
            with given.open("rb") as source:
                return _watched(command, source.fileno(), asked, cwd=folder if self.method == "none" else None)


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
        RunError: none does, and `unsafe` is not set; each one's failure is named.
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
    """All that a program is told of where it runs."""
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


def _watched(command: Sequence[str], stdin: int, asked: SandboxSettings, cwd: Path | None) -> Run:
    started = time.monotonic()
    process = subprocess.Popen(
        command,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=_environment(),
        cwd=cwd,
        start_new_session=True,
    )
    written: dict[str, bytearray] = {"out": bytearray(), "err": bytearray()}
    try:
        stopped = _read(process, written, asked, started)
    finally:
        _kill(process)
    texts = {name: bytes(data).decode("utf-8", errors="replace") for name, data in written.items()}
    return Run(process.wait(), texts["out"], texts["err"], stopped, time.monotonic() - started)


def _read(
    process: subprocess.Popen[bytes], written: dict[str, bytearray], asked: SandboxSettings, started: float
) -> str:
    """Take what it writes until it ends or oversteps a limit; says which."""
    assert process.stdout is not None and process.stderr is not None
    look = started + LOOK_SECONDS
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, "out")
        selector.register(process.stderr, selectors.EVENT_READ, "err")
        while selector.get_map():
            now = time.monotonic()
            if now - started >= asked.wall_seconds:
                return f"not done within {asked.wall_seconds:g} s"
            if now >= look:
                if _resident_bytes(process.pid) > asked.memory_megabytes << 20:
                    return f"its processes together took more than {asked.memory_megabytes} MB"
                # Who holds the pipe open after the program has ended is an orphan: not waited for.
                if process.poll() is not None:
                    break
                look = now + LOOK_SECONDS
            for key, _ in selector.select(min(look, started + asked.wall_seconds) - now):
                piece = os.read(key.fd, 1 << 16)
                if not piece:
                    selector.unregister(key.fileobj)
                written[key.data] += piece
                if sum(map(len, written.values())) > asked.output_bytes:
                    del written[key.data][max(0, asked.output_bytes) :]
                    return f"wrote more than {asked.output_bytes} bytes"
    while process.poll() is None:  # it closed its output, and goes on
        if time.monotonic() - started >= asked.wall_seconds:
            return f"not done within {asked.wall_seconds:g} s"
        if _resident_bytes(process.pid) > asked.memory_megabytes << 20:
            return f"its processes together took more than {asked.memory_megabytes} MB"
        time.sleep(0.002)
    return ""


def _kill(process: subprocess.Popen[bytes]) -> None:
    """All of it: the process group, and every descendant, which may have left the group. The first inside its process
    namespace takes all others with it."""
    for pid in [*descendants(process.pid), process.pid]:
        with suppress(ProcessLookupError, PermissionError):  # it has ended
            os.kill(pid, signal.SIGKILL)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def descendants(pid: int) -> list[int]:
    """The processes below one, nearest first."""
    found, look = [], [pid]
    while look:
        parent = look.pop(0)
        try:
            tasks = os.listdir(f"/proc/{parent}/task")
            children = [int(c) for t in tasks for c in Path(f"/proc/{parent}/task/{t}/children").read_text().split()]
        except (OSError, ValueError):
            continue  # it ended while we looked
        found += children
        look += children
    return found


def _resident_bytes(pid: int) -> int:
    pages = 0
    for child in descendants(pid):
        try:
            fields = Path(f"/proc/{child}/statm").read_text().split()
        except OSError:
            continue  # it ended while we looked
        # Without shared pages, which forks would count again and again.
        pages += int(fields[1]) - int(fields[2])
    return pages * os.sysconf("SC_PAGE_SIZE")

"""The command lines that put a program behind walls: bubblewrap, or `unshare` with limits.

What is inside either: the system's `/usr`, read-only; the interpreter, read-only; `/program`, read-only; and `/tmp` and
`/dev/shm`, in memory and of a limited size. Not inside: the network, the home folder, other processes, everything else.

Root is a special case. The limit on processes does not hold for root's own user id, not even in a user namespace; so
the program gets an id of its own, that nobody has and no other run shares, and no capability. Elsewhere the limit is
set inside the user namespace, where it counts that namespace's processes alone (Linux 5.14 and later).
"""

from __future__ import annotations

import json
import secrets
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from potstill.verify.syscall_filter import filter_bytes, filter_file

_BUILDING = Path(__file__).with_name("new_root.py").read_text()
SYSTEM = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
DEVICES = ("null", "zero", "full", "random", "urandom")
OPTIONAL = ("/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime")


@dataclass(frozen=True)
class Limits:
    """What a program may use: bytes of address space per process, bytes of files, processes, seconds of processor."""

    memory_bytes: int
    disk_bytes: int
    processes: int
    cpu_seconds: int


def bubblewrap(
    program: Sequence[str], folder: Path, readable: Sequence[Path], limits: Limits, *, root: bool
) -> list[str]:
    """The program behind bubblewrap.

    Args:
        folder: what becomes `/program`.
        readable: further folders, at their own paths.
        root: whether who runs it is root.
    """
    filtered = ["/bin/sh", "-c", 'exec "$@" 9< "$0"', filter_file()] if filter_file() else []
    command = [
        *filtered,
        shutil.which("bwrap") or "bwrap",
        *(["--seccomp", "9"] if filtered else []),
        "--unshare-ipc",
        "--unshare-pid",
        "--unshare-net",
        "--unshare-uts",
        "--unshare-cgroup-try",
    ]
    command += ["--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    if root:
        for capability in ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP"):
            command += ["--cap-add", capability]
    command += ["--ro-bind", "/usr", "/usr"]
    for name in SYSTEM:
        command += _system(name)
    for optional in OPTIONAL:
        command += ["--ro-bind-try", optional, optional]
    command += ["--proc", "/proc", "--dev", "/dev"]
    command += ["--perms", "1777", "--size", str(limits.disk_bytes), "--tmpfs", "/dev/shm", "--remount-ro", "/dev"]
    command += ["--perms", "1777", "--size", str(limits.disk_bytes), "--tmpfs", "/tmp"]
    for path in readable:
        for parent in _parents(path):
            command += ["--perms", "0755", "--dir", str(parent)]
        command += ["--ro-bind", str(path), str(path)]
    command += ["--ro-bind", str(folder), "/program", "--remount-ro", "/", "--chdir", "/tmp"]
    return [*command, "--", *(_as_nobody() if root else []), *_limited(limits), *program]


def unshare(program: Sequence[str], folder: Path, readable: Sequence[Path], limits: Limits, *, root: bool) -> list[str]:
    """The same walls by `unshare` and a script of ours that mounts (`new_root.py`), as text: whoever runs it
    may read neither our files nor the working folder."""
    command = ["unshare", "--mount", "--pid", "--net", "--ipc", "--uts", "--fork", "--kill-child"]
    if not root:
        command += ["--user", "--map-root-user"]
    inner = [*(_as_nobody() if root else _without_capabilities()), *_limited(limits), *program]
    # Any folder will do to build on: what is mounted over it is seen in this namespace only.
    new = "/mnt" if Path("/mnt").is_dir() else "/media"
    asked = {
        "new": new,
        "steps": list(_steps(new, folder, readable, limits)),
        "program": inner,
        "filter": filter_bytes().hex(),
    }
    return [*command, "--", sys.executable, "-I", "-S", "-c", _BUILDING, json.dumps(asked)]


def bare(program: Sequence[str], limits: Limits) -> list[str]:
    """No wall: limits on memory, files and processor time only."""
    return [*_limited(limits, processes=False), *program]


def _system(name: str) -> list[str]:
    path = Path("/") / name
    if path.is_symlink():
        return ["--symlink", str(path.readlink()), str(path)]
    return ["--ro-bind", str(path), str(path)] if path.is_dir() else []


def _parents(path: Path) -> list[Path]:
    return list(reversed(path.parents))[1:]


def _as_nobody() -> list[str]:
    # Nobody has an id in that range, and two runs hardly ever the same: neither can signal or count for the other.
    nobody = str((1 << 30) + secrets.randbelow(1 << 30))
    return ["setpriv", "--reuid", nobody, "--regid", nobody, "--clear-groups", *_without_capabilities()[1:]]


def _without_capabilities() -> list[str]:
    return ["setpriv", "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all", "--pdeathsig", "KILL"]


def _limited(limits: Limits, *, processes: bool = True) -> list[str]:
    command = ["prlimit", f"--as={limits.memory_bytes}", f"--fsize={limits.disk_bytes}", f"--cpu={limits.cpu_seconds}"]
    return [*command, "--core=0", "--nofile=256", *([f"--nproc={limits.processes}"] if processes else [])]


def _steps(new: str, folder: Path, readable: Sequence[Path], limits: Limits) -> Iterator[list[str]]:
    """What makes up the new root, in order."""
    size = f"size={limits.disk_bytes},mode=1777"
    # What lies below the place of the new root, or is the program's own, is bound from here.
    yield ["tmpfs", new, "size=1m,mode=755"]
    for path in (Path("/usr"), *(Path("/") / name for name in SYSTEM), *(Path(p) for p in OPTIONAL), *readable):
        if path.is_symlink() and path.parent == Path("/"):
            yield ["link", str(path.readlink()), f"{new}{path}"]
        elif path.exists():
            yield ["readonly", str(path), f"{new}{path}"]
    yield ["readonly", str(folder), f"{new}/program"]
    for device in DEVICES:
        yield ["bind", f"/dev/{device}", f"{new}/dev/{device}"]
    yield ["tmpfs", f"{new}/dev/shm", size]
    yield ["tmpfs", f"{new}/tmp", size]
    yield ["proc", f"{new}/proc"]

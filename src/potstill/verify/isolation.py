"""The command lines that put a program behind walls: bubblewrap, or `unshare` with limits.

What is inside either: the system's `/usr`, read-only; the interpreter, read-only; `/program`, read-only; and `/tmp` and
`/dev/shm`, in memory and of a limited size. Not inside: the network, the home folder, other processes, everything else.

Root is a special case. The limit on processes does not hold for root's own user id, not even in a user namespace; so
the program gets an id of its own, that nobody has and no other run shares, and no capability. Elsewhere the limit is
set inside the user namespace, where it counts that namespace's processes alone (Linux 5.14 and later).

A seccomp filter refuses what would lift a limit: memory that no process is charged for (`memfd_create`, System V
segments, io_uring), new namespaces, tracing, and the kernel's key rings. Architectures that are not listed have no
filter.
"""

from __future__ import annotations

import atexit
import json
import os
import platform
import secrets
import shutil
import struct
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

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


# ---- the seccomp filter ----------------------------------------------------------------------------------------------


_EPERM, _ENOSYS = 1, 38
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
_NEW_NAMESPACES = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET."""

_ARCHITECTURES = {
    "x86_64": (
        0xC000003E,
        {"clone": 56, "clone3": 435},
        # memfd_create memfd_secret unshare setns shmget msgget semget add_key request_key keyctl bpf userfaultfd
        # perf_event_open io_uring_setup/enter/register mount umount2 pivot_root ptrace process_vm_readv/writev
        (319, 447, 272, 308, 29, 68, 64, 248, 249, 250, 321, 323, 298, 425, 426, 427, 165, 166, 155, 101, 310, 311),
    ),
    "aarch64": (
        0xC00000B7,
        {"clone": 220, "clone3": 435},
        (279, 447, 97, 268, 194, 186, 190, 217, 218, 219, 280, 282, 241, 425, 426, 427, 40, 39, 41, 117, 270, 271),
    ),
}


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, value)


@cache
def filter_bytes() -> bytes:
    """The filter for this machine's processor; empty if there is none."""
    known = _ARCHITECTURES.get(platform.machine())
    if known is None:
        return b""
    architecture, cloning, refused = known
    refuse = _instruction(_RETURN, _ERRNO | _EPERM)
    program = [_instruction(_LOAD, _ARCHITECTURE), _instruction(_EQUAL, architecture, 1, 0), refuse]
    program += [_instruction(_LOAD, _NUMBER), _instruction(_AT_LEAST, 0x40000000, 0, 1), refuse]  # the x32 numbers
    for number in refused:
        program += [_instruction(_EQUAL, number, 0, 1), refuse]
    # Its arguments are in memory, which a filter cannot read; glibc goes on with clone.
    program += [_instruction(_EQUAL, cloning["clone3"], 0, 1), _instruction(_RETURN, _ERRNO | _ENOSYS)]
    program += [_instruction(_EQUAL, cloning["clone"], 0, 3), _instruction(_LOAD, _FIRST_ARGUMENT)]
    program += [_instruction(_ANY_BIT, _NEW_NAMESPACES, 0, 1), refuse, _instruction(_RETURN, _ALLOW)]
    return b"".join(program)


@cache
def filter_file() -> str:
    """A file that holds the filter and that anybody may read; it goes with this process. Empty without a filter."""
    if not filter_bytes():
        return ""
    handle, name = tempfile.mkstemp(prefix="potstill-filter-")
    with os.fdopen(handle, "wb") as file:
        file.write(filter_bytes())
    os.chmod(name, 0o644)
    atexit.register(_remove, name, os.getpid())
    return name


def _remove(name: str, owner: int) -> None:
    if os.getpid() == owner and os.path.exists(name):
        os.unlink(name)

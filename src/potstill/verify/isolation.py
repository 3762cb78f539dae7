"""Command lines that isolate a program: bubblewrap, or `unshare` with limits.

Visible inside: the system's `/usr`, the interpreter and `/program`, all read-only; `/tmp` and `/dev/shm`, in memory and
of limited size. Everything else is invisible: the network, the home folder, other processes.

Root is a special case. The kernel does not apply the limit on processes to root's own user id, not even in a user
namespace, so the program gets an unused id of its own and no capabilities. For other users the limit is set inside the
user namespace, where it counts that namespace's processes alone (Linux 5.14 and later).

A seccomp filter refuses system calls that would evade a limit: memory that is charged to no process (`memfd_create`,
System V segments, io_uring), new namespaces, tracing, and the kernel's key rings. On architectures that are not listed
there is no filter.

Memory is limited for all processes of a run together, shared pages included. Where a control group can be made, the
kernel counts every page and kills processes beyond the limit. In addition, the caller samples the memory of the
processes (`held_bytes`): private pages, and once each the in-memory files (`memfd`, shared anonymous mappings) that
they have mapped or open.
"""

from __future__ import annotations

import atexit
import json
import os
import platform
import re
import secrets
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_BUILDING = Path(__file__).with_name("new_root.py").read_text()
SYSTEM = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
DEVICES = ("null", "zero", "full", "random", "urandom")
OPTIONAL = ("/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime")


@dataclass(frozen=True)
class Limits:
    """Limits of a program: bytes of address space per process, bytes of files, processes, seconds of processor time."""

    memory_bytes: int
    disk_bytes: int
    processes: int
    cpu_seconds: int


def bubblewrap(
    program: Sequence[str], folder: Path, readable: Sequence[Path], limits: Limits, *, root: bool
) -> list[str]:
    """The command under bubblewrap.

    Args:
        folder: mounted as `/program`.
        readable: further folders, mounted at their own paths.
        root: whether the caller is root.
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
    """The same isolation by `unshare` and a script that mounts (`new_root.py`). The script is passed as text, since the
    program's user may not be able to read our files or the working folder."""
    command = ["unshare", "--mount", "--pid", "--net", "--ipc", "--uts", "--fork", "--kill-child"]
    if not root:
        command += ["--user", "--map-root-user"]
    inner = [*(_as_nobody() if root else _without_capabilities()), *_limited(limits), *program]
    # Any folder will do as mount point: the mounts are visible in this namespace only.
    new = "/mnt" if Path("/mnt").is_dir() else "/media"
    asked = {
        "new": new,
        "steps": list(_steps(new, folder, readable, limits)),
        "program": inner,
        "filter": filter_bytes().hex(),
    }
    return [*command, "--", sys.executable, "-I", "-S", "-c", _BUILDING, json.dumps(asked)]


def bare(program: Sequence[str], limits: Limits) -> list[str]:
    """No isolation: limits on memory, files and processor time only."""
    return [*_limited(limits, processes=False), *program]


def _system(name: str) -> list[str]:
    path = Path("/") / name
    if path.is_symlink():
        return ["--symlink", str(path.readlink()), str(path)]
    return ["--ro-bind", str(path), str(path)] if path.is_dir() else []


def _parents(path: Path) -> list[Path]:
    return list(reversed(path.parents))[1:]


def _as_nobody() -> list[str]:
    # No user has an id in that range, and two runs almost never share one: neither can signal the other or count
    # against its limit.
    nobody = str((1 << 30) + secrets.randbelow(1 << 30))
    return ["setpriv", "--reuid", nobody, "--regid", nobody, "--clear-groups", *_without_capabilities()[1:]]


def _without_capabilities() -> list[str]:
    return ["setpriv", "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all", "--pdeathsig", "KILL"]


def _limited(limits: Limits, *, processes: bool = True) -> list[str]:
    command = ["prlimit", f"--as={limits.memory_bytes}", f"--fsize={limits.disk_bytes}", f"--cpu={limits.cpu_seconds}"]
    return [*command, "--core=0", "--nofile=256", *([f"--nproc={limits.processes}"] if processes else [])]


def _steps(new: str, folder: Path, readable: Sequence[Path], limits: Limits) -> Iterator[list[str]]:
    """The mounts of the new root, in order."""
    size = f"size={limits.disk_bytes},mode=1777"
    # Sources below the mount point, or of the program, are bound from here.
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
    # Its arguments are in memory, which a filter cannot read; glibc falls back to clone.
    program += [_instruction(_EQUAL, cloning["clone3"], 0, 1), _instruction(_RETURN, _ERRNO | _ENOSYS)]
    program += [_instruction(_EQUAL, cloning["clone"], 0, 3), _instruction(_LOAD, _FIRST_ARGUMENT)]
    program += [_instruction(_ANY_BIT, _NEW_NAMESPACES, 0, 1), refuse, _instruction(_RETURN, _ALLOW)]
    return b"".join(program)


@cache
def filter_file() -> str:
    """The path of a world-readable file with the filter, deleted when this process exits. Empty without a filter."""
    if not filter_bytes():
        return ""
    handle, name = tempfile.mkstemp(prefix="potstill-filter-")
    with os.fdopen(handle, "wb") as file:
        file.write(filter_bytes())
    os.chmod(name, 0o644)
    atexit.register(_remove_file, name, os.getpid())
    return name


def _remove_file(name: str, owner: int) -> None:
    if os.getpid() == owner and os.path.exists(name):
        os.unlink(name)


# ---- limits on the memory of all processes of a run together ---------------------------------------------------------


_IN_MEMORY = re.compile(r"/dev/zero|/memfd:|/SYSV|/\[aio\]|/drm|/i915")
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ (\S+) (\d+)\s+(\S.*)")
_PRIVATE = re.compile(r"^Pss_Anon:\s+(\d+) kB", re.MULTILINE)


class MemoryGroup:
    """The control group of one run, or none."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def command(self, command: Sequence[str]) -> list[str]:
        """A command that enters the group first."""
        if self.folder is None:
            return list(command)
        return ["/bin/sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self.folder / "cgroup.procs"), *command]

    def exceeded(self) -> bool:
        """Whether the kernel has killed a process of the group for exceeding the memory limit."""
        if self.folder is None:
            return False
        name = "memory.events" if (self.folder / "memory.events").exists() else "memory.oom_control"
        with suppress(OSError):
            found = re.search(r"^oom_kill (\d+)$", (self.folder / name).read_text(), re.MULTILINE)
            return found is not None and int(found[1]) > 0
        return False


@contextmanager
def memory_group(limit_bytes: int) -> Iterator[MemoryGroup]:
    """A control group with a limit, if this process may create one; otherwise one without effect."""
    parent = _parent()
    folder = _made(parent, limit_bytes) if parent is not None else None
    try:
        yield MemoryGroup(folder)
    finally:
        if folder is not None:
            _remove_group(folder)


@cache
def _parent() -> Path | None:
    """The parent group in which we can create groups, tried once with a process that enters one; None if there is
    none."""
    for parent in _candidates():
        folder = _made(parent, 64 << 20)
        if folder is None:
            continue
        try:
            enter = ["/bin/sh", "-c", 'echo $$ > "$0"', str(folder / "cgroup.procs")]
            if subprocess.run(enter, capture_output=True, check=False).returncode == 0:
                return parent
        finally:
            _remove_group(folder)
    return None


def _candidates() -> Iterator[Path]:
    try:
        own = dict(line.strip().split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except (OSError, ValueError):
        return
    for _, place, kind, options, *_ in mounts:
        controllers = (
            "memory" if kind == "cgroup" and "memory" in options.split(",") else "" if kind == "cgroup2" else None
        )
        if controllers is None:
            continue
        path = next((p for names, p in own.items() if controllers in names.split(",")), "/")
        for parent in dict.fromkeys((Path(place + path), Path(place))):
            if parent.is_dir():
                yield parent


def _made(parent: Path, limit_bytes: int) -> Path | None:
    folder = parent / f"potstill-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        folder.mkdir()
        if not any((folder / name).exists() for name in ("memory.max", "memory.limit_in_bytes")):
            (parent / "cgroup.subtree_control").write_text("+memory")
        newer = (folder / "memory.max").exists()
        (folder / ("memory.max" if newer else "memory.limit_in_bytes")).write_text(str(limit_bytes))
        for name in ("memory.swap.max", "memory.memsw.limit_in_bytes"):
            with suppress(OSError):
                (folder / name).write_text("0" if name == "memory.swap.max" else str(limit_bytes))
    except OSError:
        with suppress(OSError):
            folder.rmdir()
        return None
    return folder


def _remove_group(folder: Path) -> None:
    """Remove a group; its last processes may take a moment to end."""
    for _ in range(200):
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.01)
        else:
            return


def held_bytes(roots: Iterable[int]) -> int:
    """Memory that processes and their descendants hold together. Pages of files on disk are not counted."""
    private, shared = 0, dict[tuple[str, str], int]()
    for root in roots:
        for pid in (root, *descendants(root)):
            with suppress(OSError, ValueError):  # it has ended meanwhile
                private += _private_bytes(pid)
                for key, size in _files_in_memory(pid):
                    shared[key] = max(size, shared.get(key, 0))
    return private + sum(shared.values())


def _private_bytes(pid: int) -> int:
    found = _PRIVATE.search(Path(f"/proc/{pid}/smaps_rollup").read_text())
    return 1024 * int(found[1]) if found else 0


def _files_in_memory(pid: int) -> Iterator[tuple[tuple[str, str], int]]:
    """Device, inode and bytes of the in-memory files that a process has mapped or open."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        found = _MAPPING.fullmatch(line)
        if found and _IN_MEMORY.match(found[5]):
            size = int(found[2], 16) - int(found[1], 16)
            with suppress(OSError):
                size = os.stat(f"/proc/{pid}/map_files/{found[1]}-{found[2]}").st_blocks * 512
            yield ("", found[4]), size
    with os.scandir(f"/proc/{pid}/fd") as opened:
        for one in opened:
            with suppress(OSError):
                if os.readlink(one.path).startswith("/memfd:"):
                    facts = os.stat(one.path)
                    yield ("", str(facts.st_ino)), facts.st_blocks * 512


def descendants(pid: int) -> list[int]:
    """The descendants of a process, nearest first."""
    found, look = [], [pid]
    while look:
        parent = look.pop(0)
        try:
            tasks = os.listdir(f"/proc/{parent}/task")
            children = [int(c) for t in tasks for c in Path(f"/proc/{parent}/task/{t}/children").read_text().split()]
        except (OSError, ValueError):
            continue  # it has ended meanwhile
        found += children
        look += children
    return found

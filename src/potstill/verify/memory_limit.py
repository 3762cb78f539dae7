"""Limits on the memory of all processes of a run together, shared pages included.

Where a control group can be made, the kernel counts every page and kills processes beyond the limit. In addition, the
caller samples the memory of the processes (`held_bytes`): private pages, and once each the in-memory files (`memfd`,
shared anonymous mappings) that they have mapped or open.
"""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

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
            _remove(folder)


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
            _remove(folder)
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


def _remove(folder: Path) -> None:
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

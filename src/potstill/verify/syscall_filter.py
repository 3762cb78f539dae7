"""The seccomp filter of sandboxed programs, as the bytes of a BPF program.

It refuses what would lift a limit: memory that no process is charged for (`memfd_create`, System V segments, io_uring),
new namespaces, tracing, and the kernel's key rings. An architecture that is not listed here has no filter.
"""

from __future__ import annotations

import atexit
import os
import platform
import struct
import tempfile
from functools import cache

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

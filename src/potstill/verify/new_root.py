"""Builds a new root and enters it: a script, run in a mount namespace of its own (`isolation.unshare`).

    python -I -S -c "$(cat new_root.py)" '{"new": "/mnt", "steps": [["tmpfs", "/mnt", "size=1m"], …], "program": […]}'

It makes system calls directly, since a process per mount takes ten times as long, and imports little of the standard
library, since its start-up time counts too. Any failure ends it; on success the program replaces it.
"""

import ctypes
import json
import os
import sys
import warnings  # noqa: F401 - `execvp` imports it, and by then the standard library is out of sight

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND = 1, 2, 4, 8, 32, 4096
MNT_DETACH = 2
PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
KEPT = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC

_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """mount(2)."""
    arguments = [None if one is None else os.fsencode(one) for one in (source, target, kind)]
    done = _libc.mount(*arguments, ctypes.c_ulong(flags), None if options is None else options.encode())
    _check(done, f"mount {source} {target}")


def bind(source: str, target: str, flags: int = 0) -> None:
    """Bind a folder or file, with `flags` (read-only, say)."""
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT))
    mount(source, target, None, MS_BIND)
    if flags:
        # Flags that another user namespace has locked must be given again; their bits are the same.
        mount(None, target, None, MS_REMOUNT | MS_BIND | flags | (os.statvfs(target).f_flag & KEPT))


def _check(done: int, what: str) -> None:
    if done != 0:
        number = ctypes.get_errno()
        sys.exit(f"{what}: {os.strerror(number)}")


def restrict(program: bytes) -> None:
    """Install a seccomp filter, if there is one, for this process and its descendants."""
    if not program:
        return

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]

    filtered = Program(len(program) // 8, program)
    none = ctypes.c_ulong(0)
    done = _libc.prctl(PR_SET_SECCOMP, ctypes.c_ulong(SECCOMP_MODE_FILTER), ctypes.byref(filtered), none, none)
    _check(done, "seccomp")


def main() -> None:
    """Build the root, enter it, and run the program."""
    os.umask(0o022)
    asked = json.loads(sys.argv[1])
    new = asked["new"]
    for step, *rest in asked["steps"]:
        if step == "tmpfs":
            place, options = rest
            os.makedirs(place, exist_ok=True)
            mount("tmpfs", place, "tmpfs", MS_NOSUID | MS_NODEV, options)
        elif step == "proc":
            os.makedirs(rest[0], exist_ok=True)
            mount("proc", rest[0], "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
        elif step == "link":
            os.symlink(rest[0], rest[1])
        elif step == "readonly":
            bind(rest[0], rest[1], MS_RDONLY | MS_NOSUID | MS_NODEV)
        else:
            bind(rest[0], rest[1])
    os.chdir(new)
    os.mkdir("old")
    _check(_libc.pivot_root(b".", b"old"), "pivot_root")
    os.chdir("/")
    _check(_libc.umount2(b"/old", MNT_DETACH), "umount /old")
    os.rmdir("/old")
    mount(None, "/", None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)
    os.chdir("/tmp")
    restrict(bytes.fromhex(asked["filter"]))
    os.execvp(asked["program"][0], asked["program"])


if __name__ == "__main__":
    main()

"""The most memory that a piece of work takes: resident in this process, and allocated on its GPUs.

No torch at import.
"""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_FORGET = "5"
"""Written to `/proc/self/clear_refs`, resets the peak of resident memory to its current value (proc(5))."""


@contextmanager
def watched() -> Iterator[dict[str, int]]:
    """The memory of the work within, in bytes, as entries of the mapping afterwards: `before` and `peak` of this
    process (where the system can reset its peak: Linux), and `gpu`, the peak of torch's allocations, if GPUs were used.

    Free pages of earlier work go back to the system first, so that they do not hide what is allocated anew. Watching
    within watched work spoils the outer peak.
    """
    found: dict[str, int] = {}
    gc.collect()
    with suppress(OSError, AttributeError):  # another C library has none
        ctypes.CDLL(None).malloc_trim(0)
    known = forget_peak()
    before = peak_resident()
    for number in _devices():
        sys.modules["torch"].cuda.reset_peak_memory_stats(number)
    try:
        yield found
    finally:
        if known:
            found |= {"before": before, "peak": peak_resident()}
        if devices := _devices():
            found["gpu"] = sum(map(sys.modules["torch"].cuda.max_memory_allocated, devices))


def most(memory: dict[str, int]) -> int | None:
    """What the work needed, of what `watched` found: on GPUs, or else in this process; None if it is not known."""
    return memory.get("gpu", memory.get("peak"))


def forget_peak() -> bool:
    """Reset the peak of this process to its current memory; False if the system cannot."""
    try:
        Path("/proc/self/clear_refs").write_text(_FORGET)
    except OSError:
        return False
    return True


def peak_resident() -> int:
    """Peak resident memory of this process in bytes, since `forget_peak` or its start."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak


def _devices() -> range:
    """The GPUs that torch has opened in this process."""
    torch: Any = sys.modules.get("torch")
    opened = torch is not None and hasattr(torch, "cuda") and torch.cuda.is_initialized()
    return range(torch.cuda.device_count() if opened else 0)

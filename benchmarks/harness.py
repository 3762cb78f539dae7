"""How every benchmark measures: each variant in a fresh process, rounds interleaved, medians over rounds.

A benchmark module runs in two roles: as the main program it lists variants and calls `run_interleaved`; as a worker
(`--worker JSON`) it measures one variant and prints one JSON object as its last line.

The result, the last line of a benchmark's output:

    {"benchmark": …, "machine": {…}, "rows": [{"variant": …, "seconds": …, "peak_bytes": …, …settings}], "ratios": {…},
     "claims": [{"name": …, "aim": …, "value": …, "met": …, "unit": …}]}
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.claims import Claim
from potstill.errors import MissingExtra

Row = dict[str, Any]
"""`variant`, `seconds` (median), `seconds_min`, `seconds_max`, `peak_bytes`, and the variant's settings."""


@dataclass(frozen=True)
class Variant:
    """One measured variant. `settings` are passed to the worker and appear in the row."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    rounds: int | None = None
    """Number of rounds that it takes part in; None: all."""


class PeakMemory:
    """Peak memory in bytes, above the memory at `start`.

    On the CPU it is resident memory: the high-water mark is reset through `/proc/self/clear_refs`, and free heap pages
    are returned first, since allocations from them would not be seen. On CUDA it is torch's allocated memory.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._start_bytes = 0

    def start(self) -> None:
        """Set the baseline to the current memory."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self._start_bytes = torch.cuda.memory_allocated(self.device)
        elif can_measure_resident_peak():
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
            self._start_bytes = _resident_bytes("VmRSS")

    def bytes(self) -> int | None:
        """The peak since `start`; None if this system cannot measure it."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self._start_bytes
        if can_measure_resident_peak():
            return _resident_bytes("VmHWM") - self._start_bytes
        return None


def can_measure_resident_peak() -> bool:
    """Whether the high-water mark of the resident set can be read and reset (Linux with glibc)."""
    return os.access("/proc/self/clear_refs", os.W_OK) and platform.libc_ver()[0] == "glibc"


def _resident_bytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}")


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """Wall time of one call, until the device has finished."""
    _synchronize(device)
    start = time.perf_counter()
    call()
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def machine(device: torch.device) -> dict[str, Any]:
    """Description of the machine; call before measuring. `load_before` is the load average of the last minute: above
    0.5 or so, other work made the times too long."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    extensions = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags]
    return " ".join([names[0] if names else platform.processor(), *extensions])


def has_peer(package: str, needed_for: str) -> bool:
    """Whether a package to compare with is installed; if not, print the install line."""
    if find_spec(package):
        return True
    say(str(MissingExtra(package, "peers", needed_for)))
    return False


def run_interleaved(
    module: str, variants: Sequence[Variant], rounds: int, *, timeout_seconds: float = 1800
) -> list[Row]:
    """Measure every variant once per round, each time in a fresh process, and return a row per variant.

    A worker's object holds `seconds` (a list, one per timed call), `peak_bytes`, and further fields of the row. The
    figure of a round is the median of its calls; that of the row is the median over rounds.

    Raises:
        RuntimeError: a worker failed; with the end of its output.
    """
    taken: dict[str, list[Row]] = {v.name: [] for v in variants}
    for round_ in range(rounds):
        for variant in variants:
            if variant.rounds is None or round_ < variant.rounds:
                result = _run_worker(module, variant, timeout_seconds)
                taken[variant.name].append(result)
                say(f"round {round_ + 1}/{rounds}  {variant.name}: {statistics.median(result['seconds']):.3f} s")
    return [_row(variant, taken[variant.name]) for variant in variants]


def _run_worker(module: str, variant: Variant, timeout_seconds: float) -> Row:
    asked = json.dumps({"variant": variant.name, **variant.settings})
    command = [sys.executable, "-m", module, "--worker", asked]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=timeout_seconds, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{variant.name} failed with exit code {done.returncode}:\n{done.stderr[-2000:]}")
    result: Row = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def _row(variant: Variant, results: Sequence[Row]) -> Row:
    per_round = [statistics.median(result["seconds"]) for result in results]
    peaks = [result["peak_bytes"] for result in results if result["peak_bytes"] is not None]
    measured = {
        "variant": variant.name,
        "seconds": round(statistics.median(per_round), 6),
        "seconds_min": round(min(min(result["seconds"]) for result in results), 6),
        "seconds_max": round(max(max(result["seconds"]) for result in results), 6),
        "peak_bytes": int(statistics.median(peaks)) if peaks else None,
        "processes": len(results),
    }
    others = {k: v for k, v in results[-1].items() if k not in ("seconds", "peak_bytes")}
    return {**measured, **variant.settings, **others}


def ratio(rows: Sequence[Row], over: str, under: str, key: str = "seconds") -> float | None:
    """Ratio of the medians of two variants; None if one was not measured."""
    found: dict[str, float] = {row["variant"]: row[key] for row in rows}
    return round(found[over] / found[under], 3) if found.get(over) and found.get(under) else None


def print_result(
    benchmark: str,
    about: Mapping[str, Any],
    rows: Sequence[Row],
    ratios: Mapping[str, float | None],
    *,
    only_json: bool,
    claims: Sequence[Claim],
) -> None:
    """Print a table (unless `only_json`), and the JSON object as the last line. Ratios that are None are left out.

    `about` is the result of `machine`, from before the measurements.
    """
    present = {name: value for name, value in ratios.items() if value is not None}
    if not only_json:
        for row in rows:
            peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:8.0f} MiB"
            spread = f"({row['seconds_min']:.3f} to {row['seconds_max']:.3f})"
            print(f"{row['variant']:32} {row['seconds']:8.3f} s {spread:20} {peak}")
        for name, value in present.items():
            print(f"{name:32} {value:8.3f}")
        for claim in claims:
            print(f"{claim['name']} {claim['aim']} {claim['unit']}: {'met' if claim['met'] else 'NOT MET'}")
    report = {
        "benchmark": benchmark,
        "machine": about,
        "rows": list(rows),
        "ratios": present,
        "claims": list(claims),
    }
    print(json.dumps(report, ensure_ascii=False), flush=True)


class KeptRows:
    """Finished rows of a campaign, one JSON object a line: a campaign that was cut goes on with the others.

    Args:
        path: the file, appended to; None keeps nothing.
        settings: that rows depend on. Rows of other settings, and incomplete lines, are ignored.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any]) -> None:
        self._path, self._settings = path, json.loads(json.dumps(settings))
        self._rows: dict[str, Row] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path is not None and path.exists() else ():
            try:
                kept = json.loads(line)
            except ValueError:
                continue
            if kept["settings"] == self._settings:
                self._rows[kept["name"]] = kept["row"]

    def row(self, name: str, made: Callable[[], Row]) -> Row:
        """The row of this name, made and kept unless the file has it."""
        if name not in self._rows:
            self._rows[name] = made()
            if self._path is not None:
                with self._path.open("a", encoding="utf-8") as file:
                    # Begin a new line, even after an incomplete one.
                    file.write("\n" + json.dumps({"settings": self._settings, "name": name, "row": self._rows[name]}))
        return self._rows[name]


def say(line: str) -> None:
    """Print progress to standard error: standard output is for the result."""
    print(line, file=sys.stderr, flush=True)

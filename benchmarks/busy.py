"""Training steps beside one busy process per core, against the same steps on an idle machine.

    python -m benchmarks.busy --json

OpenMP's threads spin while they wait for each other. On a busy machine a spinning thread occupies the core that the
awaited thread needs, and times grow far more than the load; potstill therefore sets `OMP_WAIT_POLICY=PASSIVE` before
torch is loaded. The steps are those of `benchmarks.train_step` in float32, with torch's default number of threads.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import potstill  # noqa: F401 - before torch: it says how OpenMP's threads wait
from benchmarks.claims import Aim, claims_of, command_line

MODULE = "benchmarks.busy"
AIMS = [Aim("busy / idle", "×", most=2.5)]


@contextmanager
def busy_cores(processes: int) -> Iterator[None]:
    """The given number of processes that compute without end."""
    made = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in made:
            process.kill()
            process.wait()


def measure(settings: Mapping[str, Any]) -> dict[str, Any]:
    """One variant, in this process."""
    from benchmarks import train_step

    with busy_cores(int(settings["busy"])):
        row = train_step.measure(settings)
    return {"seconds": row["seconds"], "peak_bytes": None, "wait_policy": os.environ.get("OMP_WAIT_POLICY", "")}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print; the last line is one JSON object."""
    parser = command_line(MODULE, __doc__, workers=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="timed steps, after one to warm up")
    options = parser.parse_args(arguments)
    if options.worker:
        print(json.dumps(measure(json.loads(options.worker))), flush=True)
        return

    import torch

    from benchmarks import train_step
    from benchmarks.harness import Variant, machine, print_result, ratio, run_interleaved

    about, batch = machine(torch.device("cpu")), train_step.recipe_batch_size()
    os.environ.pop("OMP_NUM_THREADS", None)
    with tempfile.TemporaryDirectory() as folder:
        train_step.prepare(Path(folder), options.steps + 1, batch)
        shared = {"folder": folder, "batch_size": batch, "device": "cpu", "by": "ours", "dtype": "float32"}
        cores = len(os.sched_getaffinity(0))
        variants = [Variant("idle", {**shared, "busy": 0}), Variant("busy", {**shared, "busy": cores})]
        rows = run_interleaved(MODULE, variants, options.rounds)
    ratios = {"busy / idle": ratio(rows, "busy", "idle")}
    print_result("busy", about, rows, ratios, only_json=options.json, claims=claims_of(AIMS, ratios))


if __name__ == "__main__":
    main()

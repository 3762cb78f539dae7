"""Latencies that a person or a run waits for: the help text, a loaded model, a stopped program.

    python -m benchmarks.promptness --json

Wall-clock times of one process at a time; run it on an idle machine. A figure whose sandbox or model is not available
has no value.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from benchmarks.claims import Aim, claims_of, command_line

MODULE = "benchmarks.promptness"
SLOW_WORKER = Path(__file__).parents[1] / "tests" / "verify"
DEADLINE_SECONDS = 0.5

AIMS = [
    Aim("potstill --help", "s", most=0.4),
    Aim("SmolLM2-135M and its tokenizer, from the cache", "s", most=2.0),
    Aim("sandbox by bubblewrap, beyond the program", "ms", most=40.0),
    Aim("sandbox by unshare, beyond the program", "ms", most=40.0),
    Aim("a program, after its time is up", "s", most=1.0),
    Aim("a verifier that hangs, after its deadline", "s", most=1.0),
]


def timed(work: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def help_seconds() -> float:
    """Median of five, after one that fills the disk cache."""
    command = [sys.executable, "-m", "potstill.cli", "--help"]
    taken = [timed(lambda: subprocess.run(command, check=True, capture_output=True)) for _ in range(6)]
    return statistics.median(taken[1:])


def model_seconds() -> float:
    """Load the real model in a fresh process; imports are not counted."""
    code = (
        "import time; from potstill.console import Console; from potstill.models import resolve\n"
        "from potstill.models.load import load_model, load_tokenizer; import transformers.models.llama.modeling_llama\n"
        "resolve('smollm2-135m-instruct', console=Console('quiet')); started = time.perf_counter()\n"
        "source = resolve('smollm2-135m-instruct', console=Console('quiet'))\n"
        "load_model(source, dtype='float32'), load_tokenizer(source); print(time.perf_counter() - started)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def sandbox_overhead_ms(method: Literal["bubblewrap", "unshare"]) -> float | None:
    """Median over 20 pairs of runs inside and outside the sandbox; the minimum of three, since other load only adds
    time."""
    from potstill.recipe.verify import SandboxSettings
    from potstill.verify.sandbox import Sandbox, why_not

    if why_not(method) is not None:
        return None
    box = Sandbox(SandboxSettings(method=method))
    inside = [box.python, "-I", "/program/main.py"]
    outside = [box.python, "-I", "-c", "pass"]

    def pair() -> float:
        walled = timed(lambda: box.run(inside, {"main.py": "pass"}))
        return walled - timed(lambda: subprocess.run(outside, check=True, capture_output=True, env={}))

    pair()
    return 1000 * min(statistics.median(pair() for _ in range(20)) for _ in range(3))


def sandbox_late_seconds() -> float | None:
    """Time from a looping program's wall-time limit until it is gone."""
    from potstill.errors import RunError
    from potstill.recipe.verify import SandboxSettings
    from potstill.verify.sandbox import Sandbox

    try:
        box = Sandbox(SandboxSettings(wall_seconds=1.0))
    except RunError:
        return None
    done = box.run([box.python, "-I", "/program/main.py"], {"main.py": "while True: pass"})
    return done.seconds - 1.0


def worker_late_seconds() -> float:
    """Time from a worker's deadline, while it hangs in C, until it is replaced."""
    from contextlib import suppress

    from potstill.verify.workers import Late, WorkerPool

    sys.path.insert(0, str(SLOW_WORKER))
    pool = WorkerPool("slow_worker:obey", size=1, deadline_seconds=DEADLINE_SECONDS)
    try:
        pool.call("warm")

        def hang() -> None:
            with suppress(Late):
                pool.call("hang in C")

        return timed(hang) - DEADLINE_SECONDS
    finally:
        pool.close()


MEASURES: Mapping[str, Callable[[], float | None]] = {
    AIMS[0].name: help_seconds,
    AIMS[1].name: model_seconds,
    AIMS[2].name: lambda: sandbox_overhead_ms("bubblewrap"),
    AIMS[3].name: lambda: sandbox_overhead_ms("unshare"),
    AIMS[4].name: sandbox_late_seconds,
    AIMS[5].name: worker_late_seconds,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print; the last line is one JSON object."""
    parser = command_line(MODULE, __doc__)
    parser.add_argument("--only", nargs="+", type=int, metavar="N", help="only these aims, by number from 0")
    options = parser.parse_args(arguments)

    from benchmarks.harness import say

    values: dict[str, float | None] = {}
    for number, (name, measure) in enumerate(MEASURES.items()):
        if options.only is None or number in options.only:
            found = measure()
            values[name] = None if found is None else round(found, 3)
            say(f"{name}: {'not measured' if found is None else f'{found:.3f} {AIMS[number].unit}'}")
    result: dict[str, Any] = {"benchmark": "promptness", "machine": _machine(), "claims": claims_of(AIMS, values)}
    print(json.dumps(result, ensure_ascii=False), flush=True)


def _machine() -> Mapping[str, Any]:
    import torch

    from benchmarks.harness import machine

    return machine(torch.device("cpu"))


if __name__ == "__main__":
    main()

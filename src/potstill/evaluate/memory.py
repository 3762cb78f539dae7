"""Peak memory of one model over one pass, in a process of its own.

On a CUDA device it is what the model's tensors took there at most. Else it is the most that the whole process had in
memory (Python and torch included, some hundred MiB) from when the model had been loaded; where the system cannot
forget an earlier peak (outside Linux, and in some containers), loading counts too, which is said.

    python -m potstill.evaluate.memory < request.json      prints one JSON object
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.errors import ModelError
from potstill.evaluate.compared_models import ComparedModel
from potstill.teachers.opening import Dtype

if TYPE_CHECKING:
    from potstill.evaluate.passes import Work

_FORGET = "5"
"""What `/proc/self/clear_refs` takes to set the peak of resident memory back to what it is now (proc(5))."""


@dataclass(frozen=True)
class Peak:
    """Peak memory, and what it is of, in words."""

    bytes: int
    of: str


def peak_of(model: ComparedModel, work: Work, dtype: Dtype) -> Peak:
    """Peak memory of one model over one pass.

    Raises:
        ModelError: the process did not survive it.
    """
    kind, asked = type(work).__name__, {**asdict(work)}
    if "file" in asked:
        asked["file"] = str(asked["file"])
    request = {"model": model.to_dict(), "kind": kind, "work": asked, "dtype": dtype}
    # The package need not be installed: whoever found this file finds it again.
    package_root = str(Path(__file__).parents[2])
    path = os.pathsep.join([package_root, *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "potstill.evaluate.memory"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    if done.returncode != 0:
        why = done.stderr.strip().splitlines()[-1:] or [f"it ended with {done.returncode} (-9: out of memory)"]
        raise ModelError(
            f"peak memory of {model.name} could not be measured: {why[0]}",
            where=model.where,
            fix="free some memory, or set evaluate.speed: false",
        )
    return Peak(**json.loads(done.stdout.splitlines()[-1]))


def _measure(request: dict[str, Any]) -> Peak:
    import torch

    from potstill.evaluate.passes import Forward, Writing, run_once

    asked = request["work"]
    work: Work
    if request["kind"] == "Writing":
        work = Writing(tuple(asked["prompt"]), asked["new_tokens"])
    else:
        work = Forward(Path(asked["file"]), asked["examples"])
    model = ComparedModel.from_dict(request["model"]).open(request["dtype"])
    if next(model.modules[0].parameters()).device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        run_once(model, work)
        on_devices = sum(map(torch.cuda.max_memory_allocated, range(torch.cuda.device_count())))
        return Peak(on_devices, "its tensors on the device")
    forgotten = forget_peak()
    run_once(model, work)
    of = "a process of its own, Python and torch included"
    return Peak(peak_resident(), of if forgotten else f"{of}, and the loading of the weights")


def forget_peak() -> bool:
    """Set the peak of this process back to what it has now; False where the system cannot."""
    try:
        Path("/proc/self/clear_refs").write_text(_FORGET)
    except OSError:
        return False
    return True


def peak_resident() -> int:
    """The most that this process had in memory, in bytes, since `forget_peak` or its beginning."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak


if __name__ == "__main__":
    print(json.dumps(asdict(_measure(json.load(sys.stdin)))))

"""Peak memory of one model while it reads and writes, in a process of its own.

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
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from potstill.errors import ModelError
from potstill.evaluate.measured import Dtype, Measured

_FORGET = "5"
"""What `/proc/self/clear_refs` takes to set the peak of resident memory back to what it is now (proc(5))."""


@dataclass(frozen=True)
class Peak:
    """Peak memory, and what it is of, in words."""

    bytes: int
    of: str


def peak_of(model: Measured, prompt: Sequence[int], new_tokens: int, dtype: Dtype) -> Peak:
    """Peak memory of one model over one pass.

    Raises:
        ModelError: the process did not survive it.
    """
    request = {
        "name": model.name,
        "source": {**asdict(model.source), "path": str(model.source.path)},
        "opened_with": dict(model.opened_with),
        "prompt": list(prompt),
        "new_tokens": new_tokens,
        "dtype": dtype,
    }
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
            where=str(model.source.path),
            mend="free some memory, or set evaluate.speed: false",
        )
    return Peak(**json.loads(done.stdout.splitlines()[-1]))


def _measure(request: dict[str, Any]) -> Peak:
    import torch

    from potstill.evaluate.passes import one_pass
    from potstill.models.folder import ModelSource

    source = {**request["source"], "path": Path(request["source"]["path"]), "notes": ()}
    model = Measured(request["name"], ModelSource(**source), request["opened_with"]).open(request["dtype"])
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        one_pass(model, request["prompt"], request["new_tokens"])
        on_devices = sum(map(torch.cuda.max_memory_allocated, range(torch.cuda.device_count())))
        return Peak(on_devices, "its tensors on the device")
    forgotten = forget_peak()
    one_pass(model, request["prompt"], request["new_tokens"])
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

"""Rates and peak memory of models, measured on the same machine.

Rates: for a model that writes text, prefill and decode of one sequence with a cache (`Writing`); for all others,
examples per second of one batch, forward only (`Forward`). The models are in memory together and take turns within
each repetition, in alternating order, so that other load on the machine affects all of them. One repetition before the
first warms up and is not counted. Slow passes get fewer repetitions.

Peak memory: of one model over one pass, in a process of its own. On a CUDA device it is the peak of the model's tensors
there. Elsewhere it is the peak of the whole process (Python and torch included, some hundred MiB) after the model was
loaded; if the system cannot reset an earlier peak (outside Linux, and in some containers), loading counts too, and the
page says so.

    python -m potstill.evaluate.speed < request.json      prints one JSON object
"""

from __future__ import annotations

import inspect
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from potstill.console import Console, Progress
from potstill.errors import ModelError
from potstill.evaluate.compared_models import ComparedModel
from potstill.evaluate.held_out import HeldOut
from potstill.measures import Speed
from potstill.models.load import has_fast_bf16, pick_device
from potstill.peak import forget_peak, peak_resident
from potstill.tasks import SPECS
from potstill.teachers.base import OpenTeacher
from potstill.teachers.opening import Dtype

PROMPT_TOKENS, NEW_TOKENS = 256, 32
TEXTS_AT_ONCE, IMAGES_AT_ONCE = 32, 256
MOST_REPETITIONS, LEAST_REPETITIONS, ENOUGH_SECONDS = 5, 3, 25.0
"""No repetition begins after `ENOUGH_SECONDS` if there are `LEAST_REPETITIONS`."""

LEAST_SECONDS = 0.25
"""Minimum time of one measurement of examples per second: shorter passes are repeated, since one pass of a small model
is mostly noise."""

_MOST_PASSES = 200


@dataclass(frozen=True)
class Writing:
    """A prompt to read, and the number of tokens to write after it."""

    prompt: tuple[int, ...]
    new_tokens: int

    def rates(self, model: OpenTeacher) -> dict[str, float]:
        """Tokens per second: `prefill` of the prompt, `decode` of the written tokens."""
        seconds = one_pass(model.modules[0], self.prompt, self.new_tokens)
        return {"prefill": len(self.prompt) / seconds.prefill, "decode": self.new_tokens / seconds.decode}


@dataclass(frozen=True)
class Forward:
    """A batch of examples, in a safetensors file, by the names of model inputs: `input_ids` and `attention_mask`
    [B,T], or `pixel_values` [B,…]."""

    file: Path
    examples: int

    def inputs(self, device: torch.device) -> dict[str, Tensor]:
        """The batch, on a device."""
        return {name: column.to(device) for name, column in load_file(self.file).items()}

    def rates(self, model: OpenTeacher) -> dict[str, float]:
        """`examples` per second, over as many passes as take `LEAST_SECONDS`."""
        inputs = self.inputs(_device(model.modules[0]))
        first = forward_seconds(model, inputs, 1)
        passes = max(1, min(_MOST_PASSES, math.ceil(LEAST_SECONDS / max(first, 1e-9))))
        return {"examples": passes * self.examples / forward_seconds(model, inputs, passes)}


Work = Writing | Forward


@dataclass(frozen=True)
class Seconds:
    """Seconds of one pass: to read the prompt, and to write the tokens after it one by one."""

    prefill: float
    decode: float


def run_once(model: OpenTeacher, work: Work) -> None:
    """One pass, not timed."""
    if isinstance(work, Writing):
        one_pass(model.modules[0], work.prompt, work.new_tokens)
    else:
        forward_seconds(model, work.inputs(_device(model.modules[0])), 1)


def one_pass(model: Any, prompt: tuple[int, ...], new_tokens: int) -> Seconds:
    """Read a prompt, then write greedily with a cache, token by token, ignoring end tokens."""
    ids = torch.tensor([list(prompt)], device=model.device)
    # As in generation: logits of the last position only, if the model supports it.
    last_only: dict[str, Any] = {}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        last_only["logits_to_keep"] = 1
    with torch.inference_mode():
        _wait(model)
        begun = time.perf_counter()
        out = model(input_ids=ids, use_cache=True, **last_only)
        token = out.logits[:, -1:].argmax(-1)
        _wait(model)
        read = time.perf_counter()
        for _ in range(new_tokens):
            out = model(input_ids=token, past_key_values=out.past_key_values, use_cache=True)
            token = out.logits[:, -1:].argmax(-1)
        _wait(model)
    return Seconds(read - begun, time.perf_counter() - read)


def forward_seconds(model: OpenTeacher, inputs: Mapping[str, Tensor], passes: int) -> float:
    """Seconds for a number of passes over a batch; all members of an ensemble run, one after the other."""
    with torch.inference_mode():
        _wait(model.modules[0])
        begun = time.perf_counter()
        for _ in range(passes):
            for module in model.modules:
                _call(module, inputs)
        _wait(model.modules[0])
    return time.perf_counter() - begun


def _call(model: nn.Module, inputs: Mapping[str, Tensor]) -> None:
    if isinstance(model, PreTrainedModel):
        dtype = model.dtype
        model(**{name: column.to(dtype) if column.is_floating_point() else column for name, column in inputs.items()})
    else:
        dtype = next(model.parameters()).dtype
        model(*(column.to(dtype) if column.is_floating_point() else column for column in inputs.values()))


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _wait(model: nn.Module) -> None:
    """Wait for the accelerator, whose work is asynchronous, before reading a clock."""
    device = _device(model)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def speed_dtype(model: ComparedModel) -> Dtype:
    """The precision of the rates, the same for all models: bf16 if the device multiplies in it natively."""
    return "bfloat16" if has_fast_bf16(pick_device(model.first.device)) else "float32"


def writing_of(held_out: HeldOut, positions: int | None = None) -> Writing:
    """A prompt of PROMPT_TOKENS real tokens; fewer if `positions` leave no room to write after them."""
    tokens = PROMPT_TOKENS if positions is None else min(PROMPT_TOKENS, positions - NEW_TOKENS)
    return Writing(tuple(_tokens(held_out, tokens)), NEW_TOKENS)


def forward_of(held_out: HeldOut, file: Path) -> Forward:
    """A batch of real examples, written to a file: TEXTS_AT_ONCE rows of maximum length without padding, or
    IMAGES_AT_ONCE images. The data are repeated if they run out."""
    if SPECS[held_out.task].reads_images:
        rows = list(islice(cycle(held_out.rows), IMAGES_AT_ONCE))
        inputs = {"pixel_values": held_out.collate(rows)["pixel_values"].contiguous()}
    else:
        ids = torch.tensor(_tokens(held_out, TEXTS_AT_ONCE * held_out.max_length)).view(TEXTS_AT_ONCE, -1)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(inputs, file)
    return Forward(file, len(next(iter(inputs.values()))))


def _tokens(held_out: HeldOut, count: int) -> list[int]:
    """The rows' tokens, joined, and repeated if they run out."""
    return list(islice(cycle([token for row in held_out.rows for token in row.input_ids]), count))


@dataclass(frozen=True)
class Rates:
    """The rates of each model by name, the number of repetitions, and what peak memory covers, in words."""

    speeds: Mapping[str, Speed]
    repetitions: int
    peak_of: str


def measure_speed(models: Sequence[ComparedModel], work: Work, dtype: Dtype, console: Console) -> Rates:
    """Rates and peak memory of each model.

    Args:
        models: usually teacher and student.
        work: one pass, the same for all.
        dtype: precision of all of them.
        console: shows progress.

    Raises:
        ModelError: a model cannot be opened in this precision, or there is not enough memory.
    """
    with console.task("peak memory", total=len(models), unit="models") as task:
        peaks = {}
        for model in models:
            peaks[model.name] = peak_of(model, work, dtype)
            task.advance(1)
    opened = {model.name: model.open(dtype) for model in models}
    with console.task("speed", total=(1 + MOST_REPETITIONS) * len(models), unit="passes") as task:
        rates = _in_turn(opened, work, task)
    dtypes = {
        model.name: dtype if (how := model.first.quantization) == "none" else f"{how}, {dtype}" for model in models
    }
    speeds = {name: _speed(rates[name], peaks[name].bytes, dtypes[name]) for name in opened}
    return Rates(speeds, min(map(len, rates.values())), " or ".join(sorted({peak.of for peak in peaks.values()})))


def _in_turn(opened: Mapping[str, OpenTeacher], work: Work, task: Progress) -> dict[str, list[dict[str, float]]]:
    rates: dict[str, list[dict[str, float]]] = {name: [] for name in opened}
    begun = time.monotonic()
    for repetition in range(1 + MOST_REPETITIONS):
        if repetition > LEAST_REPETITIONS and time.monotonic() - begun > ENOUGH_SECONDS:
            break
        for name in list(opened) if repetition % 2 else reversed(list(opened)):
            found = work.rates(opened[name])
            if repetition > 0:
                rates[name].append(found)
            task.advance(1)
    return rates


_NAMES = {
    "prefill": ("prefill_tokens_per_second", "prefill_spread"),
    "decode": ("decode_tokens_per_second", "decode_spread"),
    "examples": ("examples_per_second", "examples_spread"),
}


def _speed(rates: Sequence[Mapping[str, float]], peak_bytes: int, dtype: str) -> Speed:
    fields: dict[str, Any] = {}
    for kind in rates[0]:
        values = [found[kind] for found in rates]
        rate, spread = _NAMES[kind]
        fields |= {rate: statistics.median(values), spread: (min(values), max(values))}
    return Speed(peak_bytes, dtype, **fields)


# ---- peak memory -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Peak:
    """Peak memory, and what was measured, in words."""

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
    # Works without an installed package.
    package_root = str(Path(__file__).parents[2])
    path = os.pathsep.join([package_root, *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "potstill.evaluate.speed"],
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


if __name__ == "__main__":
    print(json.dumps(asdict(_measure(json.load(sys.stdin)))))

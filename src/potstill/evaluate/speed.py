"""Rates of two models, measured in turn on the same machine: prefill and decode, one sequence, with a cache.

The models are in memory together and take turns within each repetition, in alternating order, so that whatever else
the machine does falls on both. One repetition before the first warms up and is not counted. Where passes are slow,
there are fewer repetitions.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from potstill.console import Console, Task
from potstill.evaluate.measured import Dtype, Measured
from potstill.evaluate.memory import peak_of
from potstill.evaluate.passes import Seconds, one_pass
from potstill.measures import Speed
from potstill.models.load import has_fast_bf16, pick_device

PROMPT_TOKENS, NEW_TOKENS = 256, 32
MOST_REPETITIONS, LEAST_REPETITIONS, ENOUGH_SECONDS = 5, 3, 25.0
"""After so many seconds no further repetition is begun, if there are enough."""


def speed_dtype(model: Measured) -> Dtype:
    """The precision in which rates are measured, the same for all models: bf16 where the device multiplies in it."""
    return "bfloat16" if has_fast_bf16(pick_device(str(model.opened_with.get("device", "auto")))) else "float32"


def prompt_of(rows: Sequence[Sequence[int]], positions: int | None = None) -> list[int]:
    """Real tokens, PROMPT_TOKENS of them, fewer where `positions` leave no room to write behind them: rows joined, and
    from the beginning again if they run out."""
    joined = [token for row in rows for token in row]
    tokens = PROMPT_TOKENS if positions is None else min(PROMPT_TOKENS, positions - NEW_TOKENS)
    return (joined * (tokens // len(joined) + 1))[:tokens]


@dataclass(frozen=True)
class Rates:
    """The rates of each model by name, over how many repetitions, and what peak memory is of, in words."""

    speeds: Mapping[str, Speed]
    repetitions: int
    peak_of: str


def measure_speed(models: Sequence[Measured], prompt: Sequence[int], dtype: Dtype, console: Console) -> Rates:
    """Rates and peak memory of each model.

    Args:
        models: usually teacher and student; they share the tokenizer.
        prompt: token ids [P], as of `prompt_of`.
        dtype: precision of all of them.
        console: shows progress.

    Raises:
        ModelError: a model cannot be opened in this precision, or there is not enough memory.
    """
    with console.task("peak memory", total=len(models), unit="models") as task:
        peaks = {}
        for model in models:
            peaks[model.name] = peak_of(model, prompt, NEW_TOKENS, dtype)
            task.advance(1)
    opened = {model.name: model.open(dtype) for model in models}
    with console.task("speed", total=(1 + MOST_REPETITIONS) * len(models), unit="passes") as task:
        seconds = _in_turn(opened, prompt, task)
    said = {model.name: dtype if model.quantization == "none" else f"{model.quantization}, {dtype}" for model in models}
    speeds = {name: _speed(seconds[name], len(prompt), peaks[name].bytes, said[name]) for name in opened}
    return Rates(speeds, min(map(len, seconds.values())), " or ".join(sorted({peak.of for peak in peaks.values()})))


def _in_turn(opened: Mapping[str, PreTrainedModel], prompt: Sequence[int], task: Task) -> dict[str, list[Seconds]]:
    seconds: dict[str, list[Seconds]] = {name: [] for name in opened}
    begun = time.monotonic()
    for repetition in range(1 + MOST_REPETITIONS):
        if repetition > LEAST_REPETITIONS and time.monotonic() - begun > ENOUGH_SECONDS:
            break
        for name in list(opened) if repetition % 2 else reversed(list(opened)):
            passed = one_pass(opened[name], prompt, NEW_TOKENS)
            if repetition > 0:
                seconds[name].append(passed)
            task.advance(1)
    return seconds


def _speed(seconds: Sequence[Seconds], prompt_tokens: int, peak_bytes: int, dtype: str) -> Speed:
    prefill = [prompt_tokens / s.prefill for s in seconds]
    decode = [NEW_TOKENS / s.decode for s in seconds]
    return Speed(
        prefill_tokens_per_second=statistics.median(prefill),
        prefill_spread=(min(prefill), max(prefill)),
        decode_tokens_per_second=statistics.median(decode),
        decode_spread=(min(decode), max(decode)),
        peak_bytes=peak_bytes,
        dtype=dtype,
    )

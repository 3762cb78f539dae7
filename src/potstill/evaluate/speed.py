"""Rates of two models, measured in turn on the same machine: of what writes text prefill and decode of one sequence,
with a cache; of all others examples per second, forward only.

The models are in memory together and take turns within each repetition, in alternating order, so that whatever else
the machine does falls on both. One repetition before the first warms up and is not counted. Where passes are slow,
there are fewer repetitions.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from potstill.console import Console, Progress
from potstill.evaluate.compared_models import ComparedModel
from potstill.evaluate.held_out import HeldOut
from potstill.evaluate.memory import peak_of
from potstill.evaluate.passes import Forward, Work, Writing
from potstill.measures import Speed
from potstill.models.load import has_fast_bf16, pick_device
from potstill.tasks import SPECS
from potstill.teachers.base import OpenTeacher
from potstill.teachers.opening import Dtype

PROMPT_TOKENS, NEW_TOKENS = 256, 32
TEXTS_AT_ONCE, IMAGES_AT_ONCE = 32, 256
MOST_REPETITIONS, LEAST_REPETITIONS, ENOUGH_SECONDS = 5, 3, 25.0
"""After so many seconds no further repetition is begun, if there are enough."""


def speed_dtype(model: ComparedModel) -> Dtype:
    """The precision in which rates are measured, the same for all models: bf16 where the device multiplies in it."""
    return "bfloat16" if has_fast_bf16(pick_device(model.first.device)) else "float32"


def writing_of(held_out: HeldOut, positions: int | None = None) -> Writing:
    """Real tokens to read, PROMPT_TOKENS of them, fewer where `positions` leave no room to write behind them."""
    tokens = PROMPT_TOKENS if positions is None else min(PROMPT_TOKENS, positions - NEW_TOKENS)
    return Writing(tuple(_tokens(held_out, tokens)), NEW_TOKENS)


def forward_of(held_out: HeldOut, file: Path) -> Forward:
    """A batch of real examples, written to a file: TEXTS_AT_ONCE rows of as many tokens as a row may have, without
    padding, or IMAGES_AT_ONCE images; from the beginning again if they run out."""
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
    """The rows' tokens, joined, and from the beginning again if they run out."""
    return list(islice(cycle([token for row in held_out.rows for token in row.input_ids]), count))


@dataclass(frozen=True)
class Rates:
    """The rates of each model by name, over how many repetitions, and what peak memory is of, in words."""

    speeds: Mapping[str, Speed]
    repetitions: int
    peak_of: str


def measure_speed(models: Sequence[ComparedModel], work: Work, dtype: Dtype, console: Console) -> Rates:
    """Rates and peak memory of each model.

    Args:
        models: usually teacher and student.
        work: what one pass does, the same for all.
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

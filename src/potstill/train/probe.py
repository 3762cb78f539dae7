"""`potstill check --probe`: load the models, compare heads with logits, and time one training step."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from potstill.console import Console
from potstill.data import ChatTokenizer, Tokenized, prompt_ids, read_sides, reader_of
from potstill.data.reader import CausalReader, Row, TaskReader
from potstill.errors import DataError
from potstill.models.live import check_head
from potstill.models.load import load_tokenizer
from potstill.models.quiet import quiet_loading
from potstill.objectives import token_statistics
from potstill.peak import most, watched
from potstill.quantities import byte_size
from potstill.recipe import HardCE, ObjectiveSettings, Recipe
from potstill.signals import IGNORE, Ask, Batch, Dense, Head
from potstill.tasks import SPECS
from potstill.teachers import Teacher
from potstill.teachers.base import input_device
from potstill.train.arguments import defaults, steps_of, training_arguments
from potstill.train.inputs import Rows, find_models, make_student, make_teacher
from potstill.train.trainer import DistillTrainer
from potstill.types import Record, Reject


def probe_training(recipe: Recipe, console: Console) -> tuple[list[str], dict[str, Any]]:
    """Run one training step of the recipe, in a temporary folder; before it the teacher alone on a few batches, and a
    step of the student on the text alone.

    Returns:
        Lines for a person, and figures: `head_difference` (student's, as a share of the largest logit),
        `step_seconds`, `step_tokens`, `training_seconds` (the whole training, without held-out measurements),
        `student_parameters`; `teacher_nll` (nats a target, of language models), `teacher_tokens_per_second`, with a
        store `capture_seconds`, and `peak_bytes` (of this process, or of the GPU: `teacher`, `student`, `together`).

    Raises:
        PotstillError: a model cannot be loaded, the tokenizers differ, a head cannot be read, or an objective lacks
            something that it needs.
    """
    if recipe.train is None:
        return ["there is no train section, so nothing to try"], {}
    train, models = recipe.train, find_models(recipe, console)
    reader, rows, sides_share = _rows(recipe, models.tokenizer)
    stage = recipe.train.in_stages[0]
    taught = any(o.needs().teacher for o in stage.objectives)
    peaks: dict[str, int | None] = {}
    read = None
    if taught and (teacher := make_teacher(models)) is not None:
        with quiet_loading(), watched() as memory:
            read = _teacher_alone(teacher, reader, rows)
        peaks["teacher"] = most(memory)
        del teacher
    with tempfile.TemporaryDirectory() as folder, quiet_loading():
        built = make_student(recipe, models, reader, rows, console)
        arguments = training_arguments(recipe, Path(folder), models.device, len(rows.train), stage)
        rows_per_step = arguments.train_batch_size * arguments.gradient_accumulation_steps
        steps = _steps(recipe, models.device, len(rows.train))
        arguments.max_steps = 1
        clock = _Clock()
        remote, tokenizer = models.trust_remote_code, models.tokenizer

        def trainer_of(objectives: Sequence[ObjectiveSettings], teacher: Teacher | None) -> DistillTrainer:
            made = DistillTrainer(
                model=built.model,
                teacher=teacher,
                args=arguments,
                objectives=objectives,
                train_dataset=rows.train[:rows_per_step],
                processing_class=load_tokenizer(tokenizer, remote) if tokenizer is not None else None,
                callbacks=[clock],
                max_length=train.max_length,
                reader=reader if not SPECS[reader.task].writes else None,
            )
            made.remove_callback(PrinterCallback)
            return made

        if taught and SPECS[recipe.task].has_response:
            with watched() as memory:
                trainer_of([HardCE()], None).train()
            peaks["student"] = most(memory)
        trainer = trainer_of(stage.objectives, make_teacher(models) if taught else None)
        batch = Batch.from_inputs(trainer.collate(trainer.train_rows[:2]))
        difference = check_head(trainer.student.to("cpu"), batch)
        trainer.student.to(arguments.device)
        with watched() as memory:
            trainer.train()
        peaks["together"] = most(memory)
    seconds, tokens = clock.seconds, trainer.tokens_seen
    known = {name: size for name, size in peaks.items() if size is not None}
    whole, precision = seconds * steps, "bf16" if arguments.bf16 else "fp32"
    text = SPECS[recipe.task].reads_text
    answered = recipe.generate is None  # what stands in for answers that are not written yet is no text
    stored = sides_share * sum(map(_size_of, rows.train)) if recipe.capture is not None else 0.0
    capture = stored / read.rate if read is not None and stored else None
    head_line = f"the student's logits, as the losses read them, are its own (within {difference:.0e} of the largest)"
    lines = [
        *(["student and teacher speak the same tokens, through the same template"] if taught and text else []),
        *([head_line] if SPECS[recipe.task].has_vocabulary else []),
        *([_nll_line(read.nll, read.targets, read.vocab)] if read is not None and answered and read.targets else []),
        *([f"peak memory: {_peaks_line(known)}"] if known else []),
        f"a step of {len(rows.train[:rows_per_step])} {'records' if text else 'images'}"
        f"{f', {tokens:,} tokens' if text else ''}: {seconds:,.1f} s, {tokens / max(seconds, 1e-9):,.0f} "
        f"{'tokens' if text else 'images'}/s in {precision} on {models.device.type}",
        f"all {steps:,} steps: about {_duration(whole)}",
        *([f"the store of the teacher's signals: about {_duration(capture)}"] if capture is not None else []),
    ]
    figures = {
        "head_difference": difference,
        "step_seconds": round(seconds, 2),
        "step_tokens": tokens,
        "steps": steps,
        "training_seconds": round(whole),
        "student_parameters": built.facts["parameters"],
        "peak_bytes": known,
        **({"teacher_nll": round(read.nll, 4)} if read is not None and answered and read.targets else {}),
        **({"teacher_tokens_per_second": round(read.rate, 1)} if read is not None and text else {}),
        **({"capture_seconds": round(capture)} if capture is not None else {}),
    }
    return lines, figures


_PEAKS = {"teacher": "the teacher alone", "student": "the student alone", "together": "all that the step needs"}


def _peaks_line(peaks: Mapping[str, int]) -> str:
    return ", ".join(f"{_PEAKS[name]} {byte_size(peak)}" for name, peak in peaks.items())


_BATCHES, _ROWS = 4, 4
"""Batches that the teacher reads alone, and rows of each."""
_SURPRISED = 0.5
"""An NLL above this share of log V, what guessing costs, is named as high."""


@dataclass(frozen=True)
class _Read:
    """What a teacher found in some rows: the sum of its NLL over learned tokens in nats, their number (0 of models
    without a vocabulary, whose memory and time are seen all the same), its vocabulary, and tokens (or images)
    a second."""

    total: float
    targets: int
    vocab: int
    rate: float

    @property
    def nll(self) -> float:
        """Nats a target."""
        return self.total / self.targets


def _teacher_alone(teacher: Teacher, reader: TaskReader, rows: Rows) -> _Read:
    """The teacher reads a few batches. The first of several is left out of its rate: it has what is done once."""
    collate, total, targets = reader.collator(), 0.0, 0
    chosen = rows.train[:: max(1, len(rows.train) // (_BATCHES * _ROWS))][: _BATCHES * _ROWS]
    spec = SPECS[reader.task]
    last = frozenset() if spec.has_response else frozenset({f"hidden.{teacher.dims.layers}"})
    times: list[tuple[int, float]] = []
    for start in range(0, len(chosen), _ROWS):
        some = chosen[start : start + _ROWS]
        batch = Batch.from_inputs(collate(some), input_device(teacher))
        began = time.monotonic()
        signals = teacher.signals(batch, Ask(spec.has_response, last))
        response = signals.head or signals.dense
        if response is not None and spec.has_vocabulary:
            found = token_statistics(response, None, batch.target_ids.to(_place(response))).nll_student
            total, targets = total + float(found.sum()), targets + found.numel()
        times.append((sum(map(_size_of, some)), time.monotonic() - began))
    timed = times[1:] or times
    rate = sum(size for size, _ in timed) / max(sum(seconds for _, seconds in timed), 1e-9)
    return _Read(total, targets, teacher.dims.vocab, rate)


def _size_of(row: Row) -> int:
    """Tokens of a row, or one image."""
    return len(getattr(row, "input_ids", (0,)))


def _place(response: Head | Dense) -> torch.device:
    return response.weight.device if isinstance(response, Head) else response.logits.device


def _nll_line(nll: float, targets: int, vocab: int) -> str:
    text = f"the teacher's own NLL of {targets:,} learned tokens: {nll:.2f} nats a token"
    if nll > _SURPRISED * math.log(vocab):
        text += "; that is high: is it its template that they are rendered with, and a text that it knows?"
    return text


class _Clock(TrainerCallback):
    """Measures the seconds of the one step."""

    seconds = 0.0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._began = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.seconds = time.monotonic() - self._began


def _steps(recipe: Recipe, device: torch.device, rows: int) -> int:
    """Optimiser steps of all stages."""
    own = defaults(recipe, device)
    return sum(
        steps_of({**own, **recipe.required_train.args, **stage.args}, rows) for stage in recipe.required_train.in_stages
    )


def _rows(recipe: Recipe, tokenizer: Path | None) -> tuple[TaskReader, Rows, float]:
    """The training rows, and both sides as a multiple of the training side.

    A prompt that is not answered yet gets an answer of the maximum length of `generate`, made of its own tokens
    repeated: only its length matters here.
    """
    sides = read_sides(recipe.data)
    reader = reader_of(recipe, tokenizer, sides.classes)
    samples = getattr(recipe.generate, "samples", 1)
    rows: list[Row] = []
    for example in sides.train:
        for row in reader.rows(example):
            if not isinstance(row, Reject):
                rows.append(row)
            elif isinstance(reader, CausalReader) and isinstance(example, Record) and recipe.generate is not None:
                length = getattr(recipe.generate, "max_new_tokens", 128)
                rows += [_answered(example, reader.chat, length)] * (samples if example.is_prompt else 0)
    if not rows:
        raise DataError("there is nothing to learn from", where="data", fix="give records with answers")
    share = (len(sides.train) + len(sides.held_out)) / max(len(sides.train), 1)
    return reader, Rows(rows, [], tuple(sides.classes)), share


def _answered(record: Record, chat: ChatTokenizer, length: int) -> Tokenized:
    prompt: str | Sequence[Any] = record.messages or record.prompt or ""
    ids = prompt_ids(prompt, chat, record.tools)
    answer = list(islice(cycle(ids), length))
    return Tokenized(ids + answer, [IGNORE] * len(ids) + answer)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:,.0f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"

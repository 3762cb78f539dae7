"""The held-out records, as rows that a model takes. Every cut or dropped record is counted, with the reason."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from potstill.artifacts import Work
from potstill.data import ChatTokenizer, Example, Tokenized, load_records, prompt_ids, read_sides, selects
from potstill.data.reader import CausalReader
from potstill.errors import DataError
from potstill.quantities import counted
from potstill.recipe import Recipe
from potstill.tasks import SPECS, Task
from potstill.types import DataReason, Message, Record, Reject, digest

_CONTINUED_TOKENS = 64
"""Maximum tokens of a plain text that models are given to continue (half of a short text)."""

_IMAGES_PER_BATCH = 256

Grouped = TypeVar("Grouped", bound=Example)
Collate = Callable[[Sequence[Any]], Any]
Target = tuple[int, int]
"""Position of a target in its row (0 for a whole example), and its token or class (−1 for an example without a
label)."""


@dataclass(frozen=True)
class HeldOut:
    """Held-out records, as rows of tokens or images, in order. Targets are numbered consecutively over all rows.

    A long text that is measured in pieces has several rows, each with its record. `targets` are those of each row,
    `collate` makes a batch of rows, `max_length` is the maximum number of tokens of a row, and `classes` are the names
    of the classes.
    """

    task: Task
    records: Sequence[Any]
    rows: Sequence[Any]
    targets: Sequence[Sequence[Target]]
    collate: Collate
    max_length: int
    classes: tuple[str, ...] = ()

    @property
    def counts(self) -> NDArray[np.int64]:
        """Number of targets of each row [R]."""
        return np.array([len(targets) for targets in self.targets], dtype=np.int64)

    @property
    def starts(self) -> NDArray[np.int64]:
        """The index of each row's first target, and the number of targets as last entry [R+1]."""
        return np.concatenate([[0], np.cumsum(self.counts)])

    @property
    def target_groups(self) -> list[str]:
        """The group of each target [N]."""
        return [row.group for row, targets in zip(self.rows, self.targets, strict=True) for _ in targets]

    @property
    def target_ids(self) -> NDArray[np.int64]:
        """The token or class of each target [N]."""
        return np.array([number for targets in self.targets for _, number in targets], dtype=np.int64)

    @property
    def measured_records(self) -> int:
        """Number of records."""
        return len({id(record) for record in self.records})

    @property
    def cut(self) -> int:
        """Number of rows that are shorter than their records."""
        return sum(bool(getattr(row, "cut", False)) for row in self.rows)

    def batches(self, tokens_per_batch: int) -> list[list[int]]:
        """Indices of the rows of each batch. Rows of similar length are batched together, to save padding, up to a
        number of tokens with padding (at least one row). Images come in batches of 256."""
        if SPECS[self.task].reads_images:
            return [list(part) for part in _parts(range(len(self.rows)), _IMAGES_PER_BATCH)]
        batches: list[list[int]] = []
        for index in sorted(range(len(self.rows)), key=lambda i: len(self.rows[i])):
            if batches and (len(batches[-1]) + 1) * len(self.rows[index]) <= tokens_per_batch:
                batches[-1].append(index)
            else:
                batches.append([index])
        return batches


def _parts(numbers: range, size: int) -> list[range]:
    return [numbers[start : start + size] for start in range(0, len(numbers), size)]


def read_held_out(recipe: Recipe, generated: Path | None, tokenizer: Path, work: Work) -> HeldOut:
    """The records that were never trained on: generated ones if there are any, else the data's own.

    Args:
        recipe: with the task, the data, the split, and `train.max_length`.
        generated: `records.parquet` of the stage `generate`, if the recipe has one.
        tokenizer: folder of the student's tokenizer (unused for images).
        work: takes the counts.

    Raises:
        DataError: there are none, or none that can be measured.
    """
    held_out = _read(recipe, generated, tokenizer, work)
    work.count("held-out records", held_out.measured_records)
    if cut := held_out.cut:
        length = held_out.max_length
        work.count(f"cut at {length} tokens", cut)
        work.warn(f"{cut:,} of {counted(held_out.measured_records, 'held-out record')} were cut at {length} tokens")
    return held_out


def _read(recipe: Recipe, generated: Path | None, tokenizer: Path, work: Work) -> HeldOut:
    if SPECS[recipe.task].writes:
        return _causal(recipe, generated, ChatTokenizer.from_folder(tokenizer), work)
    from potstill.data.reader import reader_of

    sides = read_sides(recipe.data)
    reader = reader_of(recipe, tokenizer, sides.classes)
    if unknown := sides.counts.get(DataReason.UNKNOWN_CLASS):
        work.count(f"not measured: {DataReason.UNKNOWN_CLASS}", unknown)
    collate = reader.collator()
    records, rows, targets = [], [], []
    measured = reported_on(sides.held_out, recipe, work)
    for record in measured:
        for row in reader.rows(record):
            if isinstance(row, Reject):
                work.count(f"not measured: {row.reason}")
                continue
            whole = [(0, -1 if row.label is None else row.label)]
            records.append(record)
            rows.append(row)
            targets.append(_masked(collate([row])) if SPECS[recipe.task].masks else whole)
    _refuse_none(rows, measured, work)
    return HeldOut(recipe.task, records, rows, targets, collate, reader.max_length, tuple(sides.classes))


def training_counts(recipe: Recipe, generated: Path | None, tokenizer: Path) -> NDArray[np.int64]:
    """The count of each token or class among the training targets, by its number [V]; for masked models, which may mask
    any token, the count of each token."""
    from potstill.data.reader import reader_of

    sides = read_sides(recipe.data)
    records: Sequence[Any] = sides.train if generated is None else load_records(generated, side="train")
    reader = reader_of(recipe, tokenizer, sides.classes)
    spec = SPECS[recipe.task]
    found = np.zeros(0, dtype=np.int64)
    for record in records:
        rows: Sequence[Any] = reader.rows(record)
        for row in rows:
            if isinstance(row, Reject):
                continue
            ids = [row.label] if not spec.has_vocabulary else row.input_ids if spec.masks else row.labels
            counts = np.bincount([number for number in ids if number is not None and number >= 0], minlength=len(found))
            counts[: len(found)] += found
            found = counts
    return found


def reported_on(held_out: Sequence[Grouped], recipe: Recipe, work: Work) -> list[Grouped]:
    """The held-out examples that figures are reported on: with `keep: best`, only the groups that did not select the
    weights."""
    if recipe.train is None or not recipe.train.keeps_best:
        return list(held_out)
    reported = not_selecting(held_out, recipe)
    left_out = {example.group for example in held_out} - {example.group for example in reported}
    work.counts["held-out groups left out, for they chose the best weights"] = len(left_out)
    return reported


def not_selecting(held_out: Sequence[Grouped], recipe: Recipe) -> list[Grouped]:
    """The examples of `reported_on`, uncounted."""
    keeps_best = recipe.train is not None and recipe.train.keeps_best
    return [example for example in held_out if not (keeps_best and selects(example.group))]


def _masked(batch: Any) -> list[Target]:
    """The masked positions of a batch of one row, and the original tokens."""
    return [(place, label) for place, label in enumerate(batch["masked_labels"][0].tolist()) if label >= 0]


def _causal(recipe: Recipe, generated: Path | None, chat: ChatTokenizer, work: Work) -> HeldOut:
    if generated is not None:
        records = load_records(generated, side="held_out")
    else:
        records = [r for r in read_sides(recipe.data).held_out if isinstance(r, Record)]
    records = reported_on(records, recipe, work)
    train = recipe.required_train
    reader = CausalReader(chat, train.max_length, train.teacher_system)
    kept: list[Record] = []
    rows: list[Tokenized] = []
    for record in records:
        row = reader.row(record)
        if isinstance(row, Reject):
            work.count(f"not measured: {row.reason}")
        elif isinstance(row, Tokenized):
            kept.append(record)
            rows.append(row)
    _refuse_none(rows, records, work)
    return of_tokens(kept, rows, chat.pad_id, recipe.required_train.max_length)


def of_tokens(records: Sequence[Record], rows: Sequence[Tokenized], pad_id: int, max_length: int = 0) -> HeldOut:
    """The held-out side of a causal language model: every learned token is a target."""
    from potstill.data.collate import Collator

    targets = [[(place, label) for place, label in enumerate(row.labels) if label >= 0] for row in rows]
    return HeldOut("causal_lm", records, rows, targets, Collator(pad_id), max_length)


def _refuse_none(rows: Sequence[Any], records: Sequence[Any], work: Work) -> None:
    if rows:
        return
    what = "no held-out record can be measured" if records else "there are no held-out records"
    reasons = "; ".join(f"{name} {amount}" for name, amount in work.counts.items())
    raise DataError(
        f"{what} ({reasons})" if records else what,
        where="data.held_out",
        fix="hold out a larger share, give more prompts, or raise the token budget of generate"
        if not records
        else "look at the reasons: a larger train.max_length, or data with answers",
    )


# ---- what a person reads -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """A record as question and answer: the ids of the prompt, and both as text."""

    ids: tuple[int, ...]
    prompt: str
    reference: str


def question_of(record: Record, row: Tokenized, chat: ChatTokenizer) -> Question:
    """The prompt and the reference of a record. A plain text is split: models continue its beginning."""
    if record.text is not None:
        first = min(_CONTINUED_TOKENS, (len(row) + 1) // 2)
        ids = row.input_ids
        return Question(tuple(ids[:first]), chat.decode(ids[:first]), chat.decode(ids[first:]))
    if record.messages is not None:
        before, answer = record.messages[:-1], record.messages[-1]
        ids = prompt_ids(before, chat, record.tools)
        return Question(tuple(ids), _shown(before), _content(answer))
    prompt = record.prompt or ""
    return Question(tuple(prompt_ids(prompt, chat)), prompt, record.completion or "")


@dataclass(frozen=True)
class Prompt:
    """A held-out prompt that models answer: its tokens, its text, and its group."""

    ids: tuple[int, ...]
    text: str
    group: str


def prompts_to_ask(held_out: HeldOut, chat: ChatTokenizer, most: int, measure: str) -> list[Prompt]:
    """The different prompts of held-out records; of more than `most`, those of the smallest hashes.

    Raises:
        DataError: they are of fewer than two groups; it names the measure.
    """
    found: dict[tuple[int, ...], Prompt] = {}
    for record, row in zip(held_out.records, held_out.rows, strict=True):
        question = question_of(record, row, chat)
        if question.ids:
            found.setdefault(question.ids, Prompt(question.ids, question.prompt, row.group))
    asked = sorted(found.values(), key=lambda prompt: digest([list(prompt.ids)]))[:most]
    if len({prompt.group for prompt in asked}) < 2:
        raise DataError(
            "an interval needs two held-out prompts at least, of two groups",
            where=f"evaluate.measures {measure}",
            fix=f"hold out a larger share (data.held_out), or drop {measure}",
        )
    return asked


def text_of(record: Record) -> str:
    """The text of a record, whatever its form."""
    if record.text is not None:
        return record.text
    if record.messages is not None:
        return _shown(record.messages)
    return "\n\n".join(part for part in (record.prompt, record.completion) if part)


def _shown(messages: Sequence[Message]) -> str:
    """A single user turn verbatim; a conversation with its roles."""
    if len(messages) == 1 and messages[0]["role"] == "user":
        return _content(messages[0])
    return "\n\n".join(f"{message['role']}: {_content(message)}" for message in messages)


def _content(message: Message) -> str:
    content = message.get("content")
    if isinstance(content, str) and content:
        return content
    return json.dumps({k: v for k, v in message.items() if k != "role"}, ensure_ascii=False, default=str)

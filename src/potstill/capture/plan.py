"""Which records are captured, in which batches and shards: a function of the records alone, so that a resumed capture
has the same batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from potstill.artifacts import Work
from potstill.data import Example, Sides, load_records, read_sides
from potstill.data.reader import Row, TaskReader, reader_for
from potstill.data.refusals import with_refusals
from potstill.data.tokenize import Tokenized
from potstill.errors import DataError
from potstill.recipe import Recipe
from potstill.store.files import Planned
from potstill.types import Record, Reject

Targets = Literal["tokens", "examples", "none"]
"""The unit of a stored response: a learned token, or the whole example; or no response is stored."""

_IMAGE_TOKENS = 16
"""An image counts as this many tokens of a batch."""


@dataclass(frozen=True)
class Plan:
    """The sequences of a store.

    Attributes:
        batches: rows that the teacher reads together, longest first.
        shards: consecutive batches, by their numbers.
        held_out: ids of the records of the held-out side.
        targets_are: the unit of a stored response.
        batch_tokens: of a batch at most, padding included.
    """

    batches: tuple[tuple[Row, ...], ...]
    shards: tuple[range, ...]
    held_out: frozenset[str]
    targets_are: Targets = "tokens"
    batch_tokens: int = 0

    @cached_property
    def planned(self) -> list[list[Planned]]:
        """The sequences of every shard, in the order in which they are written."""
        return [
            [
                Planned(row.record_id, row.rendered, self.targets(row), length_of(row))
                for number in shard
                for row in self.batches[number]
            ]
            for shard in self.shards
        ]

    def targets(self, row: Row) -> int:
        """The number of responses that are stored for a row."""
        if self.targets_are == "tokens" and isinstance(row, Tokenized):
            return len(row.learned)
        return 1 if self.targets_are == "examples" else 0

    @property
    def rows(self) -> list[Row]:
        """All rows, in order."""
        return [row for batch in self.batches for row in batch]


def length_of(row: Row) -> int:
    """The tokens of a row; 1 for an image."""
    return len(row) if isinstance(row, Tokenized) else 1


def plan_of(
    rows: Mapping[str, Row],
    held_out: frozenset[str],
    batch_tokens: int,
    shard_tokens: int,
    targets_are: Targets = "tokens",
) -> Plan:
    """Batches of rows of similar length with at most `batch_tokens` tokens, padding included (a longer row is alone);
    shards of batches with some `shard_tokens` tokens. An image counts as 16 tokens."""
    longest_first = sorted(rows.values(), key=lambda row: (-_size(row), row.record_id))
    batches = batched(longest_first, batch_tokens)
    shards, first, tokens = [], 0, 0
    for number, batch in enumerate(batches):
        tokens += sum(map(_size, batch))
        if tokens >= shard_tokens or number == len(batches) - 1:
            shards.append(range(first, number + 1))
            first, tokens = number + 1, 0
    return Plan(batches, tuple(shards), held_out, targets_are, batch_tokens)


def batched(longest_first: Iterable[Row], batch_tokens: int) -> tuple[tuple[Row, ...], ...]:
    """Rows in batches of at most `batch_tokens` tokens, padding included; a longer row is alone."""
    batches: list[list[Row]] = []
    for row in longest_first:
        if not batches or _size(batches[-1][0]) * (len(batches[-1]) + 1) > batch_tokens:
            batches.append([])
        batches[-1].append(row)
    return tuple(map(tuple, batches))


def _size(row: Row) -> int:
    return len(row) if isinstance(row, Tokenized) else _IMAGE_TOKENS


@dataclass(frozen=True)
class Read:
    """The rows of both sides in the teacher's view, by record; the ids of those held out; the reader that made them;
    the names of the classes; and the records."""

    rows: Mapping[str, Row]
    held_out: frozenset[str]
    reader: TaskReader
    classes: tuple[str, ...]
    records: tuple[Record, ...]


def read_rows(recipe: Recipe, generated: Path | None, tokenizer: Path | None, work: Work) -> Read:
    """Read what is captured.

    Args:
        generated: `records.parquet` of the stage `generate`, if the recipe has one.
        tokenizer: the teacher's folder, if the task has a tokenizer.
        work: takes the counts.

    Raises:
        DataError: there is nothing to capture, or two different texts have one record id.
    """
    sides, classes = _sides(recipe, generated)
    reader = reader_for(
        recipe.task,
        tokenizer=tokenizer,
        data=recipe.data,
        max_length=recipe.captured_length,
        classes=classes,
        teacher_system=recipe.train.teacher_system if recipe.train is not None else None,
    )
    rows: dict[str, Row] = {}
    held_out: set[str] = set()
    for side, records in sides:
        for record in records:
            row = reader.row(record)
            if isinstance(row, Reject):
                work.count(f"dropped: {row.reason}")
                continue
            row = (row.teacher or row) if isinstance(row, Tokenized) else row
            if row.record_id in rows and rows[row.record_id].rendered != row.rendered:
                raise DataError(f"two records have the id {row.record_id!r}", where="data", fix="drop one of them")
            rows[row.record_id] = row
            if side == "held_out":
                held_out.add(row.record_id)
    if not rows:
        reasons = "; ".join(f"{name} {amount}" for name, amount in work.counts.items())
        raise DataError(
            f"there is nothing to capture ({reasons or 'no records'})",
            where="data",
            fix="give records with answers, or add a generate section",
        )
    texts = tuple(record for _, records in sides for record in records if isinstance(record, Record))
    return Read(rows, frozenset(held_out), reader, classes, texts)


def _sides(recipe: Recipe, generated: Path | None) -> tuple[list[tuple[str, Sequence[Example]]], tuple[str, ...]]:
    if generated is not None:
        sides = Sides(load_records(generated, side="train"), load_records(generated, side="held_out"))
    else:
        sides = read_sides(recipe.data)
    training = sides.train
    if recipe.train is not None and recipe.train.refusals is not None:
        training, _ = with_refusals(training, recipe.train.refusals)
    return [("train", training), ("held_out", sides.held_out)], tuple(sides.classes)

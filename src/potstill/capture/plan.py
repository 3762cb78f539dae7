"""Which records are captured, in which batches and shards: a function of the records alone, so that a capture that was
killed goes on with the same batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from potstill.artifacts import Work
from potstill.data import load_records, read_sides
from potstill.data.reader import reader_for
from potstill.data.sides import Example
from potstill.data.tokenize import Tokenized
from potstill.errors import DataError
from potstill.recipe import Recipe
from potstill.store.files import Planned
from potstill.types import Reject


@dataclass(frozen=True)
class Plan:
    """The sequences of a store.

    Attributes:
        batches: rows that the teacher reads together, longest first.
        shards: consecutive batches, by their numbers.
        held_out: ids of the records of the held-out side.
    """

    batches: tuple[tuple[Tokenized, ...], ...]
    shards: tuple[range, ...]
    held_out: frozenset[str]

    @cached_property
    def planned(self) -> list[list[Planned]]:
        """The sequences of every shard, in the order in which they are written."""
        return [
            [Planned(row.record_id, row.rendered, len(row.learned)) for number in shard for row in self.batches[number]]
            for shard in self.shards
        ]

    @property
    def rows(self) -> list[Tokenized]:
        """All rows, in order."""
        return [row for batch in self.batches for row in batch]


def plan_of(rows: Mapping[str, Tokenized], held_out: frozenset[str], batch_tokens: int, shard_tokens: int) -> Plan:
    """Batches of rows of similar length with at most `batch_tokens` tokens, padding included (a longer row is alone);
    shards of batches with some `shard_tokens` tokens."""
    longest_first = sorted(rows.values(), key=lambda row: (-len(row), row.record_id))
    batches: list[list[Tokenized]] = []
    for row in longest_first:
        if not batches or len(batches[-1][0]) * (len(batches[-1]) + 1) > batch_tokens:
            batches.append([])
        batches[-1].append(row)
    shards, first, tokens = [], 0, 0
    for number, batch in enumerate(batches):
        tokens += sum(map(len, batch))
        if tokens >= shard_tokens or number == len(batches) - 1:
            shards.append(range(first, number + 1))
            first, tokens = number + 1, 0
    return Plan(tuple(map(tuple, batches)), tuple(shards), held_out)


def read_rows(
    recipe: Recipe, generated: Path | None, tokenizer: Path, work: Work
) -> tuple[dict[str, Tokenized], frozenset[str]]:
    """The rows of both sides in the teacher's view, by record, and the ids of those held out.

    Args:
        generated: `records.parquet` of the stage `generate`, if the recipe has one.
        tokenizer: the teacher's folder.
        work: takes the counts.

    Raises:
        DataError: there is nothing to capture, or two different texts have one record id.
    """
    reader = reader_for(
        recipe.task,
        tokenizer=tokenizer,
        max_length=recipe.captured_length,
        teacher_system=recipe.train.teacher_system if recipe.train is not None else None,
    )
    rows: dict[str, Tokenized] = {}
    held_out: set[str] = set()
    for side, records in _sides(recipe, generated):
        for record in records:
            row = reader.row(record)
            if isinstance(row, Reject):
                work.count(f"dropped: {row.reason}")
                continue
            if not isinstance(row, Tokenized):
                raise DataError("images have no distributions over a vocabulary", where="data", fix="drop capture")
            row = row.teacher or row
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
    return rows, frozenset(held_out)


def _sides(recipe: Recipe, generated: Path | None) -> list[tuple[str, Sequence[Example]]]:
    if generated is not None:
        return [(side, load_records(generated, side=side)) for side in ("train", "held_out")]
    sides = read_sides(recipe.data)
    return [("train", sides.train), ("held_out", sides.held_out)]

"""From a user's data set, in the forms usual with `transformers`, to training rows."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

from potstill.data.images import Pixels
from potstill.data.mappings import FORMS
from potstill.data.pack import Packed, pack
from potstill.data.reader import TaskReader
from potstill.data.tokenize import Tokenized
from potstill.errors import DataError
from potstill.tasks import SPECS
from potstill.types import Reject

logger = logging.getLogger(__name__)

Row = Tokenized | Packed | Pixels


def length_of(row: Row) -> int:
    """The number of tokens of a row; 1 for an image."""
    return len(row) if isinstance(row, (Tokenized, Packed)) else 1


def token_ids_of(row: Row) -> Iterator[Sequence[int]]:
    """The token ids of a row, of each record in it; nothing of an image."""
    for part in row.rows if isinstance(row, Packed) else (row,):
        if isinstance(part, Tokenized):
            yield part.input_ids


def rows_of(dataset: Any, reader: TaskReader, *, packing: bool = False, name: str = "train_dataset") -> list[Row]:
    """Every row of a data set. Rows that are cut or left out are counted in one warning.

    Args:
        dataset: a `datasets.Dataset`, or any sequence of mappings, or of rows already made by a reader.
        reader: makes the rows for one task.
        packing: put several rows of a causal model into one, kept apart by their positions.
        name: the data set's name in messages.

    Raises:
        DataError: not a data set with a length, a row that cannot be read, or no row with anything to learn.
    """
    items = _items(dataset, name)
    rows: list[Row] = []
    dropped: Counter[str] = Counter()
    for index, item in enumerate(items):
        made = isinstance(item, (Tokenized, Packed, Pixels))
        for row in [item] if made else reader.rows_of_mapping(item, f"{name}[{index}]"):
            if isinstance(row, Reject):
                dropped[row.reason] += 1
            else:
                rows.append(row)
    if not rows:
        why = f": {_counted(dropped)}" if dropped else ""
        raise DataError(f"there is nothing to learn from{why}", where=name, fix=f"give rows with {FORMS[reader.task]}")
    cut = sum(bool(getattr(row, "cut", False)) for row in rows)
    if dropped or cut:
        changes = [f"{_counted(dropped)} left out"] if dropped else []
        changes += [f"{cut} cut at {reader.max_length} tokens"] if cut else []
        logger.warning("%s: of %d rows, %s", name, len(items), ", ".join(changes))
    loose = [row for row in rows if isinstance(row, Tokenized)]
    packed = packing and SPECS[reader.task].writes and len(loose) == len(rows)
    return [*pack(loose, reader.max_length)] if packed else rows


def refuse_long_rows(rows: Sequence[Row], positions: int | None, name: str) -> None:
    """Refuse rows with more tokens than the student has learned positions for (`learned_positions`).

    Raises:
        DataError: there are some.
    """
    parts = (part for row in rows for part in getattr(row, "rows", (row,)))  # in a packed row positions begin anew
    longest = max((len(getattr(part, "input_ids", ())) for part in parts), default=0)
    if positions is not None and longest > positions:
        raise DataError(
            f"rows have up to {longest:,} tokens, and the student has {positions:,} positions",
            where=name,
            fix=f"set max_length to {positions}, or shorten them",
        )


def _items(dataset: Any, name: str) -> list[Any]:
    if not isinstance(dataset, Iterable) or not isinstance(dataset, Sized):
        raise DataError(
            f"a {type(dataset).__name__} has no length: the steps of a schedule could not be counted",
            where=name,
            fix="give a datasets.Dataset or a list (of a stream, a part: list(stream.take(10_000)))",
        )
    return list(dataset)


def _counted(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{amount} {reason}" for reason, amount in reasons.items())

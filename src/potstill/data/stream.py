"""Records one at a time, in memory that does not grow with them but for sixteen bytes or so each."""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from potstill.data.formats import Unusable
from potstill.data.read import _Reader, _source
from potstill.data.split import Split
from potstill.data.store import _MARK, _VERSION, _row, _schema
from potstill.errors import DataError
from potstill.recipe.data import DataSettings
from potstill.types import Record, Reject

_ROWS_AT_ONCE = 2048
_SOURCES = 0xFFFF
"""Of so many files the name is remembered."""


class Seen:
    """A set of hashes of 64 bits with a number each, in two flat arrays: open addressing, at most half full.

    Two different things in it are taken for one with a chance of n²/2⁶⁵ in all: 3 in a hundred million at a million.
    """

    def __init__(self) -> None:
        self._count = 0
        self._make(1 << 10)

    def __len__(self) -> int:
        return self._count

    def add(self, key: str, number: int) -> int | None:
        """Put a hash (hexadecimal, sixteen digits or more) in with its number, unless it is there: then its number."""
        hashed = int(key[:16], 16) or 1
        place = hashed & self._mask
        while (there := self._hashes[place]) != 0:
            if there == hashed:
                return self._numbers[place]
            place = (place + 1) & self._mask
        self._hashes[place], self._numbers[place] = hashed, number
        self._count += 1
        if 2 * self._count > self._mask:
            self._grow()
        return None

    def _make(self, size: int) -> None:
        self._mask = size - 1
        self._hashes, self._numbers = array("Q", bytes(8 * size)), array("Q", bytes(8 * size))

    def _grow(self) -> None:
        hashes, numbers = self._hashes, self._numbers
        self._make(2 * len(hashes))
        for hashed, number in zip(hashes, numbers, strict=True):
            if hashed:
                place = hashed & self._mask
                while self._hashes[place] != 0:
                    place = (place + 1) & self._mask
                self._hashes[place], self._numbers[place] = hashed, number


def stream_records(settings: DataSettings) -> Iterator[Record | Reject]:
    """What `read_records` reads, one at a time and in order: each row is a record or a reject.

    Raises: as `read_records`; that nothing was usable shows at the end.
    """
    reader = _Reader(settings)
    seen = Seen()
    sources: dict[str, int] = {}
    kept = 0
    where = f"data ({settings.kind})"
    for row in _source(settings).rows():
        reader.read += 1
        try:
            record = reader._completed(reader._record(row), row)
        except Unusable as unusable:
            reader._reject(row, str(unusable))
            yield reader.rejects.pop()
            continue
        name = record.provenance.source
        source = sources.setdefault(name, len(sources)) if len(sources) < _SOURCES else sources.get(name, _SOURCES)
        earlier = seen.add(record.id, record.row << 16 | source)
        if earlier is not None:
            first = next((n for n, index in sources.items() if index == earlier & _SOURCES), "another file")
            reader._reject(row, "exact duplicate", f"of {first}, row {earlier >> 16}")
            yield reader.rejects.pop()
            continue
        kept += 1
        yield record
        if kept == settings.limit:
            break
    else:
        reader.refuse_columns_not_found()
    if not reader.read:
        raise DataError("the data set is empty", where=where)
    if not kept:
        raise DataError(f"none of {reader.read} rows is usable", where=where)


def split_of(settings: DataSettings) -> Split:
    """The split of a source: reads as much of it as shows whether its groups are few.

    Raises: as `read_records`.
    """
    return Split.of(settings, (item.group for item in stream_records(settings) if isinstance(item, Record)))


class RecordWriter:
    """Writes what `save_records` writes, a piece at a time; with `jsonl`, the same rows as JSON lines beside it.

    Use it as a context manager: the files have their names when it ends well, and are not there when it does not.
    """

    def __init__(self, path: Path, split: Split | None = None, *, jsonl: bool = False) -> None:
        import pyarrow.parquet as pq

        self.path, self.split = path, split
        self._aside = path.with_name(f".{path.name}.{os.getpid()}")
        self._rows: list[dict[str, Any]] = []
        self._lines: IO[str] | None = None
        self._lines_aside = path.with_name(f".{path.stem}.jsonl.{os.getpid()}")
        if jsonl:
            self._lines = self._lines_aside.open("w", encoding="utf-8")
        self._writer = pq.ParquetWriter(self._aside, _schema().with_metadata({_MARK: _VERSION}))

    def add(self, record: Record) -> None:
        """Take one record."""
        row = _row(record, self.split)
        self._rows.append(row)
        if self._lines is not None:
            self._lines.write(json.dumps(row, ensure_ascii=False) + "\n")
        if len(self._rows) == _ROWS_AT_ONCE:
            self._flush()

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._flush()
            self._writer.close()
            if self._lines is not None:
                self._lines.close()
            if error is None:
                os.replace(self._aside, self.path)
                if self._lines is not None:
                    os.replace(self._lines_aside, self.path.with_suffix(".jsonl"))
        finally:
            self._aside.unlink(missing_ok=True)
            self._lines_aside.unlink(missing_ok=True)

    def _flush(self) -> None:
        import pyarrow as pa

        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._writer.schema))
            self._rows = []

"""From a source to records. A malformed row is an error; an unusable one is counted and kept as a reject."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, cast

from potstill import registry
from potstill.data.formats import COLUMNS, Malformed, Unusable, find_format, label_name, to_record, unused_columns
from potstill.data.problems import with_system
from potstill.data.source import Source, SourceRow
from potstill.data.split import Split
from potstill.data.store import is_stored_row, record_of_row
from potstill.errors import DataError, did_you_mean
from potstill.recipe.data import DataSettings, Format, RowSettings
from potstill.types import DataReason, Record, Reject, digest, exact_group_of


@dataclass(frozen=True)
class ReadResult:
    """The records of a source.

    `counts` holds `read` (rows read) and, by reason, the number of rows left out, each of which is in `rejects`.
    `format` is the recipe's, or the one found (None where the source yields records); `unused_columns` are those that
    it did not read. `lost_classes` occur only in rows beyond `limit`.
    """

    records: list[Record]
    rejects: list[Reject]
    counts: dict[str, int]
    format: Format | None = None
    unused_columns: tuple[str, ...] = ()
    lost_classes: tuple[str, ...] = ()


def read_records(settings: DataSettings) -> ReadResult:
    """Read all records of a source, with group, row and provenance.

    Exact duplicates are left out, and of a text with several labels all but the first. `limit` counts records kept,
    the first ones.

    Raises:
        DataError: the source is missing, malformed or empty, or holds nothing usable.
        MissingExtra: the source needs a package that is not installed.
    """
    reader = _Reader(settings)
    rows = _source(settings).rows()
    for row in rows:
        reader.take(row)
        if len(reader.records) == settings.limit:
            reader.look_beyond(rows)
            break
    else:
        reader.refuse_columns_not_found()
    return reader.result()


_OTHER_SOURCE = 0xFFFF
"""`stream_records` keeps the names of this many sources; the rest share this number."""


def stream_records(settings: DataSettings) -> Iterator[Record | Reject]:
    """What `read_records` reads, one at a time and in order: each row is a record or a reject. Memory grows by some
    100 bytes a record, since duplicates are found by 64 bits of their ids.

    Raises: as `read_records`. An unusable source raises after its last row.
    """
    reader = _Reader(settings)
    first: dict[int, int] = {}  # by 64 bits of the id: row and number of the source, packed
    sources: dict[str, int] = {}
    kept = 0
    where = f"data ({settings.kind})"
    for row in _source(settings).rows():
        reader.read += 1
        try:
            record = reader.record(row)
        except Unusable as unusable:
            yield reader.reject(row, unusable.reason)
            continue
        name = record.provenance.source
        if len(sources) < _OTHER_SOURCE:
            sources.setdefault(name, len(sources))
        key = int(record.id, 16)
        if (earlier := first.get(key)) is not None:
            earlier_row, number = divmod(earlier, _OTHER_SOURCE + 1)
            earlier_source = next((n for n, index in sources.items() if index == number), "another file")
            yield reader.reject(row, DataReason.EXACT_DUPLICATE, f"of {earlier_source}, row {earlier_row}")
            continue
        first[key] = record.row * (_OTHER_SOURCE + 1) + sources.get(name, _OTHER_SOURCE)
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
    """The split of a source. Reads only until the source has `FEW_GROUPS` groups.

    Raises: as `read_records`.
    """
    return Split.of(settings, (item.group for item in stream_records(settings) if isinstance(item, Record)))


def source_digests(settings: DataSettings) -> dict[str, str]:
    """Digests of what a source reads, by name; they go into the keys of the stages that use it.

    Raises: as `read_records`, where the source itself is missing.
    """
    return _source(settings).digests()


def _source(settings: DataSettings) -> Source:
    return cast(Source, registry.build(settings))


class _Reader:
    """Turns rows into records, and remembers what was seen."""

    def __init__(self, settings: DataSettings) -> None:
        self.settings = settings
        self.records: list[Record] = []
        self.rejects: list[Reject] = []
        self.seen: dict[str, Record] = {}
        self.labelled: dict[str, Record] = {}
        self.unused: set[str] = set()
        named = settings.columns if isinstance(settings, RowSettings) else None
        self.columns: dict[str, str] = {str(name): column for name, column in (named or {}).items()}
        self.not_found = set(self.columns.values())
        self.seen_columns: set[str] = set()
        self.lost_classes: tuple[str, ...] = ()
        self.read = 0
        self.format: Format | None = None if settings.format == "auto" else settings.format

    def take(self, row: SourceRow) -> None:
        self.read += 1
        try:
            record = self.record(row)
        except Unusable as unusable:
            self.rejects.append(self.reject(row, unusable.reason))
            return
        if (earlier := self._earlier(record)) is not None:
            self.rejects.append(self.reject(row, _why_twice(record, earlier, self.settings), f"of {_place(earlier)}"))
            return
        self.seen[record.id] = record
        self.records.append(record)

    def _earlier(self, record: Record) -> Record | None:
        """An earlier record with the same content."""
        if record.label is None:
            return self.seen.get(record.id)
        earlier = self.labelled.setdefault(record.text or "", record)
        return None if earlier is record else earlier

    def result(self) -> ReadResult:
        where = f"data ({self.settings.kind})"
        if not self.read:
            raise DataError("the data set is empty", where=where)
        counts = {"read": self.read, **Counter(reject.reason for reject in self.rejects)}
        if not self.records:
            reasons = ", ".join(f"{count} × {reason}" for reason, count in counts.items() if reason != "read")
            raise DataError(f"none of {self.read} rows is usable: {reasons}", where=where)
        unused = tuple(sorted(self.unused))
        return ReadResult(self.records, self.rejects, counts, self.format, unused, self.lost_classes)

    def look_beyond(self, rows: Iterator[SourceRow]) -> None:
        """Find the classes that occur only in rows beyond `limit`. Skips malformed rows."""
        if self.format != "labelled":
            return
        column, classes = self.columns.get("label", "label"), set[str]()
        try:
            for row in rows:
                with suppress(Malformed, Unusable):
                    classes.add(label_name(row.content.get(column) if isinstance(row.content, Mapping) else None))
        except DataError:
            pass  # rows beyond the limit need not be valid
        self.lost_classes = tuple(sorted(classes - {record.label for record in self.records}))

    def refuse_columns_not_found(self) -> None:
        """Raises DataError if a column that `data.columns` names is in no row."""
        for name, column in self.columns.items():
            if column in self.not_found and self.read:
                raise DataError(
                    f"no row has the column {column!r}{did_you_mean(column, self.seen_columns)}",
                    where=f"data.columns.{name}",
                )

    def _refuse_missing(self, content: Mapping[str, Any], format_: Format, where: str) -> None:
        """Raises DataError if a row lacks a column that its format needs and `data.columns` names."""
        for name in COLUMNS[format_][0]:
            if name in self.columns and name not in content:
                raise DataError(
                    f"no column {self.columns[name]!r}, which data.columns names as {name!r}"
                    f"{did_you_mean(self.columns[name], content)}",
                    where=where,
                )

    def _renamed(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """A row with its columns under the names that formats read."""
        row = {str(column): value for column, value in content.items()}
        if not self.columns:
            return row
        self.seen_columns |= row.keys()
        self.not_found -= row.keys()
        taken = {name: row[column] for name, column in self.columns.items() if column in row}
        if needed := [n for n, column in self.columns.items() if column not in row and n in row]:
            # The recipe renames another column to this name.
            row = {name: value for name, value in row.items() if name not in needed}
        return {**{n: v for n, v in row.items() if n not in self.columns.values()}, **taken}

    def record(self, row: SourceRow) -> Record:
        """The record of a row, with row number and provenance, and the recipe's system prompt if it has none. The group
        is that of the row: the side of a record does not depend on the recipe's wording.

        Raises:
            DataError: the row is malformed.
            Unusable: it is well formed but of no use.
        """
        record = self._record(row)
        known = record.provenance
        licence = self.settings.licence_id or known.licence
        provenance = replace(known, source=known.source or row.source, licence=licence)
        record = replace(record, row=record.row or row.number, provenance=provenance)
        return record if self.settings.system is None else with_system(record, self.settings.system)

    def _record(self, row: SourceRow) -> Record:
        if isinstance(row.content, Record) or is_stored_row(row.content):
            if self.columns:
                raise DataError("this source gives records, which have no columns to name", where="data.columns")
            if self.settings.group_by != "user_turns":
                raise DataError(
                    "this source gives records, which have groups of their own",
                    where="data.group_by",
                    fix="remove data.group_by",
                )
            return row.content if isinstance(row.content, Record) else _stored(row)
        content = self._renamed(row.content)
        if self.format is None:
            try:
                self.format = find_format(content, row.where)
            except DataError:
                self.refuse_columns_not_found()
                raise
        self._refuse_missing(content, self.format, row.where)
        self.unused.update(unused_columns(content, self.format))
        record = to_record(content, self.format, row.where)
        if self.settings.group_by == "user_turns":
            return record
        return replace(record, group=self._group(record, row.content, row.where))

    def _group(self, record: Record, content: Mapping[str, Any], where: str) -> str:
        """The group of a record by `data.group_by`."""
        column = self.settings.group_column
        if column is None:
            return exact_group_of(record.messages or record.prompt or record.text or "")
        self.unused.discard(column)
        value = content.get(column)
        if value is None or value == "":
            raise DataError(
                f"nothing in column {column!r}, which makes the groups (it has {', '.join(sorted(map(str, content)))})",
                where=where,
                fix="fill the column in every row, or set data.group_by: user_turns",
            )
        return digest([column, value if isinstance(value, str | int) else str(value)])[:16]

    def reject(self, row: SourceRow, reason: str, detail: str = "") -> Reject:
        """The reject of a row, with an excerpt of its columns."""
        text = str(dict(row.content) if isinstance(row.content, Mapping) else row.content.content)
        excerpt = text[: Reject.EXCERPT_CHARACTERS].encode(errors="replace").decode()
        return Reject(reason, row.source, row.number, excerpt, detail)


def _stored(row: SourceRow) -> Record:
    """The record in a row that `save_records` wrote (as Parquet or JSON lines)."""
    assert isinstance(row.content, Mapping)
    try:
        return record_of_row(row.content)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"a record of potstill that is damaged: {error}", where=row.where) from error


def _why_twice(record: Record, earlier: Record, settings: DataSettings) -> DataReason:
    if settings.held_out == "own" and record.side != earlier.side:
        return DataReason.ON_BOTH_SIDES
    return DataReason.EXACT_DUPLICATE if record.label == earlier.label else DataReason.OTHER_LABEL


def _place(record: Record) -> str:
    return f"{record.provenance.source}, row {record.row}"

"""Records as Parquet that `datasets` opens, the reject ledger as JSON lines, and the records of another run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from potstill.artifacts import Artifact, read_artifact
from potstill.data.source import SourceRow, existing
from potstill.data.split import Split, SplitSide
from potstill.errors import DataError
from potstill.recipe.data import RunData
from potstill.registry import implements
from potstill.types import Message, Provenance, Record, Reject, Verdict, canonical_json

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS_AT_ONCE = 2048
_MARK, _VERSION = b"potstill.records", b"2"
"""In the file's metadata: marks a file of records, with the version of its layout."""


def save_records(path: Path, records: Sequence[Record], split: Split | None = None) -> None:
    """Write records to a temporary file, then rename it.

    Columns: `messages` (list of role and content, and `extra`, JSON, of whatever else a message holds), `prompt`,
    `completion`, `text`, `label`, `tools` (JSON), `group`, `id`, `sample`, `finished`, `row`, `own_side` (that of the
    source, if it has sides), `side`, `provenance`, `verdicts` and `metadata` (JSON). What a record does not have is
    null.

    Args:
        path: the file.
        records: what to write, in order.
        split: gives each record's `side`; without it that is null.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [_row(record, split) for record in records]
    table = pa.Table.from_pylist(rows, schema=_schema().with_metadata({_MARK: _VERSION}))
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        pq.write_table(table, aside)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


class RecordWriter:
    """Writes what `save_records` writes, piece by piece; with `jsonl`, the same rows also as JSON lines.

    Use it as a context manager: the files exist only if the block ends without an error.
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


def load_records(path: Path, side: SplitSide | None = None) -> list[Record]:
    """Read what `save_records` wrote, in order; only one side's records if it is named.

    Raises:
        DataError: no such file, damaged, or not written by potstill; or `side` is given and the file has no sides.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise DataError("no such file", where=str(path))
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"not a whole Parquet file: {error}", where=str(path)) from error
    if not holds_records(table.schema):
        raise DataError("the file holds no records of potstill", where=str(path), fix="read it as data of kind parquet")
    rows = table.to_pylist()
    if side is not None and any(row["side"] is None for row in rows):
        raise DataError("the records have no sides", where=str(path))
    return [record_of_row(row) for row in rows if side in (None, row["side"])]


def holds_records(schema: pa.Schema) -> bool:
    """Whether a Parquet file was written by `save_records`."""
    return (schema.metadata or {}).get(_MARK) == _VERSION


def save_rejects(path: Path, rejects: Sequence[Reject]) -> None:
    """Write the reject ledger: one JSON object per line."""
    with path.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(asdict(reject)) + "\n" for reject in rejects)


def load_rejects(path: Path) -> list[Reject]:
    """Read what `save_rejects` wrote."""
    with path.open(encoding="utf-8") as lines:
        return [Reject(**json.loads(line)) for line in lines]


_COLUMNS = (
    *("messages", "prompt", "completion", "text", "label", "tools", "group", "id", "sample", "finished", "row"),
    *("own_side", "side", "provenance", "verdicts", "metadata"),
)


def _schema() -> pa.Schema:
    import pyarrow as pa

    message = pa.struct([("role", pa.string()), ("content", pa.string()), ("extra", pa.string())])
    content = [
        ("messages", pa.list_(message)),
        *((name, pa.string()) for name in ("prompt", "completion", "text", "label", "tools")),
    ]
    identity = [("group", pa.string()), ("id", pa.string()), ("sample", pa.int64()), ("finished", pa.bool_())]
    names = ("own_side", "side", "provenance", "verdicts", "metadata")
    rest = [("row", pa.int64()), *((name, pa.string()) for name in names)]
    return pa.schema([*content, *identity, *rest])


def _row(record: Record, split: Split | None) -> dict[str, Any]:
    return {
        "messages": None if record.messages is None else [_message_row(m) for m in record.messages],
        "prompt": record.prompt,
        "completion": record.completion,
        "text": record.text,
        "label": record.label,
        "tools": None if record.tools is None else json.dumps(list(record.tools), ensure_ascii=False),
        "group": record.group,
        "id": record.id,
        "sample": record.sample,
        "finished": record.finished,
        "row": record.row,
        "own_side": record.side or None,
        "side": None if split is None else split.side_of(record),
        "provenance": canonical_json(record.provenance.to_dict()),
        "verdicts": canonical_json([asdict(v) for v in record.verdicts]),
        "metadata": canonical_json(dict(record.metadata)),
    }


def _message_row(message: Message) -> dict[str, Any]:
    plain = {key: message[key] for key in ("role", "content") if isinstance(message.get(key), str)}
    extra = {key: value for key, value in message.items() if key not in plain}
    # Keep the order of keys: templates render tool calls in that order.
    return {**plain, "extra": json.dumps(extra, ensure_ascii=False) if extra else None}


def _message(row: Mapping[str, Any]) -> Message:
    plain = {key: row[key] for key in ("role", "content") if row[key] is not None}
    return plain | (json.loads(row["extra"]) if row["extra"] is not None else {})


def is_stored_row(row: Mapping[str, Any]) -> bool:
    """Whether a mapping is a row that `save_records` wrote, as `datasets` gives it."""
    identity = {"group", "id", "sample", "finished", "row", "provenance", "verdicts", "metadata"}
    return identity <= row.keys() and isinstance(row["provenance"], str)


def record_of_row(row: Mapping[str, Any]) -> Record:
    """The record of a row that `save_records` wrote; columns that are null may be absent."""
    row = {name: row.get(name) for name in _COLUMNS}
    return Record(
        messages=None if row["messages"] is None else tuple(_message(m) for m in row["messages"]),
        prompt=row["prompt"],
        completion=row["completion"],
        text=row["text"],
        label=row["label"],
        side=row["own_side"] or "",
        tools=None if row["tools"] is None else tuple(json.loads(row["tools"])),
        finished=row["finished"],
        sample=row["sample"],
        group=row["group"],
        row=row["row"],
        provenance=Provenance(**json.loads(row["provenance"])),
        verdicts=tuple(Verdict(**v) for v in json.loads(row["verdicts"])),
        metadata=json.loads(row["metadata"]),
    )


# ---- the records of a run -----------------------------------------------------------------------------------------


@implements(RunData)
class RunSource:
    """Records of another run's `generate` artifact; they keep their group, sample and provenance."""

    def __init__(self, settings: RunData) -> None:
        self.settings = settings

    def rows(self) -> Iterator[SourceRow]:
        """Every record of both sides. The split is made anew by this recipe's `held_out` and `split_seed`."""
        artifact = self._artifact()
        path = artifact.path / "records.parquet"
        for number, record in enumerate(load_records(path), 1):
            yield SourceRow(record, f"run:{self.settings.path.name}", number, f"{path}, row {number}")

    def digests(self) -> dict[str, str]:
        """The artifact's own digest."""
        return {"data": self._artifact().output_digest}

    def _artifact(self) -> Artifact:
        folder = existing(self.settings.path.expanduser(), "run")
        artifact = read_artifact(folder / "generate")
        if artifact is None:
            raise DataError(
                "the run has no generated records",
                where=str(folder),
                fix="finish its generate stage first (`potstill generate`)",
            )
        artifact.check_whole()
        return artifact

"""Rows of files: JSON lines, JSON, CSV, Parquet, and folders of text."""

from __future__ import annotations

import bz2
import csv
import glob
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn, cast

from potstill.artifacts import file_digest
from potstill.data.formats import with_class_name
from potstill.data.source import SourceRow, existing
from potstill.data.store import holds_records, load_records
from potstill.errors import DataError
from potstill.recipe.data import COMPRESSED, FileData, TextFolder, uncompressed_name
from potstill.registry import implements
from potstill.types import Record

if TYPE_CHECKING:
    import pyarrow as pa

Numbered = Iterator[tuple[int, Mapping[str, Any] | Record]]

_LONGEST_CELL = 2**31 - 1
_BZIP2_BLOCK, _BZIP2_END = b"1AY&SY", b"\x17rE8P\x90"


@implements(FileData)
class FileSource:
    """One file, or several that match a pattern, in the order of their names."""

    def __init__(self, settings: FileData) -> None:
        self.settings = settings

    def paths(self) -> list[Path]:
        """The files. Raises DataError if there are none."""
        path = self.settings.path.expanduser()
        if path.is_file():
            return [path]
        if glob.has_magic(str(path)):
            found = sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file())
            if not found:
                raise DataError("no file matches the pattern", where=str(path), fix="paths are relative to the recipe")
            return found
        existing(path)
        raise DataError("is a folder", where=str(path), fix="name files by a pattern (data/*.jsonl), or use kind: text")

    def rows(self) -> Iterator[SourceRow]:
        """Rows of all files. Errors name file and line."""
        read = _READERS[self.settings.kind]
        unit = "line" if self.settings.kind in ("jsonl", "csv") else "row"
        for path in self.paths():
            for number, content in read(path, self.settings):
                where = f"{path}:{number}" if unit == "line" else f"{path}, row {number}"
                yield SourceRow(content, path.name, number, where)

    def digests(self) -> dict[str, str]:
        """SHA-256 of every file, by name."""
        return {f"data/{path.name}": file_digest(path) for path in self.paths()}


@implements(TextFolder)
class TextFolderSource:
    """One document per file."""

    def __init__(self, settings: TextFolder) -> None:
        self.settings = settings

    def paths(self) -> list[Path]:
        """The files, by name. Raises DataError if there are none."""
        folder = self.settings.path.expanduser()
        if not existing(folder, "folder").is_dir():
            raise DataError(
                "is a file, not a folder of texts", where=str(folder), fix="name its kind: jsonl, json, csv, parquet"
            )
        found = sorted(p for p in folder.glob(self.settings.pattern) if p.is_file())
        if not found:
            raise DataError(f"no file matches {self.settings.pattern!r}", where=str(folder), fix="set data.pattern")
        return found

    def rows(self) -> Iterator[SourceRow]:
        """A row per file, with the column `text`; line ends become plain ones."""
        root = self.settings.path.expanduser()
        for number, path in enumerate(self.paths(), 1):
            text = "".join(_text_lines(path)).replace("\r\n", "\n").replace("\r", "\n")
            yield SourceRow({"text": text}, str(path.relative_to(root)), number, str(path))

    def digests(self) -> dict[str, str]:
        """SHA-256 of every file, by name."""
        root = self.settings.path.expanduser()
        return {f"data/{path.relative_to(root)}": file_digest(path) for path in self.paths()}


def _open(path: Path) -> IO[bytes]:
    """A file opened for reading, decompressed. The first bytes tell the compression, not the name."""
    with path.open("rb") as file:
        start = file.read(10)
    if start.startswith(b"\x1f\x8b"):
        return cast(IO[bytes], gzip.open(path))
    if start[:3] == b"BZh" and start[4:] in (_BZIP2_BLOCK, _BZIP2_END):
        return bz2.open(path)
    if start.startswith(b"\xfd7zXZ\0"):
        return lzma.open(path)
    if start.startswith(b"\x28\xb5\x2f\xfd"):
        import pyarrow as pa

        return cast(IO[bytes], io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(path)), "zstd")))
    if start.startswith(b"PK\x03\x04"):
        raise DataError("is a zip archive", where=str(path), fix="unpack it, and name the file inside")
    return path.open("rb")


def _text_lines(path: Path) -> Iterator[str]:
    """Lines with their ends, split at line feeds only (U+2028 inside a JSON string ends no line)."""
    number = 0
    try:
        with _open(path) as file:
            for number, line in enumerate(file, 1):  # named in errors
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8: {error.reason}", where=f"{path}:{number}", fix="save the file as UTF-8") from error
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        # Arrow's errors are OSError too.
        raise DataError(f"cannot be read to its end: {error}", where=f"{path}:{number + 1}") from error


def _jsonl(path: Path, settings: FileData) -> Numbered:
    for number, line in enumerate(_text_lines(path), 1):
        if line.strip():
            yield number, _object(_parse(line, f"{path}:{number}"), f"{path}:{number}")


def _json(path: Path, settings: FileData) -> Numbered:
    document = _parse("".join(_text_lines(path)), str(path))
    if isinstance(document, dict) and isinstance(document.get("data"), list):
        document = document["data"]
    if not isinstance(document, list):
        raise DataError(
            f"holds {_kind_of(document)}, not a list of rows",
            where=str(path),
            fix='write a list, or {"data": [...]}; one object per line is kind: jsonl',
        )
    for number, item in enumerate(document, 1):
        yield number, _object(item, f"{path}, row {number}")


def _csv(path: Path, settings: FileData) -> Numbered:
    tabs = uncompressed_name(path).suffix in (".tsv", ".tab")
    delimiter = settings.delimiter or ("\t" if tabs else ",")
    usual = csv.field_size_limit(_LONGEST_CELL)
    try:
        reader = csv.reader(_text_lines(path), strict=True, delimiter=delimiter)
        header: list[str] = []
        while True:
            # A row begins on the line after the one before it ended; a quoted cell may span lines.
            line = reader.line_num + 1
            try:
                cells = next(reader, None)
            except csv.Error as error:
                fix = "put cells that hold the delimiter, quotes or line ends into quotes, and double quotes inside"
                raise DataError(f"malformed CSV: {error}", where=f"{path}:{line}", fix=fix) from error
            if cells is None:
                return
            if not cells:
                continue
            if not header:
                header = _header(cells, delimiter, f"{path}:{line}")
            elif len(cells) != len(header):
                raise DataError(
                    f"{len(cells)} cells, and the header has {len(header)}",
                    where=f"{path}:{line}",
                    fix="put cells that hold the delimiter, quotes or line ends into double quotes",
                )
            else:
                yield line, dict(zip(header, cells, strict=True))
    finally:
        csv.field_size_limit(usual)


def _header(cells: list[str], delimiter: str, where: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    if names[0].startswith("{"):
        raise DataError("the first line is JSON, and no header of CSV", where=where, fix="set data.kind: jsonl")
    _refuse_twice(names, "the header", where)
    other = next((mark for mark in ";\t|," if mark != delimiter and mark in names[0]), None)
    if len(names) == 1 and other is not None:
        raise DataError(
            f"the header is one cell, {names[0]!r}, which seems to be delimited by {other!r}",
            where=where,
            fix=f"set data.delimiter: {json.dumps(other)}",
        )
    return names


def _refuse_twice(names: Sequence[str], what: str, where: str) -> None:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{what} names {', '.join(map(repr, twice))} twice", where=where)


def _parquet(path: Path, settings: FileData) -> Numbered:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            if holds_records(file.schema_arrow):
                yield from enumerate(load_records(path), 1)
                return
            _refuse_twice(file.schema_arrow.names, "the schema", str(path))
            column = settings.source_column("label")
            number, names = 0, _class_names(file.schema_arrow.metadata, column)
            for batch in file.iter_batches(batch_size=1024):
                for row in _plain_rows(batch):
                    number += 1
                    yield number, with_class_name(row, column, names)
    except (pa.ArrowException, OSError) as error:
        compressed = path.suffix in COMPRESSED
        raise DataError(
            f"not a whole Parquet file: {error}",
            where=str(path),
            fix="unpack it first: Parquet is compressed inside" if compressed else None,
        ) from error


class _Unconvertible:
    """Placeholder for a value without a Python type (a date in the year 10,000, nanoseconds)."""


def _plain_rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """The rows of a batch. A column that cannot be converted is an error only where it is used."""
    import pyarrow as pa

    columns: list[Sequence[Any]] = []
    for column in batch.columns:
        try:
            columns.append(column.to_pylist())
        except (pa.ArrowException, ValueError, OverflowError):
            columns.append([_Unconvertible()] * batch.num_rows)
    names = batch.schema.names
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _class_names(metadata: Mapping[bytes, bytes] | None, column: str) -> list[str] | None:
    """The class names of a label column, if `datasets` wrote the file and stored them."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return list(features[column]["names"])
    except (KeyError, TypeError, ValueError):
        return None


_READERS: Mapping[str, Callable[[Path, FileData], Numbered]] = {
    "jsonl": _jsonl,
    "json": _json,
    "csv": _csv,
    "parquet": _parquet,
}


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_constant, object_pairs_hook=_each_key_once)
    except json.JSONDecodeError as error:
        place = f"{where}:{error.lineno}" if "\n" in text.rstrip("\n") else where
        what = f"malformed JSON: {error.msg} (column {error.colno})"
        raise DataError(
            what, where=place, fix="repair or remove it, or name the file's own kind (data.kind)"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"malformed JSON: {error}", where=where) from error


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)!r} is given twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"holds {_kind_of(value)}, not an object with columns", where=where)
    return value


def _kind_of(value: Any) -> str:
    kinds: Mapping[type, str] = {
        dict: "an object",
        list: "a list",
        str: "a text",
        bool: "a truth value",
        type(None): "null",
    }
    return kinds.get(type(value), "a number")

"""What a data source is: rows, each with its place, and digests of what it reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from potstill.errors import DataError, did_you_mean_path
from potstill.types import Record


@dataclass(frozen=True)
class SourceRow:
    """One row of a source: columns, or a complete record.

    `source` is short and goes into provenance; `where` is for error messages. `number` counts
    from 1: the line in files of lines, else the row.
    """

    content: Mapping[str, Any] | Record
    source: str
    number: int
    where: str


class Source(Protocol):
    """A source of a kind of data. Built from its settings; bound to them with `@implements`."""

    def rows(self) -> Iterator[SourceRow]:
        """Every row, in an order that does not change.

        Raises:
            DataError: the source is missing, or a row is malformed (the error names it).
        """
        ...

    def digests(self) -> dict[str, str]:
        """Digests that identify the content that is read; they go into the keys of the stages that use it."""
        ...


def existing(path: Path, what: str = "file") -> Path:
    """The path, if it exists.

    Raises:
        DataError: it does not; the error suggests the nearest name beside it.
    """
    if path.exists():
        return path
    folder = path.parent
    if not folder.is_dir():
        near = did_you_mean_path(path)
        raise DataError(f"no such folder{near}", where=str(folder), fix="paths are relative to the recipe")
    raise DataError(f"no such {what}{did_you_mean_path(path)}", where=str(path), fix="paths are relative to the recipe")

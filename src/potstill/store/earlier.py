"""What an earlier store has of the sequences of another: they are taken over, and only the others are computed.

A sequence is the same if its record, tokens and learned positions are. It is taken over as it is (`files.Kept`): its
ids are written by their ranks in the new shard, and nothing is rounded again. What is damaged is not taken over.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potstill.artifacts import file_digest
from potstill.errors import DataError
from potstill.store.codec import Grid
from potstill.store.files import Kept, Planned, differences, head_of, ids_of_head, ids_of_ranks, mapped, read_facts

_NAMES = ("model", "revision")
"""Names of what a digest beside them identifies."""


class EarlierStore:
    """A finished store, of which some shards may be damaged or missing.

    Args:
        folder: of the store.

    Raises:
        DataError: there is none, or its description is damaged or of another version.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.facts = folder, read_facts(folder)
        self.identity: Mapping[str, Any] = self.facts["identity"]
        self.grid = Grid.of(self.facts["grid"])

    def differences(self, identity: Mapping[str, Any], ignored: Collection[str] = ()) -> list[str]:
        """What differs between its identity and some entries of another's, each as `name: … there, … here`. Names and
        revisions of weights do not count where their digest is stated.

        Args:
            ignored: entries that may differ; inner ones by dotted names.
        """
        there = {name: self.identity.get(name) for name in identity}
        flat = ({n: value for n, value in _flat(of) if n not in ignored} for of in (there, identity))
        return differences(*flat)

    def matching(self, planned: Iterable[Planned]) -> Matching:
        """The undamaged sequences that are among those that are planned. Reads everything once."""
        wanted = {sequence.record: sequence for sequence in planned}
        places: dict[str, tuple[int, Mapping[str, Any]]] = {}
        there, rendered_otherwise, damaged = 0, 0, 0
        for number, shard in enumerate(self.facts["shards"]):
            there += int(shard["sequences"])
            for line, whole in self._lines(shard):
                sequence = wanted.get(line["record"])
                if sequence is None:
                    continue
                if not line.items() >= asdict(sequence).items():
                    rendered_otherwise += 1
                elif not whole:
                    damaged += 1
                else:
                    places[sequence.record] = number, line
        return Matching(self, wanted, places, there, rendered_otherwise, damaged)

    def _lines(self, shard: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], bool]]:
        """The lines of a shard's index, and whether the bytes of each are what was written. None of a damaged index."""
        data = self.folder / shard["name"]
        index = data.with_suffix(".jsonl")
        if not index.is_file() or file_digest(index) != shard["index_sha256"]:
            return
        lines = map(json.loads, index.read_text(encoding="utf-8").splitlines())
        if not data.is_file():
            yield from ((line, False) for line in lines)
        elif file_digest(data) == shard["sha256"]:
            yield from ((line, True) for line in lines)
        else:
            content = mapped(data)
            head = zlib.crc32(head_of(content, self.grid.vocab))
            for line in lines:
                blob = content[line["offset"] : line["offset"] + line["bytes"]]
                yield line, zlib.crc32(blob, head) == line["crc32"]


class Matching:
    """The sequences that a new store takes over from an earlier one.

    Attributes:
        folder: of the earlier store.
        there: number of its sequences.
        rendered_otherwise: of planned records that have other tokens there.
        damaged: of planned records whose bytes are not what was written, as far as their index tells.
    """

    def __init__(
        self,
        store: EarlierStore,
        planned: Mapping[str, Planned],
        places: Mapping[str, tuple[int, Mapping[str, Any]]],
        there: int,
        rendered_otherwise: int,
        damaged: int,
    ) -> None:
        self.there, self.rendered_otherwise, self.damaged = there, rendered_otherwise, damaged
        self.folder = store.folder
        self._store, self._planned, self._places = store, planned, places
        self._shards: dict[int, tuple[Any, int, NDArray[np.int32]]] = {}

    def __contains__(self, record: object) -> bool:
        return record in self._places

    def __len__(self) -> int:
        return len(self._places)

    @property
    def text(self) -> str:
        """How many are taken over, how many are not, and why."""
        planned = len(self._planned)
        causes = [(self.rendered_otherwise, "captured with other tokens"), (self.damaged, "damaged")]
        why = ", ".join(f"{count:,} {cause}" for count, cause in causes if count)
        left = self.there - len(self) - self.rendered_otherwise - self.damaged
        return (
            f"{len(self):,} of {planned:,} records are taken over from the earlier store, and {planned - len(self):,} "
            f"cost the teacher's time{f' ({why})' if why else ''}"
            f"{f'; {left:,} of its records are left out' if left > 0 else ''}"
        )

    def kept(self, record: str) -> Kept:
        """One of them.

        Raises:
            DataError: its bytes have changed since they were compared.
        """
        number, line = self._places[record]
        grid = self._store.grid
        if number not in self._shards:
            content = mapped(self._store.folder / self._store.facts["shards"][number]["name"])
            head = head_of(content, grid.vocab)
            self._shards[number] = content, zlib.crc32(head), ids_of_ranks(ids_of_head(head, grid.vocab), grid.vocab)
        content, head_crc, order = self._shards[number]
        blob = content[line["offset"] : line["offset"] + line["bytes"]]
        if zlib.crc32(blob, head_crc) != line["crc32"]:
            raise DataError(
                f"record {record!r} has changed while it was taken over",
                where=str(self._store.folder),
                fix="the same command again captures it",
            )
        return Kept(self._planned[record], blob, order, grid)


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Nested entries by dotted names."""
    if isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    if not isinstance(value, Mapping):
        yield name, value
        return
    named = value.get("digest") is not None
    for key, inner in value.items():
        if not (named and key in _NAMES):
            yield from _flat(inner, f"{name}.{key}" if name else str(key))

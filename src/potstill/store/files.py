"""A store on disk: shards of sequences, an index beside each, and a description.

    store.json              identity, grid, totals, every file with its size and SHA-256, its own digest; written last
    shard-00000.bin         its most frequent ids, then the blobs of its sequences, one after another
    shard-00000.jsonl       a line for each: record, digest of its tokens, targets, length, offset, bytes, crc32
    head.safetensors        the teacher's output layer, where hidden states are kept (`output_layer.py`)
    tokenizer/              the teacher's, if it has one

Which sequences are in which shard is planned before the first is written (`shards`), so a store whose writing was
killed and resumed equals an uninterrupted one byte for byte. A shard in progress is `shard-00000.bin.part`, appended to
batch by batch; its index `shard-00000.jsonl.part` is flushed after the bytes, so a resumed writer cuts off whatever the
index does not name.

In blobs, ids are replaced by their rank in the shard: the ids of its first batch by frequency, then all others.
Frequent ids are then neighbours, which shortens the code, and each shard can be read and rewritten alone. No torch.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import mmap
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from potstill.artifacts import disk_error, file_digest, write_atomically
from potstill.errors import DataError, RunError
from potstill.store.codec import HIDDEN, Entries, Grid, check_ids, decode, encode, ids_in, renamed
from potstill.store.packing import pack, unpack

VERSION = 3
"""Of the format. A reader refuses another."""
FACTS, PLAN, OUTPUT_LAYER, TOKENIZER = "store.json", "plan.json", "head.safetensors", "tokenizer"


@dataclass(frozen=True)
class Planned:
    """One sequence of a store: its record, the digest of its tokens and targets, and the numbers of targets and of
    tokens (`length`; needed where a tensor has a row per token)."""

    record: str
    tokens: str
    targets: int
    length: int = 0


def tokens_digest(input_ids: NDArray[np.integer], positions: NDArray[np.integer]) -> str:
    """32 hex digits of a rendered sequence: its tokens, and the positions whose next token is learned."""
    of = hashlib.sha256(np.ascontiguousarray(input_ids, "<i4").tobytes())
    of.update(np.ascontiguousarray(positions, "<i4").tobytes())
    return of.hexdigest()[:32]


class StoreWriter:
    """Writes a store into a folder, shard by shard, in the planned order. A context manager; one per folder at a time.

    `missing()` gives what is still to be written; `append` takes the next of it.

    Raises:
        ValueError: a record is planned twice.
        RunError: another process writes into this folder; the folder holds another store; the disk is full (complete
            sequences are kept, and the same call continues).
    """

    def __init__(
        self, folder: Path, identity: Mapping[str, Any], grid: Grid, shards: Sequence[Sequence[Planned]]
    ) -> None:
        self.folder, self.identity, self.grid, self.shards = folder, dict(identity), grid, shards
        self._files: tuple[IO[bytes], IO[bytes]] | None = None
        self._ranks, self._head_crc = np.zeros(0, np.int32), 0
        self._shard = self._within = 0
        names = [sequence.record for sequences in shards for sequence in sequences]
        if len(set(names)) < len(names):
            raise ValueError("a record is planned twice")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = (folder / ".lock").open("w")
        except OSError as error:
            raise disk_error(error, folder) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            raise RunError("another process writes into this store", where=str(folder), fix="wait for it") from error
        try:
            self._check_plan()
            self._resume()
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._files is not None:
            for file in self._files:
                file.close()
        self._lock.close()

    def missing(self) -> Iterator[tuple[int, int]]:
        """(shard, place in it) of every sequence that is not written yet, in order."""
        for shard in range(self._shard, len(self.shards)):
            if self._name(shard, "bin").is_file():
                continue
            for place in range(self._within if shard == self._shard else 0, len(self.shards[shard])):
                yield shard, place

    def append(self, batch: Sequence[Appended]) -> None:
        """Write the next sequences. They are on disk when this returns.

        Raises:
            ValueError: a record is not the next one, or its entries are not of the numbers that were planned.
            RunError: the disk is full, or the folder cannot be written.
        """
        try:
            for place, appended in enumerate(batch):
                self._append(appended, batch[place:])
            if self._files is not None:
                for file in self._files:  # first the bytes, then the lines that name them
                    file.flush()
                    os.fsync(file.fileno())
        except OSError as error:
            raise disk_error(error, self.folder) from error

    def finish(self) -> None:
        """Write `store.json`, which makes the folder a store.

        Raises:
            RunError: sequences, or the output layer of a store of hidden states, are missing; a shard was damaged since
                it was written (it is removed, so that it is written again); or the disk is full.
        """
        if (left := next(self.missing(), None)) is not None:
            raise RunError(f"sequence {left[1]} of shard {left[0]} is not written yet", where=str(self.folder))
        shards = []
        for number, sequences in enumerate(self.shards):
            data, index = self._name(number, "bin"), self._name(number, "jsonl")
            if self._whole(number, data, index.read_bytes().splitlines()) < len(sequences):
                discard(self.folder, [data.name])
                raise RunError(
                    f"{data.name} was damaged since it was written, and is removed",
                    where=str(self.folder),
                    fix="the same command again writes this shard alone",
                )
            described = {"sequences": len(sequences), "index_sha256": file_digest(index)}
            shards.append({**self._described(data), **described})
        beside = [file for file in sorted((self.folder / TOKENIZER).rglob("*")) if file.is_file()]
        if any(part.name == HIDDEN for part in self.grid.tensors):
            beside.append(self.folder / OUTPUT_LAYER)
            if not beside[-1].is_file():
                raise RunError(f"{OUTPUT_LAYER} is not written yet", where=str(self.folder))
        facts = {
            "version": VERSION,
            "identity": self.identity,
            "grid": self.grid.facts(),
            "sequences": sum(len(sequences) for sequences in self.shards),
            "targets": sum(sequence.targets for sequences in self.shards for sequence in sequences),
            "bytes": sum(int(str(shard["bytes"])) for shard in shards),
            "shards": shards,
            "files": [self._described(file) for file in beside],
        }
        try:
            write_atomically(self.folder / FACTS, sealed(facts))
        except OSError as error:
            raise disk_error(error, self.folder) from error

    def _described(self, file: Path) -> dict[str, Any]:
        name = file.relative_to(self.folder).as_posix()
        return {"name": name, "bytes": file.stat().st_size, "sha256": file_digest(file)}

    def _append(self, appended: Appended, coming: Sequence[Appended]) -> None:
        record, entries, uniforms = appended
        shard, place = next(self.missing())
        if self._files is None or shard != self._shard:
            self._open(shard)
        assert self._files is not None
        sequence = self.shards[shard][place]
        if record != sequence.record:
            raise ValueError(f"record {record!r} came where {sequence.record!r} is next")
        self._check(entries, sequence)
        data, index = self._files
        if place == 0:
            first = [some for _, some, _ in coming[: len(self.shards[shard])]]
            for some in first:
                if isinstance(some, Entries):
                    check_ids(some, self.grid)
            frequent = by_frequency(first, self.grid.vocab)
            data.write(head := head_bytes(frequent, self.grid.vocab))
            self._ranks, self._head_crc = ranks_of(frequent, self.grid.vocab), zlib.crc32(head)
        if isinstance(entries, Kept):
            blob = entries.ranked(self._ranks)
        else:
            blob = encode(replace(entries, ids=self._ranks[entries.ids]), self.grid, uniforms)
        checksum = zlib.crc32(blob, self._head_crc)  # ids are known by the head, so it belongs to each blob
        line = {**asdict(sequence), "offset": data.tell(), "bytes": len(blob), "crc32": checksum}
        data.write(blob)
        index.write(json.dumps(line, sort_keys=True).encode() + b"\n")
        self._within = place + 1
        if self._within == len(self.shards[shard]):
            self._close()

    def _check(self, entries: Entries | Kept, sequence: Planned) -> None:
        """Raises ValueError: these are not the entries of a sequence of such numbers."""
        if isinstance(entries, Kept):
            if (entries.sequence, entries.grid) != (sequence, self.grid):
                raise ValueError(f"{entries.sequence} of another store came where {sequence} is next")
            return
        check_ids(entries, self.grid)
        if entries.entropy.size != sequence.targets:
            raise ValueError(f"{entries.entropy.size} targets of a sequence that has {sequence.targets}")
        for part in self.grid.tensors:
            rows = part.count(sequence.targets, sequence.length)
            if part.name in entries.tensors and entries.tensors[part.name].shape[0] != rows:
                raise ValueError(f"{part.name} has {entries.tensors[part.name].shape[0]} rows, and should have {rows}")

    def _open(self, shard: int) -> None:
        self._shard, self._within = shard, 0
        self._files = (self._part(shard, "bin").open("ab"), self._part(shard, "jsonl").open("ab"))

    def _close(self) -> None:
        """Give a complete shard its name: the index first, so that a `.bin` always has one."""
        assert self._files is not None
        for file in self._files:
            file.flush()
            os.fsync(file.fileno())
            file.close()
        for ending in ("jsonl", "bin"):
            os.replace(self._part(self._shard, ending), self._name(self._shard, ending))
        self._files, self._shard, self._within = None, self._shard + 1, 0

    def _resume(self) -> None:
        """Continue after the last sequence whose line and bytes are complete."""
        for shard in range(len(self.shards)):
            if self._name(shard, "bin").is_file():
                continue
            index, data = self._part(shard, "jsonl"), self._part(shard, "bin")
            if self._name(shard, "jsonl").is_file():
                if data.is_file():  # killed between the two renames: both are complete
                    os.replace(data, self._name(shard, "bin"))
                    continue
                self._name(shard, "jsonl").unlink()  # an index without its shard
            if not index.is_file() or not data.is_file():
                index.unlink(missing_ok=True)
                data.unlink(missing_ok=True)
                continue
            lines = index.read_bytes().split(b"\n")[:-1]
            kept = self._whole(shard, data, lines)
            last = json.loads(lines[kept - 1]) if kept else {"offset": 0, "bytes": 0}
            if kept:
                head = head_of(mapped(data), self.grid.vocab)
                self._ranks = ranks_of(ids_of_head(head, self.grid.vocab), self.grid.vocab)
                self._head_crc = zlib.crc32(head)
            os.truncate(data, last["offset"] + last["bytes"])
            os.truncate(index, sum(len(line) + 1 for line in lines[:kept]))
            self._open(shard)
            self._within = kept
            if kept == len(self.shards[shard]):
                self._close()
            return
        first = next((n for n in range(len(self.shards)) if not self._name(n, "bin").is_file()), len(self.shards))
        self._shard, self._within = first, 0

    def _whole(self, shard: int, data: Path, lines: Sequence[bytes]) -> int:
        """How many of a shard's sequences, from the first on, are those that were planned and have their checksums."""
        content = mapped(data)
        head = zlib.crc32(head_of(content, self.grid.vocab))
        for number, (text, sequence) in enumerate(zip(lines, self.shards[shard], strict=False)):
            try:
                line = json.loads(text)
                blob = content[line["offset"] : line["offset"] + line["bytes"]]
                as_planned = line.items() >= asdict(sequence).items()
            except (ValueError, KeyError, TypeError, AttributeError):
                return number
            if not as_planned or len(blob) < line["bytes"] or zlib.crc32(blob, head) != line["crc32"]:
                return number
        return min(len(lines), len(self.shards[shard]))

    def _check_plan(self) -> None:
        """Refuse a folder in which an earlier attempt wrote another store."""
        plan: dict[str, Any] = {"identity": self.identity, "grid": self.grid.facts(), "version": VERSION}
        plan["sequences"] = hashlib.sha256(
            json.dumps([[asdict(sequence) for sequence in shard] for shard in self.shards]).encode()
        ).hexdigest()
        file, text = self.folder / PLAN, json.dumps(plan, indent=1, sort_keys=True)
        if not file.is_file():
            write_atomically(file, text)
            return
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept != json.loads(text):
            names = differences(kept["identity"], json.loads(text)["identity"])
            names += [key for key in ("grid", "sequences", "version") if kept[key] != json.loads(text)[key]]
            raise RunError(
                f"the folder holds a store of something else: {'; '.join(names)}",
                where=str(self.folder),
                fix="choose another folder, or remove this one",
            )

    def _name(self, shard: int, ending: str) -> Path:
        return self.folder / f"shard-{shard:05d}.{ending}"

    def _part(self, shard: int, ending: str) -> Path:
        return self.folder / f"shard-{shard:05d}.{ending}.part"


def differences(kept: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """The differences of two identities, each as `name: … there, … here`."""
    return [
        f"{name}: {kept.get(name, 'none')} there, {wanted.get(name, 'none')} here"
        for name in sorted({*kept, *wanted})
        if kept.get(name) != wanted.get(name)
    ]


@dataclass(frozen=True)
class Kept:
    """A sequence in the bytes of another store. No number of it is rounded again.

    Attributes:
        blob: its bytes. order: the id of each rank in the shard that they are from.
    """

    sequence: Planned
    blob: bytes
    order: NDArray[np.int32]
    grid: Grid

    @property
    def ids(self) -> NDArray[np.int32]:
        """The ids of its entries, in no order of meaning."""
        found: NDArray[np.int32] = self.order[ids_in(self.blob, self.sequence.targets, self.grid)]
        return found

    def ranked(self, ranks: NDArray[np.int32]) -> bytes:
        """Its bytes in a shard where the ids have these ranks [V]."""
        return renamed(self.blob, self.sequence.targets, self.grid, ranks[self.order])


Appended = tuple[str, Entries | Kept, NDArray[np.float64]]
"""A record's id, its entries, and a uniform number for each entry (see `codec.encode`); none for a `Kept`."""


class SignalStore:
    """A finished store, opened for reading. Shards are memory-mapped on first use.

    Args:
        folder: of a store.
        identity: the entries that its identity should have (those that matter to the caller).

    Raises:
        DataError: there is no store; it is of another version; its identity differs (the differences are named); or a
            file is missing or has another size.
    """

    def __init__(self, folder: str | Path, identity: Mapping[str, Any] | None = None) -> None:
        self.folder = folder = Path(folder)
        facts = read_facts(folder)
        self.identity: Mapping[str, Any] = facts["identity"]
        self.grid = Grid.of(facts["grid"])
        self.facts: Mapping[str, Any] = facts
        if identity is not None:
            kept = {name: self.identity.get(name) for name in identity}
            if differing := differences(kept, identity):
                raise DataError(
                    f"the store is of something else: {'; '.join(differing)}",
                    where=str(folder),
                    fix="capture again with this teacher, data and template",
                )
        for described in _described(facts):
            file = folder / described["name"]
            if not file.is_file() or file.stat().st_size != described["bytes"]:
                raise DataError(f"{described['name']} is missing or cut", where=str(folder), fix=_REPAIR)
        self._maps: dict[int, bytes | mmap.mmap] = {}
        self._heads: dict[int, bytes] = {}
        self._orders: dict[int, NDArray[np.int32]] = {}
        self._places: dict[str, tuple[int, dict[str, Any]]] | None = None

    def __len__(self) -> int:
        return int(self.facts["sequences"])

    def read(self, record: str, tokens: str) -> Entries:
        """The entries of a record.

        Args:
            record: its id.
            tokens: `tokens_digest` of what is trained on.

        Raises:
            DataError: the record is not in the store, or was rendered otherwise when it was captured; or its bytes are
                damaged.
        """
        if record not in self._index:
            raise DataError(
                f"record {record!r} is not in the store", where=str(self.folder), fix="capture it with these data"
            )
        shard, line = self._index[record]
        if line["tokens"] != tokens:
            raise DataError(
                f"record {record!r} has other tokens than when it was captured",
                where=str(self.folder),
                fix="capture again, with the tokenizer, template and train.max_length of this recipe",
            )
        data = self._mapped(shard)[line["offset"] : line["offset"] + line["bytes"]]
        name = self.facts["shards"][shard]["name"]
        if zlib.crc32(data, zlib.crc32(self._head(shard))) != line["crc32"]:
            raise DataError(f"record {record!r} is damaged in {name}", where=str(self.folder), fix=_REPAIR)
        try:
            found = decode(data, line["targets"], self.grid, line["length"])
        except ValueError as error:
            raise DataError(f"record {record!r} in {name}: {error}", where=str(self.folder), fix=_REPAIR) from error
        return replace(found, ids=self._order(shard)[found.ids])

    def length(self, record: str) -> int:
        """The tokens of a record that was captured."""
        return int(self._index[record][1]["length"])

    @property
    def records(self) -> Mapping[str, str]:
        """The digest of each record's tokens, by record, in the order of writing."""
        return {record: str(line["tokens"]) for record, (_, line) in self._index.items()}

    def check_files(self, of: str) -> bool:
        """Compare what lies beside the shards with its digests: `OUTPUT_LAYER`, or the files of `TOKENIZER`.

        Returns:
            Whether the store has such files.

        Raises:
            DataError: a file's bytes are not those that were written.
        """
        named = [described for described in self.facts["files"] if described["name"].split("/")[0] == of]
        for described in named:
            if file_digest(self.folder / described["name"]) != described["sha256"]:
                raise DataError(f"{described['name']} is damaged", where=str(self.folder), fix=_REPAIR)
        return bool(named)

    def damaged(self) -> list[str]:
        """The names of the shards that are damaged, or whose index is, and of damaged files beside them. Reads
        everything."""
        return _damaged(self.folder, self.facts)

    @property
    def _index(self) -> dict[str, tuple[int, dict[str, Any]]]:
        if self._places is None:
            self._places = {}
            for number, shard in enumerate(self.facts["shards"]):
                index = (self.folder / shard["name"]).with_suffix(".jsonl")
                if not index.is_file() or file_digest(index) != shard["index_sha256"]:
                    raise DataError(f"{index.name} is missing or damaged", where=str(self.folder), fix=_REPAIR)
                for line in index.read_text(encoding="utf-8").splitlines():
                    entry = json.loads(line)
                    self._places[entry["record"]] = number, entry
        return self._places

    def _head(self, shard: int) -> bytes:
        if shard not in self._heads:
            self._heads[shard] = head_of(self._mapped(shard), self.grid.vocab)
        return self._heads[shard]

    def _order(self, shard: int) -> NDArray[np.int32]:
        """The id of each rank in a shard. Its head was compared with a checksum before."""
        if shard not in self._orders:
            frequent = ids_of_head(self._head(shard), self.grid.vocab)
            self._orders[shard] = ids_of_ranks(frequent, self.grid.vocab)
        return self._orders[shard]

    def _mapped(self, shard: int) -> bytes | mmap.mmap:
        if shard not in self._maps:
            self._maps[shard] = mapped(self.folder / self.facts["shards"][shard]["name"])
        return self._maps[shard]


def mapped(file: Path) -> bytes | mmap.mmap:
    """The bytes of a file, which are read when they are used."""
    with file.open("rb") as opened:
        return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) if file.stat().st_size else b""


def discard(folder: Path, names: Sequence[str]) -> None:
    """Remove damaged shards, so that a `StoreWriter` with the same plan writes them alone."""
    (folder / FACTS).unlink(missing_ok=True)
    for name in names:
        (folder / name).unlink(missing_ok=True)
        (folder / name).with_suffix(".jsonl").unlink(missing_ok=True)


def discard_damaged(folder: Path) -> list[str]:
    """Find what is missing, cut or damaged in a store, remove it, and name it. The folder is then unfinished: the
    capture that made it writes what was removed, and nothing else.

    Raises:
        DataError: `store.json` is missing or damaged: the digests are not known.
    """
    names = _damaged(folder, read_facts(folder))
    if names:
        discard(folder, names)
    return names


_REPAIR = "remove damaged shards with potstill.store.files.discard_damaged, then capture again: it writes these alone"


def read_facts(folder: Path) -> dict[str, Any]:
    """As `facts_of`, of a store in a folder. Raises DataError likewise, or there is none."""
    try:
        text = (folder / FACTS).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError("there is no finished store", where=str(folder), fix="capture it first") from None
    except ValueError as error:
        raise DataError(f"{FACTS} is damaged: {error}", where=str(folder), fix="capture it again") from error
    return facts_of(text, str(folder))


def facts_of(text: str, where: str) -> dict[str, Any]:
    """What `store.json` says.

    Raises:
        DataError: it is damaged or was edited, or of another version.
    """
    try:
        facts: dict[str, Any] = dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise DataError(f"{FACTS} is damaged: {error}", where=where, fix="capture it again") from error
    if facts.get("version") != VERSION:
        raise DataError(
            f"the store has format {facts.get('version')}, and this reads format {VERSION}",
            where=where,
            fix="capture it again",
        )
    if facts.pop("digest", None) != _digest_of(facts):
        raise DataError(f"{FACTS} is not what was written: its digest differs", where=where, fix="capture it again")
    return facts


def sealed(facts: Mapping[str, Any]) -> str:
    """The text of `store.json`, with its digest, so that an edited one is told from what was written."""
    return json.dumps({**facts, "digest": _digest_of(facts)}, indent=1, sort_keys=True)


def _digest_of(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def files_of(facts: Mapping[str, Any]) -> dict[str, str]:
    """The SHA-256 of each file of a store, except `store.json`."""
    found = {str(described["name"]): str(described["sha256"]) for described in _described(facts)}
    indexes = {str(Path(shard["name"]).with_suffix(".jsonl")): str(shard["index_sha256"]) for shard in facts["shards"]}
    return found | indexes


def _described(facts: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The files that `store.json` lists with size and digest; indexes are not among them."""
    return [*facts["shards"], *facts["files"]]


def _damaged(folder: Path, facts: Mapping[str, Any]) -> list[str]:
    found = []
    for described in _described(facts):
        file = folder / described["name"]
        pairs = [(file, described["sha256"])]
        pairs += [(file.with_suffix(".jsonl"), described[key]) for key in ("index_sha256",) if key in described]
        if any(not one.is_file() or file_digest(one) != expected for one, expected in pairs):
            found.append(str(described["name"]))
    return found


# ---- ids by frequency --------------------------------------------------------------------------------------------


def by_frequency(batch: Sequence[Entries | Kept], vocab: int) -> NDArray[np.int32]:
    """The ids of some sequences, most frequent first."""
    counts = np.bincount(np.concatenate([np.zeros(0, np.int32), *(some.ids for some in batch)]), minlength=vocab)
    seen = np.flatnonzero(counts)
    return seen[np.argsort(-counts[seen], kind="stable")].astype(np.int32)


def ids_of_ranks(frequent: NDArray[np.int32], vocab: int) -> NDArray[np.int32]:
    """The id of each rank: the frequent ones, then all others in order."""
    other = np.ones(vocab, bool)
    other[frequent] = False
    return np.concatenate([frequent, np.flatnonzero(other).astype(np.int32)])


def ranks_of(frequent: NDArray[np.int32], vocab: int) -> NDArray[np.int32]:
    """The rank of each id."""
    ranks = np.empty(vocab, np.int32)
    ranks[ids_of_ranks(frequent, vocab)] = np.arange(vocab, dtype=np.int32)
    return ranks


def _id_bits(vocab: int) -> int:
    return max(1, (vocab - 1).bit_length())


def head_bytes(frequent: NDArray[np.int32], vocab: int) -> bytes:
    """The head of a shard: the number of its frequent ids, and these."""
    return frequent.size.to_bytes(4, "little") + pack(frequent, _id_bits(vocab))


def head_of(shard: bytes | mmap.mmap, vocab: int) -> bytes:
    """The bytes of a shard's head, as `head_bytes` made them."""
    return shard[: 4 + (int.from_bytes(shard[:4], "little") * _id_bits(vocab) + 7) // 8]


def ids_of_head(head: bytes, vocab: int) -> NDArray[np.int32]:
    """The frequent ids of such a head."""
    count = int.from_bytes(head[:4], "little")
    return unpack(np.frombuffer(head, np.uint8)[4:], count, _id_bits(vocab)).astype(np.int32)

"""The journal: every answer of a teacher, committed before it is used.

One SQLite file per run, outside every artifact, so that answers outlive the artifact that they were written for. An
answer is found by the content of its request and the teacher's identity (`Request.key`), and by the *batch* in which
it was written: low-precision answers of a local model depend on the rest of the batch, and sampled ones on the batch's
seed, so an answer can replace that of an uninterrupted run only if its whole batch was the same. Teachers that answer
each request separately (endpoints) use the batch `""`.

Durability. A batch is one transaction, stored whole or not at all. The file is in WAL mode with `synchronous=FULL`:
the log is flushed to disk at every commit. So committed answers survive the end of the process at any instruction
(`kill -9`, out of memory), a crash of the operating system and a loss of power, as far as the disk really flushes.
They do not survive the loss of the disk, nor damage to the file; damage is detected (page checks at opening, a
checksum per answer when it is read) and reported. A flush takes some milliseconds, little beside a batch of a local
model; answers of endpoints, which arrive by the thousand a second, are committed in groups, and an answer is used, and
its slot given to another request, only after its commit.

For stages with a budget it also stores the cost of requests that have no answer here (`ledger`).

One process at a time: SQLite's exclusive lock is taken at opening and held until `close` or the end of the process.
Within the process it is thread-safe. It records neither times nor users.
"""

from __future__ import annotations

import errno
import json
import sqlite3
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from potstill.artifacts import disk_error
from potstill.errors import RunError
from potstill.types import Answer, canonical_json

FILE_NAME = "journal.sqlite"
_APPLICATION = 0x506F7453  # "PotS", in the header of the file
_VERSION = 1
_SCHEMA = """
CREATE TABLE answers (
    key TEXT NOT NULL, batch TEXT NOT NULL, answer TEXT NOT NULL, checksum INTEGER NOT NULL, PRIMARY KEY (key, batch)
) WITHOUT ROWID;
CREATE TABLE batches (batch TEXT PRIMARY KEY, seconds REAL NOT NULL) WITHOUT ROWID;
"""
_LEDGER = "CREATE TABLE IF NOT EXISTS ledger (scope TEXT PRIMARY KEY, entry TEXT NOT NULL) WITHOUT ROWID"
_AT_ONCE = 500
"""Keys per SQLite query."""


class Journal:
    """The answers of one run folder. Use it as a context manager, or `close` it.

    Args:
        path: the file; created if missing.

    Raises:
        RunError: another process uses it, it is damaged or of another program, it cannot be opened, or (at any later
            call) the disk is full.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        with self._explained():
            self._open()

    def get(self, key: str, batch: str = "") -> Answer | None:
        """The answer to a request in that batch, or None."""
        with self._explained():
            row = self._database.execute(
                "SELECT answer, checksum FROM answers WHERE key = ? AND batch = ?", (key, batch)
            ).fetchone()
        return None if row is None else self._read(key, batch, *row)

    def get_many(self, keys: Sequence[str], batch: str = "") -> dict[str, Answer]:
        """The answers that exist, by key."""
        found: dict[str, Answer] = {}
        for start in range(0, len(keys), _AT_ONCE):
            some = keys[start : start + _AT_ONCE]
            marks = ",".join("?" * len(some))
            with self._explained():
                rows = self._database.execute(
                    f"SELECT key, answer, checksum FROM answers WHERE batch = ? AND key IN ({marks})", (batch, *some)
                ).fetchall()
            found.update((key, self._read(key, batch, text, checksum)) for key, text, checksum in rows)
        return found

    def get_batch(self, keys: Sequence[str], batch: str) -> list[Answer] | None:
        """All answers of a batch, in the order of `keys`; None if any is missing."""
        answers = []
        for key in keys:
            answer = self.get(key, batch)
            if answer is None:
                return None
            answers.append(answer)
        return answers

    def holds(self, batch: str) -> bool:
        """Whether a batch has been answered."""
        with self._explained():
            return self._database.execute("SELECT 1 FROM batches WHERE batch = ?", (batch,)).fetchone() is not None

    def seconds_of(self, batch: str) -> float:
        """The teacher's seconds for a batch; 0 if it is not there."""
        with self._explained():
            row = self._database.execute("SELECT seconds FROM batches WHERE batch = ?", (batch,)).fetchone()
        return 0.0 if row is None else float(row[0])

    def put_batch(
        self,
        answers: Sequence[tuple[str, Answer]],
        batch: str = "",
        seconds: float = 0.0,
        ledger: tuple[str, Callable[[], Mapping[str, Any]]] | None = None,
    ) -> None:
        """Commit answers by key, in one transaction, with a ledger entry: its scope, and a function that returns its
        content when no other thread can commit, so that an earlier entry never overwrites a later one. They are on
        disk when this returns.

        An existing answer is kept: the answer paid for first is the one that is used.
        """
        rows = []
        for key, answer in answers:
            text = canonical_json(answer.to_dict())
            rows.append((key, batch, text, _checksum(key, batch, text)))
        with self._explained(), self._database:
            self._database.execute("BEGIN IMMEDIATE")
            self._database.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?)", rows)
            if batch:
                self._database.execute("INSERT OR IGNORE INTO batches VALUES (?, ?)", (batch, seconds))
            if ledger is not None:
                scope, entry = ledger
                self._database.execute("INSERT OR REPLACE INTO ledger VALUES (?, ?)", (scope, canonical_json(entry())))

    def ledger(self, scope: str) -> Mapping[str, Any] | None:
        """The last entry of a ledger, or None."""
        with self._explained():
            row = self._database.execute("SELECT entry FROM ledger WHERE scope = ?", (scope,)).fetchone()
        return None if row is None else json.loads(row[0])

    def __len__(self) -> int:
        """The number of answers."""
        with self._explained():
            return int(self._database.execute("SELECT count(*) FROM answers").fetchone()[0])

    def close(self) -> None:
        """Merge the log into the file and release the lock."""
        with self._explained():
            self._database.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> None:
        # isolation_level=None: transactions begin explicitly, and only so.
        self._database = database = sqlite3.connect(
            self.path, timeout=1.0, isolation_level=None, check_same_thread=False
        )
        try:
            # Exclusive mode before the first access: the log then needs no shared memory, and works on network disks.
            database.execute("PRAGMA locking_mode = EXCLUSIVE")
            application = database.execute("PRAGMA application_id").fetchone()[0]
            version = database.execute("PRAGMA user_version").fetchone()[0]
            empty = database.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] == 0
            if not empty and (application, version) != (_APPLICATION, _VERSION):
                whose = f"of version {version}" if application == _APPLICATION else "of another program"
                raise RunError(
                    f"the journal is {whose}, and this potstill reads version {_VERSION}",
                    where=str(self.path),
                    fix="use the potstill that wrote it, or choose another folder with --run",
                )
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
            # A transaction, committed or not, takes the lock.
            database.execute("BEGIN IMMEDIATE")
            if empty:
                for statement in filter(str.strip, _SCHEMA.split(";")):
                    database.execute(statement)
                database.execute(f"PRAGMA application_id = {_APPLICATION}")
                database.execute(f"PRAGMA user_version = {_VERSION}")
            database.execute(_LEDGER)
            database.execute("COMMIT")
            found = database.execute("PRAGMA quick_check(1)").fetchone()[0]
            if found != "ok":
                raise self._damaged(found)
        except (RunError, sqlite3.Error):
            database.close()
            raise

    def _read(self, key: str, batch: str, text: str, checksum: int) -> Answer:
        if _checksum(key, batch, text) != checksum:
            raise self._damaged(f"the answer {key[:16]} is not what was written")
        return Answer(**json.loads(text))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn SQLite's errors into errors for the user."""
        try:
            with self._lock:
                yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", None)
            primary = code & 0xFF if code is not None else None
            if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise RunError(
                    "another process uses the journal",
                    where=str(self.path),
                    fix="wait until it has ended (or end it), or choose another folder with --run",
                ) from error
            if primary == sqlite3.SQLITE_FULL:
                raise disk_error(OSError(errno.ENOSPC, "no space left"), self.path) from error
            if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise self._damaged(str(error)) from error
            raise RunError(
                f"the journal cannot be used: {error}",
                where=str(self.path),
                fix="see that it is a file in a folder that can be written to, with free space; or use --run",
            ) from error

    def _damaged(self, what: str) -> RunError:
        return RunError(
            f"the journal is damaged: {what}",
            where=str(self.path),
            fix="put a copy of it back; or save what is readable with `sqlite3 journal.sqlite .recover`; "
            "or move it away, and its answers are asked for again",
        )


def _checksum(key: str, batch: str, text: str) -> int:
    return zlib.crc32(f"{key}\n{batch}\n{text}".encode())

"""The cache folder of fetched and converted models and of fetched data sets. No torch.

    <cache>/models/<name>/          a whole entry, with `potstill.json`: its description, and the size of every file
    <cache>/models/.making-<name>/  an unfinished entry; renamed when whole, removed by the next process
    <cache>/data/                   the same for data sets
    <cache>/teachers/               what teachers gave on held-out sets (`evaluate/teacher_memory.py`)
    <cache>/digests/                file digests, remembered by path, size and time
    <cache>/kernels/                which way linear layers of few rows multiply (`decoding/few_rows.py`)

An entry is made under a lock, so two processes never fetch the same model twice. A damaged entry (a file's size
differs from the recorded one) is made again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from potstill.artifacts import file_digest, write_atomically
from potstill.console import Console
from potstill.errors import ModelError, PotstillError

NOTE = "potstill.json"


def cache_dir() -> Path:
    """`$POTSTILL_CACHE`, else `$XDG_CACHE_HOME/potstill`, else `~/.cache/potstill`; created if missing.

    Raises:
        ModelError: it cannot be created or written.
    """
    named = os.environ.get("POTSTILL_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    path = Path(named).expanduser() if named else Path(home).expanduser() / "potstill"
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cache_error(error, path) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise ModelError("the cache folder cannot be written", where=str(path), fix=_ELSEWHERE)
    return path


_ELSEWHERE = "set POTSTILL_CACHE to a folder that can be written, with room for the models"


def cache_error(error: OSError, path: Path) -> ModelError:
    """The error for an OSError in the cache folder."""
    return ModelError(f"the cache folder cannot be used: {error.strerror or error}", where=str(path), fix=_ELSEWHERE)


def cached_entry(name: str, room: str = "models") -> Path | None:
    """The entry of that name if it is whole, or None."""
    entry = cache_dir() / room / name
    try:
        sizes = json.loads((entry / NOTE).read_text(encoding="utf-8"))["sizes"]
        whole = all((entry / file).stat().st_size == size for file, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return None
    return entry if whole else None


def entry_note(entry: Path) -> dict[str, Any]:
    """The description recorded when the entry was made."""
    note: dict[str, Any] = json.loads((entry / NOTE).read_text(encoding="utf-8"))
    return note


def make_entry(
    name: str, build: Callable[[Path, Path], Mapping[str, Any]], console: Console, room: str = "models"
) -> Path:
    """The entry of that name, built if missing.

    `build(folder, scratch)` fills `folder` and returns the description to record; `scratch` is for temporary files. If
    it fails, nothing is left.

    Raises:
        ModelError: the cache cannot be written, or its disk is full.
    """
    entries = cache_dir() / room
    final, aside = entries / name, entries / f".making-{name}"
    try:
        entries.mkdir(exist_ok=True)
        with _locked(entries / f".{name}.lock", console):
            if (entry := cached_entry(name, room)) is not None:
                return entry
            for stale in (aside, final):
                if stale.exists():
                    shutil.rmtree(stale)
            folder, scratch = aside / "entry", aside / "scratch"
            folder.mkdir(parents=True)
            scratch.mkdir()
            try:
                note = dict(build(folder, scratch))
                note["sizes"] = {str(f.relative_to(folder)): f.stat().st_size for f in _files(folder)}
                write_atomically(folder / NOTE, json.dumps(note, indent=1))
                for file in _files(folder):
                    with file.open("rb") as whole:
                        os.fsync(whole.fileno())
                os.replace(folder, final)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
            return final
    except PotstillError:
        raise
    except OSError as error:
        raise cache_error(error, entries) from error
    except Exception as error:
        # Rust libraries (safetensors, tokenizers) raise their own errors for a failed write.
        if "(os error" not in str(error):
            raise
        raise cache_error(OSError(str(error)), entries) from error


def remembered_digest(file: Path) -> str:
    """SHA-256 (hex) of a file, cached by path, size and modification time."""
    file = file.resolve()
    stat = file.stat()
    known = {"path": str(file), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    memory = cache_dir() / "digests" / f"{hashlib.sha256(str(file).encode()).hexdigest()[:32]}.json"
    try:
        remembered = json.loads(memory.read_text(encoding="utf-8"))
        if all(remembered.get(key) == value for key, value in known.items()):
            return str(remembered["sha256"])
    except (OSError, ValueError, KeyError):
        pass  # missing or damaged: hash again
    sha256 = file_digest(file)
    try:
        memory.parent.mkdir(exist_ok=True)
        write_atomically(memory, json.dumps(known | {"sha256": sha256}))
    except OSError as error:
        raise cache_error(error, memory.parent) from error
    return sha256


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


@contextmanager
def _locked(path: Path, console: Console) -> Iterator[None]:
    """Hold a lock file. The file is never removed: two processes could then hold two files of the same name."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.say(f"waiting for another process that is preparing {path.name.strip('.').removesuffix('.lock')}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield

"""A store elsewhere: at a URL of any `fsspec` file system (s3://, gs://, …), and as Parquet for `datasets`.

Shards are memory-mapped, so a store at a URL is copied before it is read: `pull` fetches what a folder lacks, and
compares every file with its digest. `store.json` is the last file in both directions, so that half a copy is no store.
While a copy to a URL is under way, `incoming.json` there says of which store: the same call then goes on with it.

File systems raise errors of their own beside `OSError` (those of botocore, say): at their calls every exception counts.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec  # type: ignore[import-untyped]
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

from potstill.artifacts import disk_error, file_digest, write_atomically
from potstill.errors import DataError, RunError
from potstill.store.codec import Entries
from potstill.store.files import FACTS, SignalStore, facts_of, files_of, sealed

INCOMING = "incoming.json"


def push(folder: str | Path, url: str) -> None:
    """Copy a finished store to a URL, in place of one that is there. A copy that was interrupted goes on; a whole one
    is made anew.

    Raises:
        DataError: as `SignalStore`; or a file is damaged (it is named).
        RunError: the URL cannot be written.
    """
    folder = Path(folder)
    store = SignalStore(folder)
    if damaged := store.damaged():
        raise DataError(f"{damaged[0]} is damaged", where=str(folder), fix="capture it again before it is copied")
    text = sealed(store.facts).encode()
    try:
        system, root = fsspec.core.url_to_fs(url)
        system.invalidate_cache()
        _make_folder(system, root)
        if not _is_under_way(system, root, text):
            for name in (FACTS, INCOMING, *files_of(store.facts)):
                if system.exists(f"{root}/{name}"):
                    system.rm_file(f"{root}/{name}")
            system.pipe_file(f"{root}/{INCOMING}", text)
        for name in files_of(store.facts):
            _put(system, folder / name, f"{root}/{name}")
        system.pipe_file(f"{root}/{FACTS}", text)
        system.rm_file(f"{root}/{INCOMING}")
    except Exception as error:
        raise RunError(f"the store cannot be copied: {_said(error)}", where=url, fix=_ACCESS) from error


def _make_folder(system: Any, path: str) -> None:
    """A folder, where the file system has them. Never a bucket: a mistyped name would become one."""
    if isinstance(system, LocalFileSystem):
        system.makedirs(path, exist_ok=True)
        return
    with suppress(FileExistsError):
        system.mkdir(path, create_parents=False)


def _is_under_way(system: Any, root: str, text: bytes) -> bool:
    """Whether an earlier attempt to copy this very store was interrupted."""
    if not system.exists(f"{root}/{INCOMING}"):
        return False
    return bool(system.cat_file(f"{root}/{INCOMING}") == text)


def _put(system: Any, file: Path, path: str) -> None:
    """Copy a file, unless an earlier attempt has copied it whole."""
    if system.exists(path) and system.size(path) == file.stat().st_size:
        return
    _make_folder(system, path.rpartition("/")[0])
    system.put_file(str(file), path)


def pull(url: str, folder: str | Path) -> SignalStore:
    """Copy a store from a URL into a folder, and open it. Files that are there and whole are not fetched again.

    Raises:
        DataError: there is no store, it is of another version, or a file is not what `store.json` says (it is named);
            or the folder has files of something else.
        RunError: the disk is full, or a file cannot be fetched.
    """
    try:
        system, root = fsspec.core.url_to_fs(url)
        text = system.cat_file(f"{root}/{FACTS}").decode()
    except FileNotFoundError as error:
        raise DataError(f"there is no finished store: {_said(error)}", where=url, fix="check the URL") from error
    except Exception as error:
        raise RunError(f"the URL cannot be read: {_said(error)}", where=url, fix=_ACCESS) from error
    files, folder = files_of(facts_of(text, url)), Path(folder)
    _only_store(folder, files)
    for name, digest in files.items():
        if not _stays_inside(name):
            raise DataError(f"{FACTS} names {name!r}, which is no file of a store", where=url)
        file = folder / name
        part = file.with_name(f"{file.name}.part")
        if file.is_file() and file_digest(file) == digest:
            continue
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            system.get_file(f"{root}/{name}", str(part))
        except FileNotFoundError as error:
            raise DataError(f"{name} is missing", where=url, fix="copy the store there again") from error
        except Exception as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise disk_error(error, folder) from error
            raise RunError(
                f"{name} cannot be copied: {_said(error)}", where=url, fix="copy again: it continues"
            ) from error
        if file_digest(part) != digest:
            part.unlink()
            raise DataError(f"{name} is damaged", where=url, fix="copy the store there again")
        part.replace(file)
    write_atomically(folder / FACTS, text)
    return SignalStore(folder)


def _only_store(folder: Path, files: Iterable[str]) -> None:
    """A store shares its folder with nothing: what is there is from an earlier attempt, or stays apart."""
    known = {FACTS, ".lock", *(name.partition("/")[0] for name in files)}
    known |= {f"{name}.part" for name in known}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name not in known:
            raise DataError(
                f"{path.name} is there, which is no file of this store", where=str(folder), fix="give it its own folder"
            )


_ACCESS = (
    "check the URL, that its bucket exists, and the credentials that its file system reads (s3: AWS_ACCESS_KEY_ID, "
    "AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL)"
)


def _said(error: Exception) -> str:
    """What an error says; some say nothing, or a path alone."""
    return f"{error} ({type(error).__name__})"


def _stays_inside(name: str) -> bool:
    """Whether a name is that of a file in a folder, or in a folder of it."""
    path = PurePosixPath(name)
    return path.as_posix() == name and not path.is_absolute() and ".." not in path.parts and "\\" not in name


def to_parquet(store: SignalStore, file: str | Path) -> None:
    """Write a store as one Parquet file, a row for each record, that `datasets` opens.

    Columns: `record`; `ids` and `weights`, a list for each target; `entropy`, `target_log_prob`, and `rest` where the
    store has it, a number for each target; and each tensor, a list of numbers for each of its rows.

    Raises:
        DataError: as `SignalStore.read`.
    """
    writer: pq.ParquetWriter | None = None
    try:
        for record, tokens in store.records.items():
            table = _row(record, store.read(record, tokens))
            writer = writer or pq.ParquetWriter(file, table.schema, compression="zstd")
            writer.write_table(table)
    except OSError as error:
        raise disk_error(error, Path(file)) from error
    finally:
        if writer is not None:
            writer.close()


def _row(record: str, entries: Entries) -> pa.Table:
    offsets = pa.array(entries.offsets, pa.int32())
    columns = {
        "ids": pa.ListArray.from_arrays(offsets, pa.array(entries.ids)),
        "weights": pa.ListArray.from_arrays(offsets, pa.array(entries.weights)),
        "entropy": pa.array(entries.entropy),
        "target_log_prob": pa.array(entries.target_log_prob),
        "rest": pa.array(entries.rest),
    }
    for name, tensor in entries.tensors.items():
        columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(tensor.reshape(-1)), tensor[:1].size or 1)
    lists = {
        name: pa.ListArray.from_arrays(pa.array([0, len(column)], pa.int32()), column)
        for name, column in columns.items()
        if name != "rest" or len(column)
    }
    return pa.table({"record": pa.array([record]), **lists})

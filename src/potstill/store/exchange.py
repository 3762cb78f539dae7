"""A store elsewhere: at a URL of any `fsspec` file system (s3://, gs://, …), and as Parquet for `datasets`.

Shards are memory-mapped, so a store at a URL is copied before it is read: `pull` fetches what a folder lacks, and
compares every file with its digest. `store.json` is the last file in both directions, so that half a copy is no store.

File systems raise errors of their own beside `OSError` (those of botocore, say): at their calls every exception counts.
"""

from __future__ import annotations

import errno
from pathlib import Path

import fsspec  # type: ignore[import-untyped]
import pyarrow as pa
import pyarrow.parquet as pq

from potstill.artifacts import disk_error, file_digest, write_atomically
from potstill.errors import DataError, RunError
from potstill.store.codec import Entries
from potstill.store.files import FACTS, SignalStore, facts_of, files_of


def push(folder: Path, url: str) -> None:
    """Copy a finished store to a URL.

    Raises:
        DataError: as `SignalStore`; or a file is damaged (it is named).
        RunError: the URL cannot be written.
    """
    store = SignalStore(folder)
    if damaged := store.damaged():
        raise DataError(f"{damaged[0]} is damaged", where=str(folder), fix="capture it again before it is copied")
    try:
        system, root = fsspec.core.url_to_fs(url)
        system.makedirs(root, exist_ok=True)
        if system.exists(f"{root}/{FACTS}"):
            system.rm_file(f"{root}/{FACTS}")
        for name in [*files_of(store.facts), FACTS]:
            system.put_file(str(folder / name), f"{root}/{name}")
    except Exception as error:
        raise RunError(f"the store cannot be copied: {error}", where=url) from error


def pull(url: str, folder: Path) -> SignalStore:
    """Copy a store from a URL into a folder, and open it. Files that are there and whole are not fetched again.

    Raises:
        DataError: there is no store, it is of another version, or a file is not what `store.json` says (it is named).
        RunError: the disk is full, or a file cannot be fetched.
    """
    try:
        system, root = fsspec.core.url_to_fs(url)
        text = system.cat_file(f"{root}/{FACTS}").decode()
    except Exception as error:
        raise DataError(f"there is no finished store: {error}", where=url, fix="check the URL") from error
    for name, digest in files_of(facts_of(text, url)).items():
        if Path(name).name != name:
            raise DataError(f"{FACTS} names {name!r}, which is no file of a store", where=url)
        file, part = folder / name, folder / f"{name}.part"
        if file.is_file() and file_digest(file) == digest:
            continue
        try:
            folder.mkdir(parents=True, exist_ok=True)
            system.get_file(f"{root}/{name}", str(part))
        except FileNotFoundError as error:
            raise DataError(f"{name} is missing", where=url, fix="copy the store there again") from error
        except Exception as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise disk_error(error, folder) from error
            raise RunError(f"{name} cannot be copied: {error}", where=url, fix="copy again: it continues") from error
        if file_digest(part) != digest:
            part.unlink()
            raise DataError(f"{name} is damaged", where=url, fix="copy the store there again")
        part.replace(file)
    write_atomically(folder / FACTS, text)
    return SignalStore(folder)


def to_parquet(store: SignalStore, file: Path) -> None:
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
        raise disk_error(error, file) from error
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

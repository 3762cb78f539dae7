"""A store is resumed byte for byte, finds what is damaged, and is opened only for what it was captured from."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import runpy
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from potstill.errors import DataError, RunError
from potstill.store.codec import Entries, Grid
from potstill.store.files import Planned, SignalStore, StoreWriter, discard, tokens_digest

GRID = Grid(300, 8, -8.0, 0.01)
IDENTITY = {"teacher": "abc", "template": "t1", "temperature": 1.0}
SHARDS = [
    [Planned(f"record-{shard}-{place}", f"digest-{shard}-{place}", 3 + place) for place in range(5)]
    for shard in range(4)
]


def made(shard: int, place: int) -> tuple[Entries, np.ndarray[Any, Any]]:
    """The same entries for the same sequence, whoever asks."""
    draws = np.random.default_rng([shard, place])
    targets = SHARDS[shard][place].targets
    counts = draws.integers(0, 9, targets)
    total = int(counts.sum())
    weights = np.where(draws.random(total) < 0.5, 0.01, draws.random(total)).astype(np.float32)
    entries = Entries(
        np.concatenate([[0], np.cumsum(counts)]),
        draws.integers(0, 300, total).astype(np.int32),
        weights,
        draws.random(targets).astype(np.float32),
        -draws.random(targets).astype(np.float32),
        np.zeros(0, np.float32),
    )
    return entries, draws.random(total)


def write(folder: Path, stop_after: int | None = None) -> None:
    with StoreWriter(folder, IDENTITY, GRID, SHARDS) as writer:
        for done, (shard, place) in enumerate(list(writer.missing())):
            if done == stop_after:
                return
            writer.append([made(shard, place)])
        writer.finish()


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir()) if p.name != ".lock"}


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    write(tmp_path)
    store = SignalStore(tmp_path, IDENTITY)
    assert len(store) == 20
    for shard in (0, 3):
        for place in range(5):
            entries, found = made(shard, place)[0], store.read(f"record-{shard}-{place}", f"digest-{shard}-{place}")
            assert (found.offsets == entries.offsets).all()
            assert np.abs(found.entropy - entries.entropy).max() < 1e-4


@pytest.mark.parametrize("stop_after", [0, 1, 4, 5, 6, 13, 19])
def test_a_store_that_was_stopped_ends_as_one_that_was_not(tmp_path: Path, stop_after: int) -> None:
    write(tmp_path / "whole")
    write(tmp_path / "stopped", stop_after)
    if stop_after % 5:  # the last batch torn: its line is there and its bytes are not, or only half a line
        part = next((tmp_path / "stopped").glob("*.bin.part"))
        os.truncate(part, part.stat().st_size - 3)
        with part.with_name(part.name.replace(".bin", ".jsonl")).open("ab") as index:
            index.write(b'{"record": "rec')
    with pytest.raises(DataError, match="no finished store"):
        SignalStore(tmp_path / "stopped")
    write(tmp_path / "stopped")
    assert digests(tmp_path / "stopped") == digests(tmp_path / "whole")


def test_killed_at_random_moments_it_is_byte_for_byte_the_same(tmp_path: Path) -> None:
    write(tmp_path / "whole")
    script = textwrap.dedent(
        """
        import sys, time
        from pathlib import Path
        sys.path.insert(0, sys.argv[2])
        from test_files import GRID, IDENTITY, SHARDS, made
        from potstill.store.files import StoreWriter
        with StoreWriter(Path(sys.argv[1]), IDENTITY, GRID, SHARDS) as writer:
            print("ready", flush=True)
            for shard, place in list(writer.missing()):
                writer.append([made(shard, place)])
                time.sleep(0.002)
            writer.finish()
        """
    )
    chosen = random.Random(0)
    for _ in range(4):
        command = [sys.executable, "-c", script, str(tmp_path / "killed"), str(Path(__file__).parent)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(chosen.uniform(0, 0.03))
            process.send_signal(signal.SIGKILL)
    write(tmp_path / "killed")
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


@pytest.mark.parametrize("name", ["shard-00002.bin", "shard-00002.jsonl"])
def test_a_flipped_bit_is_found_and_its_shard_alone_is_written_again(tmp_path: Path, name: str) -> None:
    write(tmp_path)
    before = digests(tmp_path)
    file = tmp_path / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    store = SignalStore(tmp_path)
    assert store.damaged() == ["shard-00002.bin"]
    discard(tmp_path, store.damaged())
    with StoreWriter(tmp_path, IDENTITY, GRID, SHARDS) as writer:
        assert [shard for shard, _ in writer.missing()] == [2] * 5
    write(tmp_path)
    assert digests(tmp_path) == before
    assert SignalStore(tmp_path).damaged() == []


def test_a_missing_or_cut_shard_is_refused_when_opened(tmp_path: Path) -> None:
    write(tmp_path)
    os.truncate(tmp_path / "shard-00001.bin", 10)
    with pytest.raises(DataError, match=r"shard-00001.bin is missing or cut"):
        SignalStore(tmp_path)


def test_a_store_of_something_else_is_refused_with_what_differs(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(DataError, match=r"teacher: abc there, xyz here$"):
        try:
            SignalStore(tmp_path, {**IDENTITY, "teacher": "xyz"})
        except DataError as error:
            raise DataError(error.what) from error
    with pytest.raises(RunError, match="a store of something else: template: t1 there, t2 here"):
        StoreWriter(tmp_path, {**IDENTITY, "template": "t2"}, GRID, SHARDS)
    with pytest.raises(RunError, match="a store of something else: sequences"):
        StoreWriter(tmp_path, IDENTITY, GRID, SHARDS[:2])


def test_a_record_that_is_rendered_otherwise_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    store = SignalStore(tmp_path)
    with pytest.raises(DataError, match="has other tokens than when it was captured"):
        store.read("record-0-1", "another")
    with pytest.raises(DataError, match="'record-0-l' is not in the store"):
        store.read("record-0-l", "digest-0-1")
    ids, positions = np.array([1, 2, 3]), np.array([0, 1])
    assert tokens_digest(ids, positions) != tokens_digest(ids, positions[:1])
    assert tokens_digest(ids.astype(np.int32), positions) == tokens_digest(ids.astype(np.int64), positions)


def test_two_writers_are_refused(tmp_path: Path) -> None:
    with StoreWriter(tmp_path, IDENTITY, GRID, SHARDS), pytest.raises(RunError, match="another process writes"):
        StoreWriter(tmp_path, IDENTITY, GRID, SHARDS)


def test_a_full_disk_loses_nothing_that_was_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "whole")
    real, calls = os.fsync, [0]

    def full(number: int) -> None:
        calls[0] += 1
        if calls[0] == 15:
            raise OSError(errno.ENOSPC, "no space left on device")
        real(number)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="the disk is full"):
        write(tmp_path / "full")
    monkeypatch.setattr(os, "fsync", real)
    with StoreWriter(tmp_path / "full", IDENTITY, GRID, SHARDS) as writer:
        assert len(list(writer.missing())) < 20
    write(tmp_path / "full")
    assert digests(tmp_path / "full") == digests(tmp_path / "whole")


def test_an_unfinished_store_cannot_be_declared_finished(tmp_path: Path) -> None:
    with StoreWriter(tmp_path, IDENTITY, GRID, SHARDS) as writer, pytest.raises(RunError, match="is not written yet"):
        writer.finish()


def test_the_reader_of_one_page_reads_the_same(tmp_path: Path) -> None:
    """`examples/read_store.py`, which needs NumPy alone."""
    write(tmp_path)
    example = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "read_store.py"))
    found, entropy, target = example["read"](tmp_path, "record-2-4")
    ours = SignalStore(tmp_path).read("record-2-4", "digest-2-4")
    assert np.abs(entropy - ours.entropy).max() < 1e-5
    assert np.abs(target - ours.target_log_prob).max() < 1e-5
    for at, entries in enumerate(found):
        span = slice(ours.offsets[at], ours.offsets[at + 1])
        assert [token for token, _ in entries] == ours.ids[span].tolist()
        assert [weight for _, weight in entries] == pytest.approx(ours.weights[span].tolist(), rel=1e-6)

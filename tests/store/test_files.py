"""A store is resumed byte for byte, finds what is damaged, and is opened only for what it was captured from."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from potstill.errors import DataError, RunError
from potstill.store.codec import Entries, Grid, TensorPart
from potstill.store.files import (
    FACTS,
    OUTPUT_LAYER,
    Planned,
    SignalStore,
    StoreWriter,
    discard_damaged,
    tokens_digest,
)

BESIDE = (
    TensorPart("hidden.2", "targets", (6,)),
    TensorPart("values.1", "tokens", (2, 3), "int8"),
    TensorPart("pooled", "example", (4,), "float32"),
)
GRIDS = {
    "threshold": Grid.threshold(300, 0.01),
    "sampled": Grid.sampled(300, 50),
    "topk": Grid.topk(300),
    "hidden": Grid.hidden(300, 8, "int8"),
    "dense": Grid.dense(300, "bfloat16"),
    "with_tensors": Grid.threshold(300, 0.01, BESIDE),
}
GRID = GRIDS["threshold"]
IDENTITY = {"teacher": "abc", "template": "t1", "temperature": 1.0}
SHARDS = [
    [Planned(f"record-{shard}-{place}", f"digest-{shard}-{place}", 3 + place, 5 + place) for place in range(5)]
    for shard in range(4)
]


def made(shard: int, place: int, grid: Grid = GRID) -> tuple[str, Entries, np.ndarray[Any, Any]]:
    """The same entries for the same sequence, whoever asks."""
    draws = np.random.default_rng([shard, place])
    planned = SHARDS[shard][place]
    targets = planned.targets
    whole = any(part.name.startswith("response.") for part in grid.tensors)
    counts = draws.integers(0, 1 if whole else 9, targets)
    total = int(counts.sum())
    weights = np.where(draws.random(total) < 0.5, grid.constant or 0.5, draws.integers(1, 50, total) / 50)
    entries = Entries(
        np.concatenate([[0], np.cumsum(counts)]),
        np.concatenate([draws.choice(300, count, replace=False) for count in counts]).astype(np.int32),
        weights.astype(np.float32),
        draws.random(targets).astype(np.float32),
        -draws.random(targets).astype(np.float32),
        (-draws.random(targets)).astype(np.float32) if grid == GRIDS["topk"] else np.zeros(0, np.float32),
        {
            part.name: draws.normal(0, 1, (part.count(targets, planned.length), *part.shape)).astype(np.float32)
            for part in grid.tensors
        },
    )
    return planned.record, entries, draws.random(total)


def write(folder: Path, stop_after: int | None = None, grid: Grid = GRID) -> None:
    with StoreWriter(folder, IDENTITY, grid, SHARDS) as writer:
        if grid == GRIDS["hidden"] and not (folder / OUTPUT_LAYER).is_file():
            (folder / OUTPUT_LAYER).write_bytes(b"weights")
        for done, (shard, place) in enumerate(list(writer.missing())):
            if done == stop_after:
                return
            writer.append([made(shard, place, grid)])
        writer.finish()


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir()) if p.name != ".lock"}


@pytest.mark.parametrize("kind", GRIDS)
def test_what_is_read_is_what_was_written(tmp_path: Path, kind: str) -> None:
    grid = GRIDS[kind]
    write(tmp_path, grid=grid)
    store = SignalStore(tmp_path, IDENTITY)
    assert len(store) == 20
    for shard in (0, 3):
        for place in range(5):
            entries = made(shard, place, grid)[1]
            found = store.read(f"record-{shard}-{place}", f"digest-{shard}-{place}")
            assert (found.offsets == entries.offsets).all()
            for target in range(entries.entropy.size):
                span = slice(entries.offsets[target], entries.offsets[target + 1])
                assert set(found.ids[span]) == set(entries.ids[span])
            assert np.abs(found.entropy - entries.entropy).max() < math.log(300) / 8190 + 1e-6
            for part in grid.tensors:
                kept = entries.tensors[part.name]
                error = np.abs(found.tensors[part.name] - kept).max()
                assert error <= {"float32": 0, "bfloat16": 2**-8, "int8": 1 / 252}[part.dtype] * np.abs(kept).max()


@pytest.mark.parametrize("stop_after", [0, 1, 4, 5, 6, 13, 19])
@pytest.mark.parametrize("kind", ["threshold", "hidden", "with_tensors"])
def test_a_store_that_was_stopped_ends_as_one_that_was_not(tmp_path: Path, kind: str, stop_after: int) -> None:
    grid = GRIDS[kind]
    write(tmp_path / "whole", grid=grid)
    write(tmp_path / "stopped", stop_after, grid)
    if stop_after % 5:  # the last batch torn: its line is there and its bytes are not, or only half a line
        part = next((tmp_path / "stopped").glob("*.bin.part"))
        os.truncate(part, part.stat().st_size - 3)
        with part.with_name(part.name.replace(".bin", ".jsonl")).open("ab") as index:
            index.write(b'{"record": "rec')
    with pytest.raises(DataError, match="no finished store"):
        SignalStore(tmp_path / "stopped")
    write(tmp_path / "stopped", grid=grid)
    assert digests(tmp_path / "stopped") == digests(tmp_path / "whole")


@pytest.mark.parametrize("name", ["shard-00001.bin.part", "shard-00001.jsonl.part", "shard-00000.bin"])
@pytest.mark.parametrize("kind", ["threshold", "hidden"])
def test_what_was_damaged_before_a_writer_goes_on_is_written_again(tmp_path: Path, kind: str, name: str) -> None:
    """Else a digest over the damage would be believed, and no repair would find it."""
    grid, chosen = GRIDS[kind], random.Random(name)
    write(tmp_path / "whole", grid=grid)
    for number in range(8):
        folder = tmp_path / str(number)
        write(folder, 8, grid)
        content = bytearray((folder / name).read_bytes())
        content[chosen.randrange(len(content))] ^= 1 << chosen.randrange(8)
        (folder / name).write_bytes(content)
        if not name.endswith(".part"):
            with pytest.raises(RunError, match=r"shard-00000.bin was damaged since it was written"):
                write(folder, grid=grid)
        write(folder, grid=grid)
        assert digests(folder) == digests(tmp_path / "whole")


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_files import GRIDS, IDENTITY, OUTPUT_LAYER, SHARDS, made
from potstill.store.files import StoreWriter
grid = GRIDS[sys.argv[3]]
with StoreWriter(Path(sys.argv[1]), IDENTITY, grid, SHARDS) as writer:
    (Path(sys.argv[1]) / OUTPUT_LAYER).write_bytes(b"weights")
    print("ready", flush=True)
    for shard, place in list(writer.missing()):
        writer.append([made(shard, place, grid)])
        time.sleep(0.002)
    writer.finish()
"""


def killed_at_random(folder: Path, grid: str, times: int) -> None:
    """Start a writer, kill it within its first 30 ms, and so on; then let one finish."""
    chosen = random.Random(grid)
    write(folder / "whole", grid=GRIDS[grid])
    (folder / "whole" / OUTPUT_LAYER).write_bytes(b"weights")
    for _ in range(times):
        command = [sys.executable, "-c", KILLED, str(folder / "killed"), str(Path(__file__).parent), grid]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(chosen.uniform(0, 0.03))
            process.send_signal(signal.SIGKILL)
    write(folder / "killed", grid=GRIDS[grid])
    assert digests(folder / "killed") == digests(folder / "whole")


def test_killed_at_random_moments_it_is_byte_for_byte_the_same(tmp_path: Path) -> None:
    killed_at_random(tmp_path, "threshold", 2)


@pytest.mark.long
@pytest.mark.parametrize("kind", GRIDS)
def test_killed_at_20_random_moments_it_is_byte_for_byte_the_same(tmp_path: Path, kind: str) -> None:
    killed_at_random(tmp_path, kind, 20)


@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.parametrize("name", ["shard-00002.bin", "shard-00002.jsonl"])
def test_a_flipped_bit_is_found_and_its_shard_alone_is_written_again(tmp_path: Path, name: str, kind: str) -> None:
    grid = GRIDS[kind]
    write(tmp_path, grid=grid)
    before = digests(tmp_path)
    flip(tmp_path / name)
    store = SignalStore(tmp_path)
    assert store.damaged() == ["shard-00002.bin"]
    with pytest.raises(DataError, match=r"damaged|no sequence"):
        for place in range(5):
            store.read(f"record-2-{place}", f"digest-2-{place}")
    assert discard_damaged(tmp_path) == ["shard-00002.bin"]
    with StoreWriter(tmp_path, IDENTITY, grid, SHARDS) as writer:
        assert [shard for shard, _ in writer.missing()] == [2] * 5
    write(tmp_path, grid=grid)
    assert digests(tmp_path) == before
    assert discard_damaged(tmp_path) == []
    assert SignalStore(tmp_path).damaged() == []


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_any_flipped_bit_of_any_file_is_found_and_named(tmp_path: Path) -> None:
    write(tmp_path)
    files = sorted(tmp_path.glob("shard-*"))
    chosen = random.Random(0)
    for file in files:
        whole = file.read_bytes()
        for _ in range(5):
            content = bytearray(whole)
            content[chosen.randrange(len(content))] ^= 1 << chosen.randrange(8)
            file.write_bytes(content)
            assert SignalStore(tmp_path).damaged() == [f"{file.stem}.bin"]
        file.write_bytes(whole)


@pytest.mark.parametrize("kind", GRIDS)
def test_no_bit_of_a_shard_can_flip_unnoticed_by_who_reads_its_records(tmp_path: Path, kind: str) -> None:
    """Its order of ids too, without which every id would be another's."""
    write(tmp_path, grid=GRIDS[kind])
    file, chosen = tmp_path / "shard-00002.bin", random.Random(kind)
    whole = file.read_bytes()
    for at in [*range(6), *(chosen.randrange(len(whole)) for _ in range(30))]:
        content = bytearray(whole)
        content[at] ^= 1 << chosen.randrange(8)
        file.write_bytes(content)
        store = SignalStore(tmp_path)
        with pytest.raises(DataError, match=r"is damaged in shard-00002\.bin"):
            for place in range(5):
                store.read(f"record-2-{place}", f"digest-2-{place}")


def test_a_description_that_was_edited_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    file = tmp_path / FACTS
    whole = json.loads(file.read_text())
    edits: dict[str, Any] = {
        "another temperature": {"identity": {**IDENTITY, "temperature": 2.0}},
        "another teacher": {"identity": {**IDENTITY, "teacher": "xyz"}},
        "another grid": {"grid": {**whole["grid"], "constant": 0.02}},
        "another vocabulary": {"grid": {**whole["grid"], "vocab": 301}},
        "fewer shards": {"shards": whole["shards"][:3]},
        "shards in another order": {"shards": whole["shards"][::-1]},
        "another count": {"targets": whole["targets"] + 1},
        "no digest": {"digest": None},
    }
    for what, edit in edits.items():
        file.write_text(json.dumps({**whole, **edit}))
        with pytest.raises(DataError, match="not what was written"):
            pytest.fail(f"{what}: {SignalStore(tmp_path).facts}")
    for text in ("", "[]", "null", "{", '{"version": 2}', '{"version": 3}'):
        file.write_text(text)
        with pytest.raises(DataError, match=r"damaged|format|not what was written"):
            SignalStore(tmp_path)


def test_files_of_another_store_in_its_place_are_named(tmp_path: Path) -> None:
    """The same records, lengths and sizes, captured from another teacher: hidden states are as long as each other."""
    grid = GRIDS["hidden"]
    write(tmp_path / "one", grid=grid)
    with StoreWriter(tmp_path / "other", {**IDENTITY, "teacher": "xyz"}, grid, SHARDS) as writer:
        (tmp_path / "other" / OUTPUT_LAYER).write_bytes(b"WEIGHTS")
        for shard, place in list(writer.missing()):
            record, entries, uniforms = made(shard, place, grid)
            tensors = {name: -tensor for name, tensor in entries.tensors.items()}
            writer.append([(record, replace(entries, tensors=tensors), uniforms)])
        writer.finish()
    for names in (
        ["shard-00001.bin"],
        ["shard-00001.jsonl"],
        ["shard-00001.bin", "shard-00001.jsonl"],
        [OUTPUT_LAYER],
        [FACTS],
    ):
        folder = Path(shutil.copytree(tmp_path / "one", tmp_path / "-".join(names)))
        for name in names:
            same_size = (tmp_path / "other" / name).stat().st_size == (folder / name).stat().st_size
            assert same_size or not name.endswith((".bin", ".safetensors"))
            shutil.copyfile(tmp_path / "other" / name, folder / name)
        with pytest.raises(DataError, match=r"missing or damaged|is damaged|teacher: xyz there"):
            store = SignalStore(folder, IDENTITY)
            store.check_files(OUTPUT_LAYER)
            for shard in range(4):
                for place in range(5):
                    store.read(f"record-{shard}-{place}", f"digest-{shard}-{place}")


def test_sequences_in_another_order_than_planned_are_refused(tmp_path: Path) -> None:
    same = [[Planned(f"r{n}", f"d{n}", 3, 5) for n in range(2)]]
    with StoreWriter(tmp_path, IDENTITY, GRID, same) as writer:
        _, entries, uniforms = made(0, 0)
        with pytest.raises(ValueError, match="'r1' came where 'r0' is next"):
            writer.append([("r1", entries, uniforms), ("r0", entries, uniforms)])
    with pytest.raises(ValueError, match="planned twice"):
        StoreWriter(tmp_path / "twice", IDENTITY, GRID, [same[0], same[0]])


def test_a_damaged_output_layer_is_named_and_written_anew_alone(tmp_path: Path) -> None:
    write(tmp_path, grid=GRIDS["hidden"])
    flip(tmp_path / OUTPUT_LAYER)
    assert discard_damaged(tmp_path) == [OUTPUT_LAYER]
    with StoreWriter(tmp_path, IDENTITY, GRIDS["hidden"], SHARDS) as writer:
        assert list(writer.missing()) == []
        with pytest.raises(RunError, match=f"{OUTPUT_LAYER} is not written yet"):
            writer.finish()


def test_an_index_whose_shard_is_gone_is_written_again_with_it(tmp_path: Path) -> None:
    write(tmp_path)
    before = digests(tmp_path)
    (tmp_path / "shard-00001.bin").unlink()
    write(tmp_path)
    assert digests(tmp_path) == before


def test_a_writer_that_is_refused_leaves_the_folder_to_others(tmp_path: Path) -> None:
    write(tmp_path)
    try:
        StoreWriter(tmp_path, {"other": 1}, GRID, SHARDS)
    except RunError as error:  # held, and with it all that its frames refer to
        held = error
    write(tmp_path)
    assert "something else" in held.what


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


@pytest.mark.parametrize("kind", GRIDS)
def test_a_full_disk_loses_nothing_that_was_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    grid = GRIDS[kind]
    write(tmp_path / "whole", grid=grid)
    real, calls = os.fsync, [0]

    def full(number: int) -> None:
        calls[0] += 1
        if calls[0] == 15:
            raise OSError(errno.ENOSPC, "no space left on device")
        real(number)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="the disk is full"):
        write(tmp_path / "full", grid=grid)
    monkeypatch.setattr(os, "fsync", real)
    with StoreWriter(tmp_path / "full", IDENTITY, grid, SHARDS) as writer:
        assert len(list(writer.missing())) < 20
    write(tmp_path / "full", grid=grid)
    assert digests(tmp_path / "full") == digests(tmp_path / "whole")


def test_an_unfinished_store_cannot_be_declared_finished(tmp_path: Path) -> None:
    with StoreWriter(tmp_path, IDENTITY, GRID, SHARDS) as writer, pytest.raises(RunError, match="is not written yet"):
        writer.finish()


@pytest.mark.parametrize("kind", GRIDS)
def test_the_reader_of_one_page_reads_the_same(tmp_path: Path, kind: str) -> None:
    """`examples/read_store.py`, which needs NumPy alone."""
    write(tmp_path, grid=GRIDS[kind])
    example = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "read_store.py"))
    found, entropy, target, tensors = example["read"](tmp_path, "record-2-4")
    ours = SignalStore(tmp_path).read("record-2-4", "digest-2-4")
    assert np.abs(entropy - ours.entropy).max() < 1e-5
    assert np.abs(target - ours.target_log_prob).max() < 1e-5
    for at, entries in enumerate(found):
        span = slice(ours.offsets[at], ours.offsets[at + 1])
        assert list(entries) == ours.ids[span].tolist()
        assert list(entries.values()) == pytest.approx(ours.weights[span].tolist(), rel=1e-6)
    assert tensors.keys() == ours.tensors.keys()
    for name, tensor in tensors.items():
        assert (tensor == ours.tensors[name]).all()

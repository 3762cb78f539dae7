"""Records one at a time are those that are read at once, and memory does not grow with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from potstill.data import Split, load_records, read_records, save_records
from potstill.data.read import stream_records
from potstill.data.store import RecordWriter
from potstill.errors import DataError
from potstill.recipe.data import FileData
from potstill.types import Record, Reject


def settings(path: Path, **more: object) -> FileData:
    return FileData.model_validate({"kind": "jsonl", "path": path, **more})


def write(path: Path, rows: list[object]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_what_is_streamed_is_what_is_read(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{n % 17}"} for n in range(40)]
    rows[5] = {"prompt": ""}
    of = settings(write(tmp_path / "data.jsonl", list(rows)), format="prompt", held_out=0.2, licence="CC0-1.0")
    read, streamed = read_records(of), list(stream_records(of))
    assert [item for item in streamed if isinstance(item, Record)] == read.records
    assert [item for item in streamed if isinstance(item, Reject)] == read.rejects
    assert len(streamed) == read.counts["read"] == 40


def test_a_limit_is_of_records_kept(tmp_path: Path) -> None:
    of = settings(write(tmp_path / "data.jsonl", [{"prompt": f"p{n // 2}"} for n in range(40)]), limit=3)
    assert [item.prompt for item in stream_records(of) if isinstance(item, Record)] == ["p0", "p1", "p2"]


def test_nothing_usable_is_an_error_at_the_end(tmp_path: Path) -> None:
    of = settings(write(tmp_path / "data.jsonl", [{"prompt": ""}]), format="prompt")
    with pytest.raises(DataError, match="none of 1 rows is usable"):
        list(stream_records(of))


def records(count: int) -> list[Record]:
    return [
        Record(messages=({"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": "a"}), row=n, group="g")
        for n in range(count)
    ]


def test_a_writer_gives_what_saving_at_once_gives_over_many_pieces(tmp_path: Path) -> None:
    made, split = records(5000), Split(0.3, 0)
    with RecordWriter(tmp_path / "records.parquet", split, jsonl=True) as writer:
        for record in made:
            writer.add(record)
    save_records(tmp_path / "at-once.parquet", made, split)
    assert load_records(tmp_path / "records.parquet") == load_records(tmp_path / "at-once.parquet") == made
    lines = (tmp_path / "records.jsonl").read_text().splitlines()
    assert len(lines) == 5000 and json.loads(lines[7])["id"] == made[7].id
    assert {path.name for path in tmp_path.iterdir()} == {"records.parquet", "at-once.parquet", "records.jsonl"}


def test_a_writer_that_is_broken_off_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), RecordWriter(tmp_path / "records.parquet", jsonl=True) as writer:
        writer.add(records(1)[0])
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())

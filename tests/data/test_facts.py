"""What verifiers need of a record, read from files beside the prompt."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from potstill.data import read_records
from potstill.data.store import RecordWriter
from potstill.errors import DataError
from potstill.recipe.data import FileData
from potstill.types import Record

TURNS = [{"role": "user", "content": "2 + 2"}]


def read(path: Path, kind: str = "jsonl") -> Any:
    return read_records(FileData(kind=kind, path=path, held_out=0.0))  # type: ignore[arg-type]


def lines(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize("asked", [{"prompt": "2 + 2"}, {"prompt": "2 + 2", "completion": "four"}, {"messages": TURNS}])
def test_metadata_and_the_columns_of_verifiers_are_kept(tmp_path: Path, asked: dict[str, Any]) -> None:
    facts = {"metadata": {"level": 3, "reference": "5"}, "reference": ["4", 4], "choices": ["3", "4"], "tests": None}
    result = read(lines(tmp_path / "a.jsonl", asked | facts))
    assert result.records[0].metadata == {"level": 3, "reference": ["4", 4], "choices": ["3", "4"]}
    assert result.unused_columns == ()


def test_tables_keep_them_without_the_nulls_that_they_fill_in(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "metadata": {"reference": "4"}}, {"prompt": "p", "metadata": {"tests": ["assert f()"]}}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = read(tmp_path / "a.parquet", "parquet").records
    assert [record.metadata for record in found] == [{"reference": "4"}, {"tests": ["assert f()"]}]
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["prompt", "metadata", "reference"], ["q", '{"choices": ["3", "4"]}', "4"], ["p", "", ""]]
        )
    found = read(tmp_path / "a.csv", "csv").records
    assert [record.metadata for record in found] == [{"choices": ["3", "4"], "reference": "4"}, {}]


@pytest.mark.parametrize(
    ("metadata", "says"),
    [(["reference"], "metadata is list, not an object"), ("a note", "no JSON object"), ("[1]", "metadata is list")],
)
def test_metadata_that_is_no_object_is_named_by_its_line(tmp_path: Path, metadata: Any, says: str) -> None:
    path = lines(tmp_path / "a.jsonl", {"prompt": "q"}, {"prompt": "p", "metadata": metadata})
    with pytest.raises(DataError, match=says) as caught:
        read(path)
    assert f"{path}:2" in str(caught.value)


def test_a_document_has_none(tmp_path: Path) -> None:
    result = read(lines(tmp_path / "a.jsonl", {"text": "t", "metadata": "a note"}))
    assert result.records[0].metadata == {} and result.unused_columns == ("metadata",)


def test_the_records_that_we_write_keep_theirs(tmp_path: Path) -> None:
    facts = {"reference": "4", "chain": {"tokens": 6}}
    turns = (*TURNS, {"role": "assistant", "content": "4"})
    with RecordWriter(tmp_path / "records.parquet", jsonl=True) as writer:
        writer.add(Record(messages=turns, group="g", metadata=facts))
    for kind in ("parquet", "jsonl"):
        (record,) = read(tmp_path / f"records.{kind}", kind).records
        assert record.metadata == facts and record.messages == turns

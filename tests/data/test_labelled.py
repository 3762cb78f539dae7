"""Labelled text: classes have names, a text has one of them, and sides of a source's own are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from potstill.data import ReadResult, Split, load_records, read_records, read_sides, save_records
from potstill.data.sides import class_names
from potstill.errors import DataError
from potstill.recipe.data import DatasetsFolder, FileData
from potstill.types import Record, group_of


def write_lines(path: Path, rows: list[Any]) -> FileData:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return FileData(kind="jsonl", path=path, held_out=0.5)


def labels(result: ReadResult) -> list[str | None]:
    return [record.label for record in result.records]


def test_text_and_label_are_found_and_whole_numbers_and_truth_values_become_names(tmp_path: Path) -> None:
    given = ["ale", " ale ", 7, -1, True, False]
    result = read_records(
        write_lines(tmp_path / "a.jsonl", [{"text": f"t{n}", "label": g} for n, g in enumerate(given)])
    )
    assert result.format == "labelled" and labels(result) == ["ale", "ale", "7", "-1", "true", "false"]
    assert result.records[0].group == group_of("t0"), "the class is no part of the group"


def test_a_row_without_a_label_is_left_out_and_one_that_is_no_label_is_an_error(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": None}, {"text": "c", "label": " "}]
    result = read_records(write_lines(tmp_path / "a.jsonl", rows))
    assert result.counts == {"read": 3, "no label": 2} and labels(result) == ["x"]
    for wrong in (0.5, ["x"]):
        with pytest.raises(DataError, match=r"a\.jsonl:2: label is (float|list), not a name or a whole number"):
            read_records(write_lines(tmp_path / "a.jsonl", [rows[0], {"text": "b", "label": wrong}]))
    with pytest.raises(DataError, match="no column 'label'"):
        read_records(write_lines(tmp_path / "a.jsonl", [rows[0], {"text": "b"}]))


def test_a_text_has_one_class_the_first(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": "x"}, {"text": "a", "label": "y"}, {"text": "a", "label": "x"}]
    result = read_records(write_lines(tmp_path / "a.jsonl", rows))
    assert labels(result) == ["x"]
    assert result.counts == {"read": 3, "the same text with another label": 1, "exact duplicate": 1}
    assert {reject.detail for reject in result.rejects} == {"of a.jsonl, row 1"}


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_a_source_that_names_its_numbers_gives_the_names(tmp_path: Path, kind: str) -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["serious", "funny"])}
    )
    made = datasets.Dataset.from_list([{"text": f"t{n}", "label": (1, 0, -1)[n]} for n in range(3)], features)
    settings: DatasetsFolder | FileData
    if kind == "folder":
        made.save_to_disk(str(tmp_path / "saved"))
        settings = DatasetsFolder(kind="datasets", path=tmp_path / "saved")
    else:
        made.to_parquet(str(tmp_path / "a.parquet"))
        settings = FileData(kind="parquet", path=tmp_path / "a.parquet")
    result = read_records(settings)
    assert labels(result) == ["funny", "serious"] and result.counts == {"read": 3, "no label": 1}


def test_numbers_are_in_their_order_and_names_in_that_of_the_alphabet() -> None:
    assert class_names(["10", "9", "-1", None, "9"]) == ("-1", "9", "10")
    assert class_names(["b", "10", "9"]) == ("10", "9", "b")
    assert class_names([None]) == ()


def test_records_keep_label_and_side_when_they_are_stored(tmp_path: Path) -> None:
    record = Record(text="t", label="x", side="held_out", group="g")
    own = Split("own", 0)
    save_records(tmp_path / "r.parquet", [record], own)
    assert load_records(tmp_path / "r.parquet", "held_out") == [record]


def test_a_class_that_only_the_held_out_side_has_is_left_out_with_the_reason(tmp_path: Path) -> None:
    rows = [{"text": f"text {n}", "label": "xy"[n % 2]} for n in range(40)]
    settings = write_lines(tmp_path / "a.jsonl", rows)
    held_out = next(r for r in read_sides(settings).held_out if isinstance(r, Record))
    rows[held_out.row - 1]["label"] = "rare"
    sides = read_sides(write_lines(tmp_path / "a.jsonl", rows))
    assert sides.classes == ("x", "y") and sides.counts == {"read": 40, "its class is not on the training side": 1}
    assert [(r.row, r.detail) for r in sides.rejects] == [(held_out.row, "rare")]
    assert held_out.row not in {r.row for r in sides.held_out} and len(sides.train) + len(sides.held_out) == 39


def test_texts_without_labels_have_sides_and_no_classes(tmp_path: Path) -> None:
    sides = read_sides(write_lines(tmp_path / "a.jsonl", [{"text": f"text {n}"} for n in range(20)]))
    assert sides.classes == () and len(sides.train) + len(sides.held_out) == 20 == sides.counts["read"]


def test_sides_of_its_own_are_refused_of_a_source_that_has_none(tmp_path: Path) -> None:
    settings = write_lines(tmp_path / "a.jsonl", [{"text": "a", "label": "x"}])
    with pytest.raises(DataError, match="no sides of its own"):
        read_sides(settings.model_copy(update={"held_out": "own"}))

"""Readers: what is well formed is read, what is malformed is named, what is of no use is counted, nothing is silent."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.data import ReadResult, load_records, read_records, save_records, source_digests
from potstill.data.formats import COLUMNS
from potstill.errors import DataError
from potstill.recipe.data import DatasetsFolder, DataSettings, FileData, RunData, TextFolder
from potstill.types import Provenance, Record, group_of

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
    lambda text: text.strip() != ""
)


def read(path: Path, kind: Any = "jsonl", **settings: Any) -> ReadResult:
    return read_records(FileData(kind=kind, path=path, **settings))


def contents(path: Path, kind: Any = "jsonl", **settings: Any) -> list[dict[str, Any]]:
    return [record.content for record in read(path, kind, **settings).records]


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# ---- files -----------------------------------------------------------------------------------------------------

ROWS = st.lists(st.fixed_dictionaries({"prompt": texts, "completion": texts}), min_size=1, max_size=6, unique_by=str)


@given(rows=ROWS, kind=st.sampled_from(["jsonl", "json", "wrapped", "csv", "parquet", "datasets"]), data=st.data())
def test_every_kind_of_file_gives_the_rows_that_were_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]], kind: str, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("data") / "rows"
    settings: DataSettings
    match kind:
        case "jsonl":
            end, bom = data.draw(st.sampled_from(["\n", "\r\n", "\n\n \n"])), data.draw(st.sampled_from(["", "\ufeff"]))
            ascii_only = data.draw(st.booleans())
            text = bom + end.join(json.dumps(row, ensure_ascii=ascii_only) for row in rows)
            path.write_bytes(text.encode())
            settings = FileData(kind="jsonl", path=path)
        case "json" | "wrapped":
            path.write_text("\ufeff" + json.dumps(rows if kind == "json" else {"data": rows, "version": 1}))
            settings = FileData(kind="json", path=path)
        case "csv":
            with path.open("w", encoding="utf-8-sig", newline="") as out:
                writer = csv.DictWriter(out, ["completion", "prompt"], quoting=csv.QUOTE_ALL)
                writer.writeheader()
                writer.writerows(rows)
            settings = FileData(kind="csv", path=path)
        case "parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
            settings = FileData(kind="parquet", path=path)
        case _:
            datasets.Dataset.from_list(rows).save_to_disk(str(path))
            settings = DatasetsFolder(kind="datasets", path=path)
    result = read_records(settings)
    assert [(r.prompt, r.completion) for r in result.records] == [(r["prompt"], r["completion"]) for r in rows]
    assert result.counts == {"read": len(rows)} and result.format == "prompt_completion"


def test_rows_are_numbered_by_line_and_name_their_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('\n{"prompt": "a"}\n\n{"prompt": "b"}\n')
    records = read(path, licence="CC0-1.0").records
    assert [(r.row, r.provenance.source, r.provenance.licence) for r in records] == [
        (2, "a.jsonl", "CC0-1.0"),
        (4, "a.jsonl", "CC0-1.0"),
    ]
    (tmp_path / "b.csv").write_text('prompt,n\n"two\nlines",1\nb,2\n')
    assert [r.row for r in read(tmp_path / "b.csv", "csv").records] == [2, 4]


def test_a_line_separator_inside_a_string_ends_no_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt": "a\u2028b\u0085c"}, ensure_ascii=False), encoding="utf-8")
    assert contents(path) == [{"prompt": "a\u2028b\u0085c"}]


def test_several_files_are_named_by_a_pattern(tmp_path: Path) -> None:
    for name in "ba":
        write_lines(tmp_path / f"{name}.jsonl", [{"prompt": name}])
    assert contents(tmp_path / "*.jsonl") == [{"prompt": "a"}, {"prompt": "b"}]
    assert set(source_digests(FileData(kind="jsonl", path=tmp_path / "*.jsonl"))) == {"data/a.jsonl", "data/b.jsonl"}
    with pytest.raises(DataError, match="no file matches the pattern"):
        read(tmp_path / "*.json", "json")


def test_a_text_folder_is_one_document_per_file(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.txt").write_bytes("\ufeffzwei\r\nZeilen\r\n".encode())
    (tmp_path / "a.txt").write_text("eins")
    (tmp_path / "c.txt").write_text(" \n")
    (tmp_path / "d.md").write_text("not a text")
    result = read_records(TextFolder(kind="text", path=tmp_path))
    assert [(r.text, r.provenance.source) for r in result.records] == [
        ("eins", "a.txt"),
        ("zwei\nZeilen\n", "deep/b.txt"),
    ]
    assert result.counts == {"read": 3, "empty text": 1}
    assert result.records[0].group == group_of("eins")
    with pytest.raises(DataError, match="no file matches"):
        read_records(TextFolder(kind="text", path=tmp_path, pattern="*.rst"))


def test_the_digest_follows_the_content(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"prompt": "a"}])
    settings = FileData(kind="jsonl", path=path)
    before = source_digests(settings)
    assert source_digests(settings) == before
    write_lines(path, [{"prompt": "b"}])
    assert source_digests(settings) != before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"prompt": "a"}\n\n{"prompt": \n', "a.jsonl:3: malformed JSON: Expecting value"),
        ("a.jsonl", b'{"prompt": "a"}\n["b"]\n', "a.jsonl:2: holds a list, not an object"),
        ("a.jsonl", b'{"prompt": "a", "n": NaN}\n', "a.jsonl:1: malformed JSON: NaN is not JSON"),
        ("a.jsonl", b'{"prompt": "a"}\n{"promt": "b"}\n', "a.jsonl:2: no column 'prompt' (it has promt)"),
        ("a.jsonl", b'{"prompt": "a"}\n{"prompt": 7}\n', "a.jsonl:2: prompt is int, not a text"),
        ("a.jsonl", b'{"prompt": "a"}\n{"prompt": "\xff"}\n', "a.jsonl:2: not UTF-8"),
        ("a.jsonl", '{"prompt": "a"}'.encode("utf-16"), "a.jsonl:1: not UTF-8"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl:1: malformed JSON"),
        ("a.jsonl", b'{"messages": [{"content": "a"}]}', "a.jsonl:1: a message without a role"),
        ("a.jsonl", b'{"messages": "hi"}', "a.jsonl:1: messages is neither a list nor JSON"),
        ("a.jsonl", b'{"messages": [{"role": "user", "content": 3}]}', "a.jsonl:1: the content of a message is int"),
        ("a.jsonl", b'{"conversations": [{"from": "humn", "value": "a"}]}', "unknown speaker 'humn' in"),
        ("a.jsonl", b'{"messages": [{"role": "user", "content": "a"}], "tools": [1]}', "a.jsonl:1: tools is not"),
        ("a.json", b'[{"prompt": "a"}, 3]', "a.json, row 2: holds a number"),
        ("a.json", b'{"prompt": "a"}', "a.json: holds an object, not a list of rows"),
        ("a.json", b'[\n{"prompt": "a"},\n{"prompt": }]', "a.json:3: malformed JSON"),
        ("a.csv", b"prompt,n\na,1\nb\n", "a.csv:3: 1 cells, and the header has 2"),
        ("a.csv", b'prompt,n\na,1\n"b,2\n', "a.csv:3: malformed CSV: unexpected end of data"),
        ("a.csv", b"prompt,prompt\na,b\n", "a.csv:1: the header names 'prompt' twice"),
        ("a.parquet", b"PAR1 not", "a.parquet: not a whole Parquet file"),
    ],
)  # fmt: skip
def test_what_is_malformed_is_named_by_file_and_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as error:
        read(tmp_path / name, name.partition(".")[2])
    assert message in str(error.value)


def test_a_missing_file_is_named_with_its_nearest_neighbour(tmp_path: Path) -> None:
    write_lines(tmp_path / "prompts.jsonl", [{"prompt": "a"}])
    with pytest.raises(DataError, match=r"no such file; did you mean 'prompts\.jsonl'\?"):
        read(tmp_path / "promts.jsonl")
    with pytest.raises(DataError, match="no such folder"):
        read(tmp_path / "nowhere" / "prompts.jsonl")
    with pytest.raises(DataError, match="is a folder"):
        read(tmp_path)
    with pytest.raises(DataError, match="is a file, not a folder"):
        read_records(TextFolder(kind="text", path=tmp_path / "prompts.jsonl"))


@pytest.mark.parametrize(
    ("name", "content"), [("a.jsonl", "\n\n"), ("a.json", "[]"), ("a.csv", "prompt\n"), ("a.csv", "")]
)
def test_an_empty_data_set_is_an_error(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match="the data set is empty"):
        read(tmp_path / name, name.partition(".")[2])


def test_unknown_columns_are_named_with_the_formats(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"promt": "a", "id": 1}])
    with pytest.raises(DataError) as error:
        read(path)
    assert "no format has the columns id, promt; did you mean 'prompt'?" in str(error.value)
    assert all(name in str(error.value) for name in COLUMNS)


# ---- formats ---------------------------------------------------------------------------------------------------


SYSTEM, QUESTION, ANSWER = (
    {"role": role, "content": text} for role, text in [("system", "s"), ("user", "q"), ("assistant", "a")]
)
BY_PARTS = '[{"role": "user", "content": [{"type": "text", "text": "q"}, {"text": "r"}]}]'
SPOKEN = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
WHOLE = {"messages": [QUESTION, ANSWER]}


@pytest.mark.parametrize(
    ("row", "format_", "content"),
    [
        ({"prompt": "q"}, "prompt", {"prompt": "q"}),
        ({"prompt": [QUESTION]}, "prompt", {"messages": [QUESTION]}),
        ({"prompt": "q", "completion": "a"}, "prompt_completion", {"prompt": "q", "completion": "a"}),
        ({"prompt": [QUESTION], "completion": [ANSWER]}, "prompt_completion", WHOLE),
        ({"prompt": [QUESTION], "completion": "a"}, "prompt_completion", WHOLE),
        ({"text": "t"}, "text", {"text": "t"}),
        (
            {"messages": [QUESTION | {"name": None}], "tools": [{"type": "function"}]},
            "messages",
            {"messages": [QUESTION], "tools": [{"type": "function"}]},
        ),
        ({"messages": BY_PARTS, "tools": ""}, "messages", {"messages": [{"role": "user", "content": "qr"}]}),
        ({"conversations": SPOKEN, "system": "s"}, "sharegpt", {"messages": [SYSTEM, QUESTION, ANSWER]}),
        ({"conversations": [QUESTION, ANSWER]}, "sharegpt", WHOLE),
        ({"instruction": "q", "input": "", "output": "a"}, "alpaca", WHOLE),
        (
            {"instruction": "q", "input": "x", "output": "a"},
            "alpaca",
            {"messages": [{"role": "user", "content": "q\n\nx"}, ANSWER]},
        ),
        ({"instruction": "q"}, "alpaca", {"messages": [QUESTION]}),
    ],
)
def test_formats_are_found_by_their_columns(tmp_path: Path, row: Any, format_: Any, content: Any) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{**row, "extra": 1}])
    result = read(path)
    assert [record.content for record in result.records] == [content]
    assert (result.format, result.unused_columns) == (format_, ("extra",))
    assert contents(path, format=format_) == [content]


def test_a_named_format_goes_before_what_the_columns_look_like(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"prompt": "q", "completion": "a", "text": "t"}])
    assert contents(path, format="text") == [{"text": "t"}]
    assert contents(path, format="prompt") == [{"prompt": "q"}]
    with pytest.raises(DataError, match="no column 'messages'"):
        read(path, format="messages")


@given(text=texts)
def test_a_prompt_that_looks_like_json_stays_a_text(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    for prompt in (f"[{{{text}", json.dumps([{text: 1}]), "[]", "null"):
        path = write_lines(tmp_path_factory.mktemp("data") / "a.jsonl", [{"prompt": prompt}])
        assert contents(path) == [{"prompt": prompt}]


def test_columns_that_parquet_fills_with_nulls_are_as_if_absent(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": "q"}]},
        {"messages": [{"role": "user", "content": "p", "reasoning_content": "r"}]},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert contents(tmp_path / "a.parquet", "parquet") == rows


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from("role content from value type text".split()), inner, max_size=3)
    ),
    max_leaves=8,
)
columns = st.sampled_from(["id", *{column for needed, taken in COLUMNS.values() for column in needed + taken}])


@given(rows=st.lists(st.dictionaries(columns, anything, max_size=4), max_size=4))
def test_whatever_the_rows_hold_they_are_read_or_refused_in_words(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    path = write_lines(tmp_path_factory.mktemp("data") / "a.jsonl", rows)
    try:
        result = read(path)
    except DataError:
        return
    assert len(result.records) + len(result.rejects) == result.counts["read"] == len(rows)
    assert all(record.group and record.id and record.row for record in result.records)


# ---- of no use -------------------------------------------------------------------------------------------------


def test_rows_of_no_use_are_counted_and_kept_as_rejects(tmp_path: Path) -> None:
    def talk(*said: Any) -> dict[str, Any]:
        return {
            "messages": [
                {"role": role, "content": text} for role, text in zip(["user", "assistant"], said, strict=False)
            ]
        }

    image = {"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}]}
    rows = [
        talk("q", "a"),
        talk(" ", "a"),
        talk("q", ""),
        talk("q", None),
        talk(),
        talk("q", "a"),
        image,
        talk("\ud800", "a"),
    ]
    result = read(write_lines(tmp_path / "a.jsonl", rows))
    assert len(result.records) == 1
    assert result.counts == {
        "read": 8,
        "empty prompt": 2,
        "empty completion": 2,
        "exact duplicate": 1,
        "holds image, not only text": 1,
        "not valid Unicode (half of a surrogate pair)": 1,
    }
    assert [(reject.row, reject.source) for reject in result.rejects] == [(row, "a.jsonl") for row in range(2, 9)]
    assert next(r for r in result.rejects if r.reason == "exact duplicate").detail == "of a.jsonl, row 1"


@given(
    prompts=st.lists(st.sampled_from(["a", "b", "c", "", " "]), min_size=1, max_size=12),
    limit=st.none() | st.integers(1, 4),
)
def test_every_row_read_is_a_record_or_a_reject(
    tmp_path_factory: pytest.TempPathFactory, prompts: list[str], limit: int | None
) -> None:
    path = write_lines(tmp_path_factory.mktemp("data") / "a.jsonl", [{"prompt": prompt} for prompt in prompts])
    useful = list(dict.fromkeys(prompt for prompt in prompts if prompt.strip()))
    if not useful:
        with pytest.raises(DataError, match=r"none of \d+ rows is usable"):
            read(path, limit=limit)
        return
    result = read(path, limit=limit)
    assert [record.prompt for record in result.records] == useful[:limit]
    assert len(result.records) + len(result.rejects) == result.counts["read"]
    assert sum(result.counts.values()) - result.counts["read"] == len(result.rejects)


def test_an_answer_that_calls_a_tool_needs_no_words(tmp_path: Path) -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}
    path = write_lines(tmp_path / "a.jsonl", [{"messages": [{"role": "user", "content": "q"}, call]}])
    assert read(path).records[0].messages == (
        {"role": "user", "content": "q"},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]},
    )


# ---- groups ----------------------------------------------------------------------------------------------------


def test_one_question_is_one_group_in_every_format(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "q"},
        {"prompt": "q", "completion": "a"},
        {"prompt": [{"role": "user", "content": "q"}]},
        {
            "messages": [
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": "a"},
                {"role": "user", "content": "r"},
            ]
        },
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "b"}]},
        {"instruction": "q", "output": "c"},
    ]
    groups = {read(write_lines(tmp_path / f"{n}.jsonl", [row])).records[0].group for n, row in enumerate(rows)}
    assert groups == {group_of("q")}


def test_the_recipes_system_prompt_goes_to_records_without_one_and_leaves_groups_alone(tmp_path: Path) -> None:
    own = [{"role": "system", "content": "own"}, {"role": "user", "content": "q"}]
    path = write_lines(tmp_path / "a.jsonl", [{"messages": own}, {"messages": own[1:]}])
    plain, told = read(path).records, read(path, system="be brief").records
    assert told[0].messages == tuple(own)
    assert told[1].messages == ({"role": "system", "content": "be brief"}, own[1])
    assert [r.group for r in told] == [r.group for r in plain]
    pairs = write_lines(tmp_path / "b.jsonl", [{"prompt": "q", "completion": "a"}])
    assert [m["role"] for m in read(pairs, system="s").records[0].messages or ()] == ["system", "user", "assistant"]
    documents = write_lines(tmp_path / "c.jsonl", [{"text": "t"}])
    assert contents(documents, system="s") == [{"text": "t"}]


# ---- data sets of `datasets`, and runs -------------------------------------------------------------------------


def test_a_split_of_a_saved_data_set_is_chosen_by_name(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list([{"prompt": "a"}])
    datasets.DatasetDict({"train": rows, "validation": rows}).save_to_disk(str(tmp_path / "d"))
    assert read_records(DatasetsFolder(kind="datasets", path=tmp_path / "d")).records[0].prompt == "a"
    with pytest.raises(DataError, match=r"no split 'validaton'; did you mean 'validation'\?"):
        read_records(DatasetsFolder(kind="datasets", path=tmp_path / "d", split="validaton"))
    with pytest.raises(DataError, match=r"not a folder that datasets\.save_to_disk wrote"):
        read_records(DatasetsFolder(kind="datasets", path=tmp_path))


def a_record(**changes: Any) -> Record:
    said = {"messages": ({"role": "user", "content": "q"}, {"role": "assistant", "content": "a"})}
    known = {"group": "g", "row": 3, "sample": 1, "finished": False, "provenance": Provenance(source="s", teacher="t")}
    return Record(**{**said, **known, **changes})


def test_the_records_of_a_run_come_as_they_are(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(DataError, match="no such run"):
        read_records(RunData(kind="run", path=run))
    (run / "generate").mkdir(parents=True)
    with pytest.raises(DataError, match="no generated records"):
        read_records(RunData(kind="run", path=run))
    # Two samples that say the same are two samples: how often an answer comes is part of what is distilled.
    records = [a_record(), a_record(sample=2), a_record()]
    save_records(run / "generate" / "records.parquet", records)
    found = (run / "generate" / "records.parquet").stat()
    stat = {"records.parquet": [found.st_size, found.st_mtime_ns]}
    manifest = {"key": "k", "stage": "generate", "files": {"records.parquet": "d"}, "stat": stat}
    (run / "generate" / "manifest.json").write_text(json.dumps(manifest))
    result = read_records(RunData(kind="run", path=run))
    assert result.records == records[:2] and result.counts == {"read": 3, "exact duplicate": 1}
    assert source_digests(RunData(kind="run", path=run)).keys() == {"data"}


def test_a_file_of_records_keeps_what_is_known_of_them(tmp_path: Path) -> None:
    save_records(tmp_path / "records.parquet", [a_record()])
    # Read as mere columns it would come back finished, and its cut answer would be learned as an end.
    assert (
        read(tmp_path / "records.parquet", "parquet").records
        == load_records(tmp_path / "records.parquet")
        == [a_record()]
    )

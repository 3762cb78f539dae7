"""Files as people have them: compressed, delimited otherwise, with columns of other names, and with defects."""

from __future__ import annotations

import bz2
import csv
import datetime
import decimal
import gzip
import json
import lzma
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.data import ReadResult, load_records, read_records, save_records
from potstill.data.formats import COLUMNS
from potstill.data.read import stream_records
from potstill.data.store import RecordWriter
from potstill.errors import DataError, RecipeError
from potstill.recipe import parse_recipe
from potstill.recipe.data import Column, FileData, TextFolder, expand_data
from potstill.types import Provenance, Record


def read(path: Path, kind: Any = "jsonl", **settings: Any) -> ReadResult:
    return read_records(FileData(kind=kind, path=path, **settings))


def refusal(path: Path, kind: Any = "jsonl", **settings: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        read(path, kind, **settings)
    return caught.value


def zstd(data: bytes) -> bytes:
    return bytes(pa.compress(data, codec="zstd", asbytes=True))


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstd,
}

# ---- compressed --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_compressed_files_are_read_as_they_are_under_any_name(tmp_path: Path, suffix: str) -> None:
    lines = "".join(json.dumps({"prompt": f"é {n}"}, ensure_ascii=False) + "\n" for n in range(3000))
    path = tmp_path / f"a.jsonl.{suffix}"
    path.write_bytes(COMPRESSORS[suffix](b"\xef\xbb\xbf" + lines.encode()))
    assert expand_data(str(path)) == {"kind": "jsonl", "path": str(path)}
    result = read(path)
    assert [r.prompt for r in result.records] == [f"é {n}" for n in range(3000)]
    assert result.records[-1].row == 3000
    (tmp_path / "b.csv").write_bytes(COMPRESSORS[suffix](b"text\na\n"))
    assert [r.text for r in read(tmp_path / "b.csv", "csv").records] == ["a"]


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_a_compressed_file_that_is_torn_is_refused(tmp_path: Path, suffix: str) -> None:
    lines = "".join(f'{{"prompt": "{n * 7919 % 10007}"}}\n' for n in range(20_000))
    path = tmp_path / "a.jsonl"
    whole = COMPRESSORS[suffix](lines.encode())
    path.write_bytes(whole[: len(whole) // 2])
    assert "cannot be read to its end" in str(refusal(path)) or "malformed JSON" in str(refusal(path))


def test_a_text_that_begins_as_a_compressed_file_does_is_a_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("BZh91 is no bzip2\n")
    assert read_records(TextFolder(kind="text", path=tmp_path)).records[0].text == "BZh91 is no bzip2\n"


def test_archives_and_compressed_parquet_are_refused_with_the_fix(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"PK\x03\x04rest")
    assert "unpack it" in (refusal(tmp_path / "a.jsonl").fix or "")
    (tmp_path / "a.parquet.gz").write_bytes(gzip.compress(b"PAR1"))
    assert "unpack it" in (refusal(tmp_path / "a.parquet.gz", "parquet").fix or "")


# ---- delimiters --------------------------------------------------------------------------------------------------


def test_cells_are_delimited_by_tabs_in_tsv_and_as_the_recipe_says(tmp_path: Path) -> None:
    for name, delimiter, settings in [("a.tsv", "\t", {}), ("a.tsv.gz", "\t", {}), ("a.csv", ";", {"delimiter": ";"})]:
        text = f'prompt{delimiter}reference\r\n"a{delimiter}""b"""{delimiter}1,5\r\n'.encode()
        (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
        [record] = read(tmp_path / name, expand_data(name)["kind"], **settings).records
        assert (record.prompt, record.metadata) == (f'a{delimiter}"b"', {"reference": "1,5"})
    error = refusal(tmp_path / "a.csv", "csv")
    assert "seems to be delimited by ';'" in str(error) and error.fix == 'set data.delimiter: ";"'
    (tmp_path / "b.csv").write_text('{"prompt": "a", "completion": "b"}\n')
    assert refusal(tmp_path / "b.csv", "csv").fix == "set data.kind: jsonl"


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"kind": "csv", "delimiter": ";;"}, "one character"),
        ({"kind": "csv", "delimiter": '"'}, "one character"),
        ({"kind": "jsonl", "delimiter": ";"}, "delimiter is for csv"),
        ({"kind": "jsonl", "columns": {"promt": "q"}}, "promt"),
        ({"kind": "jsonl", "colums": {"prompt": "q"}}, "did you mean 'columns'"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused_while_parsing(
    tmp_path: Path, settings: dict[str, Any], what: str
) -> None:
    with pytest.raises(RecipeError, match=what):
        parse_recipe({"name": "x", "data": {"path": "a", **settings}}, base=tmp_path)


# ---- columns -----------------------------------------------------------------------------------------------------


def write(path: Path, rows: list[dict[str, Any]]) -> Any:
    """Writes rows as what the name of the file says; returns the kind."""
    match path.suffix:
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case ".json":
            path.write_text(json.dumps(rows))
        case ".csv":
            with path.open("w", newline="") as out:
                writer = csv.DictWriter(out, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        case _:
            pq.write_table(pa.Table.from_pylist(rows), path)
    return path.suffix[1:]


KINDS = ("a.jsonl", "a.json", "a.csv", "a.parquet")


@pytest.mark.parametrize("name", KINDS)
def test_columns_of_other_names_are_mapped_in_every_kind_of_file(tmp_path: Path, name: str) -> None:
    rows = [{"question": "q", "gold": "a", "prompt": "not this", "note": "n"}]
    kind = write(tmp_path / name, rows)
    result = read(tmp_path / name, kind, columns={"prompt": "question", "reference": "gold"})
    assert [(r.prompt, r.metadata) for r in result.records] == [("q", {"reference": "a"})]
    assert result.unused_columns == ("note",)
    streamed = list(stream_records(FileData(kind=kind, path=tmp_path / name, columns={"prompt": "question"})))
    assert [item.prompt for item in streamed if isinstance(item, Record)] == ["q"]


def test_the_recipes_columns_are_those_of_the_formats() -> None:
    assert set(get_args(Column)) == {column for needed, taken in COLUMNS.values() for column in needed + taken}


@pytest.mark.parametrize("name", KINDS)
def test_a_column_that_is_nowhere_is_named(tmp_path: Path, name: str) -> None:
    kind = write(tmp_path / name, [{"question": "q", "gold": "a"}, {"question": "r", "gold": "b"}])
    error = refusal(tmp_path / name, kind, columns={"prompt": "question", "reference": "gould"})
    assert (
        "no row has the column 'gould'; did you mean 'gold'?" in str(error) and error.where == "data.columns.reference"
    )
    assert "no row has the column 'qestion'; did you mean" in str(
        refusal(tmp_path / name, kind, columns={"prompt": "qestion"})
    )
    with pytest.raises(DataError, match="gould"):
        list(stream_records(FileData(kind=kind, path=tmp_path / name, columns={"prompt": "question", "id": "gould"})))


def test_a_row_without_a_mapped_column_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"q": "a"}, {"prompt": "b"}])
    error = refusal(tmp_path / "a.jsonl", columns={"prompt": "q"})
    assert "a.jsonl:2: no column 'q', which data.columns names as 'prompt'" in str(error)


def test_a_mapped_label_keeps_the_names_of_its_classes(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({"body": datasets.Value("string"), "topic": datasets.ClassLabel(names=["ale", "rye"])})
    rows = datasets.Dataset.from_list([{"body": "t", "topic": 1}, {"body": "u", "topic": 0}], features=features)
    rows.to_parquet(str(tmp_path / "a.parquet"))
    result = read(tmp_path / "a.parquet", "parquet", columns={"text": "body", "label": "topic"})
    assert [r.label for r in result.records] == ["rye", "ale"]


def test_records_of_potstill_have_no_columns_to_name(tmp_path: Path) -> None:
    save_records(tmp_path / "a.parquet", [Record(prompt="q", group="g")])
    assert "no columns to name" in str(refusal(tmp_path / "a.parquet", "parquet", columns={"prompt": "q"}))
    assert "groups of their own" in str(refusal(tmp_path / "a.parquet", "parquet", group_by="prompt"))


def test_json_lines_of_records_keep_what_is_known_of_them(tmp_path: Path) -> None:
    said = ({"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "reasoning_content": "r"})
    origin = Provenance(source="a.jsonl", teacher="t")
    cut = Record(messages=said, finished=False, group="g", sample=2, row=5, provenance=origin)
    with RecordWriter(tmp_path / "records.parquet", jsonl=True) as writer:
        writer.add(cut)
    # Read as mere columns it would come back finished, and its cut answer would be learned as an end.
    assert read(tmp_path / "records.jsonl").records == [cut] == load_records(tmp_path / "records.parquet")


# ---- defects -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a", "prompt": "b"}', "key 'prompt' is given twice"),
        ('{"messages": [{"role": "user", "content": "a", "content": "b"}]}', "key 'content' is given twice"),
        ('{"prompt": "a", "reference": 1e999}', "column 'reference' holds float"),
        ('{"messages": [{"role": "human", "content": "a"}]}', "unknown role 'human' in messages"),
        ('{"messages": [{"role": "User", "content": "a"}]}', "unknown role 'User' in messages; did you mean 'user'?"),
        ('{"messages": [{"role": "user", "content": "a", "n": 1e999}]}', "column 'messages' holds what is not JSON"),
        ('{"messages": [{"role": "user", "content": "a"}], "tools": 5}', "tools is not a list"),
        ('{"messages": [{"role": "user", "content": "a"}], "system": ["s"]}', "system is list, not a text"),
        ('{"instruction": "a", "system": 5}', "system is int, not a text"),
        ('{"text": "a", "label": 1.5}', "label is float, not a name or a whole number"),
    ],
)  # fmt: skip
def test_junk_is_refused_with_its_row(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text("\n" + line + "\n")
    error = refusal(tmp_path / "a.jsonl")
    assert message in str(error) and "a.jsonl:2" in str(error)


@pytest.mark.parametrize(
    "calls", ["x", {"name": "f"}, [1], [{}], [{"function": {}}], [{"name": 5}], [{"name": "f", "arguments": [1]}]]
)
def test_junk_in_tool_calls_is_refused_with_its_row_and_the_fix(tmp_path: Path, calls: Any) -> None:
    asked = {"role": "user", "content": "a"}
    write(tmp_path / "a.jsonl", [{"messages": [asked, {"role": "assistant", "content": "", "tool_calls": calls}]}])
    error = refusal(tmp_path / "a.jsonl")
    assert "tool_calls" in str(error) and "a.jsonl:1" in str(error) and "arguments" in (error.fix or "")


def test_calls_of_tools_are_the_assistants(tmp_path: Path) -> None:
    good = [{"function": {"name": "f", "arguments": {"a": 1}}}, {"name": "g", "arguments": "{}"}, {"name": "h"}]
    asked = {"role": "user", "content": "a"}
    write(tmp_path / "a.jsonl", [{"messages": [asked, {"role": "assistant", "tool_calls": good}]}])
    assert len(read(tmp_path / "a.jsonl").records) == 1
    write(tmp_path / "a.jsonl", [{"messages": [asked | {"tool_calls": good}]}])
    assert "only the assistant calls tools" in str(refusal(tmp_path / "a.jsonl"))


@pytest.mark.parametrize(
    "value",
    [
        decimal.Decimal("1.50"),
        datetime.datetime(2024, 2, 29, 12),
        datetime.date(2024, 2, 29),
        datetime.timedelta(seconds=1),
        b"bytes",
    ],
)
def test_parquet_columns_that_are_not_json_are_refused_with_the_fix_where_they_are_used(
    tmp_path: Path, value: Any
) -> None:
    path = tmp_path / "a.parquet"
    for column in ("reference", "prompt"):
        row = {"prompt": "q", column: value}
        pq.write_table(pa.Table.from_pylist([row]), path)
        error = refusal(path, "parquet")
        assert column in str(error) and type(value).__name__ in str(error) and "a.parquet, row 1" in str(error)
        assert "text" in (error.fix or "")
    pq.write_table(pa.Table.from_pylist([{"text": "t", "label": value}]), path)
    assert "label is" in str(refusal(path, "parquet")) and "text" in (refusal(path, "parquet").fix or "")
    pq.write_table(pa.Table.from_pylist([{"prompt": "q", "made": value}]), path)
    assert read(path, "parquet").unused_columns == ("made",)


def test_the_fix_for_a_column_of_decimals_works(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([{"prompt": "q", "reference": decimal.Decimal("1.50")}])
    pq.write_table(table, tmp_path / "a.parquet")
    fix = refusal(tmp_path / "a.parquet", "parquet").fix or ""
    made = eval(fix.partition("with pyarrow, ")[2], {"table": table, "i": 1})
    pq.write_table(made, tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", "parquet").records[0].metadata == {"reference": "1.50"}


def test_odd_dates_matter_only_where_they_are_used(tmp_path: Path) -> None:
    far = pa.array([253_402_300_800 + 10**9], pa.timestamp("s"))
    fine = pa.array([1], pa.timestamp("ns"))
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"prompt": ["q"], "far": far, "fine": fine}), path)
    assert read(path, "parquet").unused_columns == ("far", "fine")
    pq.write_table(pa.table({"prompt": ["q"], "reference": far}), path)
    assert "column 'reference' holds a value that Python has no type for" in str(refusal(path, "parquet"))


def test_long_lines_and_nul_characters_are_kept(tmp_path: Path) -> None:
    long = "x" * 2_000_000
    for name in KINDS:
        kind = write(tmp_path / name, [{"text": long}, {"text": "a\0b"}])
        assert [r.text for r in read(tmp_path / name, kind).records] == [long, "a\0b"]


# ---- whatever the bytes -----------------------------------------------------------------------------------------


@given(
    data=st.binary(max_size=80)
    | st.text(alphabet='{}[]",:\\\n\r\t\0;promtxe01 é\ufeff', max_size=80).map(lambda text: text.encode())
    | st.sampled_from([b"\x1f\x8b", b"BZh91AY&SY", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"PAR1"]),
    kind=st.sampled_from(["jsonl", "json", "csv", "parquet"]),
    head=st.sampled_from([b"", b"\xef\xbb\xbf", b"prompt,n\n", b'{"prompt": "a"}\n', b'[{"prompt": "a"},']),
)
def test_whatever_the_bytes_they_are_read_or_refused_in_words(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, kind: Any, head: bytes
) -> None:
    path = tmp_path_factory.mktemp("data") / "a"
    path.write_bytes(head + data)
    with suppress(DataError):
        assert read(path, kind).records


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.sampled_from(["user", "tool"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from("role content tool_calls function name arguments from value type text".split()),
            inner,
            max_size=4,
        )
    ),
    max_leaves=10,
)


@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {}, optional=dict.fromkeys(("messages", "conversations", "prompt", "completion", "tools", "c"), values)
        ),
        min_size=1,
        max_size=3,
    ),
    columns=st.none() | st.just({"prompt": "c"}) | st.just({"messages": "c", "tools": "prompt"}),
    group_by=st.sampled_from(["user_turns", "prompt", "column:c"]),
)
def test_whatever_the_columns_hold_they_are_read_or_refused_in_words(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], columns: Any, group_by: str
) -> None:
    path = tmp_path_factory.mktemp("data") / "a.jsonl"
    # json writes Infinity and NaN as such; the reader refuses them, and 1e999, which it takes for infinite.
    path.write_text("".join(json.dumps(row).replace("Infinity", "1e999") + "\n" for row in rows))
    try:
        result = read(path, columns=columns, group_by=group_by)
    except DataError:
        return
    assert len(result.records) + len(result.rejects) == len(rows)
    assert all(record.group and record.id for record in result.records)

"""Records as Parquet: nothing is lost on the way, and `datasets` opens the file without us."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.data import Split, load_records, load_rejects, save_records, save_rejects
from potstill.errors import DataError
from potstill.types import Answer, Provenance, Record, Reject, Sampling, Verdict

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
scalars = (
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | texts
)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2), max_leaves=5
)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "tool"])},
        optional={
            "content": st.none() | texts,
            "tool_calls": st.lists(anything, max_size=2),
            "reasoning_content": texts,
        },
    ),
    max_size=3,
).map(tuple)


@st.composite
def records(draw: st.DrawFn) -> Record:
    said: dict[str, Any] = draw(
        st.fixed_dictionaries({"messages": messages, "tools": st.none() | st.just(({"type": "function"},))})
        | st.fixed_dictionaries({"prompt": texts, "completion": st.none() | texts})
        | st.fixed_dictionaries({"text": texts, "label": st.none() | texts})
    )
    sampling = draw(st.dictionaries(texts, scalars, max_size=2))
    provenance = Provenance(
        *(draw(texts) for _ in range(4)), sampling, draw(st.none() | st.integers(0, 2**32)), "", "MIT"
    )
    verdicts = draw(
        st.lists(st.builds(Verdict, st.sampled_from(["accept", "reject"]), texts, st.none() | st.floats(0, 1)))
    )
    return Record(
        **said,
        finished=draw(st.booleans()),
        sample=draw(st.integers(0, 99)),
        group=draw(texts),
        side=draw(st.sampled_from(["", "train", "held_out"])),
        row=draw(st.integers(0, 2**40)),
        provenance=provenance,
        verdicts=tuple(verdicts),
        metadata=draw(st.dictionaries(texts, anything, max_size=2)),
    )


@given(saved=st.lists(records(), max_size=4))
def test_records_come_back_as_they_were(tmp_path_factory: pytest.TempPathFactory, saved: list[Record]) -> None:
    path = tmp_path_factory.mktemp("records") / "records.parquet"
    save_records(path, saved)
    loaded = load_records(path)
    assert loaded == saved
    assert [record.id for record in loaded] == [record.id for record in saved]


def a_record(n: int = 0) -> Record:
    asked = {"role": "user", "content": f"q{n}"}
    return Record(messages=(asked, {"role": "assistant", "content": "a"}), group=f"g{n}", row=n)


@pytest.mark.parametrize("saved", [[a_record()], [Record(prompt="q"), Record(text="t"), a_record()]])
def test_datasets_opens_the_file_without_us(tmp_path: Path, saved: list[Record]) -> None:
    save_records(tmp_path / "records.parquet", saved)
    opened = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "records.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert opened.num_rows == len(saved)
    assert [row["id"] for row in opened] == [record.id for record in saved]
    for row, record in zip(opened, saved, strict=True):
        assert (row["prompt"], row["text"]) == (record.prompt, record.text)
        if record.messages is not None:
            assert [(m["role"], m["content"]) for m in row["messages"]] == [
                (m["role"], m["content"]) for m in record.messages
            ]


def test_the_order_of_a_tool_calls_keys_is_kept(tmp_path: Path) -> None:
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"b": 1, "a": 2}}}]}
    record = Record(messages=({"role": "user", "content": "q"}, call))
    save_records(tmp_path / "r.parquet", [record])
    # Templates write arguments in the order in which they stand.
    assert str(load_records(tmp_path / "r.parquet")[0].messages) == str(record.messages)


def test_sides_are_written_by_the_split_and_one_can_be_asked_for(tmp_path: Path) -> None:
    path, saved = tmp_path / "r.parquet", [a_record(n) for n in range(40)]
    split = Split(0.5, 3)
    save_records(path, saved, split)
    held_out, train = load_records(path, "held_out"), load_records(path, "train")
    assert held_out == [record for record in saved if split.side_of(record) == "held_out"] != []
    assert sorted(held_out + train, key=lambda r: r.row) == saved
    save_records(path, saved)
    with pytest.raises(DataError, match="no sides"):
        load_records(path, "train")


def test_a_file_that_is_damaged_or_of_others_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.parquet"
    with pytest.raises(DataError, match="no such file"):
        load_records(path)
    save_records(path, [a_record()])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="not a whole Parquet file"):
        load_records(path)
    datasets.Dataset.from_list([{"prompt": "a"}]).to_parquet(str(path))
    with pytest.raises(DataError, match="no records of potstill"):
        load_records(path)


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "r.parquet"
    save_records(path, [a_record()])
    with pytest.raises((TypeError, ValueError)):
        save_records(path, [replace(a_record(1), metadata={"x": float("nan")})])
    assert load_records(path) == [a_record()]
    assert list(tmp_path.iterdir()) == [path]


@given(saved=st.lists(st.builds(Reject, texts, texts, st.integers(0, 99), st.text(max_size=5), texts), max_size=3))
def test_rejects_come_back_as_they_were(tmp_path_factory: pytest.TempPathFactory, saved: list[Reject]) -> None:
    path = tmp_path_factory.mktemp("rejects") / "rejects.jsonl"
    save_rejects(path, saved)
    assert load_rejects(path) == saved


@pytest.mark.parametrize(
    "value",
    [
        Provenance("a", "b", "c", "d", {"top_p": 0.5}, 3, "e", "f"),
        Sampling(8, 0.5, 0.25, 4, 2),
        Answer("text", "length", 3, 4, "why", -0.5, [["t", -0.1, [["t", -0.1]]]]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_dictionaries_that_are_written_by_hand_have_every_field(value: Any) -> None:
    assert list(value.to_dict().items()) == list(asdict(value).items())

"""What a model of each task sees of an example: as `transformers` would have it, whole, and with its class."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from potstill.data import ChatTokenizer, Pixels, Tokenized, read_records, reader_for, save_records, tokenize
from potstill.data.encoder import EncoderTokenizer
from potstill.data.tokenize import IGNORE
from potstill.errors import DataError, ModelError
from potstill.recipe import Masking
from potstill.recipe.data import FileData
from potstill.signals import Batch
from potstill.tasks import Task
from potstill.types import Record, Reject
from tiny_models import make_tiny_tokenizer, make_tiny_wordpiece

BERT = make_tiny_wordpiece()
PAD, UNKNOWN, CLS, SEP, MASK = range(5)
CLASSES = ("ale", "malt", "rye")

texts = st.text("abc .éß[]MASK", max_size=60)


def reader(task: Task = "sequence_classification", max_length: int = 16, **settings: Any) -> Any:
    classes = CLASSES if task == "sequence_classification" else ()
    return reader_for(task, tokenizer=BERT, max_length=max_length, **{"classes": classes, **settings})


def record(text: str, label: str | None = None) -> Record:
    return Record(text=text, label=label, group="g")


def one(rows: Sequence[Any]) -> Tokenized:
    assert len(rows) == 1 and isinstance(rows[0], Tokenized), rows
    return rows[0]


# ---- texts for encoders ----------------------------------------------------------------------------------------


@given(text=texts, max_length=st.integers(3, 20))
def test_a_text_is_encoded_as_transformers_does_it(text: str, max_length: int) -> None:
    expected = BERT(text, truncation=True, max_length=max_length)["input_ids"]
    row = reader(max_length=max_length).row(record(text, "malt"))
    if isinstance(row, Reject):
        assert row.reason == "nothing to learn" and set(expected) <= set(range(5))
        return
    assert row.input_ids == expected and row.label == 1 and row.labels == [IGNORE] * len(row)
    assert row.cut == (len(BERT(text)["input_ids"]) > max_length)


def test_special_tokens_are_placed_as_the_tokenizer_wants_them() -> None:
    """As RoBERTa's, whose tokens and places are others; no [CLS] is ours."""
    vocabulary = {"<s>": 0, "<pad>": 1, "</s>": 2, "<mask>": 3, "a": 4, "b": 5, "?": 6}
    tokenizer = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<mask>"])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokenizer.enable_truncation(3)  # the file's own limits are not ours
    tokenizer.enable_padding(length=50)
    encoder = EncoderTokenizer(tokenizer, pad_id=1, mask_id=3)
    pieces = encoder.pieces("a b a ?", 4)
    assert [piece.input_ids for piece in pieces] == [[0, 4, 5, 2], [0, 4, 6, 2]]
    assert pieces[0].special == [True, False, False, True]
    assert encoder.ordinary_ids == [4, 5, 6]
    tokenizer.post_processor = None
    assert [piece.input_ids for piece in EncoderTokenizer(tokenizer).pieces("a b a", 2)] == [[4, 5], [4]]


@given(text=st.text("abc ", min_size=1, max_size=80).filter(str.strip), max_length=st.integers(3, 12))
def test_for_a_masked_model_nothing_of_a_long_text_is_lost(text: str, max_length: int) -> None:
    rows = reader("masked_lm", max_length).rows(record(text))
    assert [token for row in rows for token in row.learned] == BERT(text, add_special_tokens=False)["input_ids"]
    for row in rows:
        assert len(row) <= max_length and (row.input_ids[0], row.input_ids[-1]) == (CLS, SEP)
        assert (row.labels[0], row.labels[-1], row.group, row.cut) == (IGNORE, IGNORE, "g", False)
    assert len({row.record_id for row in rows}) == len(rows)
    single = reader("masked_lm", max_length).row(record(text))
    assert single.input_ids == rows[0].input_ids and single.cut == (len(rows) > 1)


def test_special_tokens_in_a_text_are_never_masked() -> None:
    all_of_it = reader("masked_lm", masking=Masking(probability=0.99))
    # What the vocabulary lacks is the unknown token, which teaches nothing.
    row = one(all_of_it.rows(record("a [SEP] b [MASK] 日")))
    assert {SEP, MASK, UNKNOWN} <= set(row.input_ids[1:-1])
    a, b = BERT("a b", add_special_tokens=False)["input_ids"]
    assert row.learned == [a, b]
    assert sorted(all_of_it.collator()([row])["masked_labels"].flatten().tolist()) == [*[IGNORE] * 5, *sorted([a, b])]


def test_a_class_that_the_student_does_not_know_or_none_is_a_reject_with_the_reason() -> None:
    rejects = [reader().row(record("a", label)) for label in ("hop", None)]
    assert [reject.reason for reject in rejects] == ["its class is not on the training side", "no label"]
    assert reader().row(Record(prompt="q", completion="a")).reason == "not a text"
    assert reader().row(record(" ", "ale")).reason == "nothing to learn"


def test_for_an_embedding_a_class_is_welcome_and_not_needed() -> None:
    embedding = reader("sentence_embedding", classes=CLASSES)
    rows = [one(embedding.rows(record("a b c", "rye"))), one(embedding.rows(record("a")))]
    assert [row.label for row in rows] == [2, None]
    batch = Batch.from_inputs(embedding.collator()(rows))
    assert batch.targets_are == "examples" and int(batch.count("examples")) == 2
    assert batch.target_ids.tolist() == [2] and batch.target_positions["student"].tolist() == [0]


def test_a_batch_of_texts_has_a_class_each_and_is_padded_on_the_right() -> None:
    rows = [one(reader().rows(record(text, label))) for text, label in (("a", "malt"), ("b c a b", "ale"))]
    columns = reader().collator()(rows)
    assert set(columns) == {"input_ids", "position_ids", "segment_ids", "classes", "record_ids"}
    assert columns["classes"].tolist() == [1, 0] and columns["input_ids"][0, 3:].tolist() == [PAD] * 3
    assert columns["segment_ids"].tolist() == [[1, 1, 1, 0, 0, 0], [1] * 6]
    assert torch.equal(columns["position_ids"], torch.arange(6).expand(2, 6))
    nothing = Batch.from_inputs(reader().collator()([]))
    assert int(nothing.count("targets")) == int(nothing.count("tokens")) == int(nothing.count("examples")) == 0


def test_no_row_is_longer_than_the_model_takes(tmp_path: Path) -> None:
    assert reader(max_length=1024).max_length == 128, "the tokenizer says 128"
    BERT.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    for stated, model, longest in (
        (128, {"max_position_embeddings": 64}, 64),
        (10**30, {"max_position_embeddings": 514, "model_type": "roberta", "pad_token_id": 1}, 512),
        (10**30, {}, 1024),
    ):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"model_max_length": stated}))
        (tmp_path / "config.json").write_text(json.dumps(model))
        found = reader_for("sentence_embedding", tokenizer=tmp_path, max_length=1024)
        assert found.max_length == longest and found.pad_id == PAD
    with pytest.raises(DataError, match="max_length 2 has no room for text: 2 tokens are special"):
        reader(max_length=2)


def test_what_a_task_cannot_do_without_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="text needs a tokenizer"):
        reader_for("masked_lm")
    with pytest.raises(ModelError, match="no mask token"):
        reader_for("masked_lm", tokenizer=make_tiny_tokenizer())
    with pytest.raises(DataError, match="no record has one"):
        reader(classes=())
    with pytest.raises(DataError, match="everything is of class 'ale'"):
        reader(classes=("ale",))
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        reader_for("masked_lm", tokenizer=tmp_path)
    with pytest.raises(DataError, match="image where a text is needed"):
        reader().row(Pixels(np.zeros((2, 2), np.uint8), 0))


def test_a_causal_model_reads_records_as_it_did() -> None:
    said = Record(prompt="q", completion="a")
    causal = reader_for("causal_lm", tokenizer=make_tiny_tokenizer(), max_length=100)
    row = causal.row(said)
    assert row == tokenize(said, ChatTokenizer.from_transformers(make_tiny_tokenizer()), 100) == one(causal.rows(said))
    assert "labels" in causal.collator()([row])


def test_reading_loads_no_torch(tmp_path: Path) -> None:
    BERT.save_pretrained(tmp_path)
    code = (
        "import sys; from pathlib import Path\n"
        "from potstill.data import reader_for; from potstill.types import Record\n"
        f"reader = reader_for('masked_lm', tokenizer=Path({str(tmp_path)!r}))\n"
        "assert reader.rows(Record(text='a b c'))\n"
        "print(*sorted({'torch', 'transformers', 'sklearn', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


# ---- rows of others --------------------------------------------------------------------------------------------


def read(task: Task, row: Any, **settings: Any) -> list[Any]:
    made = reader_for(task, classes=CLASSES) if task == "image_classification" else reader(task, **settings)
    return made.rows_of_mapping(row, "train_dataset[3]")


def test_texts_and_tokens_of_others_are_read_with_names_or_numbers_of_classes() -> None:
    ids = BERT("a b", padding="max_length", max_length=9)
    for row in (
        {"text": "a b", "label": "malt"},
        {"text": "a b", "label": 1},
        {"text": "a b", "labels": torch.tensor(1), "idx": 7},
        {"text": "a b", "label": np.int64(1)},
        {"input_ids": ids["input_ids"], "attention_mask": ids["attention_mask"], "label": 1},
        {"input_ids": torch.tensor([CLS, *ids["input_ids"][1:3], SEP]), "labels": 1, "text": None},
    ):
        found = one(read("sequence_classification", row))
        assert found.input_ids == BERT("a b")["input_ids"] and found.label == 1
    assert one(read("sentence_embedding", {"text": "a b"})).label is None
    assert one(read("sequence_classification", {"input_ids": [5] * 30, "label": 0})).cut


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a", "label": 3}, r"label 3, and there are 3 classes \(0 to 2\)"),
        ({"text": "a", "label": "mat"}, "no class is called 'mat'; did you mean 'malt'"),
        ({"text": "a", "label": 0.5}, "label is float"),
        ({"text": 7, "label": 1}, "text is int, not a text"),
        ({"sentence": "a", "label": 1}, "a row with label, sentence cannot be read for sequence_classification"),
        ({"input_ids": [1, 2], "attention_mask": [1], "label": 1}, "2 input_ids, and an attention_mask of 1"),
        (["a"], "a row is a mapping, not a list"),
    ],
)
def test_rows_of_others_that_cannot_be_right_are_named(row: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read("sequence_classification", row)
    assert "train_dataset[3]" in str(caught.value)


def test_rows_of_others_without_a_class_are_left_out_with_the_reason() -> None:
    for row in ({"text": "a"}, {"text": "a", "label": None}, {"text": "a", "label": -100}):
        assert [reject.reason for reject in read("sequence_classification", row)] == ["no label"]


def test_rows_of_others_for_a_masked_model_are_masked_here() -> None:
    ids = BERT("a b c")["input_ids"]
    assert one(read("masked_lm", {"input_ids": ids, "labels": [-100] * 5})).learned == ids[1:-1]
    assert len(read("masked_lm", {"text": "a b c " * 10})) == 3, "16 tokens at most, two of them special"
    with pytest.raises(DataError, match="masked already"):
        read("masked_lm", {"input_ids": ids, "labels": torch.tensor([-100, 5, -100, -100, -100])})


def test_images_of_others_are_floats_as_they_are_or_whole_numbers_of_0_to_255() -> None:
    [row] = read("image_classification", {"pixel_values": torch.ones(3, 2, 2), "label": "rye"})
    assert row.pixels.dtype == np.float32 and row.pixels.shape == (3, 2, 2) and row.label == 2
    [row] = read("image_classification", {"pixel_values": [[0, 255], [1, 2]], "labels": 0})
    assert row.pixels.dtype == np.uint8 and row.label == 0
    assert read("image_classification", {"pixel_values": [[0.5]]})[0].reason == "no label"
    for wrong, message in (
        ([[0, 256]], "neither floats nor whole numbers from 0 to 255"),
        ([[1], [1, 2]], "no array"),
        ([1, 2], r"of 0 to 255 are \[2\], not"),
        ("text", "pixel_values are <U4"),
    ):
        with pytest.raises(DataError, match=message):
            read("image_classification", {"pixel_values": wrong, "label": 1})
    with pytest.raises(DataError, match="a row with image, label cannot be read"):
        read("image_classification", {"image": 1, "label": 1})


QUESTION, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
CHAT = make_tiny_tokenizer()


def causal(row: Any) -> list[Any]:
    return reader_for("causal_lm", tokenizer=CHAT, max_length=100).rows_of_mapping(row, "train_dataset[3]")


@pytest.mark.parametrize(
    "row",
    [
        {"messages": (QUESTION, ANSWER), "tools": None, "id": 7},
        {"prompt": "q", "completion": "a", "label": [0.5], "metadata": "anything"},
        {"prompt": [QUESTION], "completion": [ANSWER]},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"instruction": "q", "output": "a"},
        {"text": "some text"},
    ],
)
def test_a_row_of_others_is_read_as_a_recipe_reads_it(tmp_path: Path, row: dict[str, Any]) -> None:
    plain = {key: value for key, value in row.items() if key not in ("label", "metadata", "id")}
    (tmp_path / "a.jsonl").write_text(json.dumps(plain))
    [record] = read_records(FileData(kind="jsonl", path=tmp_path / "a.jsonl")).records
    assert one(causal(row)) == reader_for("causal_lm", tokenizer=CHAT, max_length=100).row(record)


def test_an_empty_answer_is_left_out_on_every_path(tmp_path: Path) -> None:
    rows = [{"messages": [QUESTION, {"role": "assistant", "content": said}]} for said in ("", " \n", None)]
    assert [causal(row)[0].reason for row in rows] == ["empty completion"] * 3
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, [*rows, {"messages": [QUESTION, ANSWER]}])))
    read = read_records(FileData(kind="jsonl", path=tmp_path / "a.jsonl"))
    assert read.counts == {"read": 4, "empty completion": 3}


def test_an_answer_that_was_cut_short_gets_no_end_when_its_file_is_opened_with_datasets(tmp_path: Path) -> None:
    cut = Record(messages=(QUESTION, ANSWER), finished=False, group="g")
    save_records(tmp_path / "records.parquet", [cut])
    [row] = datasets.Dataset.from_parquet(str(tmp_path / "records.parquet"))
    reader = reader_for("causal_lm", tokenizer=CHAT, max_length=100)
    assert one(reader.rows_of_mapping(row, "")) == reader.row(cut)


def test_tokens_of_others_need_no_tokenizer_and_texts_do() -> None:
    reader = reader_for("causal_lm", max_length=3)
    found = one(reader.rows_of_mapping({"input_ids": [0, 5, 6, 7, 8], "labels": [-100, -100, 6, 7, 8]}, ""))
    assert (found.input_ids, found.labels, found.cut) == ([0, 5, 6], [-100, -100, 6], True)
    padded = {"input_ids": [0, 5, 6], "labels": [-100, 5, 6], "attention_mask": [0, 1, 1]}
    assert one(reader.rows_of_mapping(padded, "")).input_ids == [5, 6]
    assert reader.rows_of_mapping({"input_ids": [5], "labels": [5]}, "")[0].reason == "nothing to learn"
    with pytest.raises(DataError, match="text needs a tokenizer"):
        reader.rows_of_mapping({"text": "a"}, "")

"""Claims about questions: what is asked is what stood before the answer, in every form of record."""

from __future__ import annotations

from pathlib import Path

import pytest

from potstill.artifacts import Work
from potstill.data import Tokenized, tokenize
from potstill.errors import DataError
from potstill.evaluate.held_out import of_tokens, question_of, read_held_out
from potstill.types import Record
from small_run import CHAT, SmallRun, records


def row_of(record: Record) -> Tokenized:
    row = tokenize(record, CHAT, 500)
    assert isinstance(row, Tokenized)
    return row


def test_the_answer_stands_behind_the_very_tokens_that_are_asked() -> None:
    for record in records(5):
        row = row_of(record)
        ids = list(question_of(record, row, CHAT).ids)
        assert row.input_ids[: len(ids)] == ids
        assert row.labels[len(ids)] >= 0 and all(label < 0 for label in row.labels[: len(ids)])


def test_a_conversation_is_shown_with_its_roles_and_its_last_answer_is_the_reference() -> None:
    turns = [
        ("system", "Be brief."),
        ("user", "Hello?"),
        ("assistant", "Yes?"),
        ("user", "Malt?"),
        ("assistant", "Malt."),
    ]
    record = Record(messages=tuple({"role": role, "content": said} for role, said in turns))
    question = question_of(record, row_of(record), CHAT)
    assert question.prompt == "system: Be brief.\n\nuser: Hello?\n\nassistant: Yes?\n\nuser: Malt?"
    assert question.reference == "Malt."
    assert CHAT.decode(question.ids).endswith("Malt?<|im_end|>\n<|im_start|>assistant\n")


def test_prompt_and_completion_are_shown_as_they_are() -> None:
    record = Record(prompt="What is wash?", completion="Beer, nearly.")
    question = question_of(record, row_of(record), CHAT)
    assert (question.prompt, question.reference) == ("What is wash?", "Beer, nearly.")


def test_a_text_is_asked_to_be_continued() -> None:
    record = Record(text="Spirit runs off the still. " * 10)
    question = question_of(record, row_of(record), CHAT)
    assert len(question.ids) == 64
    assert question.prompt + question.reference == record.text
    short = Record(text="Peat")
    assert question_of(short, row_of(short), CHAT).prompt == "Pe"


def test_targets_are_numbered_row_by_row() -> None:
    made = records(3)
    rows = of_tokens(made, [row_of(record) for record in made], CHAT.pad_id)
    assert rows.starts.tolist()[1:] == rows.counts.cumsum().tolist()
    assert rows.target_groups == [r.group for r, n in zip(made, rows.counts, strict=True) for _ in range(n)]


def test_records_that_cannot_be_measured_are_counted_and_if_none_can_refused(tmp_path: Path) -> None:
    run = SmallRun(tmp_path, text_only=False, train={"max_length": 30})
    work = Work(tmp_path / "out", resumed=False)
    with pytest.raises(DataError, match=r"no held-out record can be measured .*nothing to learn") as caught:
        read_held_out(run.recipe, run.inputs["generate"].path / "records.parquet", run.folder / "train" / "model", work)
    assert "max_length" in str(caught.value)
    assert work.counts == {"not measured: nothing to learn": len(run.held_out_records)}

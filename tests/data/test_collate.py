"""Batches: padding is known by length and not by its id, and packed records do not see each other."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from potstill.data import ChatTokenizer, Pixels, Tokenized, pack, tokenize, tokenize_views
from potstill.data.collate import Collator, ExampleCollator, ImageCollator, MaskingCollator
from potstill.data.masking import Masker, Visit
from potstill.errors import DataError
from potstill.recipe import Masking
from potstill.signals import IGNORE, Batch, View
from potstill.types import Record
from tiny_models import FAMILIES, Family, make_tiny_tokenizer, tiny_model

chat = ChatTokenizer.from_transformers(make_tiny_tokenizer())
END = chat.eos_id
assert END is not None and chat.pad_id == END, "the trap of rule 4: what pads a row also ends a turn"


def a_row(prompt: str, completion: str, finished: bool = True) -> Tokenized:
    row = tokenize(Record(prompt=prompt, completion=completion, finished=finished), chat, 500)
    assert isinstance(row, Tokenized)
    return row


ROWS = [
    a_row("q", "a"),
    a_row("a longer question", "and its answer"),
    a_row("qq", "cut sho", finished=False),
    a_row("x", "yz"),
]

said = st.text("abc ", min_size=1, max_size=12).filter(lambda text: text.strip() != "")
some_rows = st.lists(st.builds(a_row, said, said, st.booleans()), min_size=1, max_size=5)


@given(rows=some_rows, packed=st.booleans())
def test_a_batch_holds_every_learned_token_once_and_in_order(rows: list[Tokenized], packed: bool) -> None:
    items = pack(rows, 100) if packed else rows
    batch = Batch.from_inputs(Collator(chat.pad_id)(items))
    inside = [row for item in items for row in (item.rows if not isinstance(item, Tokenized) else [item])]
    assert batch.target_ids.tolist() == [token for row in inside for token in row.learned]
    # Each target is predicted from the position just before it, in its own row.
    flat = batch.student.input_ids.flatten()
    assert torch.equal(flat[batch.target_positions["student"] + 1], batch.target_ids)
    assert int(batch.count("tokens")) == sum(map(len, rows)) and int(batch.count("examples")) == len(rows)


@given(rows=some_rows, packed=st.booleans())
def test_a_batch_knows_the_record_of_every_example(rows: list[Tokenized], packed: bool) -> None:
    items = pack(rows, 100) if packed else rows
    batch = Batch.from_inputs(Collator(chat.pad_id)(items))
    view = batch.text("student")
    assert len(batch.record_ids) == view.examples == len(rows)
    inside = [row for item in items for row in (item.rows if not isinstance(item, Tokenized) else [item])]
    for number, row in enumerate(inside):
        assert batch.record_ids[number] == row.record_id
        assert view.input_ids[view.example_ids == number].tolist() == row.input_ids


def test_records_of_others_and_of_every_task_have_ids_or_none() -> None:
    packed = {"input_ids": [1, 2, 3], "labels": [1, 2, 3], "position_ids": [0, 1, 0]}
    assert Collator(0)([packed, ROWS[0]])["record_ids"] == ["", "", ROWS[0].record_id]
    assert Batch.from_inputs(Collator(0)([])).record_ids == ()
    examples = ExampleCollator(0)([Tokenized([1], [IGNORE], "r", label=0)])
    assert Batch.from_inputs(examples).record_ids == ("r",)
    images = ImageCollator(0.5, 0.5)([Pixels(np.zeros((2, 2), np.uint8), 0, record_id="i")])
    assert Batch.from_inputs(images).record_ids == ("i",)
    masked = MaskingCollator(0, Masker(Masking(), 1, [5, 6]))([Visit(Tokenized([5, 6], [5, 6], "m"), 0)])
    assert Batch.from_inputs(masked).record_ids == ("m",)


def test_the_end_of_a_turn_is_learned_though_it_is_also_the_pad_token() -> None:
    batch = Batch.from_inputs(Collator(chat.pad_id)(ROWS))
    padding = batch.student.segment_ids == 0
    assert padding.any() and (batch.student.input_ids[padding] == END).all()
    # Three of the four answers are finished; the padding behind them teaches nothing.
    assert int((batch.target_ids == END).sum()) == 3


def test_rows_are_padded_on_the_right() -> None:
    columns = Collator(9)([Tokenized([1, 2, 3], [IGNORE, 2, 3]), Tokenized([4], [4])])
    assert columns["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert columns["labels"].tolist() == [[IGNORE, 2, 3], [4, IGNORE, IGNORE]]
    assert columns["segment_ids"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert columns.pop("record_ids") == ["", ""]
    assert all(column.dtype == torch.long for column in columns.values())


@given(rows=some_rows)
def test_padding_joins_no_packed_record(rows: list[Tokenized]) -> None:
    columns = Collator(chat.pad_id)(pack(rows, 100))
    for positions, segments in zip(columns["position_ids"].tolist(), columns["segment_ids"].tolist(), strict=True):
        # transformers starts a new sequence wherever positions do not go on by one.
        joined = [b == a + 1 for a, b in pairwise(positions)]
        assert joined == [a == b for a, b in pairwise(segments)]


def test_rows_of_others_may_bring_masks_positions_or_segments() -> None:
    columns = Collator(0)(
        [
            {"input_ids": [1, 2, 0], "labels": [IGNORE, 2, IGNORE], "attention_mask": [1, 1, 0]},
            {"input_ids": [1, 2, 3], "labels": [1, 2, 3], "position_ids": torch.tensor([0, 1, 0])},
            {"input_ids": [1, 2, 3], "labels": [1, 2, 3], "segment_ids": [1, 2, 2]},
        ]
    )
    assert columns["segment_ids"].tolist() == [[1, 1, 0], [1, 1, 2], [1, 2, 2]]
    assert columns["position_ids"].tolist() == [[0, 1, 2], [0, 1, 0], [0, 0, 1]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"input_ids": [1]}, "needs input_ids and labels, and has input_ids"),
        ({"input_ids": [0, 1], "labels": [0, 1], "attention_mask": [0, 1]}, "padded on the left"),
    ],
)
def test_rows_of_others_that_cannot_be_right_are_refused(row: dict[str, list[int]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Collator(0)([row])


def test_a_process_without_rows_takes_part_with_a_batch_without_tokens() -> None:
    batch = Batch.from_inputs(Collator(chat.pad_id)([]))
    assert batch.student.input_ids.shape == (1, 1)
    assert (int(batch.count("targets")), int(batch.count("tokens")), int(batch.count("examples"))) == (0, 0, 0)


@given(rows=st.lists(st.tuples(said, said), min_size=1, max_size=3), packed=st.booleans())
def test_the_teachers_view_aligns_with_the_students(rows: list[tuple[str, str]], packed: bool) -> None:
    made = [tokenize_views(Record(prompt=p, completion=c), chat, 300, teacher_system="be brief") for p, c in rows]
    views = [row for row in made if isinstance(row, Tokenized)]
    batch = Batch.from_inputs(Collator(chat.pad_id)(pack(views, 300) if packed else views))
    assert not batch.same_view
    for side in ("student", "teacher"):
        at = batch.target_positions[side] + 1  # type: ignore[index]
        assert torch.equal(batch.view(side).input_ids.flatten()[at], batch.target_ids)  # type: ignore[arg-type]


def test_views_of_some_rows_only_are_refused() -> None:
    view = tokenize_views(Record(prompt="q", completion="a"), chat, 300, teacher_system="s")
    assert isinstance(view, Tokenized)
    with pytest.raises(DataError, match="some rows"):
        Collator(0)([view, ROWS[0]])


# ---- attention -------------------------------------------------------------------------------------------------


def logits_of(family: Family, view: View) -> Tensor:
    model = tiny_model(family)
    with torch.no_grad():
        output: Tensor = model(input_ids=view.input_ids, position_ids=view.position_ids, use_cache=False).logits
    return output


def losses(family: Family, rows: list[Tokenized], packed: bool) -> dict[str, Tensor]:
    """The loss of every learned token, by record."""
    found = {}
    for item in pack(rows, 200) if packed else rows:
        batch = Batch.from_inputs(Collator(chat.pad_id)([item, ROWS[1]]))
        logits = logits_of(family, batch.student).flatten(0, 1)[batch.target_positions["student"]]
        values = torch.nn.functional.cross_entropy(logits, batch.target_ids, reduction="none")
        inside = item.rows if not isinstance(item, Tokenized) else (item,)
        for row, part in zip(inside, values.split([len(r.learned) for r in (*inside, ROWS[1])]), strict=False):
            found[row.record_id] = part
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_losses_equal_unpacked_ones(family: Family) -> None:
    alone, together = losses(family, ROWS, packed=False), losses(family, ROWS, packed=True)
    assert alone.keys() == together.keys() and len(pack(ROWS, 200)) == 1
    for record in alone:
        assert torch.allclose(alone[record], together[record], atol=2e-5), family


def test_a_change_in_one_packed_record_reaches_no_other_and_no_padding() -> None:
    (packed,) = pack(ROWS, 400)
    columns = Collator(chat.pad_id)([packed, Tokenized([5] * (len(packed) + 7), [5] * (len(packed) + 7))])
    del columns["record_ids"]
    before = logits_of("llama", Batch.from_inputs(columns).student)[0]
    segments = columns["segment_ids"][0]
    for segment in range(1, len(ROWS) + 1):
        changed = {name: column.clone() for name, column in columns.items()}
        changed["input_ids"][0, segments == segment] = 77
        moved = (logits_of("llama", Batch.from_inputs(changed).student)[0] - before).abs().amax(-1) > 1e-4
        assert moved[segments == segment].all() and not moved[segments != segment].any()


def test_padding_changes_no_logits() -> None:
    alone = logits_of("llama", Batch.from_inputs(Collator(chat.pad_id)([ROWS[0]])).student)[0]
    padded = logits_of("llama", Batch.from_inputs(Collator(chat.pad_id)(ROWS)).student)[0]
    assert torch.allclose(alone, padded[: len(alone)], atol=1e-5)


def test_plain_rows_need_no_mask_though_they_are_padded() -> None:
    from transformers.masking_utils import find_packed_sequence_indices

    assert find_packed_sequence_indices(Collator(chat.pad_id)(ROWS)["position_ids"]) is None

"""What held-out targets are, as text."""

from __future__ import annotations

import numpy as np
import pytest

from potstill.data import Tokenized
from potstill.errors import DataError
from potstill.evaluate.held_out import HeldOut, of_tokens
from potstill.evaluate.measures.tails import zipf_of
from potstill.evaluate.texts import TargetTexts
from potstill.types import Record
from small_run import CHAT

TEXT = "The vermilion cat doesn't sleep, 12 times."


def held_out() -> HeldOut:
    ids = list(CHAT.encode(TEXT).ids)
    rows = [Tokenized(ids, ids, group=f"g{n}") for n in range(2)]
    records = [Record(text=TEXT, metadata={"topic": "cats"}), Record(text=TEXT)]
    return of_tokens(records, rows, CHAT.pad_id)


def test_every_target_has_the_word_that_it_is_a_part_of() -> None:
    side = held_out()
    words = TargetTexts(side, CHAT).words()
    assert len(words) == len(side.target_ids)
    decoded = [CHAT.decode([number]) for number in side.target_ids.tolist()]
    for piece, word in zip(decoded, words, strict=True):
        letters = "".join(c for c in piece.lower() if c.isalpha())
        assert letters in word and (word == "" or letters or "'" in piece), (piece, word)
    assert {"the", "vermilion", "cat", "doesn't", "sleep", "times", ""} == set(words)


def test_a_column_of_the_data_gives_a_value_to_each_target_of_its_record() -> None:
    side = held_out()
    values = TargetTexts(side, CHAT).column("topic")
    half = len(values) // 2
    assert set(values[:half].tolist()) == {"cats"} and set(values[half:].tolist()) == {""}


def test_a_column_that_no_record_has_is_refused_with_those_there_are() -> None:
    with pytest.raises(DataError, match="no held-out record has a column 'colour'") as raised:
        TargetTexts(held_out(), CHAT).column("colour")
    assert "topic" in str(raised.value.fix)


def test_a_target_is_shown_behind_its_text() -> None:
    side = held_out()
    before, target = TargetTexts(side, CHAT).shown(3)
    assert TEXT.startswith(before + target)


def test_words_are_as_frequent_as_wordfreq_says() -> None:
    pytest.importorskip("wordfreq")
    found = zipf_of(["the", "", "vermilion", "the"], "en")
    assert np.isnan(found[1]) and found[0] == found[3] > 7 > 3 > found[2] > 0
    with pytest.raises(DataError, match="does not know the language 'xq'"):
        zipf_of(["the"], "xq")

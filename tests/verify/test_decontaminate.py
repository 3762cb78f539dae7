"""Evaluation sets are found again in training records: prompts and answers, long and short, copied and edited."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.recipe.verify import Decontamination
from potstill.types import Reason, Record
from potstill.verify import decontaminate
from potstill.verify.decontaminate import Decontaminator, plain_words

WORDS = [f"word{n}" for n in range(2000)]
SETTINGS = Decontamination(against={})


def words(seed: int, count: int) -> list[str]:
    return random.Random(seed).choices(WORDS, k=count)


LONG = " ".join(words(1, 60))
MIDDLE = "Natalia sold 48 clips to her friends in April, and half as many in May."
SHORT = "Capital of France?"
ANSWER = " ".join(words(2, 40))
USER = {"role": "user", "content": "hi"}
SETS = {"long": [Record(prompt=LONG, completion=ANSWER, row=7)], "short": [Record(prompt=MIDDLE), Record(prompt=SHORT)]}


def how(record: Record, settings: Decontamination = SETTINGS) -> str | None:
    match = Decontaminator(SETS, settings).match(record)
    return f"{match.evaluation} {match.row} {match.side}: {match.how}" if match else None


@pytest.mark.parametrize(
    ("record", "found"),
    [
        (Record(prompt=LONG), "long 7 prompt: the same"),
        (Record(prompt=LONG.upper() + " !!"), "long 7 prompt: the same"),
        (Record(prompt=SHORT), "short 2 prompt: the same"),
        (Record(prompt="capital of FRANCE"), "short 2 prompt: the same"),
        (Record(prompt="Capitol of France?"), "short 2 prompt: similar"),
        (Record(prompt=MIDDLE.replace("friends", "friend").replace("48", "49")), "short 1 prompt: similar"),
        (Record(prompt=f"Please answer. {' '.join(LONG.split()[20:33])} Thank you."), "long 7 prompt: a run of words"),
        (Record(prompt=f"Here: {MIDDLE} How many?"), "short 1 prompt: a run of words"),
        (Record(prompt="x y z", completion=f"It is {ANSWER}."), "long 7 answer: a run of words"),
        (Record(prompt="x y z", completion=f"The question was: {LONG}"), "long 7 answer: a run of words"),
        (Record(messages=(USER, {"role": "assistant", "content": ANSWER})), "long 7 answer: the same"),
        (Record(text=f"A page that quotes {LONG}"), "long 7 prompt: a run of words"),
        (Record(prompt=f"Please answer. {' '.join(LONG.split()[20:32])} Thank you."), None),
        (Record(prompt="Capital of Germany?"), None),
        (Record(prompt=" ".join(words(3, 60))), None),
        (Record(prompt=" ".join(reversed(LONG.split()))), None),
    ],
)  # fmt: skip
def test_what_is_found_and_how(record: Record, found: str | None) -> None:
    assert how(record) == found


def test_many_short_runs_are_an_overlap_where_no_long_one_is_shared() -> None:
    edited = [w if n % 12 else "changed" for n, w in enumerate(LONG.split())]
    assert (
        how(Record(prompt=" ".join(edited) + " " + " ".join(words(9, 300)))) is None
    )  # 5 runs of 12 words in 53: a tenth each
    assert (
        how(Record(prompt=" ".join(edited)), Decontamination(against={}, overlap=0.3, similarity=1.0))
        == "long 7 prompt: overlap"
    )


@given(st.integers(0, 10**6), st.integers(24, 100))
def test_a_long_text_with_an_edit_in_every_seventh_word_is_similar(seed: int, length: int) -> None:
    item = words(seed, length)
    edited = [w if n % 7 else w.replace("word", "ward") for n, w in enumerate(item)]
    found = Decontaminator({"set": [Record(prompt=" ".join(item))]}, SETTINGS).match(Record(prompt=" ".join(edited)))
    assert found is not None and found.how == "similar"


def test_short_answers_are_shared_by_chance_and_counted() -> None:
    sets = {"facts": [Record(prompt="Which city is the seat of the French government?", completion="Paris")]}
    record = Record(prompt="Name a city on the river Seine.", completion="Paris")
    done = decontaminate([record], sets, SETTINGS)
    assert done.kept == [record] and done.report.uncompared_answers == 1


def test_the_report_counts_and_the_rejects_say_where() -> None:
    records = [Record(prompt=LONG, row=3), Record(prompt="something else entirely", row=4), Record(prompt=SHORT, row=5)]
    done = decontaminate(records, SETS, SETTINGS)
    assert done.kept == [records[1]]
    assert [(r.reason, r.row) for r in done.rejects] == [(Reason.CONTAMINATED, 3), (Reason.CONTAMINATED, 5)]
    assert done.rejects[0].detail == "its prompt is in the prompt of long, row 7: the same"
    report = done.report
    assert (report.records, report.contaminated) == (3, 2)
    assert report.items == {"long": 1, "short": 2} and report.by_evaluation == {"long": 1, "short": 1}
    assert report.by_how == {"prompt: the same": 2}
    assert report.sentence.startswith("2 of 3 records were found in the evaluation sets long (1), short (2)")


@given(st.text(min_size=1, max_size=200))
def test_every_prompt_of_any_length_is_found_again(text: str) -> None:
    if plain_words(text):
        look = Decontaminator({"set": [Record(prompt=text)]}, SETTINGS)
        assert (
            look.match(Record(prompt=f"  {text.upper() if text.upper().casefold() == text.casefold() else text} "))
            is not None
        )


@given(st.integers(0, 10**6), st.integers(13, 80), st.integers(0, 60))
def test_every_run_of_thirteen_words_is_found_in_any_surroundings(seed: int, length: int, before: int) -> None:
    item = words(seed, length)
    start = random.Random(seed).randrange(length - 12)
    text = " ".join([*words(seed + 1, before), *item[start : start + 13], *words(seed + 2, 20)])
    assert Decontaminator({"set": [Record(prompt=" ".join(item))]}, SETTINGS).match(Record(prompt=text)) is not None

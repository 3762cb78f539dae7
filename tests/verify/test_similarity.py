"""Sentence BLEU against a reference: by hand, and as sacrebleu has it."""

from __future__ import annotations

import math

import pytest
from sacrebleu import sentence_bleu

from potstill.recipe.verify import SentenceBLEU
from potstill.types import Record
from potstill.verify import open_verifier


def score_of(answer: str, reference: str | list[str], least: float = 0.0) -> tuple[str, float | None]:
    with open_verifier(SentenceBLEU(least=least)) as verifier:
        verdict = verifier.verify(Record(prompt="?", metadata={"reference": reference}), answer)
    return verdict.outcome, verdict.score


def test_a_text_that_is_a_word_short_loses_by_brevity_alone() -> None:
    # All n-grams are in the reference, and the brevity penalty is exp(1 − 5/4).
    assert score_of("a b c d", "a b c d e") == ("accept", pytest.approx(math.exp(-0.25)))


def test_the_same_text_has_1_and_none_of_it_has_0() -> None:
    assert score_of("one two three four", "one two three four") == ("accept", pytest.approx(1.0))
    assert score_of("", "one two three four") == ("accept", 0.0)


def test_of_several_references_the_nearest_counts() -> None:
    assert score_of("a b c d", ["w x y z", "a b c d"]) == ("accept", pytest.approx(1.0))


def test_reasoning_is_not_compared() -> None:
    assert score_of("<think>w x y z</think>a b c d", "a b c d") == ("accept", pytest.approx(1.0))


def test_less_than_least_is_rejected_with_its_score() -> None:
    outcome, score = score_of("a b c x", "a b c d", least=0.9)
    assert outcome == "reject"
    assert score == pytest.approx(sentence_bleu("a b c x", ["a b c d"]).score / 100)


def test_without_a_reference_there_is_no_verdict() -> None:
    with open_verifier(SentenceBLEU()) as verifier:
        assert verifier.verify(Record(prompt="?"), "text").outcome == "cannot_judge"

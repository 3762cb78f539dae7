"""Which samples are asked for, which chains are kept, and what a chain must be like: properties, and cases by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.generate.reasoning_chains import (
    Chain,
    ChainFilter,
    choose,
    distance,
    next_samples,
    repeated_share,
    words_of,
)
from potstill.recipe import ChainFilters
from potstill.types import Answer, Record

texts = st.lists(st.sampled_from("so two and are four three plus is".split()), max_size=12).map(" ".join)
chains = st.lists(
    st.builds(Chain, st.integers(0, 30), texts, st.integers(1, 9)),
    min_size=1,
    max_size=10,
    unique_by=lambda c: c.sample,
)
PROMPT = Record(prompt="What is 2 + 2?")


def answer(text: str, tokens: int = 5, finish: str = "stop", reasoning: str | None = None) -> Answer:
    return Answer(text, finish, 3, tokens, reasoning)  # type: ignore[arg-type]


def fault(said: Answer, **settings: object) -> str | None:
    found = ChainFilter(ChainFilters(**settings)).fault(PROMPT, said)
    return found[0] if found else None


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12), st.lists(st.booleans(), min_size=12, max_size=12))
def test_asking_stops_in_the_round_in_which_enough_are_accepted(
    samples: int, at_once: int, stop_at: int, right: list[bool]
) -> None:
    asked: list[int] = []
    while more := next_samples(len(asked), sum(right[: len(asked)]), samples=samples, at_once=at_once, stop_at=stop_at):
        assert sum(right[: len(asked)]) < stop_at  # not one round too many
        assert 1 <= len(more) <= at_once
        asked += more
    assert asked == list(range(len(asked)))  # none twice, none left out
    assert len(asked) == samples or sum(right[: len(asked)]) >= stop_at


def test_without_a_stop_all_samples_are_asked_for_at_once() -> None:
    assert next_samples(0, 0, samples=5, at_once=None, stop_at=None) == range(5)
    assert not next_samples(5, 0, samples=5, at_once=None, stop_at=None)


@given(chains, st.sampled_from(["all", "shortest", "diverse"]), st.integers(1, 12), st.randoms())
def test_every_chain_is_kept_or_not_whatever_the_order_they_come_in(
    found: list[Chain], keep: str, kept: int, random: object
) -> None:
    chosen, others = choose(found, keep, kept)  # type: ignore[arg-type]
    assert sorted(chosen + others) == sorted(c.sample for c in found)
    assert len(chosen) == min(kept, len(found))
    mixed = list(found)
    random.shuffle(mixed)  # type: ignore[attr-defined]
    assert choose(mixed, keep, kept) == (chosen, others)  # type: ignore[arg-type]


@given(chains, st.integers(1, 12))
def test_no_chain_left_out_is_shorter_than_one_of_the_shortest(found: list[Chain], kept: int) -> None:
    tokens = {c.sample: c.tokens for c in found}
    chosen, others = choose(found, "shortest", kept)
    assert all(tokens[c] <= tokens[o] for c in chosen for o in others)


@given(chains)
def test_the_second_of_the_diverse_is_the_farthest_from_the_shortest(found: list[Chain]) -> None:
    by_sample = {c.sample: c for c in found}
    (first,), _ = choose(found, "diverse", 1)
    assert by_sample[first].tokens == min(c.tokens for c in found)
    chosen, others = choose(found, "diverse", 2)
    for second in set(chosen) - {first}:
        apart = distance(by_sample[first].text, by_sample[second].text)
        assert all(apart >= distance(by_sample[first].text, by_sample[o].text) for o in others)


def test_diverse_prefers_another_way_to_another_word() -> None:
    same = Chain(0, "Two and two are four, so it is four.", 8)
    nearly = Chain(1, "Two and two are four, so it is 4.", 9)
    other = Chain(2, "Count on from two: three, then the answer.", 9)
    assert choose([same, nearly, other], "diverse", 2)[0] == [0, 2]


@given(texts, texts)
def test_distance_is_symmetric_and_none_to_itself(one: str, other: str) -> None:
    assert distance(one, other) == distance(other, one) and 0 <= distance(one, other) <= 1
    assert distance(one, one) == 0


def test_a_truncated_chain_is_refused_whatever_stands_in_it() -> None:
    assert fault(answer("2 + 2 = 4. The answer is 4. Let me", finish="length")) == "truncated chain"
    assert fault(answer("The answer is 4.", finish="content_filter")) == "truncated chain"
    assert fault(answer("The answer is 4.")) is None


def test_length_is_of_reasoning_and_answer_together() -> None:
    said = answer("Four.", tokens=7, reasoning="Two and two")
    assert len(words_of("Two and two Four.")) == 5
    assert fault(said, least_words=5, most_words=5) is None
    assert fault(said, least_words=6) == "chain too short" and fault(said, most_words=4) == "chain too long"
    assert fault(said, most_tokens=7) is None and fault(said, most_tokens=6) == "chain too long"
    assert fault(answer("  ")) == "empty answer"


def test_a_chain_that_goes_in_circles_is_refused() -> None:
    # Of 9 runs of 2 words, 2 are different.
    assert repeated_share(["a", "b"] * 5, 2) == pytest.approx(7 / 9)
    assert repeated_share(["a"] * 3, 8) == 0
    circling = answer("Wait, I have to add the two numbers again. " * 5)
    assert fault(circling) == "chain repeats itself" and fault(circling, repetition=None) is None


def test_signs_of_scripts_without_spaces_are_words() -> None:
    assert words_of("答案是4。") == ["答", "案", "是", "4", "。"]
    assert fault(answer("我们再想一想这个问题吧" * 6)) == "chain repeats itself"


def test_code_and_long_paragraphs_are_refused_where_asked() -> None:
    coded = answer("Thus:\n```python\nprint(4)\n```\n4")
    assert fault(coded) is None and fault(coded, code=False) == "code in the chain"
    parted = answer("one two three\n\nfour five")
    assert fault(parted, paragraph_words=3) is None and fault(parted, paragraph_words=2) == "long paragraph"


def test_a_chain_in_two_languages_is_refused() -> None:
    english = "We add the two numbers and then we look at what is left over. "
    mixed = answer("Four.", reasoning=english + "Мы складываем два числа и получаем ответ, который равен четырём.")
    assert fault(mixed, languages=("en",)) == "mixed languages"
    assert fault(answer("Four.", reasoning=english), languages=("en",)) is None

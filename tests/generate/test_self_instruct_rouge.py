"""ROUGE-L as published, and a pool that never misses a text that a plain comparison would find."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.generate.rouge import Pool, rouge_l, rouge_tokens

WORDS = st.lists(st.sampled_from("a b c d the of".split()), min_size=0, max_size=9).map(" ".join)


def plain_f(one: str, other: str) -> float:
    """By the textbook's table, without any library."""
    a, b = one.split(), other.split()
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return 2.0 * table[-1][-1] / (len(a) + len(b)) if a and b else 0.0


def test_the_example_of_the_paper() -> None:
    # Lin 2004, §3.1: LCS "police the gunman" of 4 and 4 words, and "the gunman" respectively.
    assert rouge_l("police killed the gunman", "police kill the gunman") == 0.75
    assert rouge_l("police killed the gunman", "the gunman kill police") == 0.5


def test_words_are_lower_case_without_punctuation_and_ideographs_stand_alone() -> None:
    assert rouge_tokens("Don't re-use snake_case, OK?") == ["don", "t", "re", "use", "snake", "case", "ok"]
    assert rouge_tokens("写一首诗 für Élodie") == ["写", "一", "首", "诗", "für", "élodie"]
    assert rouge_l("?!", "?!") == 0.0


@given(st.lists(WORDS, max_size=12), WORDS, st.sampled_from([0.0, 0.3, 0.5, 2 / 3, 0.7, 0.75, 0.9]))
@settings(max_examples=300, deadline=None)
def test_leaving_texts_out_by_their_bound_never_changes_the_verdict(texts: list[str], new: str, above: float) -> None:
    pool = Pool()
    for text in texts:
        pool.add(text)
    scores = [plain_f(new, text) for text in texts]
    found = pool.most_similar(new, above)
    if not scores or max(scores) <= above:
        assert found is None
    else:
        assert found is not None and (found.index, found.f) == (scores.index(max(scores)), max(scores))


@pytest.mark.parametrize(("shared", "like"), [(7, None), (8, 0)])
def test_exactly_the_threshold_is_not_above_it(shared: int, like: int | None) -> None:
    words = [f"w{n}" for n in range(10)]
    pool = Pool()
    pool.add(" ".join(words))
    found = pool.most_similar(" ".join([*words[:shared], *(f"x{n}" for n in range(10 - shared))]), 0.7)
    assert (found and found.index) == like


def test_words_that_the_pool_does_not_know_still_count_in_the_length() -> None:
    pool = Pool()
    pool.add("list three birds")
    assert pool.most_similar("list three birds", 0.7) is not None
    assert pool.most_similar("list three birds that nobody in this town knows", 0.7) is None

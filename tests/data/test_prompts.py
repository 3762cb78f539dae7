"""The shipped prompts: many, varied, and free of template families."""

from __future__ import annotations

import json
import re
from collections import Counter
from functools import cache
from itertools import combinations
from pathlib import Path

from rapidfuzz.distance import LCSseq

PROMPTS_PATH = Path(__file__).resolve().parents[2] / "recipes" / "prompts.jsonl"
MAX_ROUGE_L = 0.7
OPENING_WORDS = 4
MAX_PROMPTS_PER_OPENING = 3


def read_records() -> list[dict[str, str]]:
    return [json.loads(line) for line in PROMPTS_PATH.read_text(encoding="utf-8").splitlines()]


@cache
def prompt_words() -> list[list[str]]:
    """Lower-case word tokens of each prompt; punctuation is not a word."""
    return [re.findall(r"[a-z0-9']+", record["prompt"].lower()) for record in read_records()]


def rouge_l(first: list[str], second: list[str]) -> float:
    """ROUGE-L F1: 2 LCS / (len first + len second), over words."""
    return 2 * LCSseq.similarity(first, second) / (len(first) + len(second))


def test_rouge_l_follows_a_hand_worked_example() -> None:
    # the longest common subsequence is (why, does, fall): 3 words, of 4 and 5
    assert rouge_l(["why", "does", "rain", "fall"], ["why", "does", "the", "snow", "fall"]) == 6 / 9


def test_every_line_is_an_object_with_only_a_prompt() -> None:
    for row, record in enumerate(read_records(), start=1):
        assert isinstance(record, dict), f"row {row}"
        assert set(record) == {"prompt"}, f"row {row}"
        assert isinstance(record["prompt"], str), f"row {row}"
        assert record["prompt"].strip() == record["prompt"] != "", f"row {row}"


def test_there_are_some_three_hundred_prompts_of_three_to_eighty_words() -> None:
    assert 300 <= len(prompt_words()) <= 320
    assert all(3 <= len(words) <= 80 for words in prompt_words())


def test_no_two_prompts_are_near_copies() -> None:
    offenders = [
        (" ".join(first), " ".join(second))
        for first, second in combinations(prompt_words(), 2)
        if rouge_l(first, second) > MAX_ROUGE_L
    ]
    assert offenders == []


def test_no_opening_of_four_words_serves_more_than_three_prompts() -> None:
    openings = Counter(tuple(words[:OPENING_WORDS]) for words in prompt_words())
    assert {opening: n for opening, n in openings.items() if n > MAX_PROMPTS_PER_OPENING} == {}

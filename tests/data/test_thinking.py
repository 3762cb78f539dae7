"""Reasoning is set apart from the answer, and never taken for one."""

from __future__ import annotations

import pytest

from potstill.data.thinking import split_reasoning
from potstill.types import Answer


def answer(text: str, finish: str = "stop", reasoning: str | None = None) -> Answer:
    return Answer(text, finish, 5, 9, reasoning)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "said", "thought"),
    [
        ("Plain.", "Plain.", None),
        ("<think>\nTwo and two.\n</think>\n\nFour.", "Four.", "Two and two."),
        ("\n<think>Two</think>Four.", "Four.", "Two"),
        ("Two and two.\n</think>\n\nFour.", "Four.", "Two and two."),  # the template opened it
        ("<think></think>Four.", "Four.", ""),
        ("I think 12 </think> no, </think> it is unknown", "it is unknown", "I think 12 </think> no,"),
        ("A tag such as <think> is only a word here.", "A tag such as <think> is only a word here.", None),
    ],
)
def test_reasoning_stands_between_its_marks_or_before_a_bare_end(text: str, said: str, thought: str | None) -> None:
    found = split_reasoning(answer(text))
    assert found is not None and (found.text, found.reasoning) == (said, thought)


@pytest.mark.parametrize(
    "unended",
    [
        answer("<think>\nIt goes on and on", "length"),
        answer("<think> it stopped inside", "stop"),
        answer("<think>a</think><think>b", "stop"),
        answer("", "length", reasoning="It goes on"),
        answer("<think>more", "stop", reasoning="It goes on"),
    ],
)
def test_reasoning_without_an_end_is_no_answer(unended: Answer) -> None:
    assert split_reasoning(unended) is None


def test_what_the_server_sets_apart_stays_apart() -> None:
    given = answer("Four.", reasoning="Two and two.")
    assert split_reasoning(given) == given


def test_where_reasoning_is_required_an_answer_without_any_end_was_cut_inside_of_it() -> None:
    assert split_reasoning(answer("Two and two are", "length"), required=True) is None
    assert split_reasoning(answer("Two.</think>Four."), required=True) == answer("Four.", reasoning="Two.")
    assert split_reasoning(answer("Four.", reasoning="Two."), required=True) is not None

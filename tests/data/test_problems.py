"""Which records are put to a model as prompts: one admission for generate, evaluate and check."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from potstill.data.problems import Admitted, admit
from potstill.errors import DataError
from potstill.types import Reason, Record, Reject

ASKED = Record(prompt="2 + 2?", completion="4")
TURNS = Record(messages=({"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}))


def five(prompt: Record) -> int:
    return 5


def refusing(error: Exception) -> Callable[[Record], int]:
    def tokens_of(prompt: Record) -> int:
        raise error

    return tokens_of


def test_a_prompt_is_admitted_without_its_answer() -> None:
    for record in (ASKED, TURNS):
        admitted = admit(record, True, set(), five)
        assert isinstance(admitted, Admitted)
        assert admitted.tokens == 5
        assert admitted.prompt.messages == ({"role": "user", "content": "2 + 2?"},)
        assert (admitted.prompt.prompt, admitted.prompt.completion) == (None, None)


def test_without_a_chat_template_a_plain_prompt_stays_plain() -> None:
    admitted = admit(ASKED, False, set(), five)
    assert isinstance(admitted, Admitted)
    assert (admitted.prompt.prompt, admitted.prompt.messages) == ("2 + 2?", None)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (Record(text="No question."), Reason.NO_PROMPT),
        (Record(messages=({"role": "assistant", "content": "4"},)), Reason.NO_MESSAGE),
    ],
)
def test_a_record_without_a_prompt_is_rejected_before_it_is_rendered(record: Record, reason: Reason) -> None:
    found = admit(record, True, set(), refusing(AssertionError("rendered")))
    assert isinstance(found, Reject) and found.reason == reason


def test_a_prompt_is_admitted_once_also_in_another_form() -> None:
    seen: set[int] = set()
    assert isinstance(admit(ASKED, True, seen, five), Admitted)
    again = admit(TURNS, True, seen, five)
    assert isinstance(again, Reject) and again.reason == Reason.REPEATED_PROMPT


def test_what_the_template_refuses_is_rejected_with_what_it_said() -> None:
    found = admit(ASKED, True, set(), refusing(DataError("no such role")))
    assert isinstance(found, Reject)
    assert (found.reason, found.detail) == (Reason.TEMPLATE_REFUSES, "no such role")


def test_a_refusal_that_the_recipe_can_fix_is_an_error() -> None:
    with pytest.raises(DataError, match="no chat template"):
        admit(ASKED, True, set(), refusing(DataError("no chat template", fix="name one")))


def test_a_prompt_of_which_no_request_can_be_made_is_rejected_with_the_reason() -> None:
    found = admit(ASKED, True, set(), refusing(ValueError("the problem is not a text")))
    assert isinstance(found, Reject) and found.reason == "the problem is not a text"

"""Whatever a model writes, a verifier gives a verdict: nothing raises, nothing is read in quadratic time."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.recipe.verify import (
    Choice,
    Exact,
    JSONSchema,
    Language,
    Math,
    Numeric,
    PythonTests,
    ReasoningGym,
    Refusal,
    Regex,
    SentenceBLEU,
    VerifierSettings,
)
from potstill.types import Record
from potstill.verify import open_verifier
from potstill.verify.answer_extraction import fenced_blocks, final_value, locate
from potstill.verify.base import MOST_CHARACTERS
from potstill.verify.programs import program_in
from potstill.verify.values import answer_value, read_value

LONG = 300_000
"""Characters: a parser in quadratic time takes minutes for them, and the tests' own limit ends it."""

HOSTILE = {
    "parentheses": "(" * 500 + "1" + ")" * 500,
    "braces": "{" * 500 + "1" + "}" * 500,
    "dollars": "$" * 1001,
    "fractions": "\\frac{" * 400 + "1" + "}{2}" * 400,
    "signs": "-" * 900 + "1",
    "powers": "2^" * 400 + "2",
    "texts": "\\text{" * 400 + "1" + "}" * 400,
    "sets": "\\boxed{" + "\\{1," * 300 + "2" + "\\}" * 300 + "}",
    "boxes that never close": "\\boxed{" * (LONG // 7),
    "boxes without braces": "\\boxed" * (LONG // 6),
    "boxes in boxes": "\\boxed{" * 5000 + "}" * 5000,
    "answers that never close": "<answer>" * (LONG // 8),
    "fences of all lengths": "\n".join("`" * n for n in range(3, 700)),
    "the answer is": "The answer is " * (LONG // 14),
    "one long line": "is 7 and " * (LONG // 9),
    "digits": "1" * LONG,
    "commas": "1," * (LONG // 2),
    "one long word": "a" * LONG,
    "spaces": "\\boxed" + " " * LONG,
    "openings of formulas": "\\(" * (LONG // 2),
    "less than": "<" * LONG,
    "brackets of JSON": "[" * LONG,
    "surrogates": "\\boxed{\ud800}",
    "control characters": "\x00\x1b[2J\\boxed{7}\x00",
    "nothing": "",
    "too long": "7" * (MOST_CHARACTERS + 1),
}
VERIFIERS: list[VerifierSettings] = [
    Exact(),
    Numeric(),
    Choice(),
    Refusal(),
    SentenceBLEU(),
    Language(),
    Regex(pattern="(a+)+$", deadline_seconds=0.3),
    JSONSchema(json_schema={"type": "array"}, deadline_seconds=20.0),
    Math(deadline_seconds=20.0),
    ReasoningGym(deadline_seconds=20.0),
]
FACTS: dict[str, Any] = {
    "reference": "B",
    "reasoning_gym": {"name": "chain_sum", "entry": {"question": "", "answer": "5", "metadata": {}}},
}


@pytest.mark.timeout(240)
@pytest.mark.parametrize("asked", VERIFIERS, ids=lambda asked: asked.kind)
def test_every_hostile_text_gets_a_verdict(asked: VerifierSettings) -> None:
    facts = {**FACTS, "reference": "7" if isinstance(asked, Numeric) else "B"}
    with open_verifier(asked) as verifier:
        for name, text in HOSTILE.items():
            verdict = verifier.verify(Record(prompt="?", metadata=facts), text)
            assert verdict.outcome in ("accept", "reject", "cannot_judge"), name
            assert name != "too long" or verdict.outcome == "cannot_judge"


@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", HOSTILE)
def test_parsers_of_hostile_texts_end(name: str) -> None:
    text = HOSTILE[name]
    locate(text)
    final_value(text)
    answer_value(text)
    read_value(text)
    fenced_blocks(text)
    program_in(text, PythonTests().block)


PIECES = st.sampled_from(
    ["\\boxed{", "}", "{", "(", ")", "$", "\\text{", "minus ", "half of ", "7", "1/2", ".5", " is ", "not ",
     "the answer is ", "\n", ". ", ", ", "%", "\\frac", "^", "_2", "<answer>", "</answer>", "```", "A", "(B)", "or ",
     "-", "=", "x", "\\("]
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES, max_size=40))
def test_any_mixture_of_what_answers_are_made_of_is_read_without_an_error(pieces: list[str]) -> None:
    text = "".join(pieces)
    locate(text)
    answer_value(text)
    final_value(text)


def test_a_worker_that_cannot_start_is_no_verdict() -> None:
    from potstill.verify.base import WorkerUnavailable

    verifier = open_verifier(JSONSchema(json_schema=True))
    verifier.__exit__(None, None, None)
    with pytest.raises(WorkerUnavailable):
        verifier.verify(Record(prompt="?"), "1")

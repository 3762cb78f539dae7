"""Numbers that are too large are told from their text, before computer algebra tries to compute them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.recipe.verify import Math
from potstill.types import Record
from potstill.verify import open_verifier
from potstill.verify.sizes import is_too_large


@pytest.mark.parametrize(
    "text",
    [
        "9^{9^{9}}",
        "9^9^9",
        r"9^{9^{9^{9^{9}}}}",
        "(9^9)^{9^9}",
        "((10^{999})^{999})^{999}",
        "x^{999999999}",
        "10^{-99999999}",
        "e^{e^{e^{79}}}",
        "(9!)!",
        "9!!!",
        "1000000!",
        "10**10**10",
    ],
)
def test_towers_and_factorials_of_factorials_are_too_large(text: str) -> None:
    assert is_too_large(text)


@pytest.mark.parametrize(
    "text",
    ["2^{100}", "7^{222}", "x^{10}", "e^{x^2}", "2^{2^{n}}", "2^{2^{2^{2}}}", r"\frac{8!}{3!5!}", "56!", "n!", "(n+1)!",
     r"\sqrt{2}^{4}", r"4.5\cdot 10^{-5}"],
)  # fmt: skip
def test_what_problems_ask_for_is_not(text: str) -> None:
    assert not is_too_large(text)


@given(st.text(alphabet="9^!{}()x.-+e \\", max_size=400))
def test_no_text_raises(text: str) -> None:
    is_too_large(text)


def test_a_tower_is_refused_without_a_worker() -> None:
    with open_verifier(Math(), None) as verifier:
        pool = verifier.pool  # type: ignore[attr-defined]
        pool.call = None  # asking a worker would raise
        verdict = verifier.verify(Record(prompt="?", metadata={"reference": "9"}), r"\boxed{9^{9^{9}}}")
    assert verdict.outcome == "cannot_judge"
    assert "too large" in verdict.reason

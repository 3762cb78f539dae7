"""Numbers, dates and values are read exactly, and whatever is written, reading it ends."""

from __future__ import annotations

from datetime import date
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.verify.answer_extraction import boxed, final_answer, marked
from potstill.verify.dates import dates, times
from potstill.verify.math import Judgement, compare
from potstill.verify.numbers import exact_number
from potstill.verify.values import answer_value, read_value

whole = st.integers(-(10**30), 10**30)
positive = st.integers(1, 10**12)


def no_algebra(reference: str, answer: str) -> Judgement:
    raise AssertionError(f"{reference} and {answer} are plain")


def same(reference: str, answer: str) -> str:
    return compare(read_value(reference), read_value(answer), no_algebra).outcome


@given(whole)
def test_integers_are_read_as_they_are_printed(number: int) -> None:
    for text in (str(number), f"{number:,}", f"${number}$", f"\\boxed{{{number}}}", str(number).replace("-", "−")):
        assert read_value(text).number == number


@given(whole, positive)
def test_fractions_are_read_exactly_in_every_writing(over: int, under: int) -> None:
    value = Fraction(over, under)
    for text in (
        f"{over}/{under}",
        f"\\frac{{{over}}}{{{under}}}",
        f"\\dfrac{{{over}}}{{{under}}}",
        f"({over}) / {under}",
    ):
        assert exact_number(text) == value


@given(st.integers(-(10**15), 10**15), st.integers(0, 40))
def test_decimals_and_powers_of_ten_are_the_same_number(mantissa: int, places: int) -> None:
    value = Fraction(mantissa, 10**places)
    for text in (f"{mantissa}e-{places}", f"{mantissa} \\times 10^{{-{places}}}", f"{mantissa}/10^{places}"):
        assert exact_number(text) == value


@given(st.integers(0, 10**6), st.integers(1, 998), st.integers(999, 10**4))
def test_mixed_numbers_add(number: int, over: int, under: int) -> None:
    value = number + Fraction(over, under)
    assert exact_number(f"{number} {over}/{under}") == value
    assert exact_number(f"-{number}\\frac{{{over}}}{{{under}}}") == -value


@given(st.fractions(max_denominator=10**9), st.fractions(max_denominator=10**9))
def test_two_numbers_are_the_same_exactly_if_they_are_equal(left: Fraction, right: Fraction) -> None:
    assert same(str(left), str(right)) == ("accept" if left == right else "reject")
    assert same(str(left), str(left + Fraction(1, 10**40))) == "reject"


@given(st.dates(min_value=date(1000, 1, 1)))
def test_a_date_is_itself_in_every_writing(day: date) -> None:
    month = day.strftime("%B")
    texts = (
        day.isoformat(),
        f"{month} {day.day}, {day.year}",
        f"{day.day} {month} {day.year}",
        f"{month[:3]} {day.day}th {day.year}",
    )
    for text in texts:
        assert dates(text) == {day}
    either = dates(f"{day.day:02}/{day.month:02}/{day.year}")
    assert day in either and len(either) == (2 if day.day <= 12 and day.day != day.month else 1)


@given(st.dates(min_value=date(1000, 1, 1)), st.dates(min_value=date(1000, 1, 1)))
def test_two_dates_are_the_same_exactly_if_they_are_equal(left: date, right: date) -> None:
    assert same(left.isoformat(), right.strftime("%B ") + f"{right.day}, {right.year:04}") == (
        "accept" if left == right else "reject"
    )


@given(st.integers(0, 23), st.integers(0, 59))
def test_a_time_is_itself_on_both_clocks(hour: int, minute: int) -> None:
    half = f"{(hour - 1) % 12 + 1}:{minute:02} {'am' if hour < 12 else 'p.m.'}"
    assert times(half) == {hour * 3600 + minute * 60}
    assert hour * 3600 + minute * 60 in times(f"{hour:02}:{minute:02}")


@given(st.text(max_size=300))
def test_any_text_is_read_without_an_error(text: str) -> None:
    read_value(text)
    answer_value(text)
    final_answer(text)


@given(st.text(alphabet="0123456789.,/^*+-(){}[]\\$ =:%efracboxdtx", max_size=80))
def test_anything_that_looks_like_mathematics_is_read_without_an_error(text: str) -> None:
    value = read_value(text)
    assert (
        compare(value, value, lambda r, a: Judgement("cannot_judge", "")).outcome != "reject" or value.kind == "nothing"
    )
    answer_value(text)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("12:30", "time"), ("3:4", "ratio"), ("2024-01-05", "date"), ("2024-13-05", "word"), ("(1,2)", "ordered"),
        ("{1,2}", "set"), ("1, 2", "list"), ("1,234", "number"), ("10 %", "percent"), ("AB", "word"),
        ("2x", "expression"), ("5 cm", "quantity"), ("5 x", "expression"), ("", "nothing"), ("1/0", "expression"),
        ("9^9^9", "expression"),
    ],
)  # fmt: skip
def test_kinds_are_told_apart(text: str, kind: str) -> None:
    assert read_value(text).kind == kind


def test_the_last_box_counts_and_its_braces_are_matched() -> None:
    assert boxed(r"\boxed{1} then \boxed{\frac{1}{2}}") == r"\frac{1}{2}"
    assert boxed(r"\boxed{\{1,2\}}") == r"\{1,2\}"
    assert boxed(r"\boxed{1} and \boxed{2") == "1"
    assert boxed("none") is None
    assert marked(r"it is not \boxed{1}") == ""

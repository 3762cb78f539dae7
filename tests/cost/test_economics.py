"""Break-even and prices of made-up situations, worked by hand to the cent."""

from __future__ import annotations

import pytest

from potstill.cost.economics import Machine, Price, Situation, Spent, grid
from potstill.cost.text import break_even, cheaper

SMALL = Machine(0.90, 10_000, 1_000, utilisation=0.5)
"""0.90 $/h is 0.00025 $/s, 0.0005 $ per second of work: 0.05 $ per million read, 0.50 $ written."""


def test_a_machines_price_is_seconds_times_dollars_over_utilisation() -> None:
    assert SMALL.price == Price(pytest.approx(0.05), pytest.approx(0.50))
    assert Machine(3.60, 2_000, 200, 0.25).price == Price(pytest.approx(2.00), pytest.approx(20.00))


def test_an_api_at_four_dollars_against_a_small_machine() -> None:
    """0.8 · 2.50 + 0.2 · 10 = 4.00; 0.8 · 0.05 + 0.2 · 0.50 = 0.14; 386 ÷ 3.86 = 100 million tokens, 20 days."""
    one = Situation(Price(2.50, 10.00), SMALL.price, spent=386, read_share=0.8, tokens_per_day=5e6)
    assert round(one.teacher_per_million, 2) == 4.00 and round(one.student_per_million, 2) == 0.14
    assert one.break_even is not None
    assert round(one.break_even.tokens) == 100_000_000 and round(one.break_even.days, 2) == 20.00
    assert round(one.saved_per_day, 2) == 19.30
    assert cheaper(one) == "28.6 × cheaper than the teacher"


def test_a_quarter_that_falls_back_is_paid_twice() -> None:
    """0.14 + 0.25 · 4.00 = 1.14; 386 ÷ 2.86 = 134.965035 million tokens; 26.99 days."""
    one = Situation(Price(2.50, 10.00), SMALL.price, 386, read_share=0.8, tokens_per_day=5e6, fall_back=0.25)
    assert round(one.cascade_per_million, 2) == 1.14 and one.break_even is not None
    assert round(one.break_even.tokens) == 134_965_035 and round(one.break_even.days, 2) == 26.99


def test_both_on_ones_own_machine() -> None:
    """Teacher 0.5 · 2 + 0.5 · 20 = 11.00; student, four times as fast, 2.75; 10 h · 3.60 + 5 h · 80 = 436.00;
    436 ÷ 8.25 = 52.848485 million tokens, 5.28 days at ten million."""
    spent = Spent(teacher=0, machine=10 * 3.60, people=5 * 80)
    student = Machine(3.60, 8_000, 800, 0.25)
    one = Situation(Machine(3.60, 2_000, 200, 0.25).price, student.price, spent.total, 0.5, 1e7)
    assert (round(spent.total, 2), round(one.teacher_per_million, 2), round(one.student_per_million, 2)) == (
        436,
        11,
        2.75,
    )
    assert one.break_even is not None
    assert round(one.break_even.tokens) == 52_848_485 and round(one.break_even.days, 2) == 5.28


def test_a_cheap_api_against_an_idle_machine_never_pays() -> None:
    """0.25 against 1 $/h ÷ 3600 ÷ 0.1: 2.78 read, 55.56 written, 29.17 mixed."""
    idle = Machine(1.00, 1_000, 50, utilisation=0.1)
    one = Situation(Price(0.10, 0.40), idle.price, 100, read_share=0.5, tokens_per_day=1e9)
    assert round(one.student_per_million, 2) == 29.17
    assert one.break_even is None and break_even(one) == "never: nothing is saved per token"
    assert cheaper(one) == "116.7 × dearer than the teacher"


def test_what_was_spent_on_nothing_has_paid_at_once() -> None:
    one = Situation(Price(1, 1), Price(0, 0), 0, 0.5, 1e6)
    assert one.break_even is not None and one.break_even.tokens == 0 and cheaper(one) == "it costs nothing"


def test_the_grid_changes_volume_utilisation_and_share_and_leaves_an_apis_price() -> None:
    one = Situation(Price(2.50, 10.00), SMALL.price, 386, read_share=0.8, tokens_per_day=5e6)
    cells = list(grid(one, SMALL, None, volumes=[5e6, 5e7], utilisations=[0.5, 1.0], shares=[0.0, 0.25]))
    assert len(cells) == 8 and cells[0].situation == one
    assert {round(cell.situation.teacher_per_million, 2) for cell in cells} == {4.00}
    assert round(cells[2].situation.student_per_million, 2) == 0.07  # twice the utilisation, half the price
    assert cells[4].situation.break_even is not None and round(cells[4].situation.break_even.days, 2) == 2.00

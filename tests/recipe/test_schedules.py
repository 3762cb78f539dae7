from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from potstill.recipe import Change, ForwardKL, value_at
from potstill.recipe.schedules import may_be_positive, schedule_text

PROGRESS = st.floats(0, 1)
SHAPES = st.sampled_from(["linear", "cosine", "step"])


def test_a_number_never_changes() -> None:
    assert value_at(2.5, 0.0) == value_at(2.5, 1.0) == 2.5


def test_linear_goes_straight_between_begin_and_until() -> None:
    change = Change(start=4, end=1, begin=0.2, until=0.6)

    assert [change.at(p) for p in (0.0, 0.2, 0.4, 0.6, 1.0)] == pytest.approx([4, 4, 2.5, 1, 1])


def test_cosine_is_half_way_in_the_middle_and_slow_at_both_ends() -> None:
    change = Change(shape="cosine", start=1, end=0)

    assert change.at(0.5) == pytest.approx(0.5)
    assert change.at(0.25) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    assert 1 - change.at(0.1) < 0.1 and change.at(0.9) < 0.1


def test_step_jumps_at_until() -> None:
    change = Change(shape="step", start=1, end=3, begin=0.5, until=0.5)

    assert [change.at(p) for p in (0.0, 0.49, 0.5, 1.0)] == [1, 1, 3, 3]


@given(SHAPES, st.floats(0, 100), st.floats(0, 100), PROGRESS)
def test_a_value_is_between_its_ends_and_meets_them(shape: Any, start: float, end: float, progress: float) -> None:
    change = Change(shape=shape, start=start, end=end)

    slack = 1e-9 * max(start, end)
    assert min(start, end) - slack <= change.at(progress) <= max(start, end) + slack
    assert change.at(0.0) == start and change.at(1.0) == end


def test_a_slip_gets_one_message_that_says_what_is_wrong() -> None:
    slips: list[tuple[dict[str, Any], str]] = [
        ({"weight": "much"}, "neither a number nor a change"),
        ({"weight": True}, "neither a number nor a change"),
        ({"weight": -1}, "0 or more"),
        ({"weight": math.nan}, "0 or more"),
        ({"temperature": 0}, "a temperature must be above 0"),
        ({"temperature": {"start": 2, "end": 0}}, "a temperature must be above 0"),
        ({"weight": {"start": 1, "end": 0, "begin": 0.5, "until": 0.5}}, "must be before until"),
        ({"weight": {"start": 1, "endd": 0}}, "endd"),
    ]
    for fields, said_of_it in slips:
        with pytest.raises(ValidationError) as caught:
            ForwardKL(**fields)
        messages = [error["msg"] + str(error["loc"]) for error in caught.value.errors()]
        assert any(said_of_it in message for message in messages), messages
        assert not any("union" in message or "constrained" in message for message in messages)


def test_what_is_zero_all_along_can_be_told_from_what_only_begins_at_zero() -> None:
    assert not may_be_positive(0.0)
    assert may_be_positive(Change(start=0, end=1))


def test_a_schedule_is_said_in_a_few_characters() -> None:
    assert schedule_text(2.0) == "2"
    assert schedule_text(Change(start=1, end=0.5)) == "1→0.5"

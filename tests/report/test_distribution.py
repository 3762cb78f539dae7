"""How the loss is spread over tokens."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.report.distribution import histogram, spread_of

LOSSES = st.lists(st.floats(0, 40), min_size=1, max_size=50)


def test_quantiles_and_the_worst_tenth_by_hand() -> None:
    spread = spread_of(np.array([0.0] * 5 + [1.0] * 4 + [6.0]))
    assert spread is not None
    assert spread.quantiles[0] == 0.5 and spread.largest == 6.0
    assert spread.on_worst == pytest.approx(0.6)


def test_what_is_not_finite_is_counted_and_left_out() -> None:
    spread = spread_of(np.array([1.0, np.nan, np.inf, 3.0]))
    assert spread is not None and spread.not_finite == 2 and spread.largest == 3.0
    assert spread_of(np.array([np.nan])) is None


@given(one=LOSSES, two=LOSSES)
def test_every_token_is_in_one_bin_of_the_same_edges(one: list[float], two: list[float]) -> None:
    rows = histogram({"student": np.array(one), "text_only": np.array(two)}, ["student", "text_only"])
    for name in {row["model"] for row in rows}:
        assert sum(float(row["share"]) for row in rows if row["model"] == name) == pytest.approx(1)
    if rows:
        edges = {name: [r["from"] for r in rows if r["model"] == name] for name in ("student", "text_only")}
        assert edges["student"] == edges["text_only"]


def test_losses_that_are_all_zero_have_no_histogram() -> None:
    assert histogram({"student": np.zeros(3)}, ["student"]) == []

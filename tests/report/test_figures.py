"""Digits, signs and units."""

from __future__ import annotations

import math
import re

import pytest

from potstill.measures import Interval
from potstill.report import figures
from potstill.report.charts import curve_figure


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [(1234.5, 1, "1,234.5"), (-0.001, 2, "0.00"), (-2.5, 1, "−2.5"), (math.nan, 2, "not a number")],
)
def test_numbers(value: float, decimals: int, text: str) -> None:
    assert figures.number(value, decimals) == text


def test_infinities_keep_their_sign() -> None:
    assert figures.number(math.inf) == "infinite" and figures.number(-math.inf) == "−infinite"


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (Interval(1.9312, 1.80, 2.07), "1.93 [1.80, 2.07]"),
        (Interval(0.12345, 0.12, 0.127), "0.1235 [0.1200, 0.1270]"),
        (Interval(15.4, 12.1, 18.9), "15.40 [12.10, 18.90]"),
        (Interval(1.0, 1.0, 1.0), "1.00 [1.00, 1.00]"),
    ],
)
def test_an_interval_decides_how_many_digits_are_shown(found: Interval, text: str) -> None:
    assert figures.interval(found) == text


def test_differences_show_their_sign() -> None:
    assert figures.difference(Interval(-0.05, -0.12, 0.02)) == "−0.05 [−0.12, +0.02]"
    assert figures.points(Interval(0.041, -0.002, 0.05)) == "+4.1 [−0.2, +5.0]"
    assert figures.signed(0.0) == "0.00"


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (figures.large(134_515_008), "134.5M"),
        (figures.large(1_240_000_000), "1.2B"),
        (figures.large(900), "900"),
        (figures.rate(38.46), "38.5"),
        (figures.rate(412.4), "412"),
        (figures.duration(9.96), "10.0 s"),
        (figures.duration(59.7), "1 min"),
        (figures.duration(723), "12 min 3 s"),
        (figures.duration(7500), "2 h 5 min"),
    ],
)
def test_units(made: str, text: str) -> None:
    assert made == text


def test_an_axis_around_a_single_value_has_ticks_to_read_it_by() -> None:
    figure = curve_figure("NLL", "", [{"model": "student", "step": 100, "value": 3.70}], axis="NLL", marked=True)
    labels = [float(text) for text in re.findall(r"<text[^>]*>([0-9.]+)</text>", str(figure.wide))]
    ticks = [label for label in labels if label < 10]
    assert len(ticks) >= 3 and min(ticks) < 3.7 < max(ticks)

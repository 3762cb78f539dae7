"""Counts have nouns of their number, and a size is never 0 of a unit that is too large for it."""

from __future__ import annotations

import pytest

from potstill.quantities import byte_size, counted


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "0 runs"), (1, "1 run"), (2, "2 runs"), (1_000, "1,000 runs"), (1_234_567, "1,234,567 runs")],
)
def test_one_is_no_plural(count: int, said: str) -> None:
    assert counted(count, "run") == said


def test_a_plural_may_be_given() -> None:
    assert [counted(count, "class", "classes") for count in (1, 2)] == ["1 class", "2 classes"]


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (0, "0 B"),
        (12, "12 B"),
        (999, "999 B"),
        (1_000, "1.00 kB"),
        (9_994, "9.99 kB"),
        (9_996, "10.0 kB"),
        (42_000, "42.0 kB"),
        (999_400, "999 kB"),
        (999_600, "1.00 MB"),
        (538_090_408, "538 MB"),
        (2.5e9, "2.50 GB"),
        (1.2e13, "12.0 TB"),
    ],
)
def test_a_size_has_three_digits(size: float, said: str) -> None:
    assert byte_size(size) == said

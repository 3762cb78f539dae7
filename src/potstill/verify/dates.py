"""Dates and times of day in a text, each with all that it may mean."""

from __future__ import annotations

import re
from datetime import date
from fractions import Fraction

_MONTHS = "january february march april may june july august september october november december".split()
_MONTH = r"(?P<month>" + "|".join(rf"{m[:3]}(?:{m[3:]}|t)?" if len(m) > 3 else m for m in _MONTHS) + r")\.?"
_NAMED = (
    re.compile(rf"(?:[a-z]+day,?\s+)?{_MONTH}\s+(?P<day>\d{{1,2}})(?:st|nd|rd|th)?,?\s+(?P<year>\d{{4}})"),
    re.compile(
        rf"(?:[a-z]+day,?\s+)?(?:the\s+)?(?P<day>\d{{1,2}})(?:st|nd|rd|th)?(?:\s+of)?\s+{_MONTH},?\s+(?P<year>\d{{4}})"
    ),
    re.compile(rf"(?P<year>\d{{4}})\s+{_MONTH}\s+(?P<day>\d{{1,2}})"),
)
_ISO = re.compile(r"(\d{4})([-/.])(\d{1,2})\2(\d{1,2})")
_SLASHED = re.compile(r"(\d{1,2})([-/.])(\d{1,2})\2(\d{4})")
_TIME = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2})(?:\.(\d{1,6}))?)?\s*(?:([ap])\.?\s?m\.?)?")
_HOUR = re.compile(r"(\d{1,2})\s*([ap])\.?\s?m\.?")


def dates(text: str) -> frozenset[date]:
    """The dates that a text may mean: none if it is not a date, two if day and month are ambiguous (`04/05/2024`)."""
    said = " ".join(text.lower().split())
    for pattern in _NAMED:
        found = pattern.fullmatch(said)
        if found:
            month = 1 + next(i for i, m in enumerate(_MONTHS) if m.startswith(found["month"][:3]))
            return _possible((int(found["year"]), month, int(found["day"])))
    iso = _ISO.fullmatch(said)
    if iso:
        return _possible((int(iso[1]), int(iso[3]), int(iso[4])))
    slashed = _SLASHED.fullmatch(said)
    if slashed:
        first, second, year = int(slashed[1]), int(slashed[3]), int(slashed[4])
        return _possible((year, first, second), (year, second, first))
    return frozenset()


def _possible(*candidates: tuple[int, int, int]) -> frozenset[date]:
    found = set()
    for year, month, day in candidates:
        try:
            found.add(date(year, month, day))
        except ValueError:
            continue
    return frozenset(found)


def times(text: str) -> frozenset[Fraction]:
    """The times of day that a text may mean, in seconds since midnight: none if it is not a time, two if morning or
    evening is not stated (`2:30`)."""
    said = " ".join(text.lower().split())
    found = _TIME.fullmatch(said)
    if found:
        hour, minute, half = int(found[1]), int(found[2]), found[5]
        second = Fraction(f"{found[3] or 0}.{found[4] or 0}")
    else:
        short = _HOUR.fullmatch(said)
        if not short:
            return frozenset()
        hour, minute, second, half = int(short[1]), 0, Fraction(0), short[2]
    if minute > 59 or second >= 60 or hour > 24 or (half and not 1 <= hour <= 12):
        return frozenset()
    if half:
        hours = [hour % 12 + (12 if half == "p" else 0)]
    else:
        hours = [hour, hour + 12] if 1 <= hour <= 11 else [hour]
    return frozenset(h * 3600 + minute * 60 + second for h in hours)

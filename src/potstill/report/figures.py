"""Numbers for a reader: as many digits as the interval supports, a true minus sign, and units."""

from __future__ import annotations

import math

from potstill.measures import Interval, MetricSpec

NONE = "–"
_MINUS = "\N{MINUS SIGN}"
_UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K"))


def number(value: float, decimals: int = 2) -> str:
    """`−1,234.50`. Values that are not finite become words."""
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else f"{_MINUS if value < 0 else ''}infinite"
    text = f"{value:,.{decimals}f}"
    # −0.00 is 0.00.
    if text.startswith("-") and not text.strip("-0.,"):
        text = text[1:]
    return text.replace("-", _MINUS)


def signed(value: float, decimals: int = 2) -> str:
    """As `number`, with a plus sign if it is positive."""
    text = number(value, decimals)
    return f"+{text}" if value > 0 and any(c in "123456789" for c in text) else text


def decimals_of(interval: Interval, most: int = 4) -> int:
    """Number of decimals that an interval's half width supports: two significant digits if it begins with 1 to 3, else
    one. At least 2 decimals."""
    half = (interval.high - interval.low) / 2
    if not math.isfinite(half) or half <= 0:
        return 2
    magnitude = math.floor(math.log10(half))
    digits = 2 if half < 4 * 10.0**magnitude else 1
    return min(max(2, digits - 1 - magnitude), most)


def interval(found: Interval | None) -> str:
    """`1.93 [1.80, 2.07]`."""
    if found is None:
        return NONE
    places = decimals_of(found)
    return f"{number(found.value, places)} {brackets(found, places)}"


def difference(found: Interval) -> str:
    """`−0.38 [−0.51, −0.26]`, with its sign."""
    places = decimals_of(found)
    return f"{signed(found.value, places)} [{signed(found.low, places)}, {signed(found.high, places)}]"


def brackets(found: Interval, decimals: int | None = None) -> str:
    """`[1.80, 2.07]`."""
    places = decimals_of(found) if decimals is None else decimals
    return f"[{number(found.low, places)}, {number(found.high, places)}]"


def percent(value: float, decimals: int = 0) -> str:
    """A share in [0, 1] as `41 %`."""
    return f"{number(100 * value, decimals)} %"


def percent_interval(found: Interval | None) -> str:
    """Shares in [0, 1] as `41.2 % [39.0, 43.5]`."""
    if found is None:
        return NONE
    return f"{percent(found.value, 1)} [{number(100 * found.low, 1)}, {number(100 * found.high, 1)}]"


def points(found: Interval) -> str:
    """A difference of shares in percentage points: `+4.1 [+1.0, +7.2]`."""
    low, high = signed(100 * found.low, 1), signed(100 * found.high, 1)
    return f"{signed(100 * found.value, 1)} [{low}, {high}]"


def of_metric(spec: MetricSpec, found: Interval | None) -> str:
    """A value of a metric in its unit: `41.2 % [39.0, 43.5]`, `1.93 [1.80, 2.07]`."""
    if spec.unit == "share":
        return percent_interval(found)
    if found is not None and math.isfinite(found.value) and abs(found.value) >= 1000:
        return f"{large(found.value)} [{_large(found.low)}, {_large(found.high)}]"
    return interval(found)


def value_of_metric(spec: MetricSpec, found: Interval) -> str:
    """The value alone: `41.2 %`."""
    return of_metric(spec, found).partition(" [")[0]


def difference_of_metric(spec: MetricSpec, found: Interval) -> str:
    """A difference in its unit: `+4.1 [+1.0, +7.2] points`, `−0.38 [−0.51, −0.26] nats`."""
    if spec.unit == "share":
        return f"{points(found)} points"
    return f"{difference(found)} nats" if spec.unit == "nats" else difference(found)


def _large(value: float) -> str:
    return large(value) if math.isfinite(value) else number(value)


def count(value: float) -> str:
    """An integer with thousands separators."""
    return number(value, 0)


def large(value: float) -> str:
    """Large counts, such as parameters: `134.5M`."""
    for size, unit in _UNITS:
        if abs(value) >= size:
            return f"{number(value / size, 1)}{unit}"
    return count(value)


def rate(value: float) -> str:
    """Tokens per second, three significant digits."""
    return number(value, 0 if value >= 100 else 1 if value >= 10 else 2)


def duration(seconds: float) -> str:
    """`47 s`, `12 min 3 s`, `2 h 5 min`."""
    if not math.isfinite(seconds):
        return NONE
    if seconds < 10:
        return f"{number(seconds, 1)} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"

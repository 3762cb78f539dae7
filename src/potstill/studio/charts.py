"""Small charts as SVG without styles: colours are classes, so that light, dark and the policy of the page agree."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from markupsafe import Markup

Points = Sequence[tuple[float, float]]
WIDTH, HEIGHT = 440, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 12, 42


def lines(curves: Mapping[str, Points], *, x: str, y: str, title: str, upto: float | None = None) -> Markup:
    """Curves over a shared pair of axes. `upto` is where the x axis ends, if later than the last point.

    The picture has a title and a description with the last value of each curve, for whoever does not see it.
    """
    shown = {name: [p for p in points if all(abs(v) < 1e300 for v in p)] for name, points in curves.items()}
    shown = {name: points for name, points in shown.items() if points}
    if not shown:
        return Markup("")
    xs = [p[0] for points in shown.values() for p in points]
    ys = [p[1] for points in shown.values() for p in points]
    x1 = max([*xs, upto or 0.0, 1e-9])
    x0 = min(xs) if 0.4 * x1 < min(xs) < x1 else min(0.0, *xs)
    y0, y1 = _range(ys)

    def place(point: tuple[float, float]) -> str:
        across = _LEFT + (point[0] - x0) / (x1 - x0) * (WIDTH - _LEFT - _RIGHT)
        down = _TOP + (y1 - point[1]) / (y1 - y0) * (HEIGHT - _TOP - _BOTTOM)
        return f"{across:.1f},{down:.1f}"

    parts = []
    for tick in _ticks(y0, y1):
        down = place((x0, tick)).split(",")[1]
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{down}" y2="{down}"/>')
        parts.append(
            f'<text class="tick" x="{_LEFT - 6}" y="{float(down) + 4}" text-anchor="end">{_short(tick)}</text>'
        )
    for tick in _ticks(x0, x1):
        across = place((tick, y0)).split(",")[0]
        parts.append(f'<text class="tick" x="{across}" y="{HEIGHT - 24}" text-anchor="middle">{_short(tick)}</text>')
    parts.append(f'<text class="tick" x="{WIDTH - _RIGHT}" y="{HEIGHT - 6}" text-anchor="end">{escape(x)}</text>')
    told = []
    for number, (name, points) in enumerate(shown.items()):
        path = " ".join(map(place, points))
        parts.append(f'<polyline class="curve c{number % 6}" points="{path}"/>')
        if len(points) == 1:
            across, down = path.split(",")
            parts.append(f'<circle class="dot c{number % 6}" cx="{across}" cy="{down}" r="3"/>')
        told.append(f"{name}: {points[-1][1]:.4g} at {_short(points[-1][0])}")
    legend = "".join(
        f'<li><svg class="key" viewBox="0 0 24 8" aria-hidden="true">'
        f'<line class="curve c{number % 6}" x1="0" x2="24" y1="4" y2="4"/></svg>{escape(name)}</li>'
        for number, name in enumerate(shown)
    )
    picture = (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}; '
        f'{escape("; ".join(told), quote=True)}">{"".join(parts)}</svg>'
    )
    caption = f"<figcaption><strong>{escape(title)}</strong> ({escape(y)})<ul class=legend>{legend}</ul></figcaption>"
    return Markup(f"<figure>{caption}{picture}</figure>")


def bars(values: Sequence[tuple[str, float]], *, title: str, unit: str = "", most: float | None = None) -> Markup:
    """Horizontal bars, as a list that reads as text: name, bar, value."""
    top = max([most or 0.0, *(value for _, value in values), 1e-12])
    rows = "".join(
        f'<li><span class="name">{escape(name)}</span><svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" '
        f'aria-hidden="true"><rect class="track" width="100" height="10"/>'
        f'<rect class="fill c0" width="{100 * max(value, 0) / top:.2f}" height="10"/></svg>'
        f'<span class="value">{_value(value)}{escape(unit)}</span></li>'
        for number, (name, value) in enumerate(values)
    )
    return Markup(
        f'<figure class="bars"><figcaption><strong>{escape(title)}</strong></figcaption><ul>{rows}</ul></figure>'
    )


def pixels(rows: Sequence[Sequence[float]], title: str) -> Markup:
    """A grey picture [H][W] of 0 to 255, dark on light as ink on paper."""
    height, width = len(rows), len(rows[0])
    dots = "".join(
        f'<rect x="{x}" y="{y}" width="1" height="1" fill-opacity="{value / 255:.2f}"/>'
        for y, row in enumerate(rows)
        for x, value in enumerate(row)
        if value > 0
    )
    named = f'role="img" aria-label="{escape(title, quote=True)}"'
    return Markup(f'<svg class="pixels" viewBox="0 0 {width} {height}" {named}>{dots}</svg>')


def _value(value: float) -> str:
    return f"{value:.2g}" if abs(value) < 0.1 and value else f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    if low >= 0 and low < 0.5 * high:
        low = 0.0
    if high - low < 1e-9:
        high, low = high + 0.5, low - 0.5
    room = 0.05 * (high - low)
    return (low if low == 0 else low - room), high + room


def _ticks(low: float, high: float, count: int = 4) -> list[float]:
    rough = (high - low) / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough)
    first = math.ceil(low / step)
    return [round(number * step, 10) for number in range(first, math.floor(high / step) + 1)]


def _short(value: float) -> str:
    if abs(value) >= 10_000:
        return f"{value / 1000:,.0f}k"
    return f"{value:g}"

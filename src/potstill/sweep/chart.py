"""The picture of a sweep, as SVG: every seed a dot, the mean with its interval over seeds beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from potstill.measures import Interval

BASELINE, OTHER, LINE, INK, SOFT, GRID = "#3b3b3b", "#0072b2", "#d55e00", "#111111", "#777777", "#dddddd"
_WIDTH, _ROW, _HEIGHT = 560, 44, 300
_DOTS, _DOT_OPACITY = 28, 0.45


@dataclass(frozen=True)
class Shown:
    """One arm: its values by seed, their mean and its interval over seeds, and its value on an axis (None where it is
    not of the axis)."""

    name: str
    values: Sequence[float]
    mean: float
    interval: Interval | None
    at: float | None = None
    baseline: bool = False


def arms_svg(title: str, axis: str, arms: Sequence[Shown], reference: tuple[str, float] | None = None) -> str:
    """A row for each arm. `reference` is a name and a value that a line is drawn at (the teacher's)."""
    import altair as alt

    order = [arm.name for arm in arms]
    rows = alt.Y("arm:N", sort=order, title=None, axis=alt.Axis(ticks=False, domain=False, labelColor=INK))
    x = alt.X("value:Q", title=axis, scale=_scale(), axis=alt.Axis(tickCount=6))
    colour = alt.Color("colour:N", scale=None)
    dots, means = _dots(arms), _means(arms)
    layers = [
        alt.Chart(dots).mark_point(filled=True, size=_DOTS, opacity=_DOT_OPACITY).encode(x=x, y=rows, color=colour),
        alt.Chart(means).mark_rule(strokeWidth=2).encode(x="low:Q", x2="high:Q", y=rows, color=colour),
        alt.Chart(means).mark_point(filled=True, size=90, opacity=1).encode(x=x, y=rows, color=colour),
        alt.Chart(means).mark_text(dy=-12, fontSize=11, color=INK).encode(x=x, y=rows, text="text:N"),
    ]
    if reference is not None:
        layers += _reference(reference, "x")
    return _svg(alt.layer(*layers), title, _ROW * len(arms) + 20)


def along_svg(
    title: str, axis: str, along: str, arms: Sequence[Shown], reference: tuple[str, float] | None, *, log: bool
) -> str:
    """The arms of one axis along it, all others as lines across. `along` names the axis."""
    import altair as alt

    swept = [arm for arm in arms if arm.at is not None]
    scale = alt.Scale(type="log" if log else "linear", nice=False, padding=10)
    ticks = alt.Axis(values=[arm.at for arm in swept if arm.at is not None], format="~g", grid=False)
    x = alt.X("at:Q", title=along, scale=scale, axis=ticks)
    y = alt.Y("value:Q", title=axis, scale=_scale(), axis=alt.Axis(tickCount=7))
    colour = alt.Color("colour:N", scale=None)
    means = _means(swept)
    layers = [
        alt.Chart(_dots(swept))
        .mark_point(filled=True, size=_DOTS, opacity=_DOT_OPACITY)
        .encode(x=x, y=y, color=colour),
        alt.Chart(means).mark_line(strokeWidth=2, color=OTHER).encode(x=x, y=y),
        alt.Chart(means).mark_rule(strokeWidth=2).encode(x=x, y="low:Q", y2="high:Q", color=colour),
        alt.Chart(means).mark_point(filled=True, size=70, opacity=1).encode(x=x, y=y, color=colour),
    ]
    lines = [(arm.name, arm.mean) for arm in arms if arm.at is None]
    for name, value in [*lines, *([reference] if reference is not None else [])]:
        layers += _reference((name, value), "y")
    return _svg(alt.layer(*layers), title, _HEIGHT)


def _dots(arms: Sequence[Shown]) -> Any:
    return _inline([_of(arm) | {"value": value} for arm in arms for value in arm.values])


def _means(arms: Sequence[Shown]) -> Any:
    rows = []
    for arm in arms:
        low, high = (arm.interval.low, arm.interval.high) if arm.interval is not None else (arm.mean, arm.mean)
        rows.append(_of(arm) | {"value": arm.mean, "low": low, "high": high, "text": f"{arm.mean:.4g}"})
    return _inline(rows)


def _of(arm: Shown) -> dict[str, Any]:
    return {"arm": arm.name, "at": arm.at, "colour": BASELINE if arm.baseline else OTHER}


def _reference(line: tuple[str, float], channel: str) -> list[Any]:
    """A dashed line across, with its name at the end."""
    import altair as alt

    name, value = line
    at = _inline([{"value": value, "text": name}])
    base = alt.Chart(at).encode(**{channel: "value:Q"})
    words: dict[str, Any] = {"align": "right", "dy": -6} if channel == "y" else {"align": "right", "dx": -4}
    edge = {"x": alt.value(_WIDTH - 60)} if channel == "y" else {"y": alt.value(8)}
    rule = base.mark_rule(strokeDash=[5, 4], color=LINE)
    return [rule, base.mark_text(fontSize=11, color=LINE, **words).encode(text="text:N", **edge)]


def _scale() -> Any:
    import altair as alt

    return alt.Scale(zero=False, nice=False, padding=14)


def _inline(values: list[dict[str, Any]]) -> Any:
    import altair as alt

    return alt.InlineData(values=values)


def _svg(chart: Any, title: str, height: int) -> str:
    import vl_convert

    chart = (
        chart.properties(
            title={"text": title, "anchor": "start", "fontSize": 14, "fontWeight": "normal", "color": INK},
            width=_WIDTH,
            height=height,
            background="white",
            autosize={"type": "fit", "contains": "padding"},
            padding={"left": 8, "right": 16, "top": 8, "bottom": 8},
        )
        .configure_view(stroke=None)
        .configure_axis(
            labelColor=SOFT, titleColor=SOFT, gridColor=GRID, domainColor=SOFT, tickColor=SOFT, titleFontWeight="normal"
        )
    )
    return str(vl_convert.vegalite_to_svg(chart.to_dict()))

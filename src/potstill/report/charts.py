"""The charts, each drawn twice, for a wide and a narrow page, so that letters keep their size.

Altair is loaded when a chart is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from potstill.measures import Bin, Interval, Place
from potstill.report.distribution import BEND
from potstill.report.palette import GRID, INK, LOOKS, RULE, SOFT, shown
from potstill.report.svg import draw

WIDE, SMALL, NARROW = 470, 288, 320
_ROW_HEIGHT = 34
Values = Sequence[Mapping[str, Any]]
Named = Callable[[str], str]


@dataclass(frozen=True)
class Figure:
    """A chart for both widths (`narrow` is None if one fits both), its title and caption, and the models in its
    legend."""

    title: str
    caption: str
    wide: Markup
    narrow: Markup | None = None
    legend: tuple[str, ...] = ()


def interval_figure(
    title: str,
    caption: str,
    rows: Sequence[tuple[str, Interval, str]],
    *,
    axis: str,
    zero_line: bool = False,
    bounds: tuple[float, float] | None = None,
    named: Named = shown,
) -> Figure:
    """Estimates with their intervals, one row each.

    Args:
        title: of the figure.
        caption: below it.
        rows: name (of a model, or of a metric), interval, and the printed estimate.
        axis: title of the axis, with the unit.
        zero_line: draw a line at 0, for differences.
        bounds: of the axis; by default those of all intervals.
        named: the display name of a model.
    """
    values = [
        {"name": named(name), "model": name if name in LOOKS else "student", "text": printed}
        | {"value": found.value, "low": found.low, "high": found.high}
        for name, found, printed in rows
    ]

    def chart(width: int) -> Any:
        import altair as alt

        base = alt.Chart(alt.InlineData(values=values)).encode(
            y=_names(),
            color=_colours(),
        )
        scale = alt.Scale(zero=zero_line, nice=True, padding=14)
        if bounds is not None:  # not rounded: a share would have an axis from −5 %
            scale = alt.Scale(domain=list(bounds), nice=False)
        if bounds is None and (
            around := _around_one_value([end for _, found, _ in rows for end in (found.low, found.high)])
        ):
            scale = alt.Scale(domain=around)
        ticks = alt.Axis(tickCount=width // 75, labelFlush=False)
        x = alt.X("low:Q", title=axis, scale=scale, axis=ticks)
        layers = [
            base.mark_rule(strokeWidth=2).encode(x=x, x2="high:Q"),
            base.mark_tick(thickness=2, size=10).encode(x=x),
            base.mark_tick(thickness=2, size=10).encode(x="high:Q"),
            base.mark_point(size=80, filled=True, opacity=1).encode(x="value:Q", shape=_shapes()),
            base.mark_text(dy=-11, fontSize=12).encode(x="value:Q", text="text:N", color=alt.value(INK)),
        ]
        if zero_line:
            line = alt.Chart(alt.InlineData(values=[{"at": 0}])).mark_rule(strokeDash=[4, 3]).encode(x="at:Q")
            layers.insert(0, line.encode(color=alt.value(RULE)))
        return finished(alt.layer(*layers), width, _ROW_HEIGHT * len(values) + 44)

    label = "; ".join(f"{v['name']} {v['text']} [{v['low']:.3g}, {v['high']:.3g}]" for v in values)
    return _both(title, caption, chart, f"{title}, {axis}: {label}")


def _around_one_value(values: Sequence[float]) -> list[float] | None:
    """A domain around equal values, for which the default axis would have a single tick; its ends are rounded and
    differ from the value. None if the values differ."""
    low, high = min(values), max(values)
    if high > low:
        return None
    room = abs(low) / 10 or 1.0
    return [low - room, high + room]


def reliability_figure(curves: Mapping[str, Sequence[Bin]], *, named: Named = shown) -> Figure:
    """Reliability diagram: share of right first choices against their probability, by model, with the diagonal of
    calibration."""
    values = [
        {"model": name, "x": 100 * one.probability, "y": 100 * one.right.value}
        | {"low": 100 * one.right.low, "high": 100 * one.right.high}
        for name, curve in curves.items()
        for one in curve
    ]
    models = _models_in(values)

    def chart(width: int) -> Any:
        import altair as alt

        scale = alt.Scale(domain=[0, 100], nice=False)
        base = alt.Chart(alt.InlineData(values=values)).encode(
            x=alt.X("x:Q", title="probability of the first choice, %", scale=scale, axis=alt.Axis(tickCount=5)),
            y=alt.Y("y:Q", title="first choice is right, %", scale=scale, axis=alt.Axis(tickCount=5)),
            color=_colours(),
        )
        ends = alt.InlineData(values=[{"x": 0, "y": 0}, {"x": 100, "y": 100}])
        diagonal = alt.Chart(ends).mark_line(strokeDash=[4, 3]).encode(x="x:Q", y="y:Q", color=alt.value(RULE))
        layers = [
            diagonal,
            base.mark_rule(strokeWidth=1).encode(y="low:Q", y2="high:Q"),
            base.mark_line(strokeWidth=2).encode(strokeDash=_dashes()),
            base.mark_point(size=45, filled=True, opacity=1).encode(shape=_shapes()),
        ]
        return finished(alt.layer(*layers), width, 300)

    label = ", ".join(map(named, models))
    return _both("Reliability", "Lines through the points: intervals.", chart, f"Reliability: {label}", legend=models)


def band_figure(
    title: str,
    caption: str,
    curves: Mapping[str, Sequence[Place]],
    *,
    axis: str,
    value: str,
    log: bool,
    named: Named = shown,
) -> Figure:
    """Smooth curves with their bands, by model, and a line at 0.

    Args:
        title: of the figure.
        caption: below it.
        curves: places and values, by model.
        axis: title of the horizontal axis.
        value: title of the vertical axis, with the unit.
        log: draw the horizontal axis logarithmically.
        named: the display name of a model.
    """
    values = [
        {"model": name, "x": place.at, "y": place.value.value, "low": place.value.low, "high": place.value.high}
        for name, curve in curves.items()
        for place in curve
    ]
    models = _models_in(values)

    def chart(width: int) -> Any:
        import altair as alt

        scale = alt.Scale(type="log" if log else "linear", nice=False)
        base = alt.Chart(alt.InlineData(values=values)).encode(
            x=alt.X("x:Q", title=axis, scale=scale, axis=alt.Axis(tickCount=width // 80, format="~g", grid=False)),
            color=_colours(),
        )
        y = alt.Y("low:Q", title=value, scale=alt.Scale(zero=True, nice=True), axis=alt.Axis(tickCount=5))
        line = alt.Chart(alt.InlineData(values=[{"at": 0}])).mark_rule(strokeDash=[4, 3]).encode(y="at:Q")
        layers = [
            line.encode(color=alt.value(RULE)),
            base.mark_area(opacity=0.15).encode(y=y, y2="high:Q"),
            base.mark_line(strokeWidth=2).encode(y="y:Q", strokeDash=_dashes()),
        ]
        return finished(alt.layer(*layers), width, 240)

    ends = "; ".join(
        f"{named(m)} {c[0].value.value:.3g} at {c[0].at:.3g} and {c[-1].value.value:.3g} at {c[-1].at:.3g}"
        for m, c in curves.items()
    )
    return _both(title, caption, chart, f"{title}, {value}: {ends}", legend=models)


@dataclass(frozen=True)
class Bar:
    """One model's value, its printed form, and the range of its measurements if there are several."""

    model: str
    value: float
    printed: str
    spread: tuple[float, float] | None = None


def bar_figure(title: str, caption: str, bars: Sequence[Bar]) -> Figure:
    """One bar per model, from 0, with its value printed at its end and a line over its range."""
    values: list[dict[str, Any]] = [
        {"name": shown(bar.model), "model": bar.model, "value": bar.value, "text": bar.printed}
        | dict(zip(("low", "high"), bar.spread or (bar.value, bar.value), strict=True))
        for bar in bars
    ]
    top = max(float(v["high"]) for v in values)

    def chart(width: int) -> Any:
        import altair as alt

        base = alt.Chart(alt.InlineData(values=values)).encode(
            y=_names(),
            # Room for the printed value after the longest bar.
            x=alt.X("value:Q", axis=None, scale=alt.Scale(domain=[0, top * 1.5], nice=False)),
        )
        drawn = base.mark_bar(size=14, cornerRadiusEnd=2).encode(color=_colours())
        spread = base.mark_rule(strokeWidth=1.5).encode(x="low:Q", x2="high:Q", color=alt.value(RULE))
        words = base.mark_text(align="left", dx=6, fontSize=12).encode(x="high:Q", text="text:N", color=alt.value(INK))
        return finished(alt.layer(drawn, spread, words), width, 26 * len(values) + 10)

    label = "; ".join(f"{shown(bar.model)} {bar.printed}" for bar in bars)
    return Figure(title, caption, draw(chart(SMALL), f"{title}: {label}"))


def curve_figure(title: str, caption: str, points: Values, *, axis: str, marked: bool, named: Named = shown) -> Figure:
    """Lines over optimiser steps.

    Args:
        title: of the figure.
        caption: below it.
        points: mappings of model, step and value.
        axis: title of the vertical axis, with the unit.
        marked: draw each point with its model's shape (for few points).
        named: the display name of a model.
    """
    models = _models_in(points)

    def chart(width: int) -> Any:
        import altair as alt

        around = _around_one_value([point["value"] for point in points])
        scale = alt.Scale(domain=around) if around else alt.Scale(zero=False, nice=True)
        base = alt.Chart(alt.InlineData(values=list(points))).encode(
            x=alt.X("step:Q", title="optimiser step", axis=_steps(width)),
            y=alt.Y("value:Q", title=axis, scale=scale, axis=alt.Axis(tickCount=5)),
            color=_colours(),
        )
        layers = [base.mark_line(strokeWidth=2).encode(strokeDash=_dashes())]
        if marked:
            layers.append(base.mark_point(size=60, filled=True, opacity=1).encode(shape=_shapes()))
        return finished(alt.layer(*layers), width, 240)

    ends = "; ".join(f"{named(m)} ends at {_last(points, m):.3g}" for m in models)
    return _both(title, caption, chart, f"{title}, {axis}: {ends}", legend=models)


def histogram_figure(
    title: str, caption: str, rows: Values, *, axis: str, units: str = "tokens", named: Named = shown
) -> Figure:
    """Shares of targets by loss, as outlines (bars would hide each other).

    Args:
        title: of the figure.
        caption: below it.
        rows: from `distribution.histogram`.
        axis: title of the horizontal axis, with the unit.
        units: name of the targets.
        named: the display name of a model.
    """
    models = _models_in(rows)
    ticks = [t for t in (0, 0.1, 0.3, 1, 3, 10, 30) if t <= max(float(r["to"]) for r in rows)]
    values = [row | {"step": row["from"]} for row in map(dict, rows)]
    # The last bin's right edge, so that its step is drawn.
    values += [
        row | {"step": row["to"]} for row in (([r for r in map(dict, rows) if r["model"] == m])[-1] for m in models)
    ]

    def chart(width: int) -> Any:
        import altair as alt

        scale = alt.Scale(type="symlog", constant=BEND, nice=False)
        base = alt.Chart(alt.InlineData(values=values)).encode(
            x=alt.X("step:Q", title=axis, scale=scale, axis=alt.Axis(values=ticks, format="~g")),
            y=alt.Y("share:Q", title=f"share of {units}", axis=alt.Axis(tickCount=4, format=".0%")),
            color=_colours(),
        )
        lines = base.mark_line(interpolate="step-after", strokeWidth=2).encode(strokeDash=_dashes())
        return finished(lines, width, 240)

    return _both(title, caption, chart, f"{title}: histogram of {', '.join(map(named, models))}", legend=models)


def trade_figure(
    title: str,
    caption: str,
    curve: Sequence[tuple[float, float]],
    models: Mapping[str, tuple[float, float]],
    *,
    across: str,
    up: str,
    named: Named = shown,
) -> Figure:
    """A curve of what is got over what is paid, with models as single points.

    Args:
        title: of the figure.
        caption: below it.
        curve: (paid, got) in order.
        models: the same of each model alone.
        across, up: titles of the axes, with units.
        named: the display name of a model.
    """
    line = [{"x": x, "y": y, "at": place} for place, (x, y) in enumerate(curve)]
    points = [{"x": x, "y": y, "model": name, "name": named(name)} for name, (x, y) in models.items()]

    def chart(width: int) -> Any:
        import altair as alt

        x = alt.X("x:Q", title=across, scale=alt.Scale(zero=True, nice=True), axis=alt.Axis(tickCount=width // 80))
        y = alt.Y("y:Q", title=up, scale=alt.Scale(zero=False, nice=True), axis=alt.Axis(tickCount=5))
        drawn = alt.Chart(alt.InlineData(values=line)).encode(x=x, y=y, order="at:Q", color=alt.value(RULE))
        alone = alt.Chart(alt.InlineData(values=points)).encode(x=x, y=y)
        layers = [
            drawn.mark_line(strokeWidth=2),
            drawn.mark_point(size=25, filled=True, opacity=1),
            alone.mark_point(size=80, filled=True, opacity=1).encode(color=_colours(), shape=_shapes()),
        ]
        return finished(alt.layer(*layers), width, 240)

    ends = "; ".join(f"{named(name)} {y:.3g} for {x:.3g}" for name, (x, y) in models.items())
    return _both(title, caption, chart, f"{title}, {up} over {across}: {ends}", legend=tuple(models))


# ---- what they share -----------------------------------------------------------------------------------------


def _both(title: str, caption: str, chart: Callable[[int], Any], label: str, legend: tuple[str, ...] = ()) -> Figure:
    return Figure(title, caption, draw(chart(WIDE), label), draw(chart(NARROW), label), legend)


def finished(chart: Any, width: int, height: int) -> Any:
    """The chart in a box of fixed size, axes included, in the stand-in colours, without a legend."""
    import altair as alt

    return (
        chart.properties(
            width=width,
            height=height,
            background="transparent",
            autosize=alt.AutoSizeParams(type="fit", contains="padding"),
            padding={"left": 2, "right": 14, "top": 4, "bottom": 4},
        )
        .configure_view(stroke=None)
        .configure_axis(
            labelColor=SOFT,
            titleColor=SOFT,
            gridColor=GRID,
            domainColor=RULE,
            tickColor=RULE,
            labelFontSize=12,
            titleFontSize=12,
            titleFontWeight="normal",
            labelPadding=5,
            titlePadding=8,
        )
    )


def _names() -> Any:
    import altair as alt

    # Room for the longest name in any font.
    axis = alt.Axis(ticks=False, domain=False, grid=False, labelColor=INK, minExtent=66)
    return alt.Y("name:N", sort=None, title=None, axis=axis)


def _steps(width: int) -> Any:
    import altair as alt

    return alt.Axis(tickCount=width // 80, format=",d", labelFlush=False)


def _colours() -> Any:
    import altair as alt

    scale = alt.Scale(domain=list(LOOKS), range=[look.colour for look in LOOKS.values()])
    return alt.Color("model:N", scale=scale, legend=None)


def _shapes() -> Any:
    import altair as alt

    scale = alt.Scale(domain=list(LOOKS), range=[look.shape for look in LOOKS.values()])
    return alt.Shape("model:N", scale=scale, legend=None)


def _dashes() -> Any:
    import altair as alt

    scale = alt.Scale(domain=list(LOOKS), range=[list(look.dash) for look in LOOKS.values()])
    return alt.StrokeDash("model:N", scale=scale, legend=None)


def _models_in(rows: Values) -> tuple[str, ...]:
    present = {row["model"] for row in rows}
    return tuple(name for name in LOOKS if name in present)


def _last(points: Values, model: str) -> float:
    return float([p["value"] for p in points if p["model"] == model][-1])

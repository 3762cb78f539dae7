"""The charts of each section of the page: which are drawn, their data, and their captions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from potstill.cost.cascade import Cascade
from potstill.cost.inputs import Economics
from potstill.cost.text import priced_curve
from potstill.measures import Interval, MetricSpec, Unit
from potstill.quantities import byte_size
from potstill.recipe.schedules import schedule_text
from potstill.report import figures
from potstill.report.charts import (
    Bar,
    Figure,
    bar_figure,
    curve_figure,
    histogram_figure,
    interval_figure,
    trade_figure,
)
from potstill.report.distribution import histogram
from potstill.report.findings import Findings
from potstill.report.sections import RATES, rate_of
from potstill.report.terminology import words_of

_OFF_SCALE = 3.0
"""A model whose value is this many times the student's is left out of a chart (the table has it)."""

_MOST_POINTS = 400


def against_figures(findings: Findings) -> list[Figure]:
    """Teacher, student and controls, with intervals; and the paired differences from the control."""
    return [*_difference_figures(findings), *_loss_figures(findings), *_share_figures(findings)]


def _difference_figures(findings: Findings) -> list[Figure]:
    """One figure per unit, since an axis has one unit."""
    measures, words = findings.measures, words_of(findings.measures)
    rows: dict[tuple[Unit, str], list[tuple[str, Interval, str]]] = {}
    for spec in _charted(findings):
        c = measures.comparison("student", "text_only", spec.name)
        if c is None or not _finite(c.difference):
            continue
        d, decimals = _in_percent(spec, c.difference), 1 if spec.unit == "share" else figures.decimals_of(c.difference)
        rows.setdefault((spec.unit, spec.per), []).append((spec.short, d, figures.signed(d.value, decimals)))
    made = []
    for (unit, per), found in rows.items():
        side = (
            "Right" if any(s.higher_is_better for s in _charted(findings) if (s.unit, s.per) == (unit, per)) else "Left"
        )
        made.append(
            interval_figure(
                f"Student − {words.control}, paired",
                f"{side} of 0 the student is better. An interval that crosses the line shows no difference.",
                found,
                axis=f"percentage points of {per}" if unit == "share" else f"nats per {per}",
                zero_line=True,
                named=words.shown,
            )
        )
    return made


def _share_figures(findings: Findings) -> list[Figure]:
    """Shares of the held-out targets or problems."""
    measures, words = findings.measures, words_of(findings.measures)
    made = []
    for spec in _charted(findings):
        rows = [
            (m.name, _in_percent(spec, i), figures.percent(i.value, 1))
            for m in findings.models
            if spec.unit == "share" and (i := m.get(spec.name)) is not None and _finite(i)
        ]
        if rows:
            chance = spec.name == "accuracy" and measures.chance is not None
            caption = f"Chance is {figures.percent(measures.chance or 0.0, 1)}." if chance else ""
            axis = f"% of held-out {spec.per}; {'higher' if spec.higher_is_better else 'lower'} is better"
            top = min(100.0, 1.12 * max(i.high for _, i, _ in rows) + 1)
            bounds = (-0.04 * top, 1.04 * top)
            made.append(interval_figure(spec.label, caption, rows, axis=axis, bounds=bounds, named=words.shown))
    return made


def _loss_figures(findings: Findings) -> list[Figure]:
    student, words = findings.student, words_of(findings.measures)
    made = []
    for spec in _charted(findings):
        if spec.unit != "nats" or (reference := student.get(spec.name)) is None:
            continue
        found = [(m.name, i) for m in findings.models if (i := m.get(spec.name)) is not None]
        near = [(n, i) for n, i in found if _near(i, reference)]
        far = [f"{words.shown(n)} ({figures.number(i.value)})" for n, i in found if (n, i) not in near]
        caption = f"Off the scale: {', '.join(far)}." if far else ""
        rows = [(n, i, figures.number(i.value, figures.decimals_of(i))) for n, i in near]
        if rows:
            axis = f"nats per {spec.per}; lower is better"
            made.append(interval_figure(spec.label, caption, rows, axis=axis, named=words.shown))
    return made


def _charted(findings: Findings) -> list[MetricSpec]:
    return [spec for spec in findings.measures.metrics.values() if spec.charted]


def _in_percent(spec: MetricSpec, found: Interval) -> Interval:
    """Convert shares to percent."""
    factor = 100 if spec.unit == "share" else 1
    return Interval(factor * found.value, factor * found.low, factor * found.high)


def size_figures(findings: Findings) -> list[Figure]:
    """Small bars of size, rate and memory, teacher beside student."""
    sides = [m for name in ("teacher", "student") if (m := findings.measures.models.get(name)) is not None]
    if len(sides) < 2:
        return []
    made = [
        bar_figure("Parameters", "", [Bar(m.name, m.parameters, figures.large(m.parameters)) for m in sides]),
        bar_figure("Weights on disk", "", [Bar(m.name, m.bytes, byte_size(m.bytes)) for m in sides]),
    ]
    speeds = [(m.name, m.speed) for m in sides if m.speed is not None]
    if len(speeds) == len(sides):
        for kind, _, title in RATES:
            bars = [
                Bar(name, rate, figures.rate(rate), spread)
                for name, (rate, spread) in ((n, rate_of(s, kind)) for n, s in speeds)
                if rate is not None
            ]
            if len(bars) == len(sides):
                made.append(bar_figure(title, "", bars))
        peaks = [Bar(n, s.peak_bytes, byte_size(s.peak_bytes)) for n, s in speeds]
        made.append(bar_figure("Peak memory", "", peaks))
    return made


def curve_figures(findings: Findings) -> list[Figure]:
    """Held-out measures of student and control on the same axes. Training losses differ in kind, so each has its own
    chart."""
    words = words_of(findings.measures)
    made = []
    for title, key, axis, scale in (
        ("Held-out accuracy", "eval_accuracy", f"% of {words.units}", 100.0),
        ("Held-out KL from the teacher", "eval_kl", f"nats per {words.unit}", 1.0),
        ("Held-out NLL", "eval_nll", f"nats per {words.unit}", 1.0),
    ):
        points, _ = _points(findings, key, list(findings.history), scale)
        if points:
            caption = "Measured while training, in the precision of training."
            if alone := [name for name in findings.history if name not in {p["model"] for p in points}]:
                caption += f" Not measured while training: {', '.join(map(words.shown, alone))}."
            made.append(curve_figure(title, caption, points, axis=axis, marked=True, named=words.shown))
    for name in findings.history:
        points, every = _points(findings, "loss", [name])
        if points:
            caption = _objectives(findings, name) + (f" Every {every}th log is drawn." if every > 1 else "")
            title = f"Training loss of the {words.shown(name)}{' control' if name != 'student' else ''}"
            made.append(curve_figure(title, caption, points, axis="loss", marked=False, named=words.shown))
    return made


def _objectives(findings: Findings, name: str) -> str:
    if name == "text_only":
        return "Loss: 1 · hard_ce. Not comparable with the student’s loss."
    objectives = findings.recipe.required_train.all_objectives
    return "Loss: " + " + ".join(f"{schedule_text(o.weight)} · {_short(o.kind)}" for o in objectives) + "."


def _short(kind: str) -> str:
    """The class name of a plug-in, without its path."""
    return kind.rpartition(":")[2]


def _points(
    findings: Findings, key: str, models: Sequence[str], scale: float = 1.0
) -> tuple[list[dict[str, Any]], int]:
    """The logged values of a key, thinned to a visible number, and the thinning factor."""
    points, every = [], 1
    for name in models:
        rows = [r for r in findings.history[name] if isinstance(r.get(key), (int, float)) and math.isfinite(r[key])]
        every = max(every, -(-len(rows) // _MOST_POINTS))
        points += [{"model": name, "step": r["step"], "value": scale * r[key]} for r in rows[::every]]
    return points, every


def spread_figures(findings: Findings) -> list[Figure]:
    """Histograms of KL and NLL per target."""
    words = words_of(findings.measures)
    made = []
    for title, loss in (("KL from the teacher", "kl"), ("NLL", "nll")):
        names = [n for n in measured_models(findings) if f"{loss}_{n}" in findings.values]
        rows = histogram({n: findings.values[f"{loss}_{n}"] for n in names}, names)
        if rows:
            axis = "nats; logarithmic from 0.1 on"
            each = f"{title}, {words.unit} by {words.unit}"
            made.append(histogram_figure(each, "", rows, axis=axis, units=words.units, named=words.shown))
    return made


def cascade_plot(economics: Economics, cascade: Cascade) -> Figure:
    """Quality over price along a cascade's curve, with student and teacher alone."""
    situation = economics.situation
    right = "tokens that are the teacher’s first choice" if cascade.of == "tokens" else f"{cascade.of} that are right"
    alone = {
        "student": (situation.student_per_million, cascade.student),
        "teacher": (situation.teacher_per_million, cascade.teacher),
    }
    return trade_figure(
        "The student where it is sure, the teacher for the rest",
        "From the student alone, at the left, to the teacher for everything, whose price is on top of the student’s.",
        [(dollars, 100 * point.accuracy) for point, dollars in priced_curve(economics, cascade)],
        {name: (dollars, 100 * share) for name, (dollars, share) in alone.items()},
        across="$ per million tokens",
        up=f"% of {right}",
    )


def measured_models(findings: Findings) -> list[str]:
    """The models whose spread is shown: all but the untrained student."""
    return [m.name for m in findings.models if m.name != "untrained"]


def _near(found: Interval, reference: Interval) -> bool:
    return _finite(found) and _finite(reference) and found.value <= _OFF_SCALE * max(reference.value, 0.01)


def _finite(found: Interval) -> bool:
    return all(map(math.isfinite, (found.value, found.low, found.high)))

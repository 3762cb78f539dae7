"""The charts of each section of the page: which are drawn, of what, and what stands below them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from potstill.measures import HIGHER_IS_BETTER, Interval, Metric
from potstill.recipe.schedules import schedule_text
from potstill.report import figures
from potstill.report.charts import Bar, Figure, bar_figure, curve_figure, histogram_figure, interval_figure
from potstill.report.distribution import histogram
from potstill.report.findings import Findings
from potstill.report.sections import RATES, rate_of
from potstill.report.words import words_of

_OFF_SCALE = 3.0
"""A model this many times as far off as the student is left out of a chart (it stands in the table)."""

_MOST_POINTS = 400


def against_figures(findings: Findings) -> list[Figure]:
    """Teacher, student and controls, with intervals; and the paired differences to the control."""
    return [*_difference_figures(findings), *_loss_figures(findings), *_share_figures(findings)]


def _difference_figures(findings: Findings) -> list[Figure]:
    words = words_of(findings.measures)
    title = f"Student − {words.control}, paired"
    crosses = "An interval that crosses the line shows no difference."
    made = []
    if told := _comparisons(findings, ("solved",)):
        caption = f"Right of 0 the student is better. {crosses}"
        axis = "percentage points of problems"
        made.append(interval_figure(title, caption, told, axis=axis, zero_line=True, named=words.shown))
    shares: tuple[Metric, ...] = ("accuracy", "top1_agreement")
    if words.accuracy and (told := _comparisons(findings, shares)):
        axis = f"percentage points of {words.units}"
        caption = f"Right of 0 the student is better. {crosses}"
        made.append(interval_figure(title, caption, told, axis=axis, zero_line=True, named=words.shown))
    if told := _comparisons(findings, ("kl", "nll")):
        axis = f"nats per {words.unit}"
        caption = f"Left of 0 the student is better. {crosses}"
        made.append(interval_figure(title, caption, told, axis=axis, zero_line=True, named=words.shown))
    return made


def _share_figures(findings: Findings) -> list[Figure]:
    """Shares of what is held out: problems solved, accuracy, and agreement with the teacher."""
    measures, words = findings.measures, words_of(findings.measures)
    made = []
    chance = "" if measures.chance is None else f"Chance is {figures.percent(measures.chance, 1)}."
    for title, field, caption, units in (
        ("Problems solved", "solved", "", "problems"),
        (words.accuracy, "accuracy", chance, words.units),
        (words.agrees[:1].upper() + words.agrees[1:], "top1_agreement", "", words.units),
    ):
        rows = [
            (m.name, Interval(100 * i.value, 100 * i.low, 100 * i.high), figures.percent(i.value, 1))
            for m in findings.models
            if (i := getattr(m, field)) is not None and _finite(i)
        ]
        if rows:
            axis = f"% of held-out {units}; higher is better"
            top = min(100.0, 1.12 * max(i.high for _, i, _ in rows) + 1)
            bounds = (-0.04 * top, 1.04 * top)
            made.append(interval_figure(title, caption, rows, axis=axis, bounds=bounds, named=words.shown))
    return made


def _loss_figures(findings: Findings) -> list[Figure]:
    student, words = findings.student, words_of(findings.measures)
    made = []
    of = "the right class" if words.accuracy else "held-out text"
    for title, field, reference in (("KL from the teacher", "kl", student.kl), (f"NLL of {of}", "nll", student.nll)):
        found = [(m.name, getattr(m, field)) for m in findings.models]
        near = [(n, i) for n, i in found if i is not None and reference is not None and _near(i, reference)]
        off = [(n, i) for n, i in found if i is not None and (n, i) not in near]
        far = [f"{words.shown(n)} ({figures.number(i.value)})" for n, i in off]
        caption = f"Off the scale: {', '.join(far)}." if far else ""
        rows = [(n, i, figures.number(i.value, figures.decimals_of(i))) for n, i in near]
        if rows:
            axis = f"nats per {words.unit}; lower is better"
            made.append(interval_figure(title, caption, rows, axis=axis, named=words.shown))
    return made


def _comparisons(findings: Findings, metrics: Sequence[Metric]) -> list[tuple[str, Interval, str]]:
    words = words_of(findings.measures)
    names: dict[Metric, str] = {"kl": "KL", "nll": "NLL", "accuracy": words.accuracy, "top1_agreement": "agreement"}
    names["solved"] = "solved"
    rows = []
    for metric in metrics:
        found = findings.measures.comparison("student", "text_only", metric)
        if found is None or not _finite(found.difference):
            continue
        d, name = found.difference, names[metric].lower() if metric in HIGHER_IS_BETTER else names[metric]
        if metric in HIGHER_IS_BETTER:
            d = Interval(100 * d.value, 100 * d.low, 100 * d.high)
            rows.append((name, d, figures.signed(d.value, 1)))
        else:
            rows.append((name, d, figures.signed(d.value, figures.decimals_of(d))))
    return rows


def size_figures(findings: Findings) -> list[Figure]:
    """Small bars of size, rate and memory, teacher beside student."""
    sides = [m for name in ("teacher", "student") if (m := findings.measures.models.get(name)) is not None]
    if len(sides) < 2:
        return []
    made = [
        bar_figure("Parameters", "", [Bar(m.name, m.parameters, figures.large(m.parameters)) for m in sides]),
        bar_figure("Weights on disk", "", [Bar(m.name, m.bytes, figures.size(m.bytes)) for m in sides]),
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
        peaks = [Bar(n, s.peak_bytes, figures.size(s.peak_bytes)) for n, s in speeds]
        made.append(bar_figure("Peak memory", "", peaks))
    return made


def curve_figures(findings: Findings) -> list[Figure]:
    """Held-out measures of student and control on the same axes; training losses, which differ in kind, apart."""
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
    train = findings.recipe.train
    assert train is not None
    return "Loss: " + " + ".join(f"{schedule_text(o.weight)} · {_short(o.kind)}" for o in train.all_objectives) + "."


def _short(kind: str) -> str:
    """A plug-in by its class, not by its path."""
    return kind.rpartition(":")[2]


def _points(
    findings: Findings, key: str, models: Sequence[str], scale: float = 1.0
) -> tuple[list[dict[str, Any]], int]:
    """The logged values of a key, thinned to what can be seen, and how many logs there are to one that is drawn."""
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


def measured_models(findings: Findings) -> list[str]:
    """Whose spread is shown: all but the untrained student, of which nobody expects anything."""
    return [m.name for m in findings.models if m.name != "untrained"]


def _near(found: Interval, reference: Interval) -> bool:
    return _finite(found) and _finite(reference) and found.value <= _OFF_SCALE * max(reference.value, 0.01)


def _finite(found: Interval) -> bool:
    return all(map(math.isfinite, (found.value, found.low, found.high)))

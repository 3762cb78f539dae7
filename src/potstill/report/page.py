"""`report.html`: one file that needs nothing else, runs nothing, and loads nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from potstill.measures import Interval
from potstill.recipe import dump_recipe
from potstill.recipe.schedules import said
from potstill.report import figures, sections
from potstill.report.charts import Bar, Figure, bar_figure, curve_figure, histogram_figure, interval_figure
from potstill.report.distribution import histogram
from potstill.report.findings import Findings
from potstill.report.looks import LOOKS, shown
from potstill.report.verdict import judge

_OFF_SCALE = 3.0
"""A model this many times as far off as the student is left out of a chart (it stands in the table)."""

_MOST_POINTS = 400
_UNSEEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")


def render_page(findings: Findings) -> str:
    """The whole page, as HTML that encodes to UTF-8."""
    style = _style()
    verdict = judge(findings.measures)
    return (
        _environment()
        .get_template("report.html.jinja")
        .render(
            findings=findings,
            measures=findings.measures,
            style=Markup(style),  # our own file
            policy=content_policy(style),
            looks=LOOKS,
            verdict=verdict,
            tag=sections.tag_of(verdict),
            subtitle=sections.subtitle_of(findings),
            cards=sections.cards_of(findings),
            models=sections.models_table(findings.measures),
            differences=sections.differences_table(findings.measures),
            sizes=sections.size_table(findings.measures),
            kl_spread=sections.spread_table(findings, "kl", _measured_models(findings)),
            nll_spread=sections.spread_table(findings, "nll", _measured_models(findings)),
            documents=sections.documents_of(findings),
            counts=sections.counts_table(findings),
            warnings=sections.warnings_of(findings),
            costs=sections.cost_table(findings),
            against=against_figures(findings),
            size_figures=size_figures(findings),
            curves=curve_figures(findings),
            spreads=spread_figures(findings),
            recipe=dump_recipe(findings.recipe),
            manifests={n: json.dumps(dict(m), indent=1, ensure_ascii=False) for n, m in findings.manifests.items()},
        )
    )


def content_policy(style: str) -> str:
    """A policy under which the page can load nothing and run nothing, and has this one style."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"


def readable(value: Any) -> str:
    """Text of which every character can be written and seen: control characters and halves of pairs become �."""
    return _UNSEEN.sub("\N{REPLACEMENT CHARACTER}", str(value))


@cache
def _style() -> str:
    return files("potstill.report").joinpath("style.css").read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("potstill.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Every value that is printed goes through here, before it is escaped.
        finalize=lambda value: value if isinstance(value, Markup) else readable(value),
    )
    environment.filters |= {"shown": shown, "count": figures.count}
    return environment


# ---- the charts of each section ----------------------------------------------------------------------------------


def against_figures(findings: Findings) -> list[Figure]:
    """Teacher, student and controls, with intervals; and the paired differences to `text_only`."""
    student = findings.student
    made = []
    told = _comparisons(findings)
    if told:
        caption = "Left of 0 the student is better. An interval that crosses the line shows no difference."
        made.append(
            interval_figure("Student − text only, paired", caption, told, axis="nats per token", zero_line=True)
        )
    for title, field, axis, reference in (
        ("KL from the teacher", "kl", "nats per token; lower is better", student.kl),
        ("NLL of held-out text", "nll", "nats per token; lower is better", student.nll),
    ):
        found = [(m.name, getattr(m, field)) for m in findings.models]
        near = [(n, i) for n, i in found if i is not None and reference is not None and _near(i, reference)]
        far = [f"{shown(n)} ({figures.number(i.value)})" for n, i in found if i is not None and (n, i) not in near]
        caption = f"Off the scale: {', '.join(far)}." if far else ""
        rows = [(n, i, figures.number(i.value, figures.decimals_of(i))) for n, i in near]
        if rows:
            made.append(interval_figure(title, caption, rows, axis=axis))
    agreement = [
        (m.name, Interval(100 * i.value, 100 * i.low, 100 * i.high), figures.percent(i.value, 1))
        for m in findings.models
        if (i := m.top1_agreement) is not None and _finite(i)
    ]
    if agreement:
        axis = "% of held-out tokens; higher is better"
        top = min(100.0, 1.12 * max(i.high for _, i, _ in agreement) + 1)
        made.append(
            interval_figure("First choice is the teacher’s", "", agreement, axis=axis, bounds=(-0.04 * top, top))
        )
    return made


def _comparisons(findings: Findings) -> list[tuple[str, Interval, str]]:
    rows = []
    for name, metric in (("KL", "kl"), ("NLL", "nll")):
        found = findings.measures.comparison("student", "text_only", "kl" if metric == "kl" else "nll")
        if found is not None and _finite(found.difference):
            d = found.difference
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
        prefill = [_rate(n, s.prefill_tokens_per_second, s.prefill_spread) for n, s in speeds]
        decode = [_rate(n, s.decode_tokens_per_second, s.decode_spread) for n, s in speeds]
        made += [
            bar_figure("Prefill, tokens per second", "", prefill),
            bar_figure("Decode, tokens per second", "", decode),
            bar_figure("Peak memory", "", [Bar(n, s.peak_bytes, figures.size(s.peak_bytes)) for n, s in speeds]),
        ]
    return made


def _rate(model: str, rate: float, spread: tuple[float, float]) -> Bar:
    return Bar(model, rate, figures.rate(rate), spread)


def curve_figures(findings: Findings) -> list[Figure]:
    """Held-out KL and NLL of student and control on the same axes; training losses, which differ in kind, apart."""
    made = []
    for title, key in (("Held-out KL from the teacher", "eval_kl"), ("Held-out NLL", "eval_nll")):
        points, _ = _points(findings, key, list(findings.history))
        if points:
            caption = "Measured while training, in the precision of training."
            if alone := [name for name in findings.history if name not in {p["model"] for p in points}]:
                caption += f" Not measured while training: {', '.join(map(shown, alone))}."
            made.append(curve_figure(title, caption, points, axis="nats per token", marked=True))
    for name in findings.history:
        points, every = _points(findings, "loss", [name])
        if points:
            caption = _objectives(findings, name) + (f" Every {every}th log is drawn." if every > 1 else "")
            title = f"Training loss of the {shown(name)}{' control' if name != 'student' else ''}"
            made.append(curve_figure(title, caption, points, axis="loss", marked=False))
    return made


def _objectives(findings: Findings, name: str) -> str:
    if name == "text_only":
        return "Loss: 1 · hard_ce. Not comparable with the student’s loss."
    train = findings.recipe.train
    assert train is not None
    return "Loss: " + " + ".join(f"{said(o.weight)} · {_short(o.kind)}" for o in train.all_objectives) + "."


def _short(kind: str) -> str:
    """A plug-in by its class, not by its path."""
    return kind.rpartition(":")[2]


def _points(findings: Findings, key: str, models: Sequence[str]) -> tuple[list[dict[str, Any]], int]:
    """The logged values of a key, thinned to what can be seen, and how many logs there are to one that is drawn."""
    points, every = [], 1
    for name in models:
        rows = [r for r in findings.history[name] if isinstance(r.get(key), (int, float)) and math.isfinite(r[key])]
        every = max(every, -(-len(rows) // _MOST_POINTS))
        points += [{"model": name, "step": r["step"], "value": r[key]} for r in rows[::every]]
    return points, every


def spread_figures(findings: Findings) -> list[Figure]:
    """Histograms of KL and NLL per token."""
    made = []
    for title, loss in (("KL from the teacher, token by token", "kl"), ("NLL, token by token", "nll")):
        names = [n for n in _measured_models(findings) if f"{loss}_{n}" in findings.tokens]
        rows = histogram({n: findings.tokens[f"{loss}_{n}"] for n in names}, names)
        if rows:
            made.append(histogram_figure(title, "", rows, axis="nats; logarithmic from 0.1 on"))
    return made


def _measured_models(findings: Findings) -> list[str]:
    """Whose spread is shown: all but the untrained student, of which nobody expects anything."""
    return [m.name for m in findings.models if m.name != "untrained"]


def _near(found: Interval, reference: Interval) -> bool:
    return _finite(found) and _finite(reference) and found.value <= _OFF_SCALE * max(reference.value, 0.01)


def _finite(found: Interval) -> bool:
    return all(map(math.isfinite, (found.value, found.low, found.high)))

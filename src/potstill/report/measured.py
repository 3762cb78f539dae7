"""Sections of measures: each finding is drawn by its type, whichever measure it is of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from potstill.measures import (
    Band,
    Bands,
    Curve,
    Examples,
    Figures,
    Interval,
    Measures,
    MetricSpec,
    Reliability,
    Solving,
)
from potstill.report import figures
from potstill.report.charts import Figure, band_figure, interval_figure, reliability_figure
from potstill.report.palette import LOOKS
from potstill.report.sections import Table, metrics_table
from potstill.report.svg import readable
from potstill.report.terminology import Words, words_of
from potstill.report.verdict import NamedLoss, judge

_MOST_BANDS_DRAWN = 12


@dataclass(frozen=True)
class Part:
    """A finding, ready for the template."""

    title: str
    text: str
    figure: Figure | None = None
    table: Table | None = None


@dataclass(frozen=True)
class Section:
    """A measure's section: its metrics, what they mean, and its findings. `losses` are those that the verdict names,
    and `looked` says whether any were looked for."""

    name: str
    title: str
    table: Table | None
    terms: Sequence[tuple[str, str]]
    parts: Sequence[Part]
    losses: Sequence[NamedLoss] = ()
    looked: bool = False


def measured_sections(measures: Measures) -> list[Section]:
    """The sections of all measures that have more to show than their columns in the table of all models."""
    names = [spec.section for spec in measures.metrics.values()] + [f.section for f in measures.findings]
    words, named = words_of(measures), judge(measures).losses
    looked = {loss.section for loss in measures.losses}
    made = []
    drawn = [finding for finding in measures.findings if not isinstance(finding, Solving)]
    for name in dict.fromkeys(name for name in names if name):
        specs = [spec for spec in measures.metrics.values() if spec.section == name]
        made.append(
            Section(
                name,
                name[:1].upper() + name[1:],
                metrics_table(measures, specs) if specs else None,
                [(spec.term, spec.explanation) for spec in specs if spec.explanation],
                [part_of(finding, words) for finding in drawn if finding.section == name],
                [loss for loss in named if loss.section == name],
                name in looked,
            )
        )
    return made


def part_of(finding: Bands | Reliability | Curve | Figures | Examples, words: Words) -> Part:
    """A finding by its type."""
    if isinstance(finding, Curve):
        return _curve(finding, words)
    if isinstance(finding, Examples):
        return _examples(finding, words)
    if isinstance(finding, Reliability):
        return _reliability(finding, words)
    if isinstance(finding, Bands):
        return _bands(finding, words)
    return _figures(finding, words)


def _reliability(finding: Reliability, words: Words) -> Part:
    shown = {name: finding.curves[name] for name in LOOKS if name in finding.curves}
    rows = [
        (
            words.shown(name) if number == 0 else "",
            figures.percent(one.probability, 1),
            figures.percent_interval(one.right),
            figures.count(one.targets),
        )
        for name, curve in shown.items()
        for number, one in enumerate(curve)
    ]
    models = [name for name, curve in shown.items() for _ in curve]
    head = ("", "mean probability", "right", words.units)
    return Part(finding.title, finding.text, reliability_figure(shown, named=words.shown), Table(head, rows, models))


def _curve(finding: Curve, words: Words) -> Part:
    shown = {name: finding.curves[name] for name in LOOKS if name in finding.curves}
    per = f" per {words.unit}" if finding.metric.unit == "nats" else ""
    figure = band_figure(
        finding.title,
        "Bands: intervals at each place.",
        shown,
        axis=finding.axis,
        value=f"{finding.metric.label}, {finding.metric.unit}{per}",
        log=finding.log,
        named=words.shown,
    )
    rows = [
        (words.shown(name) if number == 0 else "", figures.number(place.at, 1), figures.difference(place.value))
        for name, curve in shown.items()
        for number, place in enumerate(curve)
    ]
    models = [name for name, curve in shown.items() for _ in curve]
    return Part(finding.title, finding.text, figure, Table(("", finding.axis, finding.metric.head), rows, models))


def _bands(finding: Bands, words: Words) -> Part:
    spec = finding.metric
    models = [name for name in LOOKS if any(name in band.values for band in finding.bands)]
    columns: list[tuple[str, Callable[[Band], str]]] = [
        (words.shown(name), partial(_value, spec, name)) for name in models
    ]
    if any(band.excess is not None for band in finding.bands):
        columns.append(("student − teacher", lambda band: _difference(spec, band.excess)))
    if any(band.excess_of_control is not None for band in finding.bands):
        columns.append((f"{words.control} − teacher", lambda band: _difference(spec, band.excess_of_control)))
    if any(band.adjusted_p is not None for band in finding.bands):
        columns.append(("adjusted p", _adjusted))
    rows = [(band.name, figures.count(band.targets), *(cell(band) for _, cell in columns)) for band in finding.bands]
    table = Table((finding.of, finding.counted or words.units, *(head for head, _ in columns)), rows)
    drawn = [(readable(band.name), band.excess) for band in finding.bands if band.excess is not None]
    figure = None
    if 1 < len(drawn) <= _MOST_BANDS_DRAWN:
        factor = 100 if spec.unit == "share" else 1
        scaled = [(n, Interval(factor * e.value, factor * e.low, factor * e.high)) for n, e in drawn]
        unit = "percentage points" if spec.unit == "share" else f"nats per {words.unit}"
        side = "Left" if spec.higher_is_better else "Right"
        figure = interval_figure(
            f"{spec.label}: student − teacher",
            f"{side} of 0 the student is worse.",
            [(n, e, figures.signed(e.value, min(figures.decimals_of(e), 2))) for n, e in scaled],
            axis=unit,
            zero_line=True,
            named=str,
        )
    return Part(finding.title, finding.text, figure, table)


def _figures(finding: Figures, words: Words) -> Part:
    models = [name for name in LOOKS if any(name in values for _, values in finding.rows)]
    head = ("", *(spec.label for spec, _ in finding.rows))
    rows = [
        (words.shown(name), *(figures.of_metric(spec, values.get(name)) for spec, values in finding.rows))
        for name in models
    ]
    return Part(finding.title, finding.text, _first_figure(finding, models, words), Table(head, rows, models))


def _first_figure(finding: Figures, models: Sequence[str], words: Words) -> Figure | None:
    """The first figure of several models with its intervals, drawn; None of a single model."""
    spec, values = finding.rows[0]
    told = [name for name in models if name in values]
    if len(told) < 2:
        return None
    factor, axis = (100, "percent") if spec.unit == "share" else (1, "nats" if spec.unit == "nats" else spec.short)
    rows = [
        (
            name,
            Interval(factor * values[name].value, factor * values[name].low, factor * values[name].high),
            figures.value_of_metric(spec, values[name]),
        )
        for name in told
    ]
    return interval_figure(spec.label, "", rows, axis=axis, named=words.shown)


def _value(spec: MetricSpec, name: str, band: Band) -> str:
    return figures.of_metric(spec, band.values.get(name))


def _difference(spec: MetricSpec, found: Interval | None) -> str:
    return figures.NONE if found is None else figures.difference_of_metric(spec, found)


def _adjusted(band: Band) -> str:
    p = band.adjusted_p
    return figures.NONE if p is None else "< 0.001" if p < 0.001 else figures.number(p, 3)


def _examples(finding: Examples, words: Words) -> Part:
    models = [name for name in LOOKS if any(name in example.nll for example in finding.examples)]
    head = ("text", "target", *(f"NLL of the {words.shown(name)}" for name in models))
    rows = [
        (example.text, example.target, *(figures.number(example.nll[name]) for name in models))
        for example in finding.examples
    ]
    return Part(finding.title, finding.text, None, Table(head, rows))

"""The sections of measures: each finding is drawn by its type, whatever measure it is of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from potstill.measures import Band, Bands, Figures, Finding, Interval, Measures, MetricSpec, Reliability
from potstill.report import figures
from potstill.report.charts import Figure, interval_figure, reliability_figure
from potstill.report.palette import LOOKS
from potstill.report.sections import Table, metrics_table
from potstill.report.svg import readable
from potstill.report.terminology import Words, words_of

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
    """A measure's section: its metrics, what they mean, and its findings."""

    name: str
    title: str
    table: Table | None
    terms: Sequence[tuple[str, str]]
    parts: Sequence[Part]


def measured_sections(measures: Measures) -> list[Section]:
    """The sections of all measures that have something to show beside the table of all models."""
    names = [spec.section for spec in measures.metrics.values()] + [f.section for f in measures.findings]
    words = words_of(measures)
    made = []
    for name in dict.fromkeys(name for name in names if name):
        specs = [spec for spec in measures.metrics.values() if spec.section == name]
        made.append(
            Section(
                name,
                name[:1].upper() + name[1:],
                metrics_table(measures, specs) if specs else None,
                [(spec.term, spec.explanation) for spec in specs if spec.explanation],
                [part_of(finding, words) for finding in measures.findings if finding.section == name],
            )
        )
    return made


def part_of(finding: Finding, words: Words) -> Part:
    """A finding by its type."""
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
    table = Table((finding.of, words.units, *(head for head, _ in columns)), rows)
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
    return Part(finding.title, finding.text, None, Table(head, rows, models))


def _value(spec: MetricSpec, name: str, band: Band) -> str:
    return figures.of_metric(spec, band.values.get(name))


def _difference(spec: MetricSpec, found: Interval | None) -> str:
    return figures.NONE if found is None else figures.difference_of_metric(spec, found)


def _adjusted(band: Band) -> str:
    p = band.adjusted_p
    return figures.NONE if p is None else "< 0.001" if p < 0.001 else figures.number(p, 3)

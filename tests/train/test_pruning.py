"""The stage that cuts a pruned student: one cut for all trainings, chosen by the look, and nothing held out is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from train.recipes import ARGS, write_recipe
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from potstill.artifacts import Work
from potstill.check import check_recipe
from potstill.console import Console
from potstill.errors import ModelError, RecipeError
from potstill.pipeline import plan, run_recipe
from potstill.recipe import Pruned, load_recipe
from potstill.recipe.students import Look
from potstill.train.inputs import find_models, make_teacher, read_rows
from potstill.train.pruning import TrialRun
from tiny_models import make_tiny_causal_lm, tiny_model

QUIET = Console("quiet")
STUDENT = {"kind": "pruned", "parameters": 26_000, "candidates": 3, "records": 8, "look": {"steps": 2, "measured": 4}}
WHOLE = sum(p.numel() for p in tiny_model().parameters())
ONE_STEP = ARGS | {"max_steps": 1, "learning_rate": 1e-9}


def recipe(folder: Path, teacher: Path, **changes: Any) -> Path:
    """A recipe whose student is pruned."""
    train = {"objectives": [{"kind": "forward_kl"}], "args": ONE_STEP, **changes.pop("train", {})}
    student = {**STUDENT, **changes.pop("student", {})}
    path = write_recipe(folder, teacher, train=train, **changes)
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    path.write_text(yaml.safe_dump({**document, "student": student}), encoding="utf-8")
    return path


def test_student_control_and_seeds_begin_with_the_model_that_was_chosen(tmp_path: Path, tiny_llama: Path) -> None:
    changes = {"train": {"controls": ["text_only"], "seeds": 2}, "evaluate": {"speed": False, "samples_shown": 0}}
    path = recipe(tmp_path, tiny_llama, **changes)
    run = tmp_path / "run"
    run_recipe(load_recipe(path), run, console=QUIET)
    pruning = json.loads((run / "train.pruned" / "pruning.json").read_text())
    cut = load_file(run / "train.pruned" / "model" / "model.safetensors")
    for stage in ("train", "train.text_only", "train.seed1", "train.text_only.seed1"):
        trained = load_file(run / stage / "model" / "model.safetensors")
        assert trained.keys() == cut.keys()
        assert all(torch.allclose(trained[name], cut[name], atol=1e-6) for name in cut)
        facts = json.loads((run / stage / "student.json").read_text())
        assert facts["shape"] == pruning["shape"] and facts["layers"] == pruning["layers"]
        assert abs(facts["parameters"] - 26_000) <= 0.03 * 26_000
    measures = json.loads((run / "evaluate" / "measures.json").read_text())
    assert "untrained" in measures["models"]
    page = (run / "report" / "report.html").read_text(encoding="utf-8")
    assert "How the student was cut" in page and "(chosen)" in page and "train.pruned" in page
    # The parts of a run that were made are not made again, nor by another learning rate; by another size they are.
    assert {s.state for s in plan(load_recipe(path), run)} == {"fresh"}
    faster = {s.stage: s.state for s in plan(load_recipe(path, ["train.args.learning_rate=0.01"]), run)}
    assert (faster["train.pruned"], faster["train"]) == ("fresh", "stale")
    smaller = {s.stage: s.state for s in plan(load_recipe(path, ["student.parameters=24K"]), run)}
    assert smaller["train.pruned"] == "stale"
    opened = AutoModelForCausalLM.from_pretrained(run / "train.pruned" / "model")
    assert opened.config.hidden_size == pruning["shape"]["hidden"]


def test_the_candidate_of_least_loss_is_chosen(tmp_path: Path, tiny_llama: Path) -> None:
    run_recipe(load_recipe(recipe(tmp_path, tiny_llama)), tmp_path / "run", console=QUIET)
    pruning = json.loads((tmp_path / "run" / "train.pruned" / "pruning.json").read_text())
    best = min(pruning["candidates"], key=lambda candidate: candidate["kl"])
    assert len({candidate["kl"] for candidate in pruning["candidates"]}) > 1
    assert best["layers"] == pruning["layers"]
    assert {"hidden": best["hidden"], "channels": best["channels"], "groups": best["groups"]}.items() <= pruning[
        "shape"
    ].items()


def test_what_the_look_measures_it_has_not_trained_on(tmp_path: Path, tiny_llama: Path) -> None:
    made = load_recipe(recipe(tmp_path, tiny_llama))
    models = find_models(made, QUIET)
    reader, rows = read_rows(made, None, models.tokenizer, Work(tmp_path, resumed=False))
    teacher = make_teacher(models)
    seen: list[Any] = []
    collate = reader.collator()
    reader.collator = lambda: lambda rows: seen.append(list(rows)) or collate(rows)  # type: ignore[method-assign, func-returns-value]
    look = TrialRun(Look(steps=99, rows=2, measured=5), rows.train, reader, models, teacher, made)
    student = tiny_model(seed=7)
    before = {name: weight.clone() for name, weight in student.state_dict().items()}
    trained = look.loss(student)
    measured, learned = [row for batch in seen[99:] for row in batch], [row for batch in seen[:99] for row in batch]
    assert len(measured) == 5 and not any(row is other for row in measured for other in learned)
    assert not all(torch.equal(weight, before[name]) for name, weight in student.state_dict().items())
    student.load_state_dict(before)
    at_once = TrialRun(Look(steps=0, measured=5), rows.train, reader, models, teacher, made)
    assert trained != at_once.loss(student)
    assert all(torch.equal(weight, before[name]) for name, weight in student.state_dict().items())


def test_check_names_the_candidates_and_their_sizes(tmp_path: Path, tiny_llama: Path) -> None:
    found = check_recipe(load_recipe(recipe(tmp_path, tiny_llama)))
    found.refuse()
    lines = found.lines["student"]
    assert any("the best of 3 shapes" in line for line in lines)
    assert sum("head groups" in line and "parameters" in line for line in lines) == 3


def test_a_family_without_width_is_refused_by_name_and_cut_by_depth(tmp_path: Path) -> None:
    teacher = make_tiny_causal_lm(tmp_path / "teacher", "gpt2")
    path = recipe(tmp_path, teacher, student={"parameters": "50K"})
    found = check_recipe(load_recipe(path))
    with pytest.raises(ModelError, match="'gpt2' cannot be pruned by width"):
        found.refuse()
    deep = load_recipe(path, ["student.width=false"])
    check_recipe(deep).refuse()
    run_recipe(deep, tmp_path / "run", console=QUIET)
    assert json.loads((tmp_path / "run" / "train" / "student.json").read_text())["shape"] is None


def test_a_size_that_the_teacher_has_not_is_refused(tmp_path: Path, tiny_llama: Path) -> None:
    found = check_recipe(load_recipe(recipe(tmp_path, tiny_llama, student={"parameters": WHOLE})))
    with pytest.raises(RecipeError, match="cannot be pruned to"):
        found.refuse()


@pytest.mark.parametrize(("text", "number"), [("60M", 60_000_000), ("1.5b", 1_500_000_000), (7_000, 7_000)])
def test_a_number_of_parameters_may_have_a_unit(text: Any, number: int) -> None:
    assert Pruned(parameters=text).parameters == number


@pytest.mark.parametrize("text", ["60 MB", "many", "-3M", True])
def test_what_is_no_number_of_parameters_is_refused(text: Any) -> None:
    with pytest.raises(ValueError, match=r"parameters|number"):
        Pruned(parameters=text)

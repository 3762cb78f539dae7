"""Trainings in several stages: one after the other, each with objectives, frozen parts and arguments of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from train.recipes import run_stage
from transformers import TrainerCallback

from potstill.errors import RecipeError
from potstill.recipe import Recipe, load_recipe
from potstill.recipe.train import Training
from potstill.train import training
from tiny_models import make_tiny_classifier

ARGS = {"learning_rate": 3e-3, "num_train_epochs": 2, "per_device_train_batch_size": 8, "bf16": False, "use_cpu": True}
LAYERS: dict[str, Any] = {
    "name": "layers",
    "objectives": [
        {"kind": "hidden_mse", "layers": "uniform", "over": "tokens", "project": "always"},
        {"kind": "attention_scores", "layers": "uniform"},
    ],
    "freeze": ["classifier.*"],
}
PREDICTION: dict[str, Any] = {
    "name": "prediction",
    "objectives": [{"kind": "soft_ce", "temperature": 1.0}],
    "freeze": ["*embeddings*"],
    "args": {"learning_rate": 1e-3},
}


def write(folder: Path, *stages: dict[str, Any], **changes: Any) -> Path:
    names = ("ale", "malt", "rye")
    rows = [{"text": f"{names[i % 3]} {'still ' * (i % 4)}runs {i}", "label": names[i % 3]} for i in range(48)]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    make_tiny_classifier(folder / "teacher", layers=4)
    document = {
        "name": "two-stages",
        "task": "sequence_classification",
        "teacher": {"kind": "local", "model": "./teacher", "device": "cpu"},
        "student": {"kind": "from_teacher", "layers": "every_other"},
        "data": {"kind": "jsonl", "path": "data.jsonl", "format": "labelled", "held_out": 0.2},
        "train": {"stages": list(stages), "args": ARGS, "max_length": 32, "evaluations": 1},
        **changes,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return load_recipe(write(tmp_path, LAYERS, PREDICTION))


def weights(artifact: Any) -> dict[str, torch.Tensor]:
    return load_file(artifact.path / "model" / "model.safetensors")


def test_each_stage_trains_what_it_does_not_freeze(tmp_path: Path) -> None:
    alone = run_stage(load_recipe(write(tmp_path, LAYERS)), tmp_path / "alone")
    both = run_stage(load_recipe(write(tmp_path, LAYERS, PREDICTION)), tmp_path / "both")

    first, second = weights(alone), weights(both)
    teacher = load_file(tmp_path / "teacher" / "model.safetensors")
    assert torch.equal(first["classifier.weight"], teacher["classifier.weight"])
    assert not torch.equal(second["classifier.weight"], teacher["classifier.weight"])
    embeddings = [name for name in first if "embeddings" in name]
    assert embeddings and all(torch.equal(first[name], second[name]) for name in embeddings)
    assert not torch.equal(first[embeddings[0]], teacher[embeddings[0]])


def test_logs_are_counted_through_and_name_their_stage(recipe: Recipe, tmp_path: Path) -> None:
    artifact = run_stage(recipe, tmp_path / "run")

    history = [json.loads(line) for line in (artifact.path / "history.jsonl").read_text().splitlines()]
    steps = {stage: [log["step"] for log in history if log["stage"] == stage] for stage in ("layers", "prediction")}
    assert max(steps["layers"]) < min(steps["prediction"])
    facts = json.loads((artifact.path / "student.json").read_text())
    assert [stage["name"] for stage in facts["stages"]] == ["layers", "prediction"]
    assert facts["steps"] == sum(stage["steps"] for stage in facts["stages"]) == max(steps["prediction"])


@pytest.mark.parametrize(("stage", "step"), [("layers", 3), ("prediction", 0), ("prediction", 4)])
def test_a_training_interrupted_in_any_stage_ends_as_if_it_had_not_been(
    recipe: Recipe, stage: str, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_stage(recipe, tmp_path / "whole")
    begun: list[str] = []

    class Interrupt(TrainerCallback):
        def __init__(self, name: str) -> None:
            self.name = name

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            begun.append(self.name)
            if (self.name, state.global_step) == (stage, step):
                raise KeyboardInterrupt

    usual = training.TrainingRun._callbacks
    with monkeypatch.context() as patched:
        patched.setattr(training.TrainingRun, "_callbacks", lambda self, s, m: [*usual(self, s, m), Interrupt(s.name)])
        with pytest.raises(KeyboardInterrupt):
            run_stage(recipe, tmp_path / "torn")
    begun.clear()
    with monkeypatch.context() as patched:
        patched.setattr(training.TrainingRun, "_callbacks", lambda self, s, m: [*usual(self, s, m), Interrupt("again")])
        again = run_stage(recipe, tmp_path / "torn")

    assert {
        name: bool((value == weights(again)[name]).all()) for name, value in weights(whole).items()
    } == dict.fromkeys(weights(whole), True)
    if stage == "prediction":
        total = json.loads((whole.path / "student.json").read_text())["stages"]
        assert len(begun) <= total[1]["steps"], "the first stage is not trained again"


def test_a_stage_can_begin_parts_anew(tmp_path: Path) -> None:
    learns = {
        **PREDICTION,
        "initialise": ["classifier.*"],
        "freeze": ["bert.*"],
        "args": {"max_steps": 1, "learning_rate": 1e-9},
    }

    artifact = run_stage(load_recipe(write(tmp_path, learns)), tmp_path / "run")

    teacher = load_file(tmp_path / "teacher" / "model.safetensors")
    assert (weights(artifact)["classifier.weight"] - teacher["classifier.weight"]).abs().max() > 1e-3


def test_projections_are_handed_on_only_where_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    again = {**LAYERS, "name": "again", "keep_projections": True}
    recipe = load_recipe(write(tmp_path, LAYERS, again))
    made: list[Any] = []
    usual = training.TrainingRun._trainer

    def noted(self: Any, *given: Any) -> Any:
        made.append(usual(self, *given))
        return made[-1]

    monkeypatch.setattr(training.TrainingRun, "_trainer", noted)
    run_stage(recipe, tmp_path / "run")

    assert (
        made[0].first_projectors == {}
        and made[1].first_projectors.keys() == made[0].module.projectors.state_dict().keys()
    )


def test_a_pattern_that_freezes_nothing_is_refused_before_training(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, {**LAYERS, "freeze": ["clasifier.*"]}))

    with pytest.raises(RecipeError, match="matches no parameter"):
        run_stage(recipe, tmp_path / "run")


def test_the_control_of_a_training_in_stages_is_in_stages(recipe: Recipe, tmp_path: Path) -> None:
    assert recipe.train is not None
    control = recipe.model_copy(update={"train": recipe.train.model_copy(update={"controls": ("text_only",)})})

    artifact = run_stage(control, tmp_path / "run", Training("text_only"))

    facts = json.loads((artifact.path / "student.json").read_text())
    assert [stage["name"] for stage in facts["stages"]] == ["layers", "prediction"]

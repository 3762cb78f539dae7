"""What a task cannot do is refused while the recipe is read, and the message names what can."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from potstill.errors import RecipeError
from potstill.recipe import ForwardKL, HardCE, TrainSettings, TrainStage, dump_recipe, parse_recipe

CE = [{"kind": "hard_ce"}]
TEACHER = {"kind": "local", "model": "all-minilm-l6-v2"}


def document(task: str, objective: dict[str, Any], **changes: Any) -> dict[str, Any]:
    images = task == "image_classification"
    return {
        "name": "tiny",
        "task": task,
        "teacher": TEACHER,
        "student": {"kind": "from_teacher"},
        "data": {"kind": "digits"} if images else {"kind": "jsonl", "path": "x.jsonl"},
        "train": {"objectives": [objective]},
        **changes,
    }


REFUSED: list[tuple[dict[str, Any], str]] = [
    (document("sentence_embedding", {"kind": "forward_kl"}), "use rkd_distance"),
    (document("image_classification", {"kind": "hidden_mse"}), "hint, attention_transfer"),
    (document("image_classification", {"kind": "minilm_v2"}), "hint, attention_transfer"),
    (document("sequence_classification", {"kind": "hidden_cosine"}), "set over: tokens"),
    (document("causal_lm", {"kind": "hard_ce"}, data={"kind": "digits"}), "use image_classification"),
    (
        document("image_classification", {"kind": "hard_ce"}, data={"kind": "jsonl", "path": "x.jsonl"}),
        "kind: arrays, idx or digits",
    ),
    (
        document("masked_lm", {"kind": "hard_ce"}, generate={"kind": "sequence"}),
        "generate needs a model that writes text",
    ),
    (
        document("sequence_classification", {"kind": "hard_ce"}, train={"packing": True}),
        "packing is for causal language models",
    ),
    (
        document("causal_lm", {}, train={"objectives": [{"kind": "rkd_distance"}], "packing": True}),
        "compares the records of a micro-batch with one another",
    ),
    (
        document("sentence_embedding", {}, train={"objectives": [{"kind": "rkd_angle"}], "controls": ["text_only"]}),
        "drop train.controls",
    ),
]


@pytest.mark.parametrize(("recipe", "fix"), REFUSED, ids=[fix for _, fix in REFUSED])
def test_what_a_task_cannot_do_is_refused_with_what_can(recipe: dict[str, Any], fix: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(recipe, base=tmp_path)

    assert fix in str(caught.value)


def test_every_task_takes_what_it_can_do(tmp_path: Path) -> None:
    for task, objective in (
        ("masked_lm", {"kind": "forward_kl"}),
        ("sequence_classification", {"kind": "hidden_cosine", "over": "tokens"}),
        ("sentence_embedding", {"kind": "rkd_distance"}),
        ("image_classification", {"kind": "hint", "modules": {"student": "conv1", "teacher": "conv1"}}),
    ):
        assert parse_recipe(document(task, objective), base=tmp_path).task == task


def test_an_unknown_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="task"):
        parse_recipe(document("translation", {"kind": "hard_ce"}), base=tmp_path)


# ---- stages ----------------------------------------------------------------------------------------------------------


def test_a_training_without_a_list_of_stages_is_one_stage() -> None:
    settings = TrainSettings(objectives=(HardCE(),), keep="best")

    (stage,) = settings.in_stages
    assert stage.objectives == (HardCE(),) and stage.keep == "best"


def test_the_objectives_of_all_stages_are_what_a_teacher_must_give() -> None:
    stages = (TrainStage(name="a", objectives=(HardCE(),)), TrainStage(name="b", objectives=(ForwardKL(),)))

    assert TrainSettings(stages=stages).all_objectives == (HardCE(), ForwardKL())


def test_a_resolved_recipe_with_stages_is_read_back_as_it_was(tmp_path: Path) -> None:
    stages = [{"name": "a", "objectives": [{"kind": "forward_kl", "temperature": {"start": 4, "end": 1}}]}]
    recipe = parse_recipe(document("causal_lm", {}, train={"stages": stages}), base=tmp_path)

    again = parse_recipe(yaml.safe_load(dump_recipe(recipe)), base=Path("/elsewhere"))

    assert again == recipe


def test_models_of_an_ensembles_members_are_paths_relative_to_the_recipe(tmp_path: Path) -> None:
    members = [{"kind": "local", "model": "run:../runs/a"}, {"kind": "local", "model": "./b"}]
    changes = {"teacher": {"kind": "ensemble", "members": members}}
    recipe = parse_recipe(
        document("image_classification", {"kind": "forward_kl"}, **changes), base=tmp_path / "recipes"
    )

    found = [member.model for member in recipe.teachers["main"].members]
    assert found == [f"run:{tmp_path / 'runs' / 'a'}", str(tmp_path / "recipes" / "b")]


@pytest.mark.parametrize(
    ("train", "said"),
    [
        (
            {"objectives": CE, "stages": [{"name": "a", "objectives": CE}]},
            "either",
        ),
        ({"stages": [{"name": "a", "objectives": CE}] * 2}, "two stages have the name 'a'"),
        ({"stages": [{"name": "a", "objectives": [{"kind": "hard_ce", "weight": 0}]}]}, "in stage 'a' every objective"),
        ({"stages": [{"name": "a", "objectives": []}]}, "at least 1"),
        (
            {"stages": [{"name": "a", "objectives": CE, "args": {"learning_rat": 1}}]},
            "learning_rate",
        ),
        ({"stages": [{"name": "a", "objectives": CE, "frieze": []}]}, "did you mean 'freeze'"),
        ({"masking": {"replaced": 0.9, "random": 0.2}}, "together at most 1"),
    ],
)
def test_stages_that_cannot_be_meant_are_refused(train: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(document("causal_lm", {}, train=train), base=tmp_path)

    assert said in str(caught.value)

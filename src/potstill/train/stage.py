"""The stages `train`, of student and controls: from records to a model. No torch until it works."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

from potstill.recipe import Existing, HardCE, Pruned, Recipe, members_of
from potstill.recipe.train import PRUNED, STUDENT, Training
from potstill.stage import Context, Stage

CONTRACT = 2
PRUNING_CONTRACT = 1

_UNSEEN_ARGUMENTS = ("report_to", "run_name", "project")
"""Training arguments that do not affect the artifact."""


def stage(recipe: Recipe, training: Training | Literal["train.pruned"] = STUDENT) -> Stage:
    """The stage of one training of a recipe that has a `train` section: of the student, or of a control, by one seed.

    Its artifact holds `model/` (a plain model folder with tokenizer; an adapter is merged, and also kept in
    `adapter/`), `student.json` (how the student was built, steps, tokens, seconds), `history.jsonl` (one object per
    log and per evaluation), and `projectors.safetensors` if there are any.

    The control `text_only` is the same student on the same rows in the same order, for the same steps (and stages) by
    the same schedule, with `hard_ce` of weight 1 alone. `text_only_equal_seconds` goes on with more of these steps, as
    many as take the student's seconds. `rounded_afterwards` trains as the student does, without rounding, and rounds
    the weights after the last step.

    `train.pruned` is the stage before them that cuts a pruned student.
    """
    if not isinstance(training, Training):
        return _pruning(recipe)
    recipe = trained_by(recipe, training)
    train = recipe.required_train.key_fields()
    del train["controls"], train["seeds"]
    for arguments in (train, *train["stages"]):
        arguments["args"] = {key: value for key, value in arguments["args"].items() if key not in _UNSEEN_ARGUMENTS}
    teacher = recipe.teachers.get(recipe.required_train.teacher)
    settings: dict[str, Any] = {
        "train": train,
        "student": recipe.required_student.key_fields(),
        "teacher": None if teacher is None else teacher.key_fields(),
        "data": None if recipe.generate is not None else recipe.data.key_fields(),
        "task": recipe.task,
    }
    if recipe.required_train.keeps_best:
        settings["best"] = "NLL on a third of the held-out groups"
    if training.seed:
        settings["seed"] = recipe.seed
    reads = ("generate",) if recipe.generate is not None else ()
    if recipe.capture is not None and any(o.needs().teacher for o in recipe.required_train.all_objectives):
        reads = (*reads, *recipe.capture.stages)
    if isinstance(recipe.student, Pruned):
        reads = (*reads, PRUNED)
    if training.control == "text_only_equal_seconds":
        reads = (*reads, *_timed_by(training))
    return Stage(
        training.stage, CONTRACT, reads, settings, partial(_sources, recipe), partial(_write, recipe, training)
    )


def _pruning(recipe: Recipe) -> Stage:
    """The stage that cuts the student. It depends on what makes training rows, and not on how they are trained on."""
    train, student = recipe.required_train, recipe.required_student
    teacher = recipe.teachers.get(train.teacher)
    settings = {
        "student": {name: value for name, value in student.key_fields().items() if name != "lora"},
        "teacher": None if teacher is None else teacher.key_fields(),
        "data": None if recipe.generate is not None else recipe.data.key_fields(),
        "max_length": train.max_length,
        "teacher_system": train.teacher_system,
        "refusals": None if train.refusals is None else train.refusals.key_fields(),
        "bf16": bool(train.args.get("bf16")),
    }
    reads = ("generate",) if recipe.generate is not None else ()
    return Stage(PRUNED, PRUNING_CONTRACT, reads, settings, partial(_sources, recipe), partial(_prune, recipe))


def _prune(recipe: Recipe, context: Context) -> None:
    from potstill.train.pruning import write_pruned

    if isinstance(recipe.student, Pruned):
        write_pruned(recipe, recipe.student, context)


def trained_by(recipe: Recipe, training: Training) -> Recipe:
    """The recipe that a training follows: a control has other objectives, a later seed another seed."""
    if training.seed:
        recipe = recipe.model_copy(update={"seed": recipe.seed + training.seed})
    if training.control is None:
        return recipe
    if training.control == "rounded_afterwards":
        quantize = recipe.required_train.quantize
        later = {"quantize": None if quantize is None else quantize.model_copy(update={"learned": False})}
        return recipe.model_copy(update={"train": recipe.required_train.model_copy(update=later)})
    text = {"objectives": (HardCE(),)}
    changes = {"stages": tuple(stage.model_copy(update=text) for stage in recipe.required_train.stages)}
    return recipe.model_copy(
        update={"train": recipe.required_train.model_copy(update=changes if recipe.required_train.stages else text)}
    )


def _timed_by(training: Training) -> tuple[str, str]:
    """The stages of the student and of its control of equal steps."""
    return Training(None, training.seed).stage, Training("text_only", training.seed).stage


def _sources(recipe: Recipe) -> Mapping[str, str]:
    """Digests of the weights that are read, and of the data if no earlier stage has read them."""
    from potstill.data import source_digests
    from potstill.models import model_digests

    digests = {} if recipe.generate is not None else dict(source_digests(recipe.data))
    digests |= model_digests("teacher", members_of(recipe.teachers.get(recipe.required_train.teacher)))
    if recipe.required_train.refusals is not None:
        of_refusals = source_digests(recipe.required_train.refusals.prompts)
        digests |= {f"refusals {name}": value for name, value in of_refusals.items()}
    student = recipe.student
    if isinstance(student, Existing):
        digests |= model_digests("student", [student])
    return digests


def _write(recipe: Recipe, training: Training, context: Context) -> None:
    from potstill.train.training import TrainingRun

    if training.control == "text_only_equal_seconds":
        steps = steps_of_equal_seconds(*(_facts(context, name) for name in _timed_by(training)))
        args = {**recipe.required_train.args, "max_steps": steps}
        changed = recipe.required_train.model_copy(update={"args": args})
        recipe = recipe.model_copy(update={"train": changed})
    TrainingRun(recipe, context, training).run()


def steps_of_equal_seconds(student: Mapping[str, Any], control: Mapping[str, Any]) -> int:
    """How many steps of the control take as long as the student's training, by the seconds per step of both.

    Args:
        student: its `student.json`.
        control: that of `text_only`, which has the same steps.
    """
    a_step = float(control["seconds"]) / max(int(control["steps"]), 1)
    return max(1, round(float(student["seconds"]) / a_step)) if a_step > 0 else int(control["steps"])


def _facts(context: Context, name: str) -> Mapping[str, Any]:
    facts: Mapping[str, Any] = json.loads((context.inputs[name].path / "student.json").read_text(encoding="utf-8"))
    return facts

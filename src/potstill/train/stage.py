"""The stage `train`, and its controls: from records to a student. No torch at import."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from potstill.recipe import Existing, HardCE, Recipe, members_of
from potstill.stage import Context, Stage

CONTRACT = 2

_UNSEEN_ARGUMENTS = ("report_to", "run_name", "project")
"""Training arguments that do not affect the artifact."""


def stage(recipe: Recipe, control: str | None = None) -> Stage:
    """The stage of a recipe that has a `train` section, or one of its controls.

    Its artifact holds `model/` (a plain model folder with tokenizer; an adapter is merged, and also kept in
    `adapter/`), `student.json` (how the student was built, steps, tokens, seconds), `history.jsonl` (one object per
    log and per evaluation), and `projectors.safetensors` if there are any.

    The control `text_only` is the same student on the same rows in the same order, for the same steps (and stages)
    with the same schedule, with `hard_ce` of weight 1 alone.
    """
    name = "train" if control is None else f"train.{control}"
    recipe = controlled(recipe, control)
    train = recipe.required_train.key_fields()
    del train["controls"]
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
    reads = ("generate",) if recipe.generate is not None else ()
    return Stage(name, CONTRACT, reads, settings, partial(_sources, recipe), partial(_write, recipe, name))


def controlled(recipe: Recipe, control: str | None) -> Recipe:
    """The recipe of a control."""
    if control is None:
        return recipe
    assert control == "text_only"
    text = {"objectives": (HardCE(),)}
    changes = {"stages": tuple(stage.model_copy(update=text) for stage in recipe.required_train.stages)}
    return recipe.model_copy(
        update={"train": recipe.required_train.model_copy(update=changes if recipe.required_train.stages else text)}
    )


def _sources(recipe: Recipe) -> Mapping[str, str]:
    """Digests of the weights that are read, and of the data if no earlier stage has read them."""
    from potstill.data import source_digests
    from potstill.models import model_digests

    digests = {} if recipe.generate is not None else dict(source_digests(recipe.data))
    digests |= model_digests("teacher", members_of(recipe.teachers.get(recipe.required_train.teacher)))
    student = recipe.student
    if isinstance(student, Existing):
        digests |= model_digests("student", [student])
    return digests


def _write(recipe: Recipe, name: str, context: Context) -> None:
    from potstill.train.training import Training

    Training(recipe, context, name).run()

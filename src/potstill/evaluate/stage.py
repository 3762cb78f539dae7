"""The stage `evaluate`: what was kept and what was lost, on held-out records. Loads torch only when it runs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from potstill.recipe import Pruned, Recipe, members_of
from potstill.recipe.train import PRUNED
from potstill.stage import Context, Stage
from potstill.tasks import SPECS
from potstill.teachers.origin import teacher_name

CONTRACT = 8


def stage(recipe: Recipe) -> Stage:
    """The stage of a recipe that has an `evaluate` section.

    Its artifact holds `measures.json` (`potstill.measures.Measures`), `documents.json` (the held-out records, worst
    first, with what models made of them) and a table of all values: `tokens.parquet` (one row per target token) of
    language models, `examples.parquet` of classes and embeddings. Where problems were put to models there are also
    `solved.parquet` (one row per problem) and `solutions.jsonl` (what was answered, and what the verifier said of it).
    """
    name = teacher_name(recipe)
    settings = {
        "task": recipe.task,
        "evaluate": recipe.required_evaluate.key_fields(),
        "teacher": None if name is None else recipe.teachers[name].key_fields(),
        "student": recipe.required_student.key_fields(),
        "data": recipe.data.key_fields(),
        "max_length": recipe.required_train.max_length,
    }
    if recipe.required_train.keeps_best:
        settings["best"] = "chosen on a third of the held-out groups"
    if recipe.required_train.teacher_system is not None:
        settings["teacher_system"] = recipe.required_train.teacher_system
    settings["measures"] = [m.key_fields() for m in recipe.required_evaluate.measures_for(SPECS[recipe.task])]
    for judge in recipe.required_evaluate.asked:
        settings[f"judge {judge}"] = recipe.teachers[judge].key_fields()
    if SPECS[recipe.task].masks:
        settings["masking"] = recipe.required_train.masking.key_fields()
    if not SPECS[recipe.task].has_response:
        settings["pooling"] = recipe.required_train.pooling
    trained = tuple(training.stage for training in recipe.required_train.trainings)
    if isinstance(recipe.student, Pruned):
        trained = (*trained, PRUNED)  # the untrained student
    reads = (*trained, "generate") if recipe.generate is not None else trained
    if recipe.evaluates_stored:
        reads = (*reads, "capture")
    return Stage("evaluate", CONTRACT, reads, settings, partial(_sources, recipe), _write)


def _sources(recipe: Recipe) -> Mapping[str, str]:
    """Digests of the teacher's weights, and of the data if no earlier stage has read them."""
    from potstill.data import source_digests
    from potstill.models import model_digests

    reads = recipe.generate is None or recipe.required_evaluate.solve is not None
    digests = dict(source_digests(recipe.data)) if reads else {}
    name = teacher_name(recipe)
    for judge in recipe.required_evaluate.asked:
        digests |= model_digests(f"judge {judge}", members_of(recipe.teachers[judge]))
    return digests | model_digests("teacher", members_of(None if name is None else recipe.teachers[name]))


def _write(context: Context) -> None:
    from potstill.evaluate.evaluation import Evaluation

    Evaluation(context).run()

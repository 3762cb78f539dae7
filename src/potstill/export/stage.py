"""The stage `export.<kind>`: write the student in a format for other tools. Loads torch only when it runs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from potstill import registry
from potstill.artifacts import file_digest
from potstill.errors import RunError
from potstill.export.base import Exporter, Student, second_rounding
from potstill.models.folder import is_module
from potstill.models.resolve import locate
from potstill.policy.duties import copies, named, write_papers
from potstill.policy.gate import rulings_on, rulings_on_run
from potstill.policy.recognise import licence_files
from potstill.policy.terms import terms_section
from potstill.recipe import Existing, LocalTeacher, Recipe, StudentSettings
from potstill.stage import Context, Stage
from potstill.teachers.origin import origin_of
from potstill.types import digest

CONTRACT = 5


def stage(recipe: Recipe, index: int) -> Stage:
    """The stage of the entry `index` of a recipe's `export`.

    Its name is `export.<kind>`, and `export.<kind>-2` and so on where a kind is asked for again.
    """
    settings = recipe.export[index]
    wants_card = bool(getattr(settings, "model_card", False))
    reads = ("train", "report") if wants_card and recipe.evaluate is not None else ("train",)
    note = second_rounding(settings, recipe.required_train.quantize)
    return Stage(
        stage_name(recipe, index),
        CONTRACT,
        reads,
        {
            "export": settings.key_fields(),
            "trust_remote_code": _trusts_code(recipe),
            "task": recipe.task,
            "pooling": recipe.required_train.pooling,
            **({"note": note} if note is not None else {}),
        },
        partial(_sources, recipe),
        partial(_write, index),
    )


def stage_name(recipe: Recipe, index: int) -> str:
    """Name of an export's folder in the run, unique in the recipe."""
    names = [_folder(settings.kind) for settings in recipe.export[: index + 1]]
    again = names.count(names[-1])
    return f"export.{names[-1]}" if again == 1 else f"export.{names[-1]}-{again}"


def _folder(kind: str) -> str:
    """A kind as part of a folder's name; for a plug-in, the name of its class."""
    return re.sub(r"[^A-Za-z0-9_]+", "_", kind.rpartition(":")[2])


def _sources(recipe: Recipe) -> Mapping[str, str]:
    rulings = rulings_on(recipe, "student")
    texts = {f"licence {source}": file_digest(file) for source, file in copies(recipe, rulings).files.items()}
    beside = {f"licence {path.name}": file_digest(path) for path in _licences(recipe)}
    return {**beside, **texts, "terms": digest([rulings.to_dict(), recipe.report.title])}


def _write(index: int, context: Context) -> None:
    recipe, work = context.recipe, context.work
    settings = recipe.export[index]
    model = context.inputs["train"].path / "model"
    if not (model / "config.json").is_file() and not is_module(model):
        raise RunError(
            "there is no trained student", where=str(model), fix="run the stage again: potstill train --force"
        )
    card = context.inputs["report"].path / "README.md" if "report" in context.inputs else None
    if card is None and getattr(settings, "model_card", False):
        work.warn("the model card has no figures, since nothing was measured; add `evaluate: {}` to the recipe")
    note = second_rounding(settings, recipe.required_train.quantize)
    if note is not None:
        work.warn(note)
    exporter: Exporter = registry.build(settings)
    manifests = {name: artifact.manifest for name, artifact in context.inputs.items()}
    rulings = rulings_on_run(recipe, manifests)
    name = named(recipe.report.title or recipe.name, rulings)
    adapter = context.inputs["train"].path / "adapter"
    student = Student(
        model,
        card,
        _licences(recipe),
        _trusts_code(recipe),
        recipe.task,
        adapter=adapter if adapter.is_dir() else None,
        base=_base(recipe),
        pooling=recipe.required_train.pooling,
        name=name,
        terms=tuple(terms_section(rulings)),
        notes=() if note is None else (note,),
    )
    exporter.export(student, work, context.console)
    work.facts["name"] = name
    for undone in write_papers(work.path, recipe, rulings):
        work.warn(undone)


def _base(recipe: Recipe) -> tuple[Path, str] | None:
    """The existing model that the student began with, and its name without private paths."""
    student = recipe.student
    source = locate(student.model, student.revision) if isinstance(student, Existing) else None
    if not isinstance(student, Existing) or source is None:
        return None
    origin = origin_of(student.model, student.revision)
    return source.path, origin.hub_id or origin.name


def _licences(recipe: Recipe) -> list[Path]:
    """Licence texts beside the weights that the student was initialised from."""
    began: Existing | LocalTeacher
    match recipe.student:
        case Existing() as existing:
            began = existing
        case StudentSettings(begins_with_teacher=True) if recipe.train is not None:
            teacher = recipe.teachers.get(recipe.train.teacher)
            if not isinstance(teacher, LocalTeacher):
                return []
            began = teacher
        case _:
            return []
    source = locate(began.model, began.revision)
    if source is None:
        return []
    return sorted({*licence_files(source.path), *filter(Path.is_file, source.path.glob("NOTICE*"))})


def _trusts_code(recipe: Recipe) -> bool:
    """Whether the recipe trusts remote code of any model that it names."""
    named = [*recipe.teachers.values(), *([recipe.student] if recipe.student is not None else [])]
    return any(getattr(settings, "trust_remote_code", False) for settings in named)

"""Names, origins and licences of teachers and other models. Reads only the disk, and loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from potstill.models.packages import PACKAGES
from potstill.models.resolve import locate
from potstill.recipe import EnsembleTeacher, LocalTeacher, Recipe, TeacherSettings, members_of, weights_of


@dataclass(frozen=True)
class Origin:
    """Where a model comes from, without private paths.

    Attributes:
        name: its name; for a folder or file only the last part of the private path.
        hub_id: the same model on the hub; None if it is not there.
        revision: a commit or package version; empty if there is none.
        licence: as the model states it; empty if it does not.
        notes: remarks that a report must show.
    """

    name: str
    hub_id: str | None
    revision: str
    licence: str
    notes: tuple[str, ...]


def origin_of(model: str, revision: str | None) -> Origin:
    """The origin of a model, by its name in a recipe."""
    source = locate(model, revision)
    known_revision, licence, notes = (source.revision, source.licence, source.notes) if source else ("", "", ())
    if model in PACKAGES:
        return Origin(model, PACKAGES[model].hub_id, known_revision, licence, notes)
    on_hub = not model.startswith("run:") and not Path(model).expanduser().exists()
    name = model if on_hub else Path(model.removeprefix("run:")).name
    return Origin(name, model if on_hub else None, revision or known_revision, licence, notes)


def teacher_name(recipe: Recipe) -> str | None:
    """The name of the teacher to compare the student with: the one it was trained with, else one that wrote its text,
    else the only one. None if there is none."""
    for section in (recipe.train, recipe.generate):
        if section is not None and section.teacher in recipe.teachers:
            return str(section.teacher)
    return next(iter(recipe.teachers)) if len(recipe.teachers) == 1 else None


def judges_itself(recipe: Recipe, judge: str) -> str | None:
    """What a judge has written itself of what it compares: "the teacher", where it is the same model, or "the student",
    where it is what the student is made from; None where neither is known to be."""
    of_judge = _models_of(recipe.teachers[judge])
    name = teacher_name(recipe)
    if name == judge or (name is not None and of_judge & _models_of(recipe.teachers[name])):
        return "the teacher"
    return "the student" if of_judge & _models_of(recipe.student) else None


def _models_of(settings: object) -> set[str]:
    """The names of the models behind a teacher or student, and their names on the hub."""
    found = set()
    for one in members_of(settings) if isinstance(settings, TeacherSettings) else (settings,):
        if model := getattr(one, "model", None):
            found |= {str(model).lower(), (PACKAGES[model].hub_id if model in PACKAGES else str(model)).lower()}
    return found


def origin_of_teacher(recipe: Recipe) -> Origin | None:
    """The origin of the teacher to compare the student with; None if there is none."""
    name = teacher_name(recipe)
    return None if name is None else _origin_of_settings(recipe.teachers[name])


def _origin_of_settings(settings: TeacherSettings) -> Origin:
    if isinstance(settings, LocalTeacher):
        return origin_of(settings.model, settings.revision)
    if isinstance(settings, EnsembleTeacher):
        members = [_origin_of_settings(member) for member in settings.members]
        names = list(dict.fromkeys(member.name for member in members))
        # State a licence only if all members have the same.
        licences = {member.licence for member in members}
        notes = tuple(dict.fromkeys(note for member in members for note in member.notes))
        called = f"an ensemble of {len(members)} ({', '.join(names)})"
        return Origin(called, None, "", licences.pop() if len(licences) == 1 else "", notes)
    return Origin(str(getattr(settings, "model", settings.kind)), None, "", "", ())


def origin_digests(recipe: Recipe) -> Mapping[str, str]:
    """Digests of the models that are named, if they are on disk; part of a stage's key."""
    found: dict[str, str] = {}
    for settings in recipe.models:
        model = weights_of(settings)
        if model is not None and (source := locate(model, getattr(settings, "revision", None))) is not None:
            found[f"model {model}"] = f"{source.digest} {source.licence} {' '.join(source.notes)}"
    return found

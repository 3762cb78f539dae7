"""What a student or a data set was made from, and by which route: found in a recipe, and handed on to what is made of
it.

A run's manifests hold it under `policy` in their facts; an exported folder holds it as `provenance.json`. A recipe
that names such a run or folder as teacher, student or data takes it over, so a licence at the beginning of a chain
reaches its end.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from potstill.artifacts import MANIFEST, read_artifact
from potstill.errors import PotstillError
from potstill.policy.recognise import (
    NOTHING,
    Evidence,
    licence_of_data,
    licence_of_model,
    model_folder,
    own_licence_of_data,
    own_licence_of_model,
)
from potstill.policy.table import Route
from potstill.recipe import Existing, KindSettings, ModuleStudent, Override, Recipe, members_of
from potstill.recipe.data import DataSettings, RunData
from potstill.recipe.speculate import OtherModelDraft, StudentDraft

FILE = "provenance.json"
_FORMATS = "potstill-provenance-"
FORMAT = f"{_FORMATS}1"

Made = Literal["records", "signals", "student", "draft", "all"]
"""What a recipe makes: the records of `generate`, the store of `capture`, the student of `train`, the draft of
`speculate`; or all of it."""

RECORDED: Mapping[str, Made] = {
    "generate": "records",
    "capture": "signals",
    "train": "student",
    "speculate": "draft",
}
"""The stages whose manifests hold the provenance of what they made, by verb."""

_STRENGTH: tuple[Route, ...] = ("outputs", "logits", "weights")
"""Of a chain, the weakest link is its route: a student of the outputs of a model that began with the weights of
another has learned from the outputs of the latter's derivative."""


@dataclass(frozen=True)
class Use:
    """One thing that a student was made from.

    Attributes:
        role: its place in the recipe that named it (`teachers.main`, `student`, `data`).
        name: what it is, without private paths.
        route: how it was used.
        evidence: the signs of its licence.
        through: students between it and the one at hand, the nearest last.
    """

    role: str
    name: str
    route: Route
    evidence: tuple[Evidence, ...]
    through: tuple[str, ...] = ()

    @property
    def sources(self) -> tuple[str, ...]:
        """The ids of its licences; an empty one for what is not known."""
        return tuple(dict.fromkeys(evidence.source for evidence in self.evidence))

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Use:
        """From JSON values.

        Raises:
            KeyError, TypeError, ValueError: they are none.
        """
        if document["route"] not in get_args(Route):
            raise ValueError(f"there is no route {document['route']!r}")
        evidence = tuple(
            Evidence(**{name: _line(text) for name, text in sign.items()}) for sign in document["evidence"]
        )
        through = tuple(_line(name) for name in document.get("through", ()))
        return cls(_line(document["role"]), _line(document["name"]), document["route"], evidence or (NOTHING,), through)


def _line(text: Any) -> str:
    """A text that somebody else wrote, as one line.

    Raises:
        TypeError: it is no text.
    """
    if not isinstance(text, str):
        raise TypeError(f"{text!r} is no text")
    return " ".join(text.split())


@dataclass(frozen=True)
class Provenance:
    """All that a student was made from, and the overrides under which it, or a student before it, was made."""

    uses: tuple[Use, ...] = ()
    overrides: tuple[Override, ...] = ()

    def __add__(self, other: Provenance) -> Provenance:
        """Everything of both."""
        return Provenance(
            tuple(dict.fromkeys((*self.uses, *other.uses))), tuple(dict.fromkeys((*self.overrides, *other.overrides)))
        )

    def through(self, name: str, role: str, route: Route) -> Provenance:
        """The provenance of what uses this student by a route."""
        uses = tuple(
            replace(use, role=role, route=_chained(use.route, route), through=(*use.through, name)) for use in self.uses
        )
        return Provenance(uses, self.overrides)

    def with_recorded(self, recorded: Provenance) -> Provenance:
        """This, with what was recorded when it was made: all its overrides, and the uses that are no longer found
        (their files are gone). A use that is still found is as it is now."""
        found = {(use.role, use.name, use.route, use.through) for use in self.uses}
        kept = tuple(use for use in recorded.uses if (use.role, use.name, use.route, use.through) not in found)
        return self + Provenance(kept, recorded.overrides)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "format": FORMAT,
            "uses": [use.to_dict() for use in self.uses],
            "overrides": [override.model_dump(mode="json") for override in self.overrides],
        }


def _chained(first: Route, then: Route) -> Route:
    return first if "data" in (first, then) else min(first, then, key=_STRENGTH.index)


def provenance_of(recipe: Recipe, made: Made) -> Provenance:
    """What something that a recipe makes is made from, back to the first models and data."""
    found = Provenance((), recipe.policy.overrides)
    for role, settings, route in uses_of_models(recipe, made):
        found += _of_model(role, settings, route)
    return found + _of_data(recipe.data)


def uses_of_models(recipe: Recipe, made: Made) -> Iterator[tuple[str, Any, Route]]:
    """Every model that something is made from, with its role and route; for an ensemble, its members."""
    writers = recipe.generate.asked if recipe.generate is not None else ()
    named: list[tuple[str, Route]] = [(name, "outputs") for name in writers]
    if made in ("signals", "student", "all") and recipe.capture is not None:
        named += [(name, "logits") for name in recipe.capture.teachers]
    if made in ("student", "all"):
        named += _teachers_of_student(recipe)
    if made in ("draft", "all"):
        named += _teachers_of_draft(recipe)
    for name, route in dict.fromkeys(named):
        members = members_of(recipe.teachers.get(name))
        for number, settings in enumerate(members):
            yield f"teachers.{name}" + (f".members.{number}" if len(members) > 1 else ""), settings, route
    student = recipe.student
    begins = isinstance(student, Existing) or (isinstance(student, ModuleStudent) and student.weights is not None)
    if made in ("student", "all") and recipe.train is not None and begins:
        yield "student", student, "weights"
    draft = recipe.speculate.model_draft if recipe.speculate is not None else None
    if made in ("draft", "all") and isinstance(draft, OtherModelDraft):
        yield "speculate.draft", draft, "weights"


def _teachers_of_student(recipe: Recipe) -> Iterator[tuple[str, Route]]:
    train = recipe.train
    if train is not None:
        if any(objective.needs().teacher for objective in train.all_objectives):
            yield train.teacher, "logits"
        if recipe.student is not None and recipe.student.begins_with_teacher:
            yield train.teacher, "weights"


def _teachers_of_draft(recipe: Recipe) -> Iterator[tuple[str, Route]]:
    """A draft of the target's layers starts from them, and learns from its distributions if it is trained."""
    settings = recipe.speculate
    if settings is None:
        return
    if isinstance(settings.model_draft, StudentDraft):
        yield from _teachers_of_student(recipe)
    elif settings.trained_layers is not None or settings.trains_heads:
        yield settings.target, "weights"
        if settings.train is not None and any(o.needs().teacher for o in settings.train.all_objectives):
            yield settings.target, "logits"


def _of_model(role: str, settings: Any, route: Route) -> Provenance:
    model = str(getattr(settings, "model", None) or getattr(settings, "weights", None) or _kind(settings))
    local = not getattr(settings, "remote", False)
    name = _public_name(model) if local else model
    known = _of_known_model(model, getattr(settings, "revision", None)) if local else None
    if known is None:
        return Provenance((Use(role, name, route, licence_of_model(settings)),))
    return _with_own(known.through(name, role, route), role, name, route, own_licence_of_model(settings))


def _with_own(found: Provenance, role: str, name: str, route: Route, own: tuple[Evidence, ...]) -> Provenance:
    """What something was made from, with the licence that its maker gave it; unknown if there is neither."""
    signs = own or (() if found.uses else (NOTHING,))
    return found + Provenance((Use(role, name, route, signs),)) if signs else found


def _of_known_model(model: str, revision: str | None) -> Provenance | None:
    """What is known of a student of potstill: of a run, or of an exported folder. None if it is no such thing."""
    if model.startswith("run:"):
        return of_run(Path(model.removeprefix("run:")).expanduser(), "train")
    folder = model_folder(model, revision)
    return of_folder(folder) if folder is not None else None


def of_run(run: Path, stage: str) -> Provenance | None:
    """What the manifest of a run's stage says of what it made; None if it says nothing."""
    try:
        artifact = read_artifact(run / stage)
    except PotstillError:
        return None  # the check says what is wrong with it
    return recorded_in(artifact.manifest) if artifact is not None else None


def recorded_in(manifest: Mapping[str, Any]) -> Provenance | None:
    """The provenance in the manifest of a stage; None if it has none."""
    return _parsed(manifest.get("facts", {}).get("policy"))


def of_folder(folder: Path) -> Provenance | None:
    """What is written in a folder of what it holds: `provenance.json` of an export, or the manifest of an artifact
    (for `<run>/train/model`, of the folder above)."""
    for place in (folder, folder.parent):
        if (found := _parsed(_json(place / FILE))) is not None:
            return found
        manifest = _json(place / MANIFEST)
        facts = manifest.get("facts") if isinstance(manifest, dict) else None
        if isinstance(facts, dict) and (found := _parsed(facts.get("policy"))) is not None:
            return found
    return None


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _parsed(document: Any) -> Provenance | None:
    """None if the document is not of potstill; of unknown licence if it is, and cannot be read."""
    if not isinstance(document, dict) or not str(document.get("format")).startswith(_FORMATS):
        return None
    try:
        if document["format"] != FORMAT:
            raise ValueError(f"it has the format {document['format']!r}, and this potstill reads {FORMAT!r}")
        uses = tuple(Use.of(item) for item in document["uses"])
        return Provenance(uses, tuple(Override.model_validate(item) for item in document["overrides"]))
    except (KeyError, TypeError, ValueError):
        return Provenance((Use("", FILE, "outputs", (Evidence("", "what it was made from cannot be read"),)),))


def _of_data(data: DataSettings) -> Provenance:
    path: Path | None = getattr(data, "path", None)
    name = str(getattr(data, "id", None) or getattr(data, "name", None) or (path.name if path else _kind(data)))
    known = None
    if isinstance(data, RunData):
        known, name = of_run(data.path.expanduser(), "generate"), f"run:{data.path.name}"
    elif path is not None:
        whole = path.expanduser()
        known = of_folder(whole if whole.is_dir() else whole.parent)
    if known is None:
        return Provenance((Use("data", name, "data", licence_of_data(data)),))
    return _with_own(known.through(name, "data", "data"), "data", name, "data", own_licence_of_data(data))


def _kind(settings: KindSettings) -> str:
    """A kind; for a plug-in, the name of its class without the path of its file."""
    return settings.kind.rpartition(":")[2]


def _public_name(model: str) -> str:
    """A model's name without the path to it."""
    if model.startswith("run:"):
        return f"run:{Path(model.removeprefix('run:')).name}"
    path = Path(model).expanduser()
    return path.name if path.is_absolute() or path.exists() else model

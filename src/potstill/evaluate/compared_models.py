"""The models that are compared: the teacher (if it is comparable with the student), the student, and the controls.

All are opened as teachers are (`teachers/opening.py`). Students and controls read the student's view of a batch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from potstill.console import Console
from potstill.errors import ModelError, RunError, TokenizerMismatch
from potstill.evaluate.summary import Size
from potstill.models import resolve
from potstill.models.anatomy import dims
from potstill.models.load import load_tokenizer
from potstill.models.quiet import quiet_loading
from potstill.models.saving import save_model
from potstill.models.tokenizers import check_same_tokenizer
from potstill.recipe import (
    ByInfluence,
    EndpointTeacher,
    EnsembleTeacher,
    FromTeacher,
    LocalTeacher,
    Recipe,
    TeacherSettings,
    members_of,
    weights_of,
)
from potstill.recipe.train import PRUNED
from potstill.registry import settings_class
from potstill.signals import Side
from potstill.stage import Context
from potstill.students import build_student
from potstill.tasks import SPECS, Task
from potstill.teachers.base import OpenTeacher
from potstill.teachers.opening import Dtype, open_model
from potstill.teachers.origin import origin_of_teacher, teacher_name

_MUST_AGREE = ("layers", "parameters")
"""Facts of a trained student that a rebuilt one must match."""


@dataclass(frozen=True)
class ComparedModel:
    """A model by its name in the measures, and how to open it.

    Attributes:
        name: one of `measures.MODELS`.
        settings: a local teacher or an ensemble; students and controls are local models in their folders.
        task: the task that it is opened for.
        classes: names of the classes, for classification.
        side: the view of a batch that it reads.
        seed: number of the training seed, from 0.
    """

    name: str
    settings: TeacherSettings
    task: Task
    classes: tuple[str, ...] = ()
    side: Side = "student"
    seed: int = 0

    @property
    def is_first(self) -> bool:
        """Whether it is of the first seed. Sizes, rates, answers and shown records are of the first seed only."""
        return self.seed == 0

    @property
    def label(self) -> str:
        """Its name in messages: `student`, `student, seed 2`."""
        return self.name.replace("_", " ") + (f", seed {self.seed + 1}" if self.seed else "")

    @property
    def is_ensemble(self) -> bool:
        return isinstance(self.settings, EnsembleTeacher)

    @property
    def first(self) -> LocalTeacher:
        """The model itself, or an ensemble's first member."""
        found = members_of(self.settings)[0]
        if not isinstance(found, LocalTeacher):
            raise ModelError(f"the {self.name} has no weights on this machine", fix="use kind: local")
        return found

    def open(self, dtype: Dtype) -> OpenTeacher:
        """Load it, in evaluation mode, in one precision."""
        return open_model(self.settings, dtype=dtype, task=self.task, classes=self.classes, side=self.side)

    @property
    def bytes(self) -> int:
        """The size of its weights as the user has them: for a converted teacher, of the file that the recipe names."""
        return sum(_source(member).weight_bytes for member in members_of(self.settings))

    @property
    def where(self) -> str:
        """The folders or names of its weights."""
        return ", ".join(weights_of(member) or "" for member in members_of(self.settings))

    def to_dict(self) -> dict[str, Any]:
        """JSON-compatible fields, for another process."""
        return {**asdict(self), "kind": self.settings.kind, "settings": self.settings.model_dump(mode="json")}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> ComparedModel:
        """The inverse of `to_dict`."""
        settings = settings_class(TeacherSettings.room, raw["kind"]).model_validate(raw["settings"])  # type: ignore[attr-defined]
        return cls(raw["name"], settings, raw["task"], tuple(raw["classes"]), raw["side"], raw["seed"])


def size_of(opened: OpenTeacher, model: ComparedModel) -> Size:
    """The size of an open model and of its files."""
    config: Any = getattr(opened.modules[0], "config", None)
    text = getattr(config, "text_config", None) or config
    return Size(
        parameters=sum(p.numel() for module in opened.modules for p in module.parameters()),
        bytes=model.bytes,
        layers=sum(dims(module).layers for module in opened.modules),
        positions=getattr(text, "max_position_embeddings", None),
    )


def _source(settings: TeacherSettings) -> Any:
    """The location of a teacher's weights. Nothing is fetched: the run has fetched them before its first stage."""
    return resolve(
        weights_of(settings) or "",
        revision=getattr(settings, "revision", None),
        trust_remote_code=getattr(settings, "trust_remote_code", False),
        console=Console("quiet"),
    )


class ComparedModels:
    """The models of a run, not yet open.

    Args:
        context: of the stage.
        classes: names of the classes, for classification.
        work: folder of temporary files.

    Attributes:
        notes: for the reader of the page.
        teacher_unmeasured: why the recipe's teacher is not among them.
        teacher_is_served: the teacher is a server, whose signals were captured: it has no size and no rates here.
    """

    def __init__(self, context: Context, classes: tuple[str, ...], work: Path) -> None:
        self._context, self._recipe, self._work = context, context.recipe, work
        self._classes = classes if SPECS[self._recipe.task].has_classes else ()
        self._student_folder = context.inputs["train"].path / "model"
        self.notes: list[str] = []
        self.teacher_unmeasured: str | None = None
        self.teacher_is_served = False
        self.teacher = self._teacher()
        self.student = self._of_folder("student", self._student_folder)

    @cached_property
    def students(self) -> list[ComparedModel]:
        """The student and its controls, of all seeds, the student of the first seed first; and `untrained`, the student
        before its first step, of the first seed."""
        trainings = sorted(self._recipe.required_train.trainings, key=lambda t: (t.seed, t.control is not None))
        found = [
            self._of_folder(training.model, self._context.inputs[training.stage].path / "model", training.seed)
            for training in trainings
        ]
        if "untrained" in self._recipe.required_evaluate.controls:
            found.append(self._of_folder("untrained", self._untrained()))
        return found

    # ---- the teacher ---------------------------------------------------------------------------------------------

    @property
    def _settings(self) -> TeacherSettings | None:
        name = teacher_name(self._recipe)
        return None if name is None else self._recipe.teachers[name]

    def _teacher(self) -> ComparedModel | None:
        """The teacher; None if none is comparable with the student (with a note), or if it is a captured server."""
        recipe, settings = self._recipe, self._settings
        if not recipe.teachers and not SPECS[recipe.task].writes:
            self.notes.append("The recipe has no teacher, so nothing was compared with one.")
            return None
        members = members_of(settings)
        captured = self._context.inputs.get("capture")
        why = "the recipe has no teacher whose weights can be opened here"
        if settings is not None and all(isinstance(member, LocalTeacher) for member in members):
            try:
                if SPECS[recipe.task].reads_text:
                    for member in members:
                        own = _source(member).path if captured is None else captured.path / "store" / "tokenizer"
                        check_same_tokenizer(own, self._student_folder)
                origin = origin_of_teacher(recipe)
                self.notes += [f"The teacher: {note}." for note in (origin.notes if origin is not None else ())]
                return ComparedModel("teacher", settings, recipe.task, self._classes, "teacher")
            except TokenizerMismatch as mismatch:
                if _was_taught(recipe):
                    raise  # its distributions were learned from, so it must be comparable: something went wrong
                why = mismatch.what
        elif captured is not None and isinstance(settings, EndpointTeacher):
            try:
                check_same_tokenizer(captured.path / "store" / "tokenizer", self._student_folder)
                self.teacher_is_served = True
                self.teacher_unmeasured = "a server has no size and no rates here"
                return None
            except TokenizerMismatch as mismatch:
                why = mismatch.what
        self.notes.append(self.without_teacher(why))
        return None

    def without_teacher(self, why: str) -> str:
        """Warn that nothing is compared with the teacher; the note that says it."""
        missing = "no agreement" if not SPECS[self._recipe.task].has_response else "no KL, no agreement"
        text = f"Nothing was compared with the teacher ({missing}): {why}."
        self._context.work.warn(text)
        self.teacher_unmeasured = why if self._recipe.teachers else None
        return text

    # ---- student and controls ------------------------------------------------------------------------------------

    @property
    def _leader(self) -> LocalTeacher | None:
        """The teacher whose weights can be opened here, or an ensemble's first member."""
        first = next(iter(members_of(self._settings)), None)
        return first if isinstance(first, LocalTeacher) else None

    def _of_folder(self, name: str, folder: Path, seed: int = 0) -> ComparedModel:
        """A student or a control, on the teacher's device and with the teacher's kind of attention."""
        asked: dict[str, Any] = {"trust_remote_code": getattr(self._recipe.student, "trust_remote_code", False)}
        if (like := self._leader) is not None:
            asked |= {"device": like.device, "attn_implementation": like.attn_implementation}
            asked["trust_remote_code"] |= like.trust_remote_code
        settings = LocalTeacher(model=str(folder.resolve()), **asked)
        return ComparedModel(name, settings, self._recipe.task, self._classes, seed=seed)

    def _untrained(self) -> Path:
        """The student before its first step, rebuilt from the same settings and seed, and saved.

        Adapters are left out: before the first step they add nothing. Layers that were chosen by their influence are
        read from the training stage's facts, not measured again.

        Raises:
            RunError: the rebuilt student differs from the trained one.
        """
        recipe, folder = self._recipe, self._work / "untrained"
        tokenizer = None if SPECS[recipe.task].reads_images else self._student_folder
        built = self._built(tokenizer)
        with quiet_loading():
            save_model(built.model, folder)
        if tokenizer is not None:
            load_tokenizer(tokenizer, self.student.first.trust_remote_code).save_pretrained(str(folder))
        return folder

    def _built(self, tokenizer: Path | None) -> Any:
        recipe, leader = self._recipe, self._leader
        facts = read_facts(self._context)
        pruned = self._context.inputs.get(PRUNED)
        settings = recipe.required_student.model_copy(update={"lora": None})
        if isinstance(settings, FromTeacher) and isinstance(settings.layers, ByInfluence):
            settings = settings.model_copy(update={"layers": tuple(facts["layers"])})
        try:
            teacher = None if leader is None else _source(leader)
        except ModelError:
            teacher = None
        with self._context.console.task("building the untrained student", 1, "models") as progress:
            built = build_student(
                settings,
                teacher=teacher,
                tokenizer_source=tokenizer,
                seed=recipe.seed,
                # It would repeat its messages about the student.
                console=Console("quiet"),
                trust_remote_code=leader is not None and leader.trust_remote_code,
                task=recipe.task,
                labels=list(self._classes) or None,
                pruned=pruned.path if pruned is not None else None,
            )
            progress.advance(1)
        for fact in _MUST_AGREE:
            if built.facts[fact] != facts[fact]:
                raise RunError(
                    f"the untrained student was built with {fact} {built.facts[fact]}, the trained one with "
                    f"{facts[fact]}",
                    where="train/student.json",
                    fix="train it again: potstill train --force",
                )
        return built


def read_facts(context: Context) -> Mapping[str, Any]:
    """The training stage's facts about how the student was built."""
    text = (context.inputs["train"].path / "student.json").read_text(encoding="utf-8")
    facts: Mapping[str, Any] = json.loads(text)
    return facts


def _was_taught(recipe: Recipe) -> bool:
    """Whether the student learned from signals of the teacher, not only from its text."""
    return recipe.train is not None and any(o.needs().teacher for o in recipe.train.all_objectives)

"""Who is measured in a run: the teacher, if the student can be compared with it, the student, and the controls."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from potstill.errors import ModelError, TokenizerMismatch
from potstill.evaluate.controls import build_untrained
from potstill.evaluate.measured import Measured
from potstill.evaluate.teacher import teacher_name
from potstill.models import ModelSource, resolve
from potstill.models.tokenizers import check_same_tokenizer
from potstill.recipe import EnsembleTeacher, LocalTeacher, TeacherSettings
from potstill.stage import Context
from potstill.tasks import SPECS

_OPENED_WITH = ("device", "device_map", "attn_implementation", "quantization", "trust_remote_code")


class Cast:
    """The models of a run, none of them open yet.

    Args:
        context: of the stage.
        student: folder of the trained student.
        facts: `student.json` of the training stage.
        classes: names of the classes, of a classification.
        work: folder of what is needed for a while.

    `notes` is what a reader must know of them; `teacher_unmeasured` why the recipe's teacher is not among them.
    """

    def __init__(
        self, context: Context, student: Path, facts: Mapping[str, Any], classes: tuple[str, ...], work: Path
    ) -> None:
        self._context, self._facts, self._work = context, facts, work
        self._recipe = context.recipe
        self._classes = classes if SPECS[self._recipe.task].has_classes else ()
        self._student = student
        self.notes: list[str] = []
        self.teacher_unmeasured: str | None = None
        self.teacher = self._teacher()
        self.student = self._folder("student", student)

    @cached_property
    def controls(self) -> list[Measured]:
        """`text_only` where training made it, and `untrained`."""
        assert self._recipe.evaluate is not None
        found = []
        if (text_only := self._context.inputs.get("train.text_only")) is not None:
            found.append(self._folder("text_only", text_only.path / "model"))
        if "untrained" in self._recipe.evaluate.controls:
            found.append(self._folder("untrained", self._untrained()))
        return found

    @property
    def _settings(self) -> TeacherSettings | None:
        name = teacher_name(self._recipe)
        return None if name is None else self._recipe.teachers[name]

    @property
    def _leader(self) -> LocalTeacher | None:
        """The teacher whose weights can be opened here, or an ensemble's first member."""
        settings = self._settings
        while isinstance(settings, EnsembleTeacher):
            settings = settings.members[0]
        return settings if isinstance(settings, LocalTeacher) else None

    @property
    def _as_task(self) -> dict[str, Any]:
        """How any of them is opened."""
        asked: dict[str, Any] = {"task": self._recipe.task}
        return asked | ({"labels": list(self._classes)} if self._classes else {})

    def _teacher(self) -> Measured | None:
        """The teacher, unless there is none that the student can be compared with, which is said."""
        settings = self._settings
        if not self._recipe.teachers and not SPECS[self._recipe.task].writes:
            self.notes.append("The recipe has no teacher, so nothing was compared with one.")
            return None
        try:
            if settings is not None and (found := self._measured("teacher", settings)) is not None:
                return found
            why = "the recipe has no teacher whose weights can be opened here"
        except TokenizerMismatch as mismatch:
            if self._was_taught:
                raise  # its distributions were learned from, so they can be compared with: something went wrong
            why = mismatch.what
        missing = "no agreement" if not SPECS[self._recipe.task].has_response else "no KL, no agreement"
        text = f"Nothing was compared with the teacher ({missing}): {why}."
        self._context.work.warn(text)
        self.notes.append(text)
        self.teacher_unmeasured = why if self._recipe.teachers else None
        return None

    @property
    def _was_taught(self) -> bool:
        """Whether the student learned from what the teacher gives (and not from its text alone)."""
        train = self._recipe.train
        return train is not None and any(o.needs().teacher for o in train.all_objectives)

    def _measured(self, name: str, settings: TeacherSettings) -> Measured | None:
        if isinstance(settings, EnsembleTeacher):
            members = [self._measured(f"{name}'s member {i}", part) for i, part in enumerate(settings.members, start=1)]
            if not all(members):
                return None
            return Measured(name, members=tuple(m for m in members if m is not None), average=settings.average)
        if not isinstance(settings, LocalTeacher):
            return None
        source = self._resolve(settings)
        if SPECS[self._recipe.task].reads_text:
            check_same_tokenizer(source.path, self._student)
        self.notes += [f"The teacher: {note}." for note in source.notes]
        return Measured(name, source, {field: getattr(settings, field) for field in _OPENED_WITH} | self._as_task)

    def _resolve(self, settings: LocalTeacher) -> ModelSource:
        return resolve(
            settings.model,
            revision=settings.revision,
            trust_remote_code=settings.trust_remote_code,
            console=self._context.console,
        )

    def _folder(self, name: str, folder: Path) -> Measured:
        """A student or a control, on the teacher's device and with the teacher's kind of attention."""
        trusted = bool(getattr(self._recipe.student, "trust_remote_code", False))
        asked: dict[str, Any] = {"trust_remote_code": trusted} | self._as_task
        if (like := self._leader) is not None:
            asked |= {"device": like.device, "attn_implementation": like.attn_implementation}
            asked["trust_remote_code"] |= like.trust_remote_code
        return Measured(name, ModelSource(folder, name, revision="", digest="", licence=""), asked)

    def _untrained(self) -> Path:
        recipe, leader = self._recipe, self._leader
        try:
            source = None if leader is None else self._resolve(leader)
        except ModelError:
            source = None
        return build_untrained(
            recipe.required_student,
            teacher=source,
            tokenizer_source=None if SPECS[recipe.task].reads_images else self._student,
            seed=recipe.seed,
            facts=self._facts,
            folder=self._work / "untrained",
            console=self._context.console,
            trust_remote_code=leader is not None and leader.trust_remote_code,
            **self._as_task,
        )

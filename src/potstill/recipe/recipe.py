"""The whole recipe: one typed document, a section per stage. A section that is present runs."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from potstill.recipe.base import LONGEST_NAME, KindSettings, Settings, one_of
from potstill.recipe.data import DataSettings, ImageSettings, expand_data
from potstill.recipe.evaluate import EvaluateSettings, ReportSettings
from potstill.recipe.export import ExportSettings
from potstill.recipe.generate import GenerateSettings
from potstill.recipe.students import StudentSettings
from potstill.recipe.tasks import why_not
from potstill.recipe.teachers import TeacherSettings, members_of
from potstill.recipe.train import TrainSettings
from potstill.tasks import Task
from potstill.types import Capability


class Recipe(Settings):
    """A run, described. `task` is what student and teacher are for. `teacher: {…}` is short for `teachers: {main:
    {…}}`. A report is made whenever there is an evaluation; its section only says how."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=LONGEST_NAME)
    seed: int = Field(0, ge=0, lt=2**32)
    task: Task = "causal_lm"
    teachers: dict[str, one_of(TeacherSettings)] = {}  # type: ignore[valid-type]
    student: one_of(StudentSettings) | None = None  # type: ignore[valid-type]
    data: one_of(DataSettings)  # type: ignore[valid-type]
    generate: one_of(GenerateSettings) | None = None  # type: ignore[valid-type]
    train: TrainSettings | None = None
    evaluate: EvaluateSettings | None = None
    report: ReportSettings = ReportSettings()
    export: tuple[one_of(ExportSettings), ...] = ()  # type: ignore[valid-type]

    @property
    def models(self) -> tuple[KindSettings, ...]:
        """The settings of all models that it names: teachers, an ensemble's members in its place, and the student."""
        teachers = tuple(found for teacher in self.teachers.values() for found in members_of(teacher))
        return (*teachers, self.student) if self.student is not None else teachers

    @model_validator(mode="before")
    @classmethod
    def _sugar(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        value = dict(value)
        if "teacher" in value:
            if "teachers" in value:
                raise ValueError("give either teacher or teachers, not both")
            value["teachers"] = {"main": value.pop("teacher")}
        if "data" in value:
            value["data"] = expand_data(value["data"])
        for section in ("train", "evaluate", "report"):
            # `evaluate:` with nothing behind it is an empty section, and present.
            if section in value and value[section] is None:
                value[section] = {}
        return value

    @model_validator(mode="after")
    def _possible(self) -> Recipe:
        if long := next((name for name in self.teachers if len(name) > LONGEST_NAME), None):
            raise ValueError(f"the name of a teacher has at most {LONGEST_NAME} characters, and one has {len(long)}")
        if "" in self.teachers:
            raise ValueError("a teacher has no name: give it one (main, say)")
        for name in (*_asked(self.generate), *_asked(self.train)):
            if name not in self.teachers:
                known = ", ".join(sorted(self.teachers)) or "none"
                raise ValueError(f"teacher {name!r} is not among the teachers ({known}): add it, or name one of them")
        self._teachers_give_what_is_asked()
        if self.generate is not None and self.generate.asks:
            self.generate.check_teachers(self.teachers)
        self._task_allows()
        if self.train is not None and self.student is None:
            raise ValueError("train needs a student: add `student: {kind: from_teacher}`, or drop the train section")
        for stage, needed in (("evaluate", self.evaluate), ("export", self.export)):
            if needed and self.train is None:
                raise ValueError(f"{stage} reads what train makes: add a train section, or drop {stage}")
        if self.evaluate is not None and self.data.held_out == 0:
            raise ValueError("evaluate needs held-out records: set data.held_out above 0 (0.1, say)")
        return self

    def _task_allows(self) -> None:
        """What a task cannot do is refused, with what can."""
        images = isinstance(self.data, ImageSettings)
        if images != (self.task == "image_classification"):
            needed = "image_classification" if images else "data of images (kind: arrays, idx or digits)"
            raise ValueError(f"data of kind {self.data.kind!r} do not go with task {self.task!r}: use {needed}")
        if self.task != "causal_lm" and self.generate is not None:
            raise ValueError(f"generate has a causal language model write, and the task is {self.task!r}: drop it")
        if self.task != "causal_lm" and self.evaluate is not None and self.evaluate.solve is not None:
            raise ValueError(
                f"evaluate.solve has models write answers, and the task is {self.task!r}: drop it, or set task: "
                "causal_lm"
            )
        if self.train is None:
            return
        if self.task != "causal_lm" and self.train.packing:
            raise ValueError("packing is for causal language models: set train.packing: false")
        for objective in self.train.all_objectives:
            if reason := why_not(self.task, objective):
                raise ValueError(reason)
        if self.task == "sentence_embedding" and self.train.controls:
            raise ValueError(
                "text_only learns from the text's next words or classes, and an embedding has none: drop it"
            )

    def _teachers_give_what_is_asked(self) -> None:
        asked: list[tuple[str, str, frozenset[Capability]]] = []
        for name in _asked(self.generate):
            asked.append((f"generate ({getattr(self.generate, 'kind', '')})", name, frozenset({"generate"})))
        if self.train is not None:
            for objective in self.train.all_objectives:
                asked += [
                    (objective.kind, self.train.teacher, one_of_these) for one_of_these in objective.needs().teacher
                ]
        for who, name, alternatives in asked:
            teacher = self.teachers[name]
            if not alternatives & teacher.capabilities:
                gives = ", ".join(sorted(teacher.capabilities)) or "nothing"
                raise ValueError(
                    f"{who} needs {' or '.join(sorted(alternatives))} of its teacher, and a {teacher.kind!r} teacher "
                    f"gives {gives}: use a teacher that runs here (kind: local), or an objective that learns from text "
                    "(hard_ce)"
                )


def _asked(section: GenerateSettings | TrainSettings | None) -> tuple[str, ...]:
    """The names of the teachers that a section asks something of."""
    if isinstance(section, TrainSettings):
        return (section.teacher,) if any(o.needs().teacher for o in section.all_objectives) else ()
    return section.asked if section is not None else ()

"""The files of a recipe: its data, the sizes of its models, its tokenizers. Each is read once, on demand."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from potstill.errors import ModelError, PotstillError, did_you_mean_path
from potstill.models.facts import ModelFacts, facts_of_folder, facts_of_gguf
from potstill.models.folder import ModelSource, check_tokenizer_folder, is_module
from potstill.models.resolve import locate
from potstill.recipe import Existing, FromConfig, Recipe, TeacherSettings, weights_of
from potstill.recipe.data import DataSettings, PackagedData
from potstill.tasks import TaskSpec
from potstill.types import Record, Reject

if TYPE_CHECKING:
    from potstill.data import ChatTokenizer, Sides, TaskReader

T = TypeVar("T")

RECORDS_READ = 2000
"""Maximum number of records that are tokenised, so that a check is quick."""


def is_here(source: DataSettings) -> bool:
    """Whether a source of data can be read without fetching it."""
    from potstill.data.packages import fetched

    return source.kind != "hub" and not (isinstance(source, PackagedData) and not fetched(source.name))


def forbids_the_hub() -> bool:
    """Whether the environment forbids to ask the hub."""
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")


def gguf_file(model: str | None) -> Path | None:
    """The GGUF file that a recipe's model names, if it exists."""
    if model is None or model.startswith("run:"):
        return None
    path = Path(model)
    return path if path.suffix.lower() == ".gguf" and path.is_file() else None


class Inputs:
    """The inputs of a check. Methods raise the PotstillError that a run would raise.

    `figures` collects the numbers behind the findings.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.figures: dict[str, Any] = {}
        self._read: dict[str, Any] = {}

    @property
    def task(self) -> TaskSpec:
        """The task of student and teacher."""
        return self.recipe.spec

    # ---- data ------------------------------------------------------------------------------------------------

    @property
    def sides(self) -> Sides | None:
        """Both sides of the data; None if they would have to be fetched."""
        from potstill.data import read_sides

        data = self.recipe.data
        return self._once("sides", lambda: read_sides(data) if is_here(data) else None)

    def records(self, side: str) -> list[Record]:
        """The records of text on one side (`train`, `held_out`)."""
        examples = getattr(self.sides, side) if self.sides is not None else ()
        return [example for example in examples if isinstance(example, Record)]

    def asked(self) -> tuple[list[Record], Mapping[str, int]]:
        """The training records that are in no evaluation set, and the number of matches with each set."""
        generate = self.recipe.generate
        settings = generate.decontaminate if generate is not None else None
        if settings is None or not all(map(is_here, settings.against.values())):
            return self.records("train"), {}
        from potstill.generate.decontaminating import without_caught

        return self._once("asked", lambda: without_caught(settings, self.records("train")))

    def asked_held_out(self) -> list[Record]:
        """The held-out records that are put to the teacher: without those that keep the answers of the data."""
        from potstill.generate.program import stays_as_given

        section = self.recipe.required_generate
        return [record for record in self.records("held_out") if not stays_as_given(section, record, "held_out")]

    # ---- models ----------------------------------------------------------------------------------------------

    def source(self, settings: object) -> ModelSource | None:
        """The model on disk of a teacher's or student's settings; None if it has none, or it is not ready."""
        model, revision = weights_of(settings), getattr(settings, "revision", None)
        if model is None:
            return None
        return self._once(f"source {model} {revision}", lambda: locate(model, revision))

    def facts(self, settings: object) -> ModelFacts | None:
        """The sizes of a model: of its folder, or of a GGUF file that is not converted yet."""
        source, model = self.source(settings), weights_of(settings)
        if source is not None:
            return self._once(f"facts {source.path}", lambda: facts_of_folder(source.path))
        file = gguf_file(model)
        return self._once(f"facts {file}", lambda: facts_of_gguf(file)) if file is not None else None

    @property
    def teacher(self) -> TeacherSettings | None:
        """The settings of the teacher that training names."""
        train = self.recipe.train
        return self.recipe.teachers.get(train.teacher) if train is not None else None

    @property
    def is_taught(self) -> bool:
        """Whether a training objective reads signals of the teacher."""
        train = self.recipe.train
        return train is not None and any(objective.needs().teacher for objective in train.all_objectives)

    @property
    def student_source(self) -> ModelSource | None:
        """The model on disk that the student starts from, if it is an existing one."""
        student = self.recipe.student
        return self.source(student) if isinstance(student, Existing) else None

    @property
    def own_tokenizer(self) -> Path | None:
        """The folder of the student's own tokenizer; None if it uses the teacher's, or is not on this machine."""
        student = self.recipe.student
        if isinstance(student, FromConfig) and student.tokenizer is not None:
            return check_tokenizer_folder(student.tokenizer, "student.tokenizer")
        source = self.student_source
        return source.path if source is not None and not is_module(source.path) else None

    @property
    def tokenizer(self) -> Path | None:
        """The folder of the student's tokenizer; None if it is not on this machine yet, or the task reads no text."""
        if not self.task.reads_text:
            return None
        student = self.recipe.student
        if (own := self.own_tokenizer) is not None or isinstance(student, Existing):
            return own
        source = self.source(self.teacher)
        return source.path if source is not None and not is_module(source.path) else None

    @property
    def reader(self) -> TaskReader | None:
        """The reader for training rows; None if tokenizer or classes are not known yet."""
        from potstill.data import reader_of

        sides, tokenizer = self.sides, self.tokenizer
        if sides is None or (tokenizer is None and self.task.reads_text) or self.recipe.train is None:
            return None
        return self._once("reader", lambda: reader_of(self.recipe, tokenizer, sides.classes))

    def chat_in(self, folder: Path) -> ChatTokenizer:
        """The tokenizer of a folder, opened once. Raises as `ChatTokenizer.from_folder`."""
        from potstill.data import ChatTokenizer

        return self._once(f"chat {folder}", lambda: ChatTokenizer.from_folder(folder))

    def chat(self, settings: TeacherSettings) -> ChatTokenizer | None:
        """The tokenizer that renders a teacher's prompts; None if it is not on this machine."""
        source = self.source(settings)
        named = getattr(settings, "tokenizer", None)
        if getattr(settings, "remote", False) and named is not None:
            if Path(named).is_dir():  # it need not hold a model
                return self.chat_in(Path(named))
            source = self._once(f"source {named}", lambda: locate(named))
        if source is None or is_module(source.path):
            return None
        return self.chat_in(source.path)

    def student_config(self) -> Mapping[str, Any] | None:
        """The `config.json` of a student `from_config`, as far as it is known without `transformers`: the file's, or
        the teacher's with its changes.

        Raises:
            ModelError: a file that it names is missing or is no JSON.
        """
        student = self.recipe.student
        if not isinstance(student, FromConfig):
            return None
        if isinstance(student.config, Path):
            return self._once("config", lambda: _read_config_file(Path(str(student.config))))
        if "model_type" in student.config:
            return student.config
        facts = self.facts(self.teacher)
        return {**facts.config, **student.config} if facts is not None and not facts.module else None

    @property
    def is_changed_teacher(self) -> bool:
        """Whether the student has the teacher's configuration with some keys changed."""
        student = self.recipe.student
        return (
            isinstance(student, FromConfig) and isinstance(student.config, dict) and "model_type" not in student.config
        )

    # ---- inside ----------------------------------------------------------------------------------------------

    def _once(self, name: str, read: Callable[[], T]) -> T:
        """Read something once; an error is raised again, the same one, on later calls."""
        if name not in self._read:
            try:
                self._read[name] = read()
            except PotstillError as error:
                self._read[name] = error
        found = self._read[name]
        if isinstance(found, PotstillError):
            raise found
        kept: T = found
        return kept


def all_teachers(teachers: Mapping[str, TeacherSettings]) -> Iterator[tuple[str, TeacherSettings]]:
    """Every teacher by name; the members of an ensemble follow it, numbered from 0."""
    for name, teacher in teachers.items():
        yield name, teacher
        members = getattr(teacher, "members", ())
        yield from all_teachers({f"{name}.{number}": member for number, member in enumerate(members)})


def usable_rows(reader: TaskReader, examples: Any) -> Iterator[Any]:
    """The training rows among some examples, one by one."""
    for example in examples:
        for row in reader.rows(example):
            if not isinstance(row, Reject):
                yield row


def _read_config_file(path: Path) -> Mapping[str, Any]:
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise ModelError(
            f"there is no such configuration{did_you_mean_path(file)}",
            where=str(file),
            fix="paths are relative to the recipe",
        )
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"the configuration is no JSON: {error}", where=str(file)) from error
    if not isinstance(config, dict):
        raise ModelError("the configuration is no JSON object", where=str(file))
    return config

"""The inputs of a recipe's training: its records as rows, its student, its teacher."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from potstill.artifacts import Work
from potstill.console import Console
from potstill.data import Example, Sides, check_selection, load_records, read_sides, reader_of, selects
from potstill.data.packages import refuse_evaluation_only
from potstill.data.reader import Row, TaskReader
from potstill.data.refusals import weighted, with_refusals
from potstill.data.tokenize import Tokenized
from potstill.data.twins import near_twins
from potstill.errors import DataError
from potstill.models.folder import ModelSource, check_tokenizer_folder
from potstill.models.load import pick_device
from potstill.models.resolve import resolve
from potstill.models.tokenizers import check_same_tokenizer, check_saved_tokenizer
from potstill.recipe import Existing, FromConfig, Recipe, StudentSettings, TeacherSettings, weights_of
from potstill.registry import build
from potstill.signals import Batch
from potstill.students import BuiltStudent, build_student
from potstill.tasks import SPECS
from potstill.teachers import StoredTeacher, StoredTeachers, Teacher
from potstill.types import Reject

_ROWS_PER_BATCH = 8
_MANY = 0.1
"""A warning is given if at least this share of records is cut."""
_NEAR = 0.1
"""A share of refusals that falls short by more of itself is warned of."""
FEW_CHOOSING = 10
"""A warning is given if fewer held-out groups choose the best weights."""


@dataclass(frozen=True)
class Rows:
    """Both sides of the split, as rows of tokens (or images), and the class names, if any."""

    train: list[Row]
    held_out: list[Row]
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Models:
    """The models of a training on disk: the teacher's folder, and that of the student's tokenizer, each if there is
    one."""

    settings: TeacherSettings | None
    teacher: ModelSource | None
    tokenizer: Path | None
    device: torch.device

    @property
    def trust_remote_code(self) -> bool:
        """Whether the teacher may run its own code."""
        return bool(getattr(self.settings, "trust_remote_code", False))


def find_models(recipe: Recipe, console: Console) -> Models:
    """Find the models of a recipe, and compare their tokenizers.

    Raises:
        ModelError: a model or tokenizer cannot be found or fetched.
        TokenizerMismatch: an objective compares distributions or states, and the tokenizers differ (rule 6), or the
            student's would after saving.
    """
    settings = recipe.teachers.get(recipe.required_train.teacher)
    teacher = _source(settings, console) if settings is not None else None
    own = _own_tokenizer(recipe.required_student, console)
    tokenizer = own or (teacher.path if teacher is not None else None)
    images = SPECS[recipe.task].reads_images
    if tokenizer is None and not images:
        raise DataError(
            "there is no tokenizer: neither student nor teacher is a model on this machine",
            fix="name the folder of one: student.tokenizer of kind from_config",
        )
    taught = any(o.needs().teacher for o in recipe.required_train.all_objectives)
    if own is not None and teacher is not None and taught and not images:
        check_same_tokenizer(teacher.path, own)
    if tokenizer is not None and taught and not images and recipe.evaluate is not None:
        # The student is saved with it and compared with its teacher after training.
        check_saved_tokenizer(tokenizer, bool(getattr(settings, "trust_remote_code", False)))
    use_cpu = bool(recipe.required_train.args.get("use_cpu"))
    device = pick_device("cpu" if use_cpu else getattr(settings, "device", "auto"))
    return Models(settings, teacher, tokenizer if not images else None, device)


def read_rows(recipe: Recipe, generated: Path | None, tokenizer: Path | None, work: Work) -> tuple[TaskReader, Rows]:
    """The recipe's records as rows, and the reader that made them. Rows that are cut or left out are counted.

    Args:
        generated: `records.parquet` of the stage `generate`, if the recipe has one.
        tokenizer: the folder of the student's tokenizer, if the task has one.
        work: takes the counts and warnings.

    Raises:
        DataError: there is nothing to learn from.
    """
    if generated is not None:
        sides = Sides(load_records(generated, side="train"), load_records(generated, side="held_out"))
    else:
        sides = read_sides(recipe.data)
        for reason, amount in sides.counts.items():
            if reason != "read":
                work.count(f"dropped: {reason}", amount)
        for text in sides.warnings:
            work.warn(text)
    twins = near_twins(sides.train, sides.held_out)
    if twins.found:
        work.count("held-out records with a near twin", twins.found)
        work.warn(str(twins))
    reader = reader_of(recipe, tokenizer, sides.classes)
    refuse_evaluation_only(recipe.data, "data.name")
    training = sides.train
    if (mix := recipe.required_train.refusals) is not None:
        training, amount = with_refusals(training, mix)
        work.count("refusals mixed in", amount)
        if amount < (1 - _NEAR) * mix.share * len(training):
            work.warn(f"{amount} refusals are {amount / len(training):.0%} of the records: there are no more prompts")
    train = _read(training, reader, recipe, work, "")
    held_out = _read(_measured(sides, recipe, work), reader, recipe, work, "held-out ")
    if not train:
        reasons = "; ".join(f"{name} {amount}" for name, amount in work.counts.items())
        raise DataError(
            f"there is nothing to learn from ({reasons})" if reasons else "there is nothing to learn from",
            where="data",
            fix="give records with answers, or add a generate section",
        )
    return reader, Rows(train, held_out, tuple(sides.classes))


def _measured(sides: Sides, recipe: Recipe, work: Work) -> Sequence[Example]:
    """The held-out examples that are measured during training: with `keep: best` those of the groups that choose.

    Raises:
        DataError: too few groups to choose by or to report on.
    """
    if not recipe.required_train.keeps_best:
        return sides.held_out
    choosing, reported = check_selection(example.group for example in sides.held_out)
    work.count("held-out groups that choose the best weights", choosing)
    if choosing < FEW_CHOOSING:
        work.warn(
            f"the best weights were chosen on {choosing} held-out groups ({reported} are left to report on): with so "
            "few, the choice is mostly noise"
        )
    return [example for example in sides.held_out if selects(example.group)]


def make_student(
    recipe: Recipe, models: Models, reader: TaskReader, rows: Rows, console: Console, pruned: Path | None = None
) -> BuiltStudent:
    """The student before its first step. `pruned` is the artifact of the stage `train.pruned`. Raises as
    `build_student`."""
    return build_student(
        recipe.required_student,
        teacher=models.teacher,
        tokenizer_source=models.tokenizer,
        seed=recipe.seed,
        influence_batches=partial(row_batches, rows.train, reader),
        console=console,
        trust_remote_code=models.trust_remote_code,
        task=recipe.task,
        labels=rows.classes or None,
        pruned=pruned,
    )


def make_teacher(models: Models, stores: Sequence[Path] = ()) -> Teacher | None:
    """The recipe's teacher, on the training device unless it names its own; or stored signals, if it was captured, of
    several teachers their mean."""
    if stores:
        return StoredTeacher(stores[0]) if len(stores) == 1 else StoredTeachers(stores)
    if models.settings is None:
        return None
    settings = models.settings
    if getattr(settings, "device", None) == "auto":
        settings = settings.model_copy(update={"device": str(models.device)})
    teacher: Teacher = build(settings)
    return teacher


def _own_tokenizer(student: StudentSettings, console: Console) -> Path | None:
    """The folder of the student's own tokenizer; None if it uses the teacher's."""
    if isinstance(student, FromConfig) and student.tokenizer is not None:
        return check_tokenizer_folder(student.tokenizer, "student.tokenizer")
    source = _source(student, console) if isinstance(student, Existing) else None
    return source.path if source is not None else None


def _source(settings: object, console: Console) -> ModelSource | None:
    model = weights_of(settings)
    if model is None:
        return None
    remote = bool(getattr(settings, "trust_remote_code", False))
    return resolve(model, revision=getattr(settings, "revision", None), trust_remote_code=remote, console=console)


def _read(items: Sequence[Any], reader: TaskReader, recipe: Recipe, work: Work, which: str) -> list[Row]:
    rows: list[Row] = []
    emphasis = None if which else recipe.required_train.refusal_weight
    for item in items:
        for row in reader.rows(item):
            if isinstance(row, Reject):
                work.count(f"{which}dropped: {row.reason}")
                continue
            if emphasis is not None and isinstance(row, Tokenized):
                row = weighted(row, item, emphasis)
            rows.append(row)
            if note := getattr(row, "note", ""):
                work.warn(note)
    work.count(f"{which}records", len(rows))
    if cut := sum(bool(getattr(row, "cut", False)) for row in rows):
        work.count(f"{which}cut at {recipe.required_train.max_length} tokens", cut)
        if cut > _MANY * len(rows):
            work.warn(
                f"{cut:,} of {len(rows):,} {which}records are cut at {recipe.required_train.max_length} tokens: what "
                "they end with is not learned (raise train.max_length)"
            )
    return rows


def row_batches(rows: Sequence[Row], reader: TaskReader) -> Iterable[Batch]:
    """The rows in order, in small batches."""
    collate = reader.collator()
    for start in range(0, len(rows), _ROWS_PER_BATCH):
        yield Batch.from_inputs(collate(rows[start : start + _ROWS_PER_BATCH]))

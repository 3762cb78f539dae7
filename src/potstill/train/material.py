"""What a recipe trains on and with: its records as rows, its student, its teacher."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from potstill.artifacts import Work
from potstill.console import Console
from potstill.data import ChatTokenizer, Tokenized, load_records, read_records, side_of, tokenize
from potstill.data.collate import Collator
from potstill.errors import DataError
from potstill.models.folder import ModelSource
from potstill.models.load import pick_device
from potstill.models.resolve import resolve
from potstill.models.tokenizers import check_same_tokenizer
from potstill.recipe import Existing, Recipe, TeacherSettings
from potstill.registry import build
from potstill.signals import Batch
from potstill.students import BuiltStudent, build_student
from potstill.teachers import Teacher
from potstill.types import Record, Reject

_ROWS_PER_BATCH = 8


@dataclass(frozen=True)
class Rows:
    """Both sides of the split, as rows of tokens."""

    train: list[Tokenized]
    held_out: list[Tokenized]


@dataclass(frozen=True)
class Models:
    """Where the models of a training are: the teacher's folder, if it has one, and that of the student's tokenizer."""

    settings: TeacherSettings | None
    teacher: ModelSource | None
    tokenizer: Path
    device: torch.device

    @property
    def trust_remote_code(self) -> bool:
        """Whether the teacher may run code of its own."""
        return bool(getattr(self.settings, "trust_remote_code", False))


def find_models(recipe: Recipe, console: Console) -> Models:
    """Find the models of a recipe, and hold their tokenizers against each other.

    Raises:
        ModelError: one cannot be found or fetched.
        TokenizerMismatch: an objective compares distributions or states, and the tokens are not the same (rule 6).
    """
    assert recipe.train is not None and recipe.student is not None
    settings = recipe.teachers.get(recipe.train.teacher)
    teacher = _source(settings, console) if settings is not None else None
    student = _source(recipe.student, console) if isinstance(recipe.student, Existing) else None
    source = student or teacher
    if source is None:
        raise DataError("there is no tokenizer: neither student nor teacher is a model on this machine")
    if student is not None and teacher is not None and any(o.needs().teacher for o in recipe.train.all_objectives):
        check_same_tokenizer(teacher.path, student.path)
    use_cpu = bool(recipe.train.args.get("use_cpu"))
    device = pick_device("cpu" if use_cpu else getattr(settings, "device", "auto"))
    return Models(settings, teacher, source.path, device)


def read_rows(recipe: Recipe, generated: Path | None, chat: ChatTokenizer, work: Work) -> Rows:
    """The recipe's records, tokenised. What is cut or left out is counted.

    Args:
        generated: `records.parquet` of the stage `generate`, if the recipe has one.
        work: takes the counts and warnings.

    Raises:
        DataError: there is nothing to learn from.
    """
    assert recipe.train is not None
    if generated is not None:
        sides = {side: load_records(generated, side=side) for side in ("train", "held_out")}
    else:
        read = read_records(recipe.data)
        for reason, amount in read.counts.items():
            if reason != "read":
                work.count(f"dropped: {reason}", amount)
        sides = {"train": [], "held_out": []}
        for record in read.records:
            sides[side_of(record, recipe.data)].append(record)
    length = recipe.train.max_length
    train = _tokenised(sides["train"], chat, length, work, "")
    held_out = _tokenised(sides["held_out"], chat, length, work, "held-out ")
    if not train:
        reasons = "; ".join(f"{name} {amount}" for name, amount in work.counts.items())
        raise DataError(
            f"there is nothing to learn from ({reasons})" if reasons else "there is nothing to learn from",
            where="data",
            mend="give records with answers, or add a generate section",
        )
    return Rows(train, held_out)


def make_student(recipe: Recipe, models: Models, rows: Sequence[Tokenized], console: Console) -> BuiltStudent:
    """The student before its first step. Raises as `build_student`."""
    assert recipe.student is not None
    pad_id = ChatTokenizer.from_folder(models.tokenizer).pad_id
    return build_student(
        recipe.student,
        teacher=models.teacher,
        tokenizer_source=models.tokenizer,
        seed=recipe.seed,
        influence_batches=partial(_batches, rows, pad_id),
        console=console,
        trust_remote_code=models.trust_remote_code,
    )


def make_teacher(models: Models) -> Teacher | None:
    """The recipe's teacher, on the device of training unless it names its own."""
    if models.settings is None:
        return None
    settings = models.settings
    if getattr(settings, "device", None) == "auto":
        settings = settings.model_copy(update={"device": str(models.device)})
    teacher: Teacher = build(settings)
    return teacher


def _source(settings: object, console: Console) -> ModelSource | None:
    model = getattr(settings, "model", None)
    if model is None:
        return None
    remote = bool(getattr(settings, "trust_remote_code", False))
    return resolve(model, revision=getattr(settings, "revision", None), trust_remote_code=remote, console=console)


def _tokenised(
    records: Sequence[Record], chat: ChatTokenizer, max_length: int, work: Work, which: str
) -> list[Tokenized]:
    rows = []
    for record in records:
        row = tokenize(record, chat, max_length)
        if isinstance(row, Reject):
            work.count(f"{which}dropped: {row.reason}")
            continue
        rows.append(row)
        if row.note:
            work.warn(row.note)
    work.count(f"{which}records", len(rows))
    if cut := sum(row.cut for row in rows):
        work.count(f"{which}cut at {max_length} tokens", cut)
    return rows


def _batches(rows: Sequence[Tokenized], pad_id: int) -> Iterable[Batch]:
    collate = Collator(pad_id)
    for start in range(0, len(rows), _ROWS_PER_BATCH):
        yield Batch.from_inputs(collate(rows[start : start + _ROWS_PER_BATCH]))

"""The questions that measures put to models, as their data tell. No torch: `potstill check` reads them by the same
functions before anything is trained.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from potstill.data import ChatTokenizer, read_records
from potstill.data.problems import admit, with_reference
from potstill.data.refusals import prompts_of
from potstill.data.tokenize import ids_of
from potstill.errors import DataError
from potstill.quantities import counted
from potstill.recipe import DataSettings
from potstill.recipe.evaluate import SolveSettings
from potstill.recipe.measures import Capability, ChoiceTask, MeasureSettings, Safety, WrittenTask
from potstill.types import Record, Reject, digest
from potstill.verify.preconditions import refuse_unjudgeable
from potstill.verify.refusal import refuses

Count = Callable[[str, int], None]
"""Takes the name of a count, and an amount to add."""

SOLVE = "evaluate.solve"
"""The key of a recipe for problems from its own data."""


def questions_in(
    measure: MeasureSettings, chat: Callable[[], ChatTokenizer | None]
) -> Iterator[tuple[DataSettings, Callable[[], object]]]:
    """Each source of a measure's questions, and the function that reads it and raises what an evaluation would.

    Args:
        measure: settings of a measure; most have no source of their own.
        chat: opens the student's tokenizer, which few sources need; None before it is on this machine.
    """
    if isinstance(measure, Capability):
        for task in measure.tasks:
            yield task.data, partial(choices_in, task)
        for written in measure.written:
            yield written.data, partial(_read_problems, written, chat)
    if isinstance(measure, Safety):
        yield measure.harmful, partial(safety_prompts, measure, "harmful")
        yield measure.harmless, partial(safety_prompts, measure, "harmless")
        if measure.labels is not None:
            yield measure.labels, partial(judged_answers, measure.labels)


# ---- multiple choice -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choices:
    """A record of multiple choice: the texts of its choices, and the number of the right one."""

    record: Record
    texts: tuple[str, ...]
    right: int


def choices_in(task: ChoiceTask) -> list[Choices]:
    """The questions of a task, of more than `limit` those of the smallest hashes.

    Raises:
        DataError: as `read_records` and `choices_of`, or there are fewer than two groups.
        MissingExtra, ModelError: the source needs a package that is missing, or cannot be fetched.
    """
    where = f"evaluate.measures capability.tasks {task.name}"
    records = read_records(task.data).records
    if task.limit is not None:
        records = sorted(records, key=lambda record: digest([record.group, record.id]))[: task.limit]
    made = []
    for record in records:
        texts, right = choices_of(record, where)
        made.append(Choices(record, tuple(texts), right))
    if len({question.record.group for question in made}) < 2:
        raise DataError("an interval needs two questions at least", where=where, fix="give more questions")
    return made


def choices_of(record: Record, where: str) -> tuple[list[str], int]:
    """The choices of a record, and the number of the right one.

    Raises:
        DataError: it has none, or the reference is not among them.
    """
    choices = record.metadata.get("choices")
    reference = record.metadata.get("reference")
    if record.prompt is None or not isinstance(choices, Sequence) or isinstance(choices, str) or len(choices) < 2:
        raise DataError(
            f"row {record.row} is no question with choices",
            where=where,
            fix="give records with prompt, choices (a list) and reference",
        )
    texts, stated = [str(choice) for choice in choices], str(reference).strip()
    if not all(text.strip() for text in texts):
        raise DataError(
            f"a choice of row {record.row} is empty, and has no probability",
            where=where,
            fix="give each choice a text, or leave the row out",
        )
    if stated in texts:
        return texts, texts.index(stated)
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(texts)]
    if len(stated) == 1 and stated.upper() in letters:
        return texts, letters.index(stated.upper())
    if stated.isdecimal() and int(stated) < len(texts):
        return texts, int(stated)
    raise DataError(
        f"the reference of row {record.row}, {stated[:40]!r}, is none of its choices",
        where=where,
        fix="give the text of the right choice, its letter, or its number from 0",
    )


# ---- written answers -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """A held-out problem: the id of its record in the data, its prompt with the reference answer in the metadata, and
    the token ids that models are given."""

    id: str
    record: Record
    ids: tuple[int, ...]

    @property
    def text(self) -> str:
        """The text of the last turn."""
        messages = self.record.messages
        return str(messages[-1].get("content")) if messages else str(self.record.prompt)


def task_problems(task: WrittenTask, chat: ChatTokenizer | None, count: Count) -> list[Problem]:
    """The problems of a task from its own data. Raises as `read_records` and `problems_of`."""
    records = [record for record in read_records(task.data).records if isinstance(record, Record)]
    return problems_of(records, task, chat, count, f"evaluate.measures capability.written {task.name}")


def _read_problems(task: WrittenTask, chat: Callable[[], ChatTokenizer | None]) -> object:
    return task_problems(task, chat(), lambda name, amount: None)


def problems_of(
    records: Sequence[Record],
    settings: SolveSettings | WrittenTask,
    chat: ChatTokenizer | None,
    count: Count,
    where: str,
) -> list[Problem]:
    """The problems among some records, in order, without repeated prompts.

    Args:
        records: prompts.
        settings: the metadata key of the reference answer, and the maximum number of problems. Those with the smallest
            hashes are taken, independent of order and seed.
        chat: the student's tokenizer; None before it is on this machine: then prompts are not rendered.
        count: takes the records that are left out, by reason.
        where: the key of the recipe, for errors.

    Raises:
        DataError: there is no problem, none has a reference that the verifier can compare with, prompts are messages
            and there is no chat template, or there are fewer than two groups.
    """
    left_out: Counter[str] = Counter()
    seen: set[int] = set()
    problems = []

    def rendered(prompt: Record) -> tuple[int, ...]:
        return () if chat is None else tuple(ids_of(prompt, chat))

    for record in records:
        admitted = admit(record, chat is None or chat.template is not None, seen, lambda prompt: len(rendered(prompt)))
        if isinstance(admitted, Reject):
            left_out[admitted.reason] += 1
            continue
        prompt = with_reference(admitted.prompt, record, settings.reference)
        problems.append(Problem(record.id, prompt, rendered(prompt)))
    for reason, amount in left_out.items():
        count(f"no problem: {reason}", amount)
    if not problems:
        reasons = "; ".join(f"{reason} {amount}" for reason, amount in left_out.items())
        raise DataError(
            f"no record is a problem ({reasons})" if reasons else "there are no records",
            where=where,
            fix="give data with prompts; of the recipe’s own data, hold out a larger share (data.held_out)",
        )
    called = counted(len(problems), "problem")
    refuse_unjudgeable(settings.verify, [problem.record for problem in problems], called=called, where=where)
    if settings.limit is not None and settings.limit < len(problems):
        count(f"problems beyond {where}.limit", len(problems) - settings.limit)
        first = sorted(range(len(problems)), key=lambda i: digest([problems[i].id]))[: settings.limit]
        problems = [problems[i] for i in sorted(first)]
    count("problems" if where == SOLVE else f"problems of {where.rpartition(' ')[2]}", len(problems))
    if len({problem.record.group for problem in problems}) < 2:
        raise DataError(
            "an interval needs two problems at least, of two groups",
            where=where,
            fix="give more problems, hold out a larger share, or raise limit",
        )
    return problems


# ---- refusals ------------------------------------------------------------------------------------------------------


def safety_prompts(settings: Safety, side: Literal["harmful", "harmless"]) -> list[Record]:
    """The measured half of one set; of more than `limit`, those of the smallest hashes.

    Raises:
        DataError: as `prompts_of`, or there are fewer than two groups.
        MissingExtra, ModelError: the source needs a package that is missing, or cannot be fetched.
    """
    source: DataSettings = settings.harmful if side == "harmful" else settings.harmless
    records = sorted(prompts_of(source, "measured"), key=lambda r: digest([r.group, r.id]))[: settings.limit]
    if len({record.group for record in records}) < 2:
        raise DataError(
            "an interval needs two prompts at least",
            where=f"evaluate.measures safety.{side}",
            fix="give a larger set, or raise its limit",
        )
    return records


def judged_answers(labels: DataSettings) -> Counter[tuple[bool, bool]]:
    """Counts of labelled answers: whether people judged one a refusal, and whether the matcher does. They are records
    with `response` and `judged` (`refusal`, or another word) in their metadata.

    Raises:
        DataError: refusals or other answers are missing.
    """
    judged: Counter[tuple[bool, bool]] = Counter()
    for record in read_records(labels).records:
        if {"response", "judged"} <= set(record.metadata):
            judged[record.metadata["judged"] == "refusal", refuses(str(record.metadata["response"]))] += 1
    if len({refusal for refusal, _ in judged}) < 2:
        raise DataError(
            "the labelled answers hold no refusals, or nothing else",
            where="evaluate.measures safety.labels",
            fix="give labelled answers of both kinds, or labels: null",
        )
    return judged

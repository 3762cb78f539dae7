"""The stage `generate`: from prompts to records with the teacher's answers. No torch until it works."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from potstill import registry
from potstill.artifacts import Work
from potstill.data.split import Side
from potstill.errors import CapabilityError, DataError
from potstill.generate.budget import TokenBudget
from potstill.generate.journal import FILE_NAME, Journal
from potstill.generate.journaled import JournaledTeacher
from potstill.generate.program import Program, Written
from potstill.recipe import LocalTeacher, Recipe
from potstill.stage import Context, Stage
from potstill.types import Record

if TYPE_CHECKING:
    from potstill.teachers.base import Teacher

CONTRACT = 1


def stage(recipe: Recipe) -> Stage:
    """The stage of a recipe that has a `generate` section.

    Its artifact holds `records.parquet` (both sides of the split, column `side`) and `rejects.jsonl`.
    """
    assert recipe.generate is not None
    settings = {
        "data": recipe.data.key_fields(),
        "teacher": recipe.teachers[recipe.generate.teacher].key_fields(),
        "generate": recipe.generate.key_fields(),
    }
    return Stage("generate", CONTRACT, (), settings, partial(_sources, recipe), _write)


def _sources(recipe: Recipe) -> Mapping[str, str]:
    """Digests of the data, and of the teacher's weights where it has some."""
    from potstill.data import source_digests
    from potstill.models.resolve import locate

    digests = dict(source_digests(recipe.data))
    assert recipe.generate is not None
    teacher = recipe.teachers[recipe.generate.teacher]
    if isinstance(teacher, LocalTeacher) and (source := locate(teacher.model, teacher.revision)) is not None:
        digests["teacher"] = source.digest
    return digests


def _write(context: Context) -> None:
    """Read, ask, save."""
    from potstill.data import ChatTokenizer, read_records, save_records, save_rejects, side_of

    recipe, work, console = context.recipe, context.work, context.console
    assert recipe.generate is not None
    program: Program = registry.build(recipe.generate)
    teacher: Teacher = registry.build(recipe.teachers[recipe.generate.teacher])
    if "generate" not in teacher.capabilities:
        raise CapabilityError(
            f"the teacher {recipe.generate.teacher!r} cannot generate",
            where="generate.teacher",
            mend="name a teacher that can, or drop the generate section and train on data that has answers",
        )

    read = read_records(recipe.data)
    for name, amount in read.counts.items():
        work.count("rows read" if name == "read" else f"rejected: {name}", amount)
    chat = ChatTokenizer.from_transformers(teacher.tokenizer)

    def side(record: Record) -> Side:
        return side_of(record, recipe.data)

    with Journal(context.run / FILE_NAME) as journal:
        budget = TokenBudget(getattr(recipe.generate, "token_budget", None))
        journaled = JournaledTeacher(teacher, journal, budget=budget, seed=recipe.seed, console=console)
        written = program.write(
            read.records,
            journaled,
            side_of=side,
            chat=chat,
            # Not every teacher knows it (an endpoint may not say).
            context_length=getattr(teacher, "context_length", None),
            work=work,
        )
    work.facts.update(journaled.facts() | {"teacher": dict(teacher.identity)})
    _warn(work, written, side, recipe)

    save_records(context.out / "records.parquet", written.records, recipe.data)
    save_rejects(context.out / "rejects.jsonl", [*read.rejects, *written.rejects])


def _warn(work: Work, written: Written, side: Callable[[Record], Side], recipe: Recipe) -> None:
    """Say what a person should know of the outcome.

    Raises:
        DataError: no answer was kept at all.
    """
    if not written.records:
        reasons = sorted({reject.reason for reject in written.rejects})
        raise DataError(
            f"no answer was kept ({', '.join(reasons) or 'there was no prompt'})",
            where="generate",
            mend="look at rejects in the data, raise max_new_tokens or token_budget, or set keep_unfinished: true",
        )
    over = sum(reject.reason == "token budget" for reject in written.rejects)
    if over:
        work.warn(f"{over} answers were not asked for: the token budget was used up")
    on = [side(record) for record in written.records]
    work.count("training records", on.count("train"))
    work.count("held-out records", on.count("held_out"))
    if "train" not in on or ("held_out" not in on and recipe.data.held_out > 0):
        work.warn(f"no {'held-out' if 'train' in on else 'training'} prompt was answered")

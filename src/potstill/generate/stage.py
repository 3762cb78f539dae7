"""The stage `generate`: from prompts to records with the teacher's answers. No torch at import."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from potstill import registry
from potstill.answering.base import Answering, NoTeacher
from potstill.answering.journal import FILE_NAME, Journal
from potstill.answering.opening import open_teachers
from potstill.artifacts import Work
from potstill.console import Console
from potstill.errors import DataError
from potstill.generate.program import Program, SideOfRecord, stays_as_given
from potstill.recipe import EndpointTeacher, Recipe, members_of
from potstill.recipe.generate import GenerateSettings, VerifiedSettings
from potstill.stage import Context, Stage
from potstill.types import Reason, Record, Reject

if TYPE_CHECKING:
    from potstill.generate.card import Statistics

CONTRACT = 2
MANY_CUT = 0.2
"""A warning is given if at least this share of answers was cut short."""


def stage(recipe: Recipe) -> Stage:
    """The stage of a recipe that has a `generate` section.

    Its artifact holds `records.parquet` (both sides of the split, column `side`), `rejects.jsonl`, and a dataset card,
    `README.md`; also `records.jsonl` if the section says so.
    """
    section = recipe.required_generate
    settings = {"data": recipe.data.key_fields(), "generate": section.key_fields()}
    for name in section.asked:
        settings[_role(section, name)] = recipe.teachers[name].key_fields()
    return Stage("generate", CONTRACT, (), settings, partial(_sources, recipe), _write)


def _sources(recipe: Recipe) -> Mapping[str, str]:
    """Digests of the data, of the evaluation sets, and of the teachers' weights if they have any."""
    from potstill.data import source_digests
    from potstill.models import locate, model_digests

    section = recipe.required_generate
    digests = dict(source_digests(recipe.data))
    if section.decontaminate is not None:
        from potstill.generate.decontaminating import set_digests

        digests |= set_digests(section.decontaminate)
    tokenizer = getattr(section, "tokenizer", None)
    if tokenizer is not None and (source := locate(tokenizer)) is not None:
        digests["tokenizer"] = source.digest
    for name in section.asked:
        teacher, role = recipe.teachers[name], _role(section, name)
        digests |= model_digests(role, members_of(teacher))
        if isinstance(teacher, EndpointTeacher) and teacher.tokenizer is not None:
            digests[role] = registry.build(teacher).identity["template"]
    return digests


def _role(section: GenerateSettings, name: str) -> str:
    """The name of a teacher in the stage's key."""
    return "teacher" if name == section.teacher else f"judge {name}"


def _write(context: Context) -> None:
    """Read, generate and save concurrently."""
    from potstill.data.read import split_of
    from potstill.data.store import RecordWriter
    from potstill.generate.card import Statistics, write_card

    recipe, work = context.recipe, context.work
    section = recipe.required_generate
    program = open_program(recipe)
    statistics = Statistics()
    split = split_of(recipe.data)
    rejects = context.out / "rejects.jsonl"
    with Journal(context.run / FILE_NAME) as journal:
        with open_answering(recipe, journal, scope=work.path.name, console=context.console) as answering:
            with (
                RecordWriter(context.out / "records.parquet", split, jsonl=section.jsonl) as records,
                rejects.open("w", encoding="utf-8") as ledger,
            ):
                rows = asked_rows(read_counted(recipe, work), recipe, split.side_of)
                written = program.write(rows, answering, side_of=split.side_of, work=work)
                for item in chain(written, _given(recipe, split.side_of, work)):
                    if isinstance(item, Record):
                        records.add(item)
                        statistics.add(item, split.side_of(item))
                    else:
                        ledger.write(json.dumps(asdict(item)) + "\n")
                        statistics.reject(item)
        work.facts.update(_facts(answering))
        if answering.judges:
            work.facts["judges"] = {name: _facts(judge) for name, judge in answering.judges.items()}
    _conclude(work, statistics, recipe)
    write_card(context.out / "README.md", recipe, work, statistics)


def _facts(answering: Answering) -> dict[str, Any]:
    return answering.facts() | {"teacher": dict(answering.identity)}


def open_program(recipe: Recipe) -> Program:
    """The section's program, with verification and decontamination if the section has them."""
    settings = recipe.required_generate
    program: Program = registry.build(settings)
    if isinstance(settings, VerifiedSettings) and settings.verify is not None:
        from potstill.generate.verifying import Verifying

        program = Verifying(program, settings, settings.verify)
    if settings.decontaminate is None:
        return program
    from potstill.generate.decontaminating import Decontaminating

    return Decontaminating(program, settings.decontaminate, asks=settings.asks)


def open_answering(
    recipe: Recipe, journal: Journal, *, scope: str, console: Console, judges: bool = True
) -> AbstractContextManager[Answering]:
    """The `Answering` of the section's teacher, and (in its `judges`, unless disabled) of those that only judge: all
    within one budget. Raises as `open_teachers`."""
    settings = recipe.required_generate
    if not settings.asks:
        return NoTeacher()
    return open_teachers(
        recipe,
        settings.asked if judges else settings.asked[:1],
        journal,
        budget=settings.budget,
        token_budget=getattr(settings, "token_budget", None),
        batch_size=getattr(settings, "batch_size", 32),
        scope=scope,
        where=lambda name: "generate.teacher" if name == settings.teacher else "generate.verify",
        console=console,
    )


def read_counted(recipe: Recipe, work: Work) -> Iterator[Record | Reject]:
    """The rows of the recipe's data, counted as they are read."""
    from potstill.data.read import stream_records

    for item in stream_records(recipe.data):
        work.count("rows read")
        yield item


def asked_rows(rows: Iterable[Record | Reject], recipe: Recipe, side_of: SideOfRecord) -> Iterator[Record | Reject]:
    """The rows without the held-out records that keep the answers of the data."""
    section = recipe.required_generate
    return (row for row in rows if isinstance(row, Reject) or not stays_as_given(section, row, side_of(row)))


def _given(recipe: Recipe, side_of: SideOfRecord, work: Work) -> Iterator[Record]:
    """The held-out records that keep the answers of the data, read anew: their place in the file must not depend on
    when others are answered."""
    from potstill.data.read import stream_records

    section = recipe.required_generate
    if getattr(section, "held_out", None) is None:
        return
    for row in stream_records(recipe.data):
        if isinstance(row, Record) and stays_as_given(section, row, side_of(row)):
            work.count("held-out records as given")
            yield row


def _conclude(work: Work, statistics: Statistics, recipe: Recipe) -> None:
    """Counts and warnings at the end.

    Raises:
        DataError: no answer was kept.
    """
    section, rejected = recipe.required_generate, statistics.rejected
    if not statistics.kept:
        raise DataError(
            f"no answer was kept ({', '.join(sorted(rejected)) or 'there was no prompt'})",
            where="generate",
            fix=advice(section, rejected),
        )
    work.count("answers kept", statistics.kept)
    if statistics.unfinished:
        work.count("kept, but cut short", statistics.unfinished)
    for reason, amount in sorted(rejected.items()):
        work.count(f"rejected: {reason}", amount)
    for budget in filter(lambda reason: reason.is_budget, Reason):
        if over := rejected[budget]:
            work.warn(f"{over} answers were not asked for: the {budget} was used up")
    answers, cut = work.facts.get("answers", 0), work.facts.get("cut_short", 0)
    if cut and cut >= MANY_CUT * answers:
        most = getattr(section, "max_new_tokens", 0)
        fix = advice(section, Counter({Reason.UNFINISHED: cut}))
        work.warn(f"{cut} of {answers} answers were cut short at max_new_tokens ({most}): {fix}")
    further, equal = (work.facts.get(name, 0) for name in ("further_samples", "equal_to_the_first"))
    if further >= 3 and equal >= 0.9 * further:
        work.warn(f"{equal} of {further} further samples say what the first does: the server seems not to draw")
    train, held_out = statistics.sides["train"], statistics.sides["held_out"]
    work.count("training records", train)
    work.count("held-out records", held_out)
    if not train or (not held_out and recipe.data.held_out):
        work.warn(f"no {'held-out' if train else 'training'} prompt was answered")


def advice(section: GenerateSettings, rejected: Mapping[str, int]) -> str:
    """What to change so that more is kept: keys that the section has, by the reasons of the rejects."""
    reasons = [reason for reason in Reason if reason in rejected]
    fixes = []
    if any(reason.is_cut for reason in reasons) and hasattr(section, "max_new_tokens"):
        keeps = getattr(section, "keep_unfinished", True)
        fixes.append("raise generate.max_new_tokens" + ("" if keeps else ", or set generate.keep_unfinished: true"))
    for reason in filter(lambda reason: reason.is_budget, reasons):
        own = reason is Reason.TOKEN_BUDGET and getattr(section, "token_budget", None) is not None
        fixes.append(f"raise generate.{'token_budget' if own else _BUDGET_KEYS[reason]}")
    if {Reason.REJECTED, Reason.WRONG, Reason.UNJUDGED} & set(reasons) and hasattr(section, "verify"):
        fixes.append("see what generate.verify says of the answers (the verdicts are in the preview)")
    if Reason.NO_PROMPT in rejected:
        fixes.append("data.format: prompt reads a column as prompts, not as texts (data.columns names it)")
    fixes.append("`potstill generate RECIPE --preview 5` shows prompts and answers")
    return "; ".join(fixes)


_BUDGET_KEYS = {
    Reason.TOKEN_BUDGET: "budget.tokens",
    Reason.REQUEST_BUDGET: "budget.requests",
    Reason.MONEY_BUDGET: "budget.money",
}

"""Preconditions on data: they can be read, and both sides hold something that the stages can use."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from potstill.check.findings import Finding, facts, warning
from potstill.check.inputs import RECORDS_READ, Inputs, forbids_the_hub, is_here, usable_rows
from potstill.data.problems import as_prompt
from potstill.data.twins import near_twins
from potstill.errors import DataError
from potstill.models.facts import size_in
from potstill.quantities import counted
from potstill.recipe import Existing, FromConfig
from potstill.recipe.data import HubData
from potstill.types import Record, Reject

_NAMES_SHOWN = 20
_MUCH = 0.1
"""A warning is given if at least this share of records is cut, or left out."""


def data_may_train(inputs: Inputs) -> None:
    """A set that is for evaluation only is not trained on."""
    if inputs.recipe.train is not None:
        from potstill.data.packages import refuse_evaluation_only

        refuse_evaluation_only(inputs.recipe.data, "data.name")


def data_are_read(inputs: Inputs) -> Iterator[Finding]:
    """The source exists, is well formed and is not empty; the number of records on each side."""
    sides, recipe = inputs.sides, inputs.recipe
    if sides is None:
        may_be_fetched(recipe.data, "data")
        name = getattr(recipe.data, "name", None) or getattr(recipe.data, "id", recipe.data.kind)
        yield Finding("data", f"{name}: will be fetched, and is not looked at before")
        return
    train, held_out = len(sides.train), len(sides.held_out)
    inputs.figures |= {"records": train + held_out, "train": train, "held_out": held_out}
    yield Finding("data", f"{train + held_out:,} records: {train:,} to train on, {held_out:,} held out")
    if sides.classes:
        yield Finding("data", f"{counted(len(sides.classes), 'class', 'classes')}: {_shortened(sides.classes)}")
    for text in sides.warnings:
        yield warning("data", text)
    yield from facts(
        "data", [f"{count:,} dropped: {reason}" for reason, count in sorted(sides.counts.items()) if reason != "read"]
    )
    if sides.read is not None and sides.read.unused_columns:
        yield Finding("data", f"columns that are not used: {', '.join(sides.read.unused_columns)}")


def may_be_fetched(data: object, where: str) -> None:
    """Raise DataError for a data set of the hub, which the key `where` names, if the environment forbids to ask it."""
    if isinstance(data, HubData) and forbids_the_hub() and re.fullmatch(r"[0-9a-f]{40}", data.revision or "") is None:
        raise DataError(
            f"HF_HUB_OFFLINE forbids to ask the hub for {data.id}",
            where=where,
            fix="unset HF_HUB_OFFLINE, name a cached commit as its revision, or give files",
        )


def training_side_is_not_empty(inputs: Inputs) -> None:
    """The split leaves records to train on."""
    if inputs.sides is not None and not inputs.sides.train:
        raise DataError(
            f"no record is left to train on: all {len(inputs.sides.held_out):,} are held out",
            where="data.held_out",
            fix="lower data.held_out, or give more records",
        )


def sides_have_no_twins(inputs: Inputs) -> Iterator[Finding]:
    """Held-out prompts do not occur, in nearly the same words, on the training side."""
    if inputs.sides is not None and (twins := near_twins(inputs.sides.train, inputs.sides.held_out)).found:
        inputs.figures["held_out_with_near_twins"] = twins.found
        yield warning("data", str(twins))


def intervals_have_two_groups(inputs: Inputs) -> None:
    """An evaluation has at least two held-out groups: a bootstrap interval needs them."""
    sides = inputs.sides
    if inputs.recipe.evaluate is None or sides is None:
        return
    if len({example.group for example in sides.held_out}) < 2:
        raise DataError(
            "fewer than two groups of records are held out, and an interval needs two",
            where="data.held_out",
            fix="raise it, or give more records (of one question all are one group: data.group_by)",
        )


def rows_can_be_made(inputs: Inputs) -> None:
    """Records can be turned into training rows: the tokenizer renders what they must be rendered with."""
    _ = inputs.reader  # making it raises


def rows_can_be_learned(inputs: Inputs) -> Iterator[Finding]:
    """Without `generate`, the student learns from the records themselves: some on each side must have an answer, and
    fit `max_length`."""
    recipe, sides = inputs.recipe, inputs.sides
    if recipe.train is None or recipe.generate is not None or sides is None:
        return
    records = [*sides.train, *sides.held_out]
    if all(isinstance(record, Record) and record.is_prompt for record in records):
        raise DataError(
            "the data are prompts without answers, and nothing answers them",
            where="data",
            fix="add a generate section, or give data with answers",
        )
    reader = inputs.reader
    if reader is None:
        return
    needed = {"train": "data", "held_out": "data.held_out"}
    if recipe.evaluate is None:
        del needed["held_out"]
    for side, where in needed.items():
        examples = getattr(sides, side)
        if examples and next(usable_rows(reader, examples), None) is None:
            reasons = Counter(row.reason for e in examples for row in reader.rows(e) if isinstance(row, Reject))
            listed = "; ".join(f"{reason} {count:,}" for reason, count in reasons.most_common())
            raise DataError(
                f"none of the {counted(len(examples), 'record')} "
                f"{'to train on' if side == 'train' else 'held out'} can be learned ({listed})",
                where=where,
                fix="give records with answers, or raise train.max_length",
            )
    if not inputs.task.reads_text:
        inputs.figures["training_rows"] = len(sides.train)
        return
    step = -(-len(records) // RECORDS_READ)
    looked_at = records[::step]
    rows = [row for record in looked_at for row in reader.rows(record)]
    kept = [row for row in rows if not isinstance(row, Reject)]
    inputs.figures["longest_row"] = longest = max((len(getattr(row, "input_ids", ())) for row in kept), default=0)
    _refuse_long_rows(inputs, longest)
    cut = sum(bool(getattr(row, "cut", False)) for row in kept)
    tokens = sum(len(getattr(row, "input_ids", ())) for row in kept) * len(records) // max(len(looked_at), 1)
    of = f" (of {len(looked_at):,} records that were looked at)" if step > 1 else ""
    inputs.figures |= {"tokens_a_pass": tokens, "training_rows": len(kept) * len(sides.train) // len(looked_at)}
    text = (
        f"{'about ' if of else ''}{tokens:,} tokens a pass; {cut:,} records cut at {recipe.train.max_length}; "
        f"{len(rows) - len(kept):,} not usable{of}"
    )
    yield Finding("train", text)
    if kept and cut > _MUCH * len(kept):
        yield warning(
            "train",
            f"{cut / len(kept):.0%} of the records lose their end at train.max_length {recipe.train.max_length} (raise "
            "it, or shorten them)",
        )


def _refuse_long_rows(inputs: Inputs, longest: int) -> None:
    """Raise for rows with more tokens than a model has learned positions for, as far as its files tell."""
    student, teacher = inputs.recipe.student, inputs.facts(inputs.teacher)
    taught = teacher.learned_positions if teacher is not None else None
    own = taught if student is not None and student.begins_with_teacher else None
    if isinstance(student, Existing) and (known := inputs.facts(student)) is not None:
        own = known.learned_positions
    elif taught and isinstance(student, FromConfig) and inputs.is_changed_teacher:
        own = size_in(inputs.student_config() or {}, "max_position_embeddings")
    for who, positions in (("student", own), ("teacher", taught if inputs.is_taught else None)):
        if positions is not None and longest > positions:
            raise DataError(
                f"training rows have up to {longest:,} tokens, and the {who} has {positions:,} positions",
                where="train.max_length",
                fix=f"set it to {positions} (longer rows are then cut), or shorten the records",
            )


def prompts_can_be_asked(inputs: Inputs) -> Iterator[Finding]:
    """A program that answers records finds prompts on the training side, and for an evaluation also on the held-out
    side."""
    recipe, sides = inputs.recipe, inputs.sides
    generate = recipe.generate
    if generate is None or not generate.asks or sides is None or not generate.answers_records:
        return
    needed = ("train", "held_out") if recipe.evaluate is not None else ("train",)
    for side in needed:
        records = inputs.records(side)
        reasons = Counter(found for record in records if isinstance(found := as_prompt(record, turns=True), str))
        if records and sum(reasons.values()) == len(records):
            listed = "; ".join(f"{reason} {count:,}" for reason, count in reasons.most_common())
            raise DataError(
                f"none of the {counted(len(records), 'record')} "
                f"{'to train on' if side == 'train' else 'held out'} can be answered ({listed})",
                where="data.format",
                fix="if their column `text` holds prompts, rename it to `prompt`; else give data with prompts, or drop "
                "generate to learn the texts themselves",
            )
        if reasons:
            listed = "; ".join(f"{reason} {count:,}" for reason, count in reasons.most_common())
            yield warning("generate", f"not asked, {side.replace('_', '-')} side: {listed}")


def evaluation_sets_are_there(inputs: Inputs) -> Iterator[Finding]:
    """The evaluation sets to compare with exist, and leave something to train on."""
    generate = inputs.recipe.generate
    if generate is None or generate.decontaminate is None:
        return
    settings = generate.decontaminate
    if away := [name for name, source in settings.against.items() if not is_here(source)]:
        yield Finding("generate", f"evaluation sets that will be fetched are not looked at before: {', '.join(away)}")
        return
    from potstill.generate.decontaminating import set_digests

    set_digests(settings)
    if not generate.asks or inputs.sides is None:
        return
    train = inputs.records("train")
    kept, caught = inputs.asked()
    named = ", ".join(f"{name} {caught.get(name, 0):,}" for name in settings.against)
    yield Finding(
        "generate", f"in an evaluation set, and not asked: {len(train) - len(kept):,} of {len(train):,} ({named})"
    )
    if train and not kept:
        raise DataError(
            "every record to train on stands in an evaluation set",
            where="generate.decontaminate",
            fix="give other data, or leave out the set that catches them",
        )


def _shortened(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= _NAMES_SHOWN else f"{', '.join(names[:_NAMES_SHOWN])} …"

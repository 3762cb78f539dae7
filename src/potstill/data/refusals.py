"""Refusals as training records, and which answers refuse. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from potstill.data.packages import refuse_evaluation_only
from potstill.data.problems import as_prompt
from potstill.data.read import read_records
from potstill.data.sides import Example
from potstill.data.tokenize import IGNORE, Tokenized
from potstill.errors import DataError
from potstill.recipe import DataSettings
from potstill.recipe.train import RefusalMix, RefusalWeight
from potstill.types import Record, digest
from potstill.verify.refusal import refuses

Half = Literal["trained", "measured"]


def half_of(group: str) -> Half:
    """The half of a set of prompts that a group is in: one may train, the other is asked when models are measured."""
    return "trained" if int(digest(["half", group])[:8], 16) % 2 == 0 else "measured"


def prompts_of(settings: DataSettings, half: Half) -> list[Record]:
    """The prompts of one half of a source, in their order.

    Raises:
        DataError: there are none; or as `read_records`.
    """
    found = []
    for record in read_records(settings).records:
        prompt = as_prompt(record, turns=False)
        if isinstance(prompt, Record) and half_of(record.group) == half:
            found.append(replace(prompt, group=record.group, metadata=record.metadata))
    if not found:
        raise DataError(
            f"no prompt is in the half of the set that is {half}",
            where=f"data of kind {settings.kind}",
            fix="give a larger set of prompts",
        )
    return found


def prompts_to_refuse(mix: RefusalMix) -> list[Record]:
    """The prompts that may be mixed in with a refusal.

    Raises:
        DataError: the prompts may not be trained on, or as `prompts_of`.
    """
    refuse_evaluation_only(mix.prompts, "train.refusals.prompts")
    return prompts_of(mix.prompts, "trained")


def with_refusals(records: Sequence[Example], mix: RefusalMix) -> tuple[list[Example], int]:
    """Training records with refusals among them, and how many these are: `share` of all, as far as there are prompts
    (each stands there once).

    Raises:
        DataError: as `prompts_to_refuse`.
    """
    wanted = math.ceil(mix.share / (1 - mix.share) * len(records))
    prompts = sorted(prompts_to_refuse(mix), key=lambda record: digest([record.group, record.id]))[:wanted]
    made: list[Example] = [_refused(p, mix.answers[i % len(mix.answers)]) for i, p in enumerate(prompts)]
    return [*records, *made], len(made)


def _refused(prompt: Record, answer: str) -> Record:
    if prompt.messages is not None:
        return replace(prompt, messages=(*prompt.messages, {"role": "assistant", "content": answer}))
    return replace(prompt, completion=answer)


def weighted(row: Tokenized, record: Example, settings: RefusalWeight) -> Tokenized:
    """A row whose opening counts more, where its answer refuses; else the row as it is."""
    if not isinstance(record, Record) or not refuses(_answer(record)):
        return row
    weights = [1.0] * len(row)
    learned = [place for place, label in enumerate(row.labels) if label != IGNORE]
    for place in learned[: settings.tokens]:
        weights[place] = settings.weight
    return replace(row, weights=weights)


def _answer(record: Record) -> str:
    if record.messages is not None:
        content = record.messages[-1].get("content")
        return content if isinstance(content, str) else ""
    return record.completion or ""

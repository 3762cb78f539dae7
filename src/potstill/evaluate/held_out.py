"""The held-out records, as rows of tokens. Every one that is cut or left out is counted with its reason. No torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from potstill.artifacts import Work
from potstill.data import ChatTokenizer, Tokenized, load_records, prompt_ids, read_records, side_of, tokenize
from potstill.errors import DataError
from potstill.recipe import Recipe
from potstill.types import Message, Record, Reject

_CONTINUED_TOKENS = 64
"""How much of a plain text models are given to continue, at most (half of it, if it is short)."""


@dataclass(frozen=True)
class HeldOut:
    """Held-out records and their tokens, one row each, in order. Targets are numbered through all rows, in order."""

    records: Sequence[Record]
    rows: Sequence[Tokenized]

    @property
    def counts(self) -> NDArray[np.int64]:
        """Targets of each row [R]."""
        return np.array([len(row.learned) for row in self.rows], dtype=np.int64)

    @property
    def starts(self) -> NDArray[np.int64]:
        """The number of each row's first target, and the count of all at the end [R+1]."""
        return np.concatenate([[0], np.cumsum(self.counts)])

    @property
    def target_groups(self) -> list[str]:
        """The group of each target [N]."""
        return [row.group for row, count in zip(self.rows, self.counts, strict=True) for _ in range(count)]

    def batches(self, tokens_per_batch: int) -> list[list[int]]:
        """Indices of the rows of each batch: rows of like length together, so that padding is little; at most so many
        tokens with padding, or one row."""
        batches: list[list[int]] = []
        for index in sorted(range(len(self.rows)), key=lambda i: len(self.rows[i])):
            if batches and (len(batches[-1]) + 1) * len(self.rows[index]) <= tokens_per_batch:
                batches[-1].append(index)
            else:
                batches.append([index])
        return batches


def read_held_out(recipe: Recipe, generated: Path | None, chat: ChatTokenizer, work: Work) -> HeldOut:
    """The records that never trained: those generated, if there are any, else the data's own.

    Args:
        recipe: says where the data are, which are held out, and `train.max_length`.
        generated: `records.parquet` of the stage `generate`, if the recipe has one.
        chat: the student's tokenizer.
        work: takes the counts.

    Raises:
        DataError: there are none, or none that can be measured.
    """
    assert recipe.train is not None
    if generated is not None:
        records = load_records(generated, side="held_out")
    else:
        records = [r for r in read_records(recipe.data).records if side_of(r, recipe.data) == "held_out"]
    kept: list[Record] = []
    rows: list[Tokenized] = []
    for record in records:
        row = tokenize(record, chat, recipe.train.max_length)
        if isinstance(row, Reject):
            work.count(f"not measured: {row.reason}")
        else:
            kept.append(record)
            rows.append(row)
    if not rows:
        what = "no held-out record can be measured" if records else "there are no held-out records"
        reasons = "; ".join(f"{name} {amount}" for name, amount in work.counts.items())
        raise DataError(
            f"{what} ({reasons})" if records else what,
            where="data.held_out",
            mend="hold out a larger share, give more prompts, or raise the token budget of generate"
            if not records
            else "look at the reasons: a larger train.max_length, or data with answers",
        )
    work.count("held-out records", len(rows))
    if cut := sum(row.cut for row in rows):
        work.count(f"cut at {recipe.train.max_length} tokens", cut)
        work.warn(f"{cut} of {len(rows)} held-out records were cut at {recipe.train.max_length} tokens")
    return HeldOut(kept, rows)


# ---- what a person reads -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """A record as question and answer: the ids that a model is given, and both as text."""

    ids: tuple[int, ...]
    prompt: str
    reference: str


def question_of(record: Record, row: Tokenized, chat: ChatTokenizer) -> Question:
    """What of a record is asked, and what stands behind it. A plain text is asked to be continued."""
    if record.text is not None:
        first = min(_CONTINUED_TOKENS, (len(row) + 1) // 2)
        ids = row.input_ids
        return Question(tuple(ids[:first]), chat.decode(ids[:first]), chat.decode(ids[first:]))
    if record.messages is not None:
        before, answer = record.messages[:-1], record.messages[-1]
        ids = prompt_ids(before, chat, record.tools)
        return Question(tuple(ids), _shown(before), _content(answer))
    assert record.prompt is not None and record.completion is not None
    return Question(tuple(prompt_ids(record.prompt, chat)), record.prompt, record.completion)


def _shown(messages: Sequence[Message]) -> str:
    """One user's turn as it is; a conversation with its roles."""
    if len(messages) == 1 and messages[0]["role"] == "user":
        return _content(messages[0])
    return "\n\n".join(f"{message['role']}: {_content(message)}" for message in messages)


def _content(message: Message) -> str:
    content = message.get("content")
    if isinstance(content, str) and content:
        return content
    return json.dumps({k: v for k, v in message.items() if k != "role"}, ensure_ascii=False, default=str)

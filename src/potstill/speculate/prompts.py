"""The prompts that a draft is measured on, and the tokens of the data. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from potstill.artifacts import Work
from potstill.data import ChatTokenizer, load_records, prompt_ids, read_sides, tokenize
from potstill.data.problems import as_prompt
from potstill.errors import DataError
from potstill.recipe import Recipe
from potstill.types import Record, Reject, digest

_TEXTS_COUNTED = 2000
_LONGEST = 4096


def read_prompts(recipe: Recipe, chat: ChatTokenizer, limit: int | None, work: Work) -> list[list[int]]:
    """Prompts as token ids: held-out ones if the data have any, each once, those with the smallest hashes.

    Args:
        recipe: says where the data are, and how many prompts.
        chat: the target's tokenizer.
        limit: of the target's context; prompts that leave no room for an answer in it are left out, and counted.
        work: takes the counts.

    Raises:
        DataError: fewer than two are left.
    """
    settings = recipe.required_speculate
    sides = read_sides(recipe.data)
    found: dict[str, list[int]] = {}
    for record in sides.held_out or sides.train:
        prompt = as_prompt(record, chat.template is not None) if isinstance(record, Record) else None
        if not isinstance(prompt, Record):
            work.count("no prompt to decode")
            continue
        ids = prompt_ids(prompt.messages if prompt.messages is not None else prompt.prompt or "", chat, prompt.tools)
        if not ids:
            work.count("empty prompts")
        elif limit is not None and len(ids) + settings.max_new_tokens > limit:
            work.count("prompts too long to answer within the context")
        else:
            found.setdefault(digest([list(ids)]), list(ids))
    if len(found) < 2:
        reasons = "; ".join(f"{reason} {amount}" for reason, amount in work.counts.items())
        raise DataError(
            f"an interval needs two prompts at least, and there are {len(found)} ({reasons or 'of no more records'})",
            where="data",
            fix="give data with prompts, or lower speculate.max_new_tokens",
        )
    if not sides.held_out:
        work.warn("no prompt is held out, so acceptance is measured on prompts that training saw: set data.held_out")
    return [found[key] for key in sorted(found)[: settings.prompts]]


def tokens_of_data(recipe: Recipe, chat: ChatTokenizer, generated: Path | None) -> Iterator[tuple[int, ...]]:
    """The tokens of training records (what the teacher wrote, if there is a `generate` stage), prompts included."""
    records = load_records(generated, "train") if generated is not None else read_sides(recipe.data).train
    for record in [record for record in records if isinstance(record, Record)][:_TEXTS_COUNTED]:
        rendered = tokenize(record, chat, _LONGEST)
        if not isinstance(rendered, Reject):
            yield tuple(rendered.input_ids)
        elif isinstance(prompt := as_prompt(record, chat.template is not None), Record):
            asked = prompt.messages if prompt.messages is not None else prompt.prompt or ""
            yield tuple(prompt_ids(asked, chat, prompt.tools))

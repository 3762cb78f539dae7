"""From a record to the prompt that is asked, or why it is not asked: what programs that answer records share."""

from __future__ import annotations

from collections.abc import Callable

from potstill.artifacts import Work
from potstill.data.problems import as_prompt, prompt_hash
from potstill.data.stream import Seen
from potstill.errors import DataError
from potstill.generate.answering import Answering
from potstill.generate.records import reject
from potstill.types import Record, Reject, Request


def asked_of(
    record: Record, answering: Answering, seen: Seen, work: Work, request_for: Callable[[Record], Request]
) -> Record | Reject:
    """The record without its answer, held against the teacher's template and context; or why it is not asked.

    Args:
        record: with or without an answer of its own.
        answering: knows how the teacher is spoken to.
        seen: the prompts before it.
        work: takes the count of prompts whose answers have less room than they may take.
        request_for: the request for a prompt; a ValueError of it says why the prompt cannot be put.

    Raises:
        DataError: no prompt can be rendered, and the fix is in the recipe.
    """
    prompt = as_prompt(record, answering.turns)
    if isinstance(prompt, str):
        return reject(record, prompt)
    if seen.add(prompt_hash(prompt), record.row) is not None:
        return reject(record, "same prompt as an earlier record")
    try:
        request = request_for(prompt)
    except ValueError as error:
        return reject(record, str(error))
    try:
        prompt_tokens = answering.prompt_tokens(request)
    except DataError as refusal:
        if refusal.fix is not None:
            raise  # the fix is in the recipe, not in this record
        return reject(record, "the chat template refuses it", detail=refusal.what)
    if prompt_tokens is not None and answering.context_length is not None:
        room = answering.context_length - prompt_tokens
        if room <= 0:
            said = f"{prompt_tokens} tokens of {answering.context_length}"
            return reject(record, "the prompt fills the teacher's context", detail=said)
        if room < request.sampling.max_new_tokens:
            work.count("prompts with less room than max_new_tokens")
    return prompt

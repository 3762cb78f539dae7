"""A record as a prompt that is put to a model, and its own answer. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from potstill.errors import DataError
from potstill.types import Message, Reason, Record, Reject, digest


@dataclass(frozen=True)
class Admitted:
    """A prompt that can be put to a model: the record without its answer, and its number of tokens as rendered (None
    if only a server knows it)."""

    prompt: Record
    tokens: int | None


def admit(record: Record, turns: bool, seen: set[int], tokens_of: Callable[[Record], int | None]) -> Admitted | Reject:
    """The prompt of a record; or why it is not put to a model. The same for `generate`, `evaluate` and `check`.

    Args:
        record: with or without an answer of its own.
        turns: whether the model has a chat template.
        seen: keys (`prompt_key`) of the earlier prompts; this one's is added.
        tokens_of: the number of tokens of a prompt as rendered for the model. It raises ValueError, with the reason, if
            no request can be made of it, and DataError if the chat template refuses it.

    Raises:
        DataError: no prompt can be rendered, and the fix is in the recipe.
    """
    prompt = as_prompt(record, turns)
    if not isinstance(prompt, Record):
        return Reject.of(record, prompt)
    if (key := prompt_key(prompt)) in seen:
        return Reject.of(record, Reason.REPEATED_PROMPT)
    seen.add(key)
    try:
        return Admitted(prompt, tokens_of(prompt))
    except ValueError as error:
        return Reject.of(record, str(error))
    except DataError as refusal:
        if refusal.fix is not None:
            raise  # the fix is in the recipe, not in this record
        return Reject.of(record, Reason.TEMPLATE_REFUSES, detail=refusal.what)


def as_prompt(record: Record, turns: bool) -> Record | Reason:
    """The record without its answer, or why it has no prompt.

    Where the teacher has a chat template (`turns`), a plain prompt becomes the user's message, as it is sent.
    """
    if record.text is not None:
        return Reason.NO_PROMPT
    if record.prompt is not None:
        if not turns:
            return replace(record, completion=None)
        turn = {"role": "user", "content": record.prompt}
        return replace(record, messages=(turn,), prompt=None, completion=None)
    messages = record.messages or ()
    while messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    return replace(record, messages=messages) if messages else Reason.NO_MESSAGE


def prompt_hash(prompt: Record) -> str:
    """SHA-256 (hex) of a prompt and its tools."""
    asked = prompt.prompt if prompt.messages is None else [dict(m) for m in prompt.messages]
    return digest([asked, None if prompt.tools is None else [dict(t) for t in prompt.tools]])


def prompt_key(prompt: Record) -> int:
    """64 bits of `prompt_hash`: remembers many prompts in little memory. Two of n prompts have equal keys with
    probability n²/2⁶⁵ (3e-8 for a million)."""
    return int(prompt_hash(prompt)[:16], 16)


def own_answer(record: Record) -> str | None:
    """The record's own answer, if any; for a problem from a file this is the reference."""
    if record.completion is not None:
        return record.completion
    last = (record.messages or ({},))[-1]
    content = last.get("content")
    return content if last.get("role") == "assistant" and isinstance(content, str) else None


def with_reference(prompt: Record, record: Record, *keys: str) -> Record:
    """The prompt with its record's own answer as the reference in `metadata[key]`, unless there is one already."""
    missing = [key for key in keys if key not in prompt.metadata]
    own = own_answer(record) if missing else None
    return prompt if own is None else replace(prompt, metadata={**prompt.metadata, **dict.fromkeys(missing, own)})


def with_system(record: Record, system: str, *, instead: bool = False) -> Record:
    """The record with a system prompt, as messages. Its own system prompt stays, unless `instead`. A `text` is left as
    it is."""
    if record.text is not None:
        return record
    messages = record.messages
    if messages is None:
        messages = ({"role": "user", "content": record.prompt},)
        if record.completion is not None:
            messages += ({"role": "assistant", "content": record.completion},)
    if messages and messages[0]["role"] in ("system", "developer"):
        if not instead:
            return record
        messages = messages[1:]
    first: Message = {"role": "system", "content": system}
    return replace(record, messages=(first, *messages), prompt=None, completion=None)

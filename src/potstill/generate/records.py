"""What programs share: prompts out of records, answers into records, rejects out of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from potstill.generate.answering import Answered
from potstill.types import Answer, Provenance, Record, Reject, Request, digest

_EXCERPT_CHARACTERS = 200


def provenance_of(prompt: Record, answered: Answered, identity: Mapping[str, Any]) -> Provenance:
    """Where an answer comes from: the teacher, and how it was asked."""
    kind, server = str(identity.get("kind", "")), identity.get("server")
    return replace(
        prompt.provenance,
        teacher=str(identity.get("model", "")),
        revision=str(identity.get("revision") or identity.get("digest") or ""),
        route=f"{kind} {server}" if server else kind,
        sampling=answered.request.sampling.to_dict() | dict(identity.get("extra", {})),
        seed=answered.seed,
        template=str(identity.get("template", "")),
    )


def as_prompt(record: Record, turns: bool) -> Record | str:
    """The record without its answer, or why it cannot be answered.

    A plain prompt becomes the user's turn where the teacher speaks in turns: that is what it is answered as, and the
    record then says so.
    """
    if record.text is not None:
        return "a text has no prompt to answer"
    if record.prompt is not None:
        if not turns:
            return replace(record, completion=None)
        turn = {"role": "user", "content": record.prompt}
        return replace(record, messages=(turn,), prompt=None, completion=None)
    messages = record.messages or ()
    while messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    return replace(record, messages=messages) if messages else "no message to answer"


def prompt_hash(prompt: Record) -> str:
    """One text per prompt (64 hex digits), its tools included."""
    asked = prompt.prompt if prompt.messages is None else [dict(m) for m in prompt.messages]
    return digest([asked, None if prompt.tools is None else [dict(t) for t in prompt.tools]])


def with_answer(prompt: Record, request: Request, answer: Answer, provenance: Provenance) -> Record:
    """The prompt with its answer: a message more, or a completion."""
    finished = answer.finish == "stop"
    record = replace(prompt, sample=request.sample, finished=finished, provenance=provenance)
    if prompt.messages is None:
        return replace(record, completion=answer.text)
    message = {"role": "assistant", "content": answer.text}
    if answer.reasoning is not None:
        message["reasoning_content"] = answer.reasoning
    return replace(record, messages=(*prompt.messages, message))


def reject(record: Record, reason: str, answer: str = "", detail: str = "") -> Reject:
    """A record that is kept out, with an excerpt of the answer or else of the prompt."""
    said = answer or record.text or record.prompt or str((record.messages or ({},))[-1].get("content", ""))
    return Reject(reason, record.provenance.source, record.row, said[:_EXCERPT_CHARACTERS], detail)

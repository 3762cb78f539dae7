"""What programs share: answers into records, and rejects out of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from potstill.generate.answering import Answered
from potstill.types import Answer, Provenance, Record, Reject, Request

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


def with_answer(prompt: Record, request: Request, answer: Answer, provenance: Provenance) -> Record:
    """The prompt with its answer: a message more, or a completion."""
    finished = answer.finish == "stop"
    messages, completion = prompt.messages, prompt.completion
    if messages is None:
        completion = answer.text
    else:
        message = {"role": "assistant", "content": answer.text}
        if answer.reasoning is not None:
            message["reasoning_content"] = answer.reasoning
        messages = (*messages, message)
    told = {} if answer.mean_logprob is None else {"mean_logprob": round(answer.mean_logprob, 4)}
    return replace(
        prompt,
        metadata={**prompt.metadata, **told},
        messages=messages,
        completion=completion,
        sample=request.sample,
        finished=finished,
        provenance=provenance,
    )


def reject(record: Record, reason: str, answer: str = "", detail: str = "") -> Reject:
    """A record that is kept out, with an excerpt of the answer or else of the prompt."""
    said = answer or record.text or record.prompt or str((record.messages or ({},))[-1].get("content", ""))
    return Reject(reason, record.provenance.source, record.row, said[:_EXCERPT_CHARACTERS], detail)


def failed(prompt: Record, answered: Answered) -> Reject:
    """What becomes of a prompt that has no answer that can be used."""
    failure = answered.failure
    assert failure is not None
    return reject(prompt, failure.reason, failure.text, of_sample(answered.request.sample, failure.detail))


def of_sample(sample: int, detail: str) -> str:
    """A detail, and which of a prompt's answers it is about."""
    return f"sample {sample}: {detail}" if detail else f"sample {sample}"

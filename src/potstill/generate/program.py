"""The contract of a generation program, and functions that programs share: prompts, records with answers, rejects."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Protocol

from potstill.answering.base import Answered, Answering, Failure
from potstill.artifacts import Work
from potstill.data.problems import admit, own_answer
from potstill.data.split import SplitSide
from potstill.recipe.generate import GenerateSettings
from potstill.types import LIKELIEST, Answer, Provenance, Reason, Record, Reject, Request

Item = Record | Reject
"""What a program reads and yields: a record, or a row or answer that is kept out."""

SideOfRecord = Callable[[Record], SplitSide]


class Program(Protocol):
    """One way to have a teacher write. Built by `registry.build(settings)`."""

    def write(
        self, records: Iterable[Item], answering: Answering, *, side_of: SideOfRecord, work: Work
    ) -> Iterator[Item]:
        """Yield records and rejects, in an order that depends only on the input and the answers, not on their timing.
        Everything that is not kept is a reject, with its reason.

        Memory may grow by some 100 bytes a record, no more.

        Args:
            records: the prompts, or records whose last answer is to be replaced; and rejected rows, which are passed on
                in place.
            answering: answers requests, through the journal and within the budget.
            side_of: the side of the split of a record; its answers inherit it.
            work: counts (the stage counts the yielded items itself).
        """
        ...


def stays_as_given(section: GenerateSettings, record: Record, side: SplitSide) -> bool:
    """Whether a record is not asked, and held out with the answer that the data give it (`held_out: given`)."""
    given = getattr(section, "held_out", None) == "given"
    return given and side == "held_out" and own_answer(record) is not None


def asked_of(
    record: Record, answering: Answering, seen: set[int], work: Work, request_for: Callable[[Record], Request]
) -> Record | Reject:
    """The record without its answer, checked against the teacher's template and context; or why it is not sent.

    Args:
        record: with or without an answer of its own.
        answering: knows the teacher's template and context.
        seen: keys (`prompt_key`) of the earlier prompts.
        work: counts prompts with less room for an answer than `max_new_tokens`.
        request_for: the request for a prompt; raises ValueError, with the reason, if there is none.

    Raises:
        DataError: no prompt can be rendered, and the fix is in the recipe.
    """

    def tokens_of(prompt: Record) -> int | None:
        return answering.prompt_tokens(request_for(prompt))

    admitted = admit(record, answering.turns, seen, tokens_of)
    if isinstance(admitted, Reject):
        return admitted
    prompt, tokens, context = admitted.prompt, admitted.tokens, answering.context_length
    if tokens is not None and context is not None:
        if tokens >= context:
            return Reject.of(record, Reason.CONTEXT_FULL, detail=f"{tokens} tokens of {context}")
        if context - tokens < request_for(prompt).sampling.max_new_tokens:
            work.count("prompts with less room than max_new_tokens")
    return prompt


def provenance_of(prompt: Record, answered: Answered, identity: Mapping[str, Any]) -> Provenance:
    """The origin of an answer: the teacher, and its sampling settings."""
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
    """The prompt with its answer: as a further message, or as a completion."""
    messages, completion = prompt.messages, prompt.completion
    if messages is None:
        completion = answer.text
    else:
        message = {"role": "assistant", "content": answer.text}
        if answer.reasoning is not None:
            message["reasoning_content"] = answer.reasoning
        messages = (*messages, message)
    logprob: dict[str, Any] = {} if answer.mean_logprob is None else {"mean_logprob": round(answer.mean_logprob, 4)}
    if answer.likeliest is not None:
        logprob[LIKELIEST] = answer.likeliest
    return replace(
        prompt,
        metadata={**prompt.metadata, **logprob},
        messages=messages,
        completion=completion,
        sample=request.sample,
        finished=answer.finish == "stop",
        provenance=provenance,
    )


def failed(prompt: Record, request: Request, failure: Failure) -> Reject:
    """The reject of a prompt without a usable answer."""
    return Reject.of(prompt, failure.reason, failure.text, of_sample(request.sample, failure.detail))


def of_sample(sample: int, detail: str) -> str:
    """A detail, with the number of the prompt's sample."""
    return f"sample {sample}: {detail}" if detail else f"sample {sample}"

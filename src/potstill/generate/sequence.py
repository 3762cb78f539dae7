"""Sequence-level distillation: the teacher answers each prompt, and its answers are what the student learns.

Kim & Rush 2016, arXiv 1606.07947 (by beam search in the paper). Greedy, sampled or by beams, one answer a prompt or
several. Where a record already has an answer, that reference is dropped and the teacher answers in its place.
"""

from __future__ import annotations

import collections.abc
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from potstill.artifacts import Work
from potstill.data.chat import ChatTokenizer
from potstill.data.split import Side
from potstill.data.tokenize import prompt_ids
from potstill.errors import DataError
from potstill.generate.journaled import JournaledTeacher
from potstill.generate.plan import Question, plan_batches
from potstill.generate.program import Written
from potstill.recipe import SequenceProgram
from potstill.registry import implements
from potstill.types import Answer, Provenance, Record, Reject, Request, Sampling

_EXCERPT_CHARACTERS = 200


@implements(SequenceProgram)
class Sequence:
    """The program of `kind: sequence`."""

    def __init__(self, settings: SequenceProgram) -> None:
        self.settings = settings
        self.sampling = Sampling(
            settings.max_new_tokens, settings.temperature, settings.top_p, settings.top_k, settings.beams
        )

    def write(
        self,
        records: collections.abc.Sequence[Record],
        teacher: JournaledTeacher,
        *,
        side_of: Callable[[Record], Side],
        chat: ChatTokenizer,
        context_length: int | None,
        work: Work,
    ) -> Written:
        """Answer every record's prompt. Raises as the teacher, the journal and the budget do."""
        written = Written()
        identity = teacher.teacher.identity
        asked: dict[str, tuple[int, Record]] = {}
        questions: list[Question] = []
        for position, record in enumerate(records):
            prompt = _as_prompt(record, chat)
            if isinstance(prompt, str):
                written.rejects.append(_reject(record, prompt))
                continue
            requests = self._requests(prompt)
            keys = [request.key(identity) for request in requests]
            if keys[0] in asked:
                written.rejects.append(_reject(record, "same prompt as an earlier record"))
                continue
            try:
                prompt_tokens = len(prompt_ids(prompt.messages or prompt.prompt or "", chat, prompt.tools))
            except DataError as refusal:
                if chat.template is None:
                    raise  # no conversation can be rendered: the mend is in the recipe, not in this record
                written.rejects.append(_reject(record, "the chat template refuses it", detail=refusal.what))
                continue
            room = self.settings.max_new_tokens if context_length is None else context_length - prompt_tokens
            if room <= 0:
                said = f"{prompt_tokens} tokens of {context_length}"
                written.rejects.append(_reject(record, "the prompt fills the teacher's context", detail=said))
                continue
            if room < self.settings.max_new_tokens:
                work.count("prompts with less room than max_new_tokens")
            if not record.is_prompt:
                work.count("reference answers dropped")
            asked.update((key, (position, prompt)) for key in keys)
            questions.append(Question(requests, side_of(record), prompt_tokens))
        work.count("prompts", len(questions))

        batches = plan_batches(questions, identity, batch_size=self.settings.batch_size, seed=teacher.seed)
        kept: list[tuple[int, Record]] = []
        for batch, answers in teacher.answer(batches):
            seed = batch.seed if self.sampling.temperature > 0 else None
            for request, key, answer in zip(batch.requests, batch.keys, answers, strict=True):
                position, prompt = asked[key]
                reason = self._fault(answer)
                if reason is not None:
                    written.rejects.append(_reject(prompt, reason, answer.text, f"sample {request.sample}"))
                    continue
                kept.append((position, _answered(prompt, request, answer, self._provenance(prompt, identity, seed))))
        for request in teacher.unanswered:
            prompt = asked[request.key(identity)][1]
            written.rejects.append(_reject(prompt, "token budget", detail=f"sample {request.sample}"))
        # By position in the data: the order in which batches were done leaves no trace.
        written.records = [record for _, record in sorted(kept, key=lambda k: (k[0], k[1].sample))]
        written.rejects.sort(key=lambda r: (r.source, r.row, r.reason, r.detail))
        _count(work, written)
        return written

    def _requests(self, prompt: Record) -> tuple[Request, ...]:
        return tuple(
            Request(self.sampling, prompt.messages, prompt.prompt, prompt.tools, sample)
            for sample in range(self.settings.samples)
        )

    def _fault(self, answer: Answer) -> str | None:
        """Why an answer is not kept, if it is not."""
        if not answer.text.strip():
            return "empty answer"
        if answer.finish == "length" and not self.settings.keep_unfinished:
            return "unfinished answer"
        return None

    def _provenance(self, prompt: Record, identity: Mapping[str, Any], seed: int | None) -> Provenance:
        return replace(
            prompt.provenance,
            teacher=str(identity.get("model", "")),
            revision=str(identity.get("revision") or identity.get("digest") or ""),
            route=str(identity.get("kind", "")),
            sampling=self.sampling.to_dict(),
            seed=seed,
            template=str(identity.get("template", "")),
        )


def _as_prompt(record: Record, chat: ChatTokenizer) -> Record | str:
    """The record without its answer, or why it cannot be answered.

    A plain prompt becomes the user's turn where the teacher has a chat template: that is what it is answered as, and
    the record then says so.
    """
    if record.text is not None:
        return "a text has no prompt to answer"
    if record.prompt is not None:
        if chat.template is None:
            return replace(record, completion=None)
        turn = {"role": "user", "content": record.prompt}
        return replace(record, messages=(turn,), prompt=None, completion=None)
    messages = record.messages or ()
    while messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    return replace(record, messages=messages) if messages else "no message to answer"


def _answered(prompt: Record, request: Request, answer: Answer, provenance: Provenance) -> Record:
    """The prompt with its answer: a message more, or a completion."""
    finished = answer.finish == "stop"
    record = replace(prompt, sample=request.sample, finished=finished, provenance=provenance)
    if prompt.messages is None:
        return replace(record, completion=answer.text)
    message = {"role": "assistant", "content": answer.text}
    if answer.reasoning is not None:
        message["reasoning_content"] = answer.reasoning
    return replace(record, messages=(*prompt.messages, message))


def _reject(record: Record, reason: str, answer: str = "", detail: str = "") -> Reject:
    said = answer or record.text or record.prompt or str((record.messages or ({},))[-1].get("content", ""))
    return Reject(reason, record.provenance.source, record.row, said[:_EXCERPT_CHARACTERS], detail)


def _count(work: Work, written: Written) -> None:
    work.count("answers kept", len(written.records))
    unfinished = sum(not record.finished for record in written.records)
    if unfinished:
        work.count("kept, but cut short", unfinished)
    for reject in written.rejects:
        work.count(f"rejected: {reject.reason}")

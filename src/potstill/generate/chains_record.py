"""From a record to the problem that is asked, and from an accepted chain to the record that is learned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from potstill.data.spans import Unlearnable, assistant_turns
from potstill.data.thinking import CLOSE, OPEN
from potstill.generate.answering import Answered, Answering
from potstill.generate.chains_keep import Chain
from potstill.generate.records import provenance_of, with_answer
from potstill.types import Answer, Record, Reject, Request, Sampling, Verdict
from potstill.verify.answer_extraction import final_value, marked
from potstill.verify.base import references

Form = Literal["reasoning_content", "think"]


@dataclass
class Problem:
    """A problem, and what became of its samples so far.

    `passed` of `answered` samples were right; `asked` counts those that were asked for. `results` are by sample: the
    reject that it is, or its record. `chains` are those that may be kept, each other than all before.
    """

    prompt: Record
    asked: int = 0
    answered: int = 0
    passed: int = 0
    texts: dict[str, int] = field(default_factory=dict)
    results: dict[int, Record | Reject] = field(default_factory=dict)
    chains: list[Chain] = field(default_factory=list)

    @property
    def accepted(self) -> int:
        """How many different chains were accepted, with a hint or without: what `stop_at` and the hint go by."""
        return sum(chain.accepted for chain in self.chains)

    def add(self, chain: Chain, record: Record) -> None:
        """Take a chain that may be kept."""
        self.chains.append(chain)
        self.results[chain.sample] = record


def put_by(template: str | None, prompt: Record, sampling: Sampling, sample: int, reference: str = "") -> Request:
    """The request for one sample of a problem.

    Args:
        template: how the problem is put; its `{problem}` becomes the last turn's text, `{reference}` the reference. The
            problem as it stands where None.

    Raises:
        ValueError: the last turn is not a text.
    """
    messages, plain = prompt.messages, prompt.prompt
    if template is not None:
        if messages is None:
            plain = _filled(template, plain or "", reference)
        else:
            content = messages[-1].get("content")
            if not isinstance(content, str):
                raise ValueError("the problem is not a text")
            messages = (*messages[:-1], {**messages[-1], "content": _filled(template, content, reference)})
    return Request(sampling, messages, plain, prompt.tools, sample)


def _filled(template: str, problem: str, reference: str) -> str:
    # What stands in a problem is not a place of the template.
    return problem.join(part.replace("{reference}", reference) for part in template.split("{problem}"))


def reference_of(prompt: Record, key: str) -> str | None:
    """The reference that a hint gives away; None without one."""
    return next(iter(references(prompt, key)), None)


def form_for(answering: Answering) -> tuple[Form, bool]:
    """Where reasoning stands so that the teacher's chat template keeps it, and whether it does. A template that is not
    known is taken to read `reasoning_content`."""
    chat = getattr(answering, "chat", None) or getattr(getattr(answering, "teacher", None), "chat", None)
    if chat is None or chat.template is None:
        return "reasoning_content", True
    user = {"role": "user", "content": "Two and two?"}
    thought = Answer("It is four.", "stop", 1, 1, "Two twice.")
    try:
        assistant_turns([user, {"role": "assistant", "content": thought.text}], None, chat)
    except Unlearnable:
        return "reasoning_content", True  # nothing at all can be learned by it: no matter of reasoning
    forms: tuple[Form, ...] = ("reasoning_content", "think")
    for form in forms:
        try:
            assistant_turns([user, _message(thought, form)], None, chat)
        except Unlearnable:
            continue
        return form, True
    return "reasoning_content", False


def answer_only(answer: Answer) -> str | None:
    """The final answer alone: what is marked as such, else all that stands behind reasoning set apart, else what the
    text ends with. None where none is found."""
    found = marked(answer.text)
    if found is None:
        found = answer.text if answer.reasoning else final_value(answer.text)
    return found.strip() or None if found is not None else None


def learned(
    prompt: Record,
    answered: Answered,
    target: Literal["chain", "answer"],
    form: Form,
    verdict: Verdict,
    identity: Mapping[str, Any],
) -> Record | None:
    """The record of an accepted chain; None where only the answer is wanted and none is found."""
    answer = answered.answer
    assert answer is not None
    if target == "answer":
        said = answer_only(answer)
        if said is None:
            return None
        answer = replace(answer, text=said, reasoning=None)
    record = with_answer(prompt, answered.request, answer, provenance_of(prompt, answered, identity))
    if answer.reasoning is not None:
        if record.messages is None:
            # A plain text has no other place for it.
            record = replace(record, completion=_inline(answer))
        else:
            record = replace(record, messages=(*record.messages[:-1], _message(answer, form)))
    return replace(record, verdicts=(*record.verdicts, verdict))


def _message(answer: Answer, form: Form) -> dict[str, str]:
    if form == "think":
        return {"role": "assistant", "content": _inline(answer)}
    return {"role": "assistant", "content": answer.text, "reasoning_content": answer.reasoning or ""}


def _inline(answer: Answer) -> str:
    return f"{OPEN}\n{answer.reasoning}\n{CLOSE}\n\n{answer.text}"

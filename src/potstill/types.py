"""The frozen records that cross rooms. No torch.

A `Record` is one training example; a `Request` is one question to a teacher and an `Answer` its reply; a `Reject` is a
record that was kept out, with the reason; a `Verdict` is a verifier's judgement.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from itertools import takewhile
from typing import Any, ClassVar, Literal

Capability = Literal["generate", "head", "dense", "top_logprobs", "taps"]
"""What a teacher can give: text, a live output layer, whole logits, its top log-probabilities, inner states."""

Message = Mapping[str, Any]
"""`{"role": …, "content": …}`, and whatever else the template reads (`tools`, `reasoning_content`)."""


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def canonical_json(value: Any) -> str:
    """One text per value: sorted keys, no spaces, no NaN."""
    return _ENCODER.encode(value)


def digest(value: Any) -> str:
    """SHA-256 (hex) of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def group_of(prompt: str | Sequence[Message]) -> str:
    """The group of a prompt or source document: 16 hex digits.

    Of a conversation only the user's turns before the assistant's first count, so one question under two system
    prompts is one group. Spaces at line ends and doubled spaces do not count. Everything made from a prompt (samples,
    hints, pieces) inherits its group, so a split by group never separates a prompt from its answers.
    """
    asked = opening_turns(prompt)
    if asked or isinstance(prompt, str):
        return digest("\n".join(" ".join(line.split()) for line in asked.strip().splitlines()))[:16]
    return digest([dict(message) for message in _before_answers(prompt) or prompt])[:16]


def opening_turns(prompt: str | Sequence[Message]) -> str:
    """What the user asks before the assistant's first turn, as one text."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(_text_of(message) for message in _before_answers(prompt) if message.get("role") == "user")


def exact_group_of(prompt: str | Sequence[Message]) -> str:
    """As `group_of`, but of everything before the assistant's first turn, verbatim: another system prompt, or another
    space, is another group."""
    if isinstance(prompt, str):
        return digest(prompt)[:16]
    opening = _before_answers(prompt)
    if len(opening) == 1 and opening[0].get("role") == "user":
        # The same question is one group in any format.
        return digest(_text_of(opening[0]))[:16]
    return digest([dict(message) for message in opening or prompt])[:16]


def _before_answers(messages: Sequence[Message]) -> list[Message]:
    return list(takewhile(lambda message: message.get("role") != "assistant", messages))


def _text_of(message: Message) -> str:
    content = message.get("content")
    return content if isinstance(content, str) else canonical_json(content)


@dataclass(frozen=True)
class Verdict:
    """A verifier's judgement of one completion."""

    outcome: Literal["accept", "reject", "cannot_judge"]
    reason: str = ""
    score: float | None = None
    verifier: str = ""


@dataclass(frozen=True)
class Provenance:
    """Where a record comes from. Empty fields are unknown, never guessed."""

    source: str = ""
    teacher: str = ""
    revision: str = ""
    route: str = ""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    template: str = ""
    licence: str = ""

    def to_dict(self) -> dict[str, Any]:
        # By hand, as in `Answer`.
        return {
            "source": self.source,
            "teacher": self.teacher,
            "revision": self.revision,
            "route": self.route,
            "sampling": dict(self.sampling),
            "seed": self.seed,
            "template": self.template,
            "licence": self.licence,
        }


@dataclass(frozen=True)
class Record:
    """One training example. Exactly one of `messages`, `text`, or `prompt` (with or without `completion`).

    `messages` whose last turn is not the assistant's, and `prompt` without `completion`, are *prompts*: they
    can be answered, not learned. `finished` is False when a completion was cut short: it gets no end token.
    `row` counts from 1 in the source. `label` is the name of a text's class. `side` is the side of the split that the
    source itself assigns (a data set's own test side); empty where the split is by hash. `metadata` is what a verifier
    needs to judge an answer (the reference, the problem's own entry); a model never sees it.
    """

    messages: tuple[Message, ...] | None = None
    prompt: str | None = None
    completion: str | None = None
    text: str | None = None
    tools: tuple[Mapping[str, Any], ...] | None = None
    label: str | None = None
    side: Literal["", "train", "held_out"] = ""
    finished: bool = True
    sample: int = 0
    group: str = ""
    row: int = 0
    provenance: Provenance = Provenance()
    verdicts: tuple[Verdict, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def content(self) -> dict[str, Any]:
        """The text itself, without provenance."""
        fields: dict[str, Any] = {"prompt": self.prompt, "completion": self.completion, "text": self.text}
        fields["label"] = self.label
        fields["messages"] = [dict(m) for m in self.messages] if self.messages is not None else None
        fields["tools"] = [dict(t) for t in self.tools] if self.tools is not None else None
        return {k: v for k, v in fields.items() if v is not None}

    @property
    def id(self) -> str:
        """Hash of group, sample index and content: 16 hex digits."""
        return digest([self.group, self.sample, self.content])[:16]

    @property
    def is_prompt(self) -> bool:
        """Whether it is a prompt without an answer, so there is nothing to learn yet."""
        if self.text is not None or self.completion is not None:
            return False
        return self.messages is None or not self.messages or self.messages[-1]["role"] != "assistant"

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary: content, `group`, `id`, `sample`, `finished`, `row`, provenance, verdicts, metadata."""
        rest = {"group": self.group, "id": self.id, "sample": self.sample, "finished": self.finished, "row": self.row}
        return {
            **self.content,
            **rest,
            "provenance": self.provenance.to_dict(),
            "verdicts": [asdict(v) for v in self.verdicts],
            "metadata": dict(self.metadata),
        }


class Reason(StrEnum):
    """Why `generate` keeps a record out. A reject ledger may hold other reasons: those of `DataReason`, of filters
    that name their limit, and of older versions."""

    # The prompt is not asked.
    REPEATED_PROMPT = "same prompt as an earlier record"
    TEMPLATE_REFUSES = "the chat template refuses it"
    CONTEXT_FULL = "the prompt fills the teacher's context"
    NO_PROMPT = "a text has no prompt to answer"
    NO_MESSAGE = "no message to answer"
    TOKEN_BUDGET = "token budget"
    REQUEST_BUDGET = "request budget"
    MONEY_BUDGET = "money budget"
    # There is no answer.
    REFUSED = "refused by the server"
    UNANSWERED = "no answer from the server"
    BROKEN_OFF = "broken off"
    WITHHELD = "withheld by the server's filter"
    CALLS_TOOL = "calls a tool instead of answering"
    # The answer is not kept.
    ENDLESS_REASONING = "reasoning without an end"
    TRUNCATED_CHAIN = "truncated chain"
    UNFINISHED = "unfinished answer"
    CUT_OFF = "cut off"
    EMPTY = "empty answer"
    REJECTED = "rejected by the verifier"
    WRONG = "wrong answer"
    UNJUDGED = "cannot be judged"
    NOT_CHOSEN = "not chosen"
    REPEATED_CHAIN = "same chain as an earlier sample"
    REPEATED_ANSWER = "same answer as an earlier sample"
    NO_FINAL_ANSWER = "no final answer is found"
    OUTSIDE_PASS_RATE = "pass rate outside the window"
    SPEAKS_OF_HINT = "speaks of the hint"
    CONTAMINATED = "in an evaluation set"

    @property
    def is_budget(self) -> bool:
        """Whether a cap was used up, so that no further request is sent."""
        return self in (Reason.TOKEN_BUDGET, Reason.REQUEST_BUDGET, Reason.MONEY_BUDGET)

    @property
    def is_cut(self) -> bool:
        """Whether the answer was longer than `max_new_tokens`."""
        return self in (Reason.ENDLESS_REASONING, Reason.TRUNCATED_CHAIN, Reason.UNFINISHED, Reason.CUT_OFF)


class DataReason(StrEnum):
    """Why a row of a source becomes no record, or a record no training row."""

    # Reading: the row is no record of its own.
    EXACT_DUPLICATE = "exact duplicate"
    OTHER_LABEL = "the same text with another label"
    ON_BOTH_SIDES = "on both sides"
    EMPTY_PROMPT = "empty prompt"
    EMPTY_COMPLETION = "empty completion"
    EMPTY_TEXT = "empty text"
    NOT_UNICODE = "not valid Unicode (half of a surrogate pair)"
    NO_LABEL = "no label"
    UNKNOWN_CLASS = "its class is not on the training side"
    # Rendering: the chat template does not show where the assistant's turns are.
    CONTROL_TOKEN = "holds a control token"
    TEMPLATE_REFUSES = "the chat template refuses it"
    TURNS_UNMARKED = "the chat template does not mark each turn"
    NOT_PREFIX_STABLE = "the chat template is not prefix-stable"
    NO_END_OF_TURN = "the chat template has no token that ends the assistant's turn"
    REASONING_DROPPED = "the chat template drops the reasoning"
    WORDS_CHANGED = "the chat template changes the assistant's words"
    # Tokenising.
    NOT_A_TEXT = "not a text"
    NOT_AN_IMAGE = "not an image"
    NOTHING_TO_LEARN = "nothing to learn"
    TOKEN_OVER_START = "a token reaches over the beginning of the answer"
    TOKEN_OVER_END = "a token reaches over the end of the answer"
    VIEWS_DIFFER = "the answer's tokens differ between the views"


@dataclass(frozen=True)
class Reject:
    """A record that was kept out (or cut), and why. Rejects are kept in the reject ledger."""

    EXCERPT_CHARACTERS: ClassVar[int] = 200

    reason: str
    source: str
    row: int
    excerpt: str = ""
    detail: str = ""

    @classmethod
    def of(cls, record: Record, reason: str, text: str = "", detail: str = "") -> Reject:
        """The reject of a record, with the beginning of `text` (the answer, say), or else of its prompt."""
        excerpt = text or record.text or record.prompt or str((record.messages or ({},))[-1].get("content", ""))
        return cls(reason, record.provenance.source, record.row, excerpt[: cls.EXCERPT_CHARACTERS], detail)


@dataclass(frozen=True)
class Sampling:
    """How a teacher answers. `temperature` 0 is greedy; `beams` > 1 is beam search (deterministic)."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    beams: int = 1

    def to_dict(self) -> dict[str, Any]:
        # By hand, as in `Answer`.
        return {
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "beams": self.beams,
        }


@dataclass(frozen=True)
class Request:
    """One question to a teacher: messages, or a plain prompt. A plain prompt is the user's turn where the teacher's
    tokenizer has a chat template, and is continued as it stands where it has none."""

    sampling: Sampling
    messages: tuple[Message, ...] | None = None
    prompt: str | None = None
    tools: tuple[Mapping[str, Any], ...] | None = None
    sample: int = 0

    def key(self, teacher: Mapping[str, Any]) -> str:
        """The journal's key: SHA-256 of the request's whole content and the teacher's identity."""
        asked = [dict(m) for m in self.messages] if self.messages is not None else self.prompt
        tools = [dict(t) for t in self.tools] if self.tools is not None else None
        return digest([dict(teacher), asked, tools, self.sampling.to_dict(), self.sample])


Finish = Literal["stop", "length", "content_filter", "tool_calls"]
"""How an answer ended: by itself, cut short, withheld by the server, or in tool calls (which are not kept)."""


LIKELIEST = "likeliest"
"""In the metadata of a record that a server wrote: its tokens, as `Answer.likeliest`."""


@dataclass(frozen=True)
class Answer:
    """What a teacher wrote. `reasoning` is kept apart from the answer; `mean_logprob` is the mean log-probability of
    its tokens (natural logarithm), where the server reports it; `likeliest`, where it was asked for, of each token
    [key, log-probability, [[key, log-probability], …]]: see `capture/written.py`."""

    text: str
    finish: Finish
    prompt_tokens: int
    completion_tokens: int
    reasoning: str | None = None
    mean_logprob: float | None = None
    likeliest: list[Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        # By hand: `asdict` takes ten times as long, and journals hold millions.
        logprob: dict[str, Any] = {} if self.mean_logprob is None else {"mean_logprob": self.mean_logprob}
        if self.likeliest is not None:
            logprob[LIKELIEST] = self.likeliest
        return {
            "text": self.text,
            "finish": self.finish,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "reasoning": self.reasoning,
            **logprob,
        }

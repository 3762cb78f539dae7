"""Answers to requests: through the journal, within the budget, in the order in which they were asked.

Programs are written against `Answering`, and do not know whether a model on this machine answers batches that were
planned over all requests (`local.py`), or a server answers many requests side by side (`endpoint.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol, Self

from potstill.data.split import SplitSide
from potstill.data.thinking import split_reasoning
from potstill.errors import PotstillError
from potstill.types import Answer, Reason, Request

SideOf = Callable[[Request], SplitSide]
NO_JUDGES: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there is no answer. `text` is what was written all the same."""

    reason: Reason
    detail: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class Answered:
    """What came of a request.

    Attributes:
        request: what was asked.
        result: the answer, its reasoning set apart, or why there is none.
        from_journal: whether it had been answered before.
        raw: the answer as the teacher gave it and as the journal holds it.
        seed: of the sampling.
    """

    request: Request
    result: Answer | Failure
    from_journal: bool = False
    raw: Answer | None = None
    seed: int | None = None

    @property
    def answer(self) -> Answer | None:
        """The answer, if there is one."""
        return self.result if isinstance(self.result, Answer) else None

    @property
    def failure(self) -> Failure | None:
        """Why there is no answer, if there is none."""
        return self.result if isinstance(self.result, Failure) else None


@dataclass
class Counts:
    """Answers that were handed on, and their tokens."""

    answers: int = 0
    finished: int = 0
    cut_short: int = 0
    written: int = 0
    read: int = 0
    from_journal: int = 0

    def add(self, raw: Answer, *, from_journal: bool) -> None:
        """Count an answer as the teacher gave it."""
        self.answers += 1
        self.finished += raw.finish == "stop"
        self.cut_short += raw.finish == "length"
        self.written += raw.completion_tokens
        self.read += raw.prompt_tokens
        self.from_journal += from_journal

    def facts(self) -> dict[str, Any]:
        """The counts, for the manifest."""
        return {
            "answers": self.answers,
            "share_finished": round(self.finished / self.answers, 4) if self.answers else None,
            "cut_short": self.cut_short,
            "tokens": self.written,
            "answers_from_journal": self.from_journal,
        }


class Answering(Protocol):
    """Answers requests. A context manager.

    Attributes:
        judges: what answers for the recipe's other teachers that are asked, by name: in the same journal, within the
            same caps. Opened and closed by whoever opens this one.
    """

    judges: Mapping[str, Answering]

    @property
    def reads_ahead(self) -> bool:
        """Whether further requests are under way while an answer is looked at."""
        ...

    @property
    def identity(self) -> Mapping[str, Any]:
        """`Teacher.identity`."""
        ...

    @property
    def turns(self) -> bool:
        """Whether a plain prompt is the user's turn (or else continued as it stands)."""
        ...

    @property
    def context_length(self) -> int | None:
        """How many tokens are read and written in all; None if that is not known."""
        ...

    def prompt_tokens(self, request: Request) -> int | None:
        """The exact length of the prompt as rendered; None where only a server knows.

        Raises:
            DataError: it cannot be rendered.
        """
        ...

    def rendered(self, request: Request) -> str | None:
        """The prompt as the teacher sees it; None where only a server knows. Raises as `prompt_tokens`."""
        ...

    def answers(self, requests: Iterable[Request], *, side_of: SideOf | None = None) -> Iterator[Answered]:
        """What comes of requests, in their order, each answer committed before it is yielded.

        A server is sent requests while they are being read, some thousands ahead of what is yielded; a local teacher
        answers when all are known, and the samples of a prompt should stand side by side.

        Args:
            requests: what to ask. Equal requests (all of prompt, sampling and sample) get one answer.
            side_of: the side of the split of a request, for the order of a local teacher's batches: both sides get a
                share of a budget that does not reach.
        """
        ...

    def facts(self) -> dict[str, Any]:
        """Counts, rates and costs for the manifest."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...


class NothingToClose:
    """A context manager that closes nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass


class PassingOn(NothingToClose):
    """An `Answering` that delegates to another, for those that change how it is asked. The owner of the other opens and
    closes it."""

    reads_ahead = False

    def __init__(self, inner: Answering) -> None:
        self.inner = inner
        self.judges = inner.judges

    @property
    def identity(self) -> Mapping[str, Any]:
        return self.inner.identity

    @property
    def turns(self) -> bool:
        return self.inner.turns

    @property
    def context_length(self) -> int | None:
        return self.inner.context_length

    def prompt_tokens(self, request: Request) -> int | None:
        return self.inner.prompt_tokens(request)

    def rendered(self, request: Request) -> str | None:
        return self.inner.rendered(request)

    def answers(self, requests: Iterable[Request], *, side_of: SideOf | None = None) -> Iterator[Answered]:
        return self.inner.answers(requests, side_of=side_of)

    def facts(self) -> dict[str, Any]:
        return self.inner.facts()


def ask_all(answering: Answering, writer: str, teacher: str | None, requests: Sequence[Request]) -> list[Answer]:
    """The answers to some requests, through the same journal and budget: what a judge asks by.

    A request without an answer gets an empty one that was cut short; so do those that a preview does not ask.

    Args:
        answering: for the teacher that writes.
        writer: its name.
        teacher: who is asked: one of `answering.judges`, or the one that writes (None, or its name).
        requests: the questions.
    """
    nothing = Answer("", "length", 0, 0)
    if teacher not in (None, writer):
        if teacher not in answering.judges:
            return [nothing] * len(requests)
        answering = answering.judges[teacher]
    answers = [answered.answer or nothing for answered in answering.answers(requests)]
    return answers + [nothing] * (len(requests) - len(answers))


def parsed(request: Request, raw: Answer, *, from_journal: bool, seed: int | None, required: bool = False) -> Answered:
    """A raw answer with its reasoning set apart, or the failure that it is."""
    return Answered(request, _result(raw, required=required), from_journal, raw, seed)


def _result(raw: Answer, *, required: bool) -> Answer | Failure:
    if raw.finish == "content_filter":
        return Failure(Reason.WITHHELD, text=raw.text)
    if raw.finish == "tool_calls":
        return Failure(Reason.CALLS_TOOL)
    answer = split_reasoning(raw, required=required)
    if answer is None:
        return Failure(Reason.ENDLESS_REASONING, f"{raw.completion_tokens} tokens", raw.text or raw.reasoning or "")
    return answer


class NoTeacher(NothingToClose):
    """Null object for programs that need no teacher: no identity, no facts; asking it is an error."""

    identity: Mapping[str, Any] = {}
    judges: Mapping[str, Answering] = NO_JUDGES
    turns = True
    reads_ahead = False
    context_length: int | None = None

    def prompt_tokens(self, request: Request) -> int | None:
        return None

    def rendered(self, request: Request) -> str | None:
        return None

    def answers(self, requests: Iterable[Request], *, side_of: SideOf | None = None) -> Iterator[Answered]:
        raise PotstillError("a program that declares that it needs no teacher asked one")

    def facts(self) -> dict[str, Any]:
        return {}

"""Answers to requests: through the journal, within the budget, in the order of the requests.

Programs are written against `Answering`. Behind it, a model on this machine answers batches planned over all requests
(`local.py`), or a server answers many requests concurrently (`endpoint.py`).
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
    """The reason why there is no answer. `text` is what was written nevertheless, if anything."""

    reason: Reason
    detail: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class Answered:
    """The outcome of a request.

    Attributes:
        request: the request.
        result: the answer, with its reasoning split off, or why there is none.
        from_journal: whether it had been answered before.
        raw: the teacher's answer before its reasoning is split off, as in the journal.
        seed: the sampling seed.
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
        """Why there is no answer, or None."""
        return self.result if isinstance(self.result, Failure) else None


@dataclass
class Counts:
    """Counts of answers and their tokens."""

    answers: int = 0
    finished: int = 0
    cut_short: int = 0
    written: int = 0
    read: int = 0
    from_journal: int = 0

    def add(self, raw: Answer, *, from_journal: bool) -> None:
        """Count a raw answer."""
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
        judges: the `Answering` of each teacher that only judges, by name, with the same journal and caps. They are
            opened and closed together with this one.
    """

    judges: Mapping[str, Answering]

    @property
    def reads_ahead(self) -> bool:
        """Whether later requests may be in progress while an answer is processed."""
        ...

    @property
    def identity(self) -> Mapping[str, Any]:
        """`Teacher.identity`."""
        ...

    @property
    def turns(self) -> bool:
        """Whether a plain prompt becomes the user's turn (rather than being continued verbatim)."""
        ...

    @property
    def context_length(self) -> int | None:
        """Maximum number of tokens read and written together; None if unknown."""
        ...

    def prompt_tokens(self, request: Request) -> int | None:
        """The exact length of the rendered prompt; None if only a server knows it.

        Raises:
            DataError: it cannot be rendered.
        """
        ...

    def rendered(self, request: Request) -> str | None:
        """The rendered prompt; None if only a server knows it. Raises as `prompt_tokens`."""
        ...

    def answers(self, requests: Iterable[Request], *, side_of: SideOf | None = None) -> Iterator[Answered]:
        """The outcomes of requests, in order; each answer is committed before it is yielded.

        A server receives requests while they are being read, some thousands ahead of the yielded ones. A local teacher
        answers when all are known; the samples of a prompt should be adjacent.

        Args:
            requests: the requests. Equal ones (with the same prompt, sampling and sample) get one answer.
            side_of: the side of the split of a request, for the order of a local teacher's batches: both sides get a
                share of a budget that is too small for all.
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
    """An `Answering` that delegates to another; base of those that change how requests are sent. The other's owner
    opens and closes it."""

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
    """The answers to a judge's requests, through the same journal and budget.

    A request without an answer gets an empty one that counts as cut short; so do requests that a preview skips.

    Args:
        answering: for the teacher that writes.
        writer: its name.
        teacher: one of `answering.judges`, or the one that writes (None, or its name).
        requests: the requests.
    """
    nothing = Answer("", "length", 0, 0)
    if teacher not in (None, writer):
        if teacher not in answering.judges:
            return [nothing] * len(requests)
        answering = answering.judges[teacher]
    answers = [answered.answer or nothing for answered in answering.answers(requests)]
    return answers + [nothing] * (len(requests) - len(answers))


def parsed(request: Request, raw: Answer, *, from_journal: bool, seed: int | None, required: bool = False) -> Answered:
    """A raw answer with its reasoning split off, or a failure."""
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
    """Null client for programs that need no teacher: no identity, no facts; a request is an error."""

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

"""Something that answers requests: through the journal, within the budget, in the order in which they were asked.

Programs are written against it, and do not know whether a model on this machine answers batches that were planned over
all requests, or a server answers many requests side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from potstill.data.chat import ChatTokenizer
from potstill.data.split import Side
from potstill.data.thinking import split_reasoning
from potstill.data.tokenize import prompt_ids
from potstill.generate.journaled import JournaledTeacher
from potstill.generate.plan import Question, plan_batches
from potstill.types import Answer, Request

if TYPE_CHECKING:
    from potstill.teachers.base import Teacher

SideOf = Callable[[Request], Side]
NO_JUDGES: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there is no answer. `text` is what was written all the same."""

    reason: str
    detail: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class Answered:
    """What came of a request: an answer, its reasoning set apart, or a failure.

    `raw` is the answer as the teacher gave it and as the journal holds it. `seed` is that of its draws.
    """

    request: Request
    answer: Answer | None
    failure: Failure | None
    from_journal: bool
    raw: Answer | None = None
    seed: int | None = None


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

    def __enter__(self) -> Answering: ...

    def __exit__(self, *error: object) -> None: ...


class PassingOn:
    """An `Answering` that passes on what another says: for those that change how it is asked. Whoever made the other
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

    def __enter__(self) -> PassingOn:
        return self

    def __exit__(self, *error: object) -> None:
        pass


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
    if raw.finish == "content_filter":
        withheld = Failure("withheld by the server's filter", "", raw.text)
        return Answered(request, None, withheld, from_journal, raw, seed)
    if raw.finish == "tool_calls":
        return Answered(request, None, Failure("calls a tool instead of answering"), from_journal, raw, seed)
    answer = split_reasoning(raw, required=required)
    if answer is None:
        said = raw.text or raw.reasoning or ""
        failure = Failure("reasoning without an end", f"{raw.completion_tokens} tokens", said)
        return Answered(request, None, failure, from_journal, raw, seed)
    return Answered(request, answer, None, from_journal, raw, seed)


class LocalAnswering:
    """A teacher on this machine: answers batches that are planned over all requests (`generate.plan`).

    Args:
        journaled: the teacher, with journal and budget.
        batch_size: sequences side by side.
    """

    def __init__(self, journaled: JournaledTeacher, *, batch_size: int) -> None:
        self.journaled, self.batch_size = journaled, batch_size
        self.judges: Mapping[str, Answering] = NO_JUDGES
        self.chat = ChatTokenizer.from_transformers(self.teacher.tokenizer)

    reads_ahead = False

    @property
    def teacher(self) -> Teacher:
        return self.journaled.teacher

    @property
    def identity(self) -> Mapping[str, Any]:
        return self.teacher.identity

    @property
    def turns(self) -> bool:
        return self.chat.template is not None

    @property
    def context_length(self) -> int | None:
        return getattr(self.teacher, "context_length", None)

    def prompt_tokens(self, request: Request) -> int:
        return len(prompt_ids(_asked(request), self.chat, request.tools))

    def rendered(self, request: Request) -> str:
        return self.chat.decode(prompt_ids(_asked(request), self.chat, request.tools))

    def answers(self, requests: Iterable[Request], *, side_of: SideOf | None = None) -> Iterator[Answered]:
        asked = list(requests)
        came: dict[str, Answered] = {}
        keys = [request.key(self.identity) for request in asked]
        for batches in self._planned(asked, keys, side_of):
            for batch, answers, from_journal in self.journaled.answer(batches):
                for request, key, raw in zip(batch.requests, batch.keys, answers, strict=True):
                    seed = batch.seed if request.sampling.temperature > 0 else None
                    came[key] = parsed(request, raw, from_journal=from_journal, seed=seed)
        over = Failure("token budget")
        for request, key in zip(asked, keys, strict=True):
            yield came.get(key) or Answered(request, None, over, False)

    def facts(self) -> dict[str, Any]:
        return self.journaled.facts()

    def __enter__(self) -> LocalAnswering:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def _planned(self, asked: Sequence[Request], keys: Sequence[str], side_of: SideOf | None) -> Iterator[Any]:
        """The batches of requests of one sampling setting after the other, in the order in which they first occur. The
        samples of a prompt are one question, wherever they stand."""
        once: dict[str, Request] = {}
        for request, key in zip(asked, keys, strict=True):
            once.setdefault(key, request)
        fresh = list(once.values())
        for sampling in dict.fromkeys(request.sampling for request in fresh):
            samples: dict[str, list[Request]] = {}
            for request in fresh:
                if request.sampling == sampling:
                    samples.setdefault(replace(request, sample=0).key({}), []).append(request)
            questions = []
            for same in samples.values():
                together = tuple(sorted(same, key=lambda r: r.sample))
                side = side_of(together[0]) if side_of is not None else "train"
                questions.append(Question(together, side, self.prompt_tokens(together[0])))
            yield plan_batches(questions, self.identity, batch_size=self.batch_size, seed=self.journaled.seed)


def _asked(request: Request) -> Any:
    return request.messages if request.messages is not None else request.prompt or ""

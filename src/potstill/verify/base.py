"""Base of the verifiers, which accept, reject, or cannot judge an answer, with a reason."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from types import TracebackType
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

from potstill import registry
from potstill.errors import PotstillError
from potstill.recipe.verify import VerifierSettings
from potstill.types import Answer, Record, Request, Verdict

Ask = Callable[[str | None, Sequence[Request]], list[Answer]]
"""Sends requests, in order, to the teacher with a name (None: the one that writes). The caller provides it, so that a
judge's requests use the same journal and budget."""

MOST_SHOWN = 60
"""Maximum characters of an answer that a reason quotes."""

MOST_CHARACTERS = 1_000_000
"""Maximum characters of an answer; a longer one cannot be judged."""


class WorkerUnavailable(RuntimeError):
    """Worker processes do not start, or were closed, so no answer can be judged."""


class Verifier(Protocol):
    """Judges answers. A context manager, since it may hold worker processes. Thread-safe."""

    name: str
    version: str

    @property
    def identity(self) -> Mapping[str, Any]:
        """Name, version and settings: part of provenance and of stage keys."""
        ...

    def verify(self, record: Record, completion: str) -> Verdict:
        """Judge the text of a final answer, without the reasoning before it."""
        ...

    def verify_answer(self, record: Record, answer: Answer) -> Verdict:
        """Judge a whole answer: for verifiers that read the reasoning or the number of tokens."""
        ...

    def __enter__(self) -> Verifier: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


S = TypeVar("S", bound=VerifierSettings)


class BaseVerifier(Generic[S]):
    """Base of the verifiers of this room. A subclass implements `judge`, and `judge_answer` if it reads more than the
    text.

    `verify` returns a verdict for any text: an answer of more than `MOST_CHARACTERS`, or one on which `judge` raises,
    cannot be judged. Raise `contract` when the meaning of a verdict changes.
    """

    contract: ClassVar[int] = 1
    guarded: ClassVar[bool] = True
    """Whether an exception of `judge` means that this answer cannot be judged. False for verifiers that call a model or
    run a program, whose failures concern the whole run."""

    def __init__(self, settings: S) -> None:
        self._settings = settings

    @property
    def name(self) -> str:
        return self._settings.kind

    @property
    def version(self) -> str:
        """Our contract, and the versions of the packages that determine verdicts."""
        return str(self.contract)

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"name": self.name, "version": self.version, "settings": self._settings.key_fields()}

    def verify(self, record: Record, completion: str) -> Verdict:
        return self._guarded(len(completion), lambda: self.judge(record, completion))

    def verify_answer(self, record: Record, answer: Answer) -> Verdict:
        return self._guarded(len(answer.text) + len(answer.reasoning or ""), lambda: self.judge_answer(record, answer))

    def judge(self, record: Record, completion: str) -> Verdict:
        """Judge the text of a final answer."""
        raise NotImplementedError

    def judge_answer(self, record: Record, answer: Answer) -> Verdict:
        """Judge a whole answer."""
        return self.judge(record, answer.text)

    def close(self) -> None:
        """Release what the verifier holds. A second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def accept(self, reason: str, score: float | None = None) -> Verdict:
        return Verdict("accept", reason, score, self._signature)

    def reject(self, reason: str, score: float | None = None) -> Verdict:
        return Verdict("reject", reason, score, self._signature)

    def cannot_judge(self, reason: str, score: float | None = None) -> Verdict:
        return Verdict("cannot_judge", reason, score, self._signature)

    @property
    def _signature(self) -> str:
        return f"{self.name}@{self.version}"

    def _guarded(self, characters: int, judge: Callable[[], Verdict]) -> Verdict:
        if not self.guarded:
            return judge()
        if characters > MOST_CHARACTERS:
            return self.cannot_judge(f"{characters} characters are more than {MOST_CHARACTERS}")
        try:
            return judge()
        except (PotstillError, WorkerUnavailable):
            raise
        except Exception as error:  # noqa: BLE001  # one answer must not end the run
            return self.cannot_judge(f"judging it failed: {type(error).__name__}: {str(error)[:MOST_SHOWN]}")


def open_verifier(settings: VerifierSettings, ask: Ask | None = None) -> Verifier:
    """The verifier of some settings, to be used as a context manager.

    Args:
        ask: sends a judge's requests; only needed if there is a judge.

    Raises:
        RecipeError: nothing implements the settings, or there is a judge and no `ask`.
        MissingExtra: a required package is not installed.
    """
    verifier = registry.build(settings)
    if hasattr(verifier, "asks_through"):
        verifier.asks_through(ask)
    return verifier  # type: ignore[no-any-return]


def verdicts(verifier: Verifier, items: Iterable[tuple[Record, Answer]], at_once: int = 1) -> Iterator[Verdict]:
    """The verdict on each answer, in order, with `at_once` of them judged concurrently. Reads no further ahead than
    that."""
    if at_once == 1:
        for record, answer in items:
            yield verifier.verify_answer(record, answer)
        return
    stream = iter(items)
    with ThreadPoolExecutor(at_once) as threads:
        waiting: list[Future[Verdict]] = [
            threads.submit(verifier.verify_answer, *item) for item in islice(stream, at_once)
        ]
        while waiting:
            yield waiting.pop(0).result()
            waiting.extend(threads.submit(verifier.verify_answer, *item) for item in islice(stream, 1))


def shown(text: Any) -> str:
    """A short quotation for a reason."""
    if isinstance(text, str):
        line = " ".join(text[: 4 * MOST_SHOWN].split())
    else:
        line = " ".join(json.dumps(text, ensure_ascii=False, default=str)[: 4 * MOST_SHOWN].split())
    return f"‘{line}’" if len(line) <= MOST_SHOWN else f"‘{line[: MOST_SHOWN - 1]}…’"


def references(record: Record, key: str) -> list[str]:
    """The reference answers of a record as texts; empty if there are none. Numbers become text."""
    found = record.metadata.get(key)
    several = found if isinstance(found, (list, tuple)) else [found]
    return [value if isinstance(value, str) else _written(value) for value in several if value is not None]


def question_text(record: Record) -> str:
    """The prompt as one text: the plain prompt, or the turns before the answer."""
    if record.messages is None:
        return record.prompt or ""
    turns = record.messages if record.is_prompt else record.messages[:-1]
    only = len(turns) == 1
    return "\n\n".join(str(t["content"]) if only else f"[{t['role']}]\n{t['content']}" for t in turns)


def _written(value: Any) -> str:
    return str(value) if isinstance(value, (int, float)) else json.dumps(value, ensure_ascii=False, default=str)

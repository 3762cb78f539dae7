"""What a verifier is: it says of one answer accept, reject, or cannot judge, and why."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from types import TracebackType
from typing import Any, ClassVar, Protocol, TypeVar

from potstill import registry
from potstill.recipe.verify import VerifierSettings
from potstill.types import Answer, Record, Request, Verdict

Ask = Callable[[str | None, Sequence[Request]], list[Answer]]
"""Puts questions, in order, to the teacher of a name (None: the one that writes). It is the caller's, so that what a
judge asks goes through the same journal and budget."""

MOST_SHOWN = 60
"""Characters of an answer that a reason quotes at most."""


class Verifier(Protocol):
    """Judges answers. A context manager: it may hold worker processes. Safe to call from several threads."""

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
        """Judge a whole answer, for what looks at the reasoning, or at the number of tokens."""
        ...

    def __enter__(self) -> Verifier: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


S = TypeVar("S", bound=VerifierSettings)


class BaseVerifier:
    """What every verifier of this room has in common. `contract` is raised when its meaning changes."""

    contract: ClassVar[int] = 1

    def __init__(self, settings: VerifierSettings) -> None:
        self._settings = settings

    @property
    def name(self) -> str:
        return self._settings.kind

    @property
    def version(self) -> str:
        """Our contract, and the versions of the packages that decide."""
        return str(self.contract)

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"name": self.name, "version": self.version, "settings": self._settings.key_fields()}

    def verify(self, record: Record, completion: str) -> Verdict:
        raise NotImplementedError

    def verify_answer(self, record: Record, answer: Answer) -> Verdict:
        return self.verify(record, answer.text)

    def close(self) -> None:
        """Let go of what it holds. Calling it twice does nothing."""

    def __enter__(self) -> BaseVerifier:
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


def open_verifier(settings: VerifierSettings, ask: Ask | None = None) -> Verifier:
    """The verifier of some settings, to be used as a context manager.

    Args:
        ask: how a judge puts its questions; only needed where there is one.

    Raises:
        RecipeError: nothing implements it, or it needs `ask` and there is none.
        MissingExtra: a package that it needs is not installed.
    """
    verifier = registry.build(settings)
    if hasattr(verifier, "asks_through"):
        verifier.asks_through(ask)
    return verifier  # type: ignore[no-any-return]


def verdicts(verifier: Verifier, items: Iterable[tuple[Record, Answer]], at_once: int = 1) -> Iterator[Verdict]:
    """The verdict on each answer, in order, `at_once` of them judged side by side. Reads no farther ahead than that."""
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
    line = " ".join((text if isinstance(text, str) else json.dumps(text, ensure_ascii=False, default=str)).split())
    return f"‘{line}’" if len(line) <= MOST_SHOWN else f"‘{line[: MOST_SHOWN - 1]}…’"


def references(record: Record, key: str) -> list[str]:
    """The reference answers of a record as texts; empty where there is none. Numbers are written out."""
    found = record.metadata.get(key)
    several = found if isinstance(found, (list, tuple)) else [found]
    return [value if isinstance(value, str) else _written(value) for value in several if value is not None]


def _written(value: Any) -> str:
    return str(value) if isinstance(value, (int, float)) else json.dumps(value, ensure_ascii=False, default=str)

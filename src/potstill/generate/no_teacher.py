"""What answers for a program that asks nobody."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from potstill.errors import PotstillError
from potstill.generate.answering import NO_JUDGES, Answered, Answering, SideOf
from potstill.types import Request


class NoTeacher:
    """An `Answering` without a teacher: it has no identity and no facts, and to be asked is an error."""

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
        raise PotstillError("a program that says that it asks no teacher asked one")

    def facts(self) -> dict[str, Any]:
        return {}

    def __enter__(self) -> NoTeacher:
        return self

    def __exit__(self, *error: object) -> None:
        pass

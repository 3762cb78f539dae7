"""What goes between a client of a server and who uses it: requests, what is told of them, and the counts."""

from __future__ import annotations

import contextlib
import queue
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from potstill.errors import RunError, UserError
from potstill.teachers.endpoint_wire import Trouble
from potstill.types import Answer

if TYPE_CHECKING:
    from potstill.teachers.endpoint_client import EndpointClient


@dataclass(eq=False)
class Call:
    """One request: what is sent, and where its outcome goes.

    `tokens` is the most that it may read and write, for limits per minute. `tag` is the caller's own. After it,
    `outcome` is the raw answer, or why there is none (`request` or `run`, never `retry`).
    """

    sent: dict[str, Any]
    tokens: int
    tag: Any = None
    outcome: Answer | Trouble | None = None
    attempts: int = 0


class Keeper(Protocol):
    """Who is told what comes of requests. `keep` is called from a writer's thread, the others from the client's."""

    def begin(self, call: Call) -> None:
        """A request is about to be sent (again)."""
        ...

    def keep(self, answered: Sequence[tuple[Call, Answer]]) -> None:
        """Commit answers; they are on the disk when this returns."""
        ...

    def again(self, call: Call, trouble: Trouble) -> None:
        """An attempt failed, and another is due."""
        ...

    def ready(self, call: Call) -> bool | str:
        """Whether the next attempt may go out; if it never may, why."""
        ...

    def lost(self, call: Call, trouble: Trouble) -> None:
        """There will be no answer; what the last attempt brought."""
        ...


@dataclass
class Traffic:
    """What was sent and what came of it, by this process."""

    sent: int = 0
    answered: int = 0
    troubles: Counter[str] = field(default_factory=Counter)
    waited_seconds: float = 0.0


class Stream:
    """One caller's requests to a client, and their outcomes as they come."""

    def __init__(self, client: EndpointClient) -> None:
        self._client = client
        self._done: queue.SimpleQueue[list[Call]] = queue.SimpleQueue()

    def submit(self, calls: Sequence[Call]) -> None:
        """Send these, in this order as far as the server permits."""
        for call in calls:
            self._client._streams[id(call)] = self
        self._client._submit(calls)

    def take(self, seconds: float) -> list[Call]:
        """Calls that have an outcome; empty if none has within so many seconds.

        Raises:
            PotstillError: no request at all can be answered (the server, the key, a field).
        """
        with contextlib.suppress(queue.Empty):
            return self._done.get(timeout=seconds)
        self._client.check()
        return []


def refusal(trouble: Trouble, url: str) -> UserError:
    """What a person is told where no request at all can be answered."""
    said = f"{trouble.reason} ({trouble.detail})" if trouble.detail else trouble.reason
    fix = trouble.fix or "see what the server's own log says"
    return RunError(said, where=url, fix=f"{fix}; what was answered is in the journal")


def without_key(trouble: Trouble, key: str | None) -> Trouble:
    """The same trouble in words that do not hold the key."""
    reason, detail = hidden(trouble.reason, key), hidden(trouble.detail, key)
    return Trouble(trouble.what, reason, detail, trouble.billed, trouble.field, trouble.fix)


def hidden(text: str, key: str | None) -> str:
    """Some servers repeat the key in their refusal."""
    return text.replace(key, "…") if key else text

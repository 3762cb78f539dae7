"""A client against a server that does not exist, on a clock that does not wait: hours pass in a second.

Everything of `EndpointClient` is real but the HTTP exchange, the journal's thread and the time.
"""

from __future__ import annotations

import asyncio
import heapq
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from potstill.recipe import EndpointTeacher
from potstill.teachers.endpoint_client import Call, EndpointClient, Reply, Stream
from potstill.teachers.endpoint_wire import Trouble
from potstill.types import Answer

GOOD = json.dumps(
    {
        "choices": [{"message": {"content": "Yes."}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 40},
    }
).encode()


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer whenever nothing else is to be done."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        loop: Any = self
        timers = loop._scheduled
        while timers and timers[0]._cancelled:
            heapq.heappop(timers)._scheduled = False
            loop._timer_cancelled_count -= 1
        if not loop._ready and timers:
            self.now = max(self.now, timers[0]._when)
        super()._run_once()  # type: ignore[misc]


@dataclass
class SimulatedServer:
    """A server with a limit, faults, and a number of requests that it can work on at once.

    Attributes:
        rate: requests a second that pass, from a bucket of `burst`; 0 for no limit.
        told: what a 429 says of the seconds until the next token, as the header's text; None says nothing.
        latency: seconds of an answer.
        slots: requests that it works on at once; beyond them it answers 503.
        faults: name → share of requests: a status, `hang`, `reset`, `garbled`.
        poison: requests (by number) that meet a fault each time.
        down: from, until: nothing is answered in between.
    """

    rate: float = 0.0
    burst: float = 0.0
    told: Callable[[float], str | None] = lambda left: None
    latency: float = 0.05
    slots: float = math.inf
    faults: dict[str | int, float] = field(default_factory=dict)
    poison: dict[int, str | int] = field(default_factory=dict)
    down: tuple[float, float] = (math.inf, math.inf)
    down_as: str | int = "refused"
    seed: int = 0

    def __post_init__(self) -> None:
        self.draw = Random(self.seed)
        self.level, self.at = self.burst, 0.0
        self.passed, self.lost, self.busy = 0, 0.0, 0
        self.statuses: Counter[str | int] = Counter()
        self.last = 0.0
        self.quiet_until = 0.0
        self.early = 0  # requests that came while they were told to wait

    def used(self) -> float:
        """The share of the permitted rate that was used."""
        return self.passed / (self.passed + self.lost)

    def _take(self, now: float) -> float:
        """0 if there is a token, else the seconds until there is one."""
        full = self.level + (now - self.at) * self.rate
        self.level, self.at = min(self.burst, full), now
        self.lost += full - self.level
        if self.level >= 1:
            self.level -= 1
            self.passed += 1
            return 0.0
        return (1 - self.level) / self.rate

    async def answer(self, number: int, loop: VirtualLoop, timeout: float) -> Reply:
        now = self.last = loop.time()
        self.early += now < self.quiet_until - 1e-6
        if self.poison.get(number) == 429:
            return Reply(429, b"slow down")
        if self.rate and (left := self._take(now)):
            self.statuses[429] += 1
            text = self.told(left)
            if text is not None:
                self.quiet_until = max(self.quiet_until, now + float(text))
            return Reply(429, b"slow down", {} if text is None else {"retry-after": text})
        if self.busy >= self.slots:
            self.statuses["full"] += 1
            return Reply(503, b"full")
        self.busy += 1
        try:
            fault = self.poison.get(number) or self._drawn()
            if self.down[0] <= now < self.down[1]:
                fault = self.down_as
            self.statuses[fault or 200] += 1
            if fault == "hang":
                await asyncio.sleep(timeout)
                return Reply(trouble=Trouble("retry", "no answer in time", billed=True))
            if fault == "refused":
                return Reply(trouble=Trouble("retry", "no connection"))
            await asyncio.sleep(self.latency * self.draw.uniform(0.5, 1.5))
            if fault == "reset":
                return Reply(trouble=Trouble("retry", "a broken connection", billed=True))
            if fault == "garbled":
                return Reply(200, b'{"choices": []}')
            return Reply(200, GOOD) if fault is None else Reply(int(fault), b'{"error": {"message": "no"}}')
        finally:
            self.busy -= 1

    def _drawn(self) -> str | int | None:
        drawn = self.draw.random()
        for name, share in self.faults.items():
            if drawn < share:
                return name
            drawn -= share
        return None


class Kept:
    """A keeper in memory."""

    def __init__(self, has_answers: bool = False) -> None:
        self.has_answers = has_answers
        self.answers = 0

    def begin(self, call: Call) -> None: ...

    def keep(self, answered: Sequence[tuple[Call, Answer]]) -> None:
        self.answers += len(answered)

    def again(self, call: Call, trouble: Trouble) -> None: ...

    def ready(self, call: Call) -> bool | str:
        return True

    def lost(self, call: Call, trouble: Trouble) -> None: ...


class SimulatedClient(EndpointClient):
    """The client on a virtual loop, in this thread."""

    def __init__(self, settings: EndpointTeacher, server: SimulatedServer, keeper: Kept) -> None:
        self.virtual = VirtualLoop()
        super().__init__(settings, None, keeper, loop=self.virtual)
        self.server = server
        self._random = Random(server.seed + 1)

    async def _connect(self) -> None: ...

    async def _disconnect(self) -> None: ...

    async def _post(self, body: bytes, most: int) -> Reply:
        number = int(json.loads(body)["messages"][0]["content"])
        return await self.server.answer(number, self.virtual, self.settings.timeout_seconds)

    async def _commit(self, group: Sequence[tuple[Call, Answer]]) -> None:
        self._keeper.keep(group)


@dataclass
class Outcome:
    """What became of a simulated run, after so many seconds of the virtual clock."""

    calls: list[Call]
    client: SimulatedClient
    virtual_time: float
    error: BaseException | None

    @property
    def answered(self) -> int:
        return sum(isinstance(call.outcome, Answer) for call in self.calls)

    @property
    def reasons(self) -> Counter[str]:
        """Reason and detail of the requests that were rejected."""
        found = [call.outcome for call in self.calls if isinstance(call.outcome, Trouble)]
        return Counter(f"{one.reason}: {one.detail}" for one in found)

    @property
    def said(self) -> list[str]:
        found = []
        while not self.client.messages.empty():
            found.append(self.client.messages.get())
        return found


def simulate(
    server: SimulatedServer, requests: int, *, until: float = math.inf, has_answers: bool = False, **settings: Any
) -> Outcome:
    """Ask so many requests, to the end or for so many seconds of the virtual clock."""
    teacher = EndpointTeacher(base_url="http://simulated/v1", model="m", **settings)
    client = SimulatedClient(teacher, server, Kept(has_answers))
    loop, ended = client.virtual, [0.0]
    calls = [
        Call({"messages": [{"role": "user", "content": str(number)}], "max_tokens": 64}, 100)
        for number in range(requests)
    ]

    async def run() -> None:
        await client._open()
        stream = Stream(client)
        stream.submit(calls)
        left = requests
        while left and client._fatal is None and loop.time() < until:
            await asyncio.sleep(0.25)
            while not stream._done.empty():
                left -= len(stream._done.get())
        ended[0] = loop.time()
        await client._close()

    try:
        loop.run_until_complete(run())
    finally:
        client._writer.shutdown()
        loop.close()
    return Outcome(calls, client, ended[0], client._fatal)

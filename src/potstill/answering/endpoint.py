"""A teacher behind a server: many concurrent requests, through the journal, within the caps, in order.

Requests are read a little ahead, and answers wait for earlier ones, up to a bound: memory does not grow with the
number of prompts. Answers are committed in the client's writer thread, while the program processes earlier ones.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Self

from potstill.answering.base import NO_JUDGES, Answered, Answering, Counts, Failure, SideOf, parsed
from potstill.answering.budget import Budget, Caps, Cost
from potstill.answering.journal import Journal
from potstill.console import Console
from potstill.errors import PotstillError
from potstill.teachers.endpoint_wire import Trouble
from potstill.teachers.prices import check_price, dollars
from potstill.types import Answer, Reason, Request

if TYPE_CHECKING:
    from potstill.teachers.endpoint import EndpointModel
    from potstill.teachers.endpoint_client import Call, EndpointClient, Stream

_CHUNK = 64
"""Number of requests that are looked up, and answers that are yielded, at a time."""
_REORDERED = 32
"""Size of the reorder buffer, as a multiple of `max_in_flight`."""
_POLL_SECONDS = 0.05


class _Slot:
    """A request in input order, until it is yielded.

    Attributes:
        answered: its outcome, once known.
        twin: an earlier slot of an equal request, whose answer this one shares.
        worst: its maximum cost; `reserved`: the part that is reserved now.
        begun: whether it was sent, so that the journal counts it as under way.
    """

    __slots__ = ("answered", "begun", "key", "request", "reserved", "seed", "twin", "worst")

    def __init__(self, request: Request, key: str, seed: int | None) -> None:
        self.request, self.key, self.seed = request, key, seed
        self.answered: Answered | None = None
        self.twin: _Slot | None = None
        self.worst = self.reserved = Cost()
        self.begun = False

    @property
    def outcome(self) -> Answered | None:
        """The outcome of the request, or of its twin."""
        return self.answered if self.twin is None else self.twin.outcome


class EndpointAnswering:
    """Use it as a context manager. Nothing is sent, and no key is needed, while the journal has the answers.

    Args:
        teacher: the endpoint.
        journal: stores every answer before it is used.
        budget: the caps, which several instances may share.
        scope: the budget's owner (a stage's key): earlier processes of the same scope count.
        seed: the recipe's.
        console: for progress, and the client's messages.

    Raises:
        RecipeError: money is capped and the price is unknown.
    """

    def __init__(
        self,
        teacher: EndpointModel,
        journal: Journal,
        *,
        budget: Budget | None = None,
        scope: str = "",
        seed: int = 0,
        console: Console,
    ) -> None:
        self.teacher, self.journal, self.scope, self.seed, self.console = teacher, journal, scope, seed, console
        self.budget = budget or Budget(Caps())
        self.prices = check_price(teacher.settings, capped=self.budget.caps.money is not None)
        self.judges: Mapping[str, Answering] = NO_JUDGES
        self._client: EndpointClient | None = None
        self._open = ExitStack()
        self._over: Reason | None = None
        self._parked: set[_Slot] = set()  # failed, and waiting for room in the caps for a retry
        self.counts = Counts()
        self.cost = 0
        self._first: tuple[Request, str] | None = None
        self.has_answers = False
        self.compared = self.equal = 0

    reads_ahead = True

    @property
    def identity(self) -> Mapping[str, Any]:
        return self.teacher.identity

    @property
    def turns(self) -> bool:
        return self.teacher.turns

    @property
    def context_length(self) -> int | None:
        return self.teacher.context_length

    def prompt_tokens(self, request: Request) -> int | None:
        self.teacher.rendered(request)
        return self.teacher.prompt_tokens(request) if self.teacher.chat is not None else None

    def rendered(self, request: Request) -> str | None:
        return self.teacher.rendered(request)

    def answers(self, requests: Iterable[Request], *, side_of: SideOf | None = None) -> Iterator[Answered]:
        """As `Answering.answers`. Raises as the client, the journal and the teacher do."""
        source = iter(requests)
        slots: deque[_Slot] = deque()
        waiting: dict[str, _Slot] = {}
        held_back: deque[_Slot] = deque()  # read, but not yet affordable
        stream: Stream | None = None
        most = self.teacher.settings.max_in_flight
        with self.console.task("generating", total=None, unit="answers") as task:
            while True:
                while len(waiting) < 2 * most + _CHUNK and len(slots) < _REORDERED * most + _CHUNK:
                    if not held_back:
                        before = len(slots)
                        held_back.extend(self._read(source, slots, waiting))
                        if len(slots) == before:
                            break
                    calls = self._afford(held_back, waiting)
                    if calls:
                        stream = stream or self._connected().stream()
                        stream.submit(calls)
                    if held_back:
                        break
                self._say()
                ready = bool(slots) and slots[0].outcome is not None
                if stream is not None and waiting:
                    self._note(stream.take(0.0 if ready else _POLL_SECONDS), waiting)
                elif not ready and slots:
                    time.sleep(_POLL_SECONDS)  # other streams are under way, and hold reservations
                if not slots:
                    return
                came = 0
                while slots and came < _CHUNK and (outcome := slots[0].outcome) is not None:
                    came += 1
                    yield self._counted(slots.popleft(), outcome)
                task.advance(came, note=self._under_way())

    def facts(self) -> dict[str, Any]:
        """Counts, and the requests that this process sent."""
        facts: dict[str, Any] = {
            **self.counts.facts(),
            "tokens_read": self.counts.read,
            "token_budget": self.budget.caps.written,
            "further_samples": self.compared,
            "equal_to_the_first": self.equal,
            "price": self.prices.source if self.prices is not None else "unknown",
            "dollars": round(dollars(self.cost), 6) if self.prices is not None else None,
        }
        if self._client is not None:
            traffic = self._client.traffic
            facts |= {"requests_sent": traffic.sent, "troubles": dict(sorted(traffic.troubles.items()))}
            facts["seconds_waited"] = round(traffic.waited_seconds, 1)
        return facts

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()
        self._say()

    # ---- inside: reading and sending --------------------------------------------------------------------------

    def _read(self, source: Iterator[Request], slots: deque[_Slot], waiting: dict[str, _Slot]) -> Sequence[_Slot]:
        """Read some requests into slots; returns those that are no twins, and so are paid for."""
        new = [_Slot(request, *self.teacher.key_of(request, self.seed)) for request in islice(source, _CHUNK)]
        slots.extend(new)
        first: dict[str, _Slot] = {}
        for slot in new:
            twin = waiting.get(slot.key) or first.get(slot.key)
            if twin is not None:
                slot.twin = twin
            else:
                first[slot.key] = slot
        found = self.journal.get_many(list(first))
        for key, slot in first.items():
            if (raw := found.get(key)) is not None:
                slot.answered = self._parsed(slot, raw, from_journal=True)
                self.has_answers = True
        return list(first.values())

    def _afford(self, slots: deque[_Slot], waiting: dict[str, _Slot]) -> list[Call]:
        """Take from `slots` what the caps allow now, in order: earlier requests are paid for first, whether or not
        they are answered, so that the journal's content does not change which requests a cap excludes."""
        calls: list[Call] = []
        while slots:
            slot = slots[0]
            raw = slot.answered.raw if slot.answered is not None else None
            if self._over is None and (raw is None or self.budget.caps):
                call = self.teacher.call(slot.request, slot.seed)
                slot.worst = self._worst(call, slot.request)
                if not self._reserve(slot, to_send=raw is None):
                    break
                if slot.reserved != Cost():
                    if raw is not None:
                        self.budget.settle(slot.reserved, self._cost(raw), begun=False)
                    else:
                        call.tag = slot
                        waiting[slot.key] = slot
                        calls.append(call)
            if self._over is not None:
                slot.answered = Answered(slot.request, Failure(self._over))
            slots.popleft()
        return calls

    def _reserve(self, slot: _Slot, *, to_send: bool) -> bool:
        """Reserve the cost of a request, or record that a cap excludes it; False if neither can be decided yet."""
        if self._parked:
            return False  # retries come first
        idle = self.budget.reserved == Cost()
        over = self.budget.reserve(slot.worst, to_send=to_send)
        if over is None:
            slot.reserved = slot.worst
        elif not idle:
            return False  # requests under way may turn out to cost less
        elif self.budget.exceeded(slot.worst) is not None:
            self._over = over
        else:  # the remainder was paid for later answers
            slot.answered = Answered(slot.request, Failure(over))
        return True

    def _connected(self) -> EndpointClient:
        if self._client is None:
            self._client = self._open.enter_context(self.teacher.open(self))
        return self._client

    def _note(self, calls: Sequence[Call], waiting: dict[str, _Slot]) -> None:
        for call in calls:
            slot: _Slot = call.tag
            del waiting[slot.key]
            if isinstance(call.outcome, Answer):
                slot.answered = self._parsed(slot, call.outcome, from_journal=False)
            elif call.outcome is not None:
                failure = Failure(Reason(call.outcome.reason), call.outcome.detail)
                slot.answered = Answered(slot.request, failure)

    def _parsed(self, slot: _Slot, raw: Answer, *, from_journal: bool) -> Answered:
        required = self.teacher.settings.reasoning == "required"
        return parsed(slot.request, raw, from_journal=from_journal, seed=slot.seed, required=required)

    def _counted(self, slot: _Slot, answered: Answered) -> Answered:
        if slot.twin is None and answered.raw is not None:
            raw = answered.raw
            self.counts.add(raw, from_journal=answered.from_journal)
            self.cost += self.prices.of(raw.prompt_tokens, raw.completion_tokens) if self.prices is not None else 0
            self._compare(slot.request, raw)
        return answered

    def _compare(self, request: Request, raw: Answer) -> None:
        """Check whether a further sample differs from the first: some servers accept a temperature but do not
        sample."""
        if request.sampling.temperature == 0:
            return
        if request.sample == 0:
            self._first = (request, raw.text)
        elif self._first is not None and self._first[0].messages == request.messages:
            same_prompt = self._first[0].prompt == request.prompt
            self.compared += same_prompt
            self.equal += same_prompt and self._first[1] == raw.text

    def _under_way(self) -> str:
        return "" if self._client is None else f"{self._client.in_flight} under way"

    def _say(self) -> None:
        while self._client is not None and not self._client.messages.empty():
            self.console.warn(self._client.messages.get())

    # ---- inside: the budget, from the client's threads --------------------------------------------------------

    def begin(self, call: Call) -> None:
        """Make sure that the journal knows how much may be under way."""
        if self.budget.caps and not call.tag.begun:
            call.tag.begun = True
            if self.budget.begin(call.tag.reserved):
                self.journal.put_batch([], ledger=(self.scope, self.budget.entry))

    def keep(self, answered: Sequence[tuple[Call, Answer]]) -> None:
        """Commit answers, and replace their reservations by actual costs."""
        rows = [(call.tag.key, answer) for call, answer in answered]
        costs = [self._cost(answer) for _, answer in answered]
        entry = partial(self.budget.entry, paid=sum(costs, Cost()))
        self.journal.put_batch(rows, ledger=(self.scope, entry) if self.budget.caps else None)
        for (call, _), cost in zip(answered, costs, strict=True):
            self.budget.settle(call.tag.reserved, cost, begun=call.tag.begun)
        over = self.budget.broken()
        if over is not None:
            raise PotstillError(
                f"the {over} was exceeded: the server counts more tokens than were asked for or a prompt has bytes",
                where=self.teacher.settings.url,
                fix="name the model's tokenizer as the teacher's tokenizer, so that prompts are counted exactly",
            )

    def again(self, call: Call, trouble: Trouble) -> None:
        """Charge an attempt that failed."""
        slot: _Slot = call.tag
        if not self.budget.caps:
            return
        if not self.budget.fail(slot.reserved, self._attempt(call, trouble)):
            slot.reserved, slot.begun = Cost(), False
            self._parked.add(slot)
        if self.budget.hold():
            self.journal.put_batch([], ledger=(self.scope, self.budget.entry))

    def ready(self, call: Call) -> bool | Reason:
        """Whether a retry fits the caps: False if it may fit later, when requests under way turn out to cost less; the
        cap that excludes it, if it never will."""
        slot: _Slot = call.tag
        if slot not in self._parked:
            return True
        idle = self.budget.reserved == Cost()
        over = self.budget.reserve(slot.worst)
        if over is not None and not idle:
            return False
        self._parked.discard(slot)
        if over is not None:
            return over
        slot.reserved = slot.worst
        return True

    def lost(self, call: Call, trouble: Trouble) -> None:
        """Charge the last attempt of a request that has no answer."""
        self.budget.settle(call.tag.reserved, self._attempt(call, trouble), answered=False, begun=call.tag.begun)

    def _worst(self, call: Call, request: Request) -> Cost:
        written = request.sampling.max_new_tokens
        read = call.tokens - written
        return Cost(1, written, call.tokens, self.prices.of(read, written) if self.prices is not None else 0)

    def _cost(self, raw: Answer) -> Cost:
        read, written = raw.prompt_tokens, raw.completion_tokens
        return Cost(1, written, read + written, self.prices.of(read, written) if self.prices is not None else 0)

    def _attempt(self, call: Call, trouble: Trouble) -> Cost:
        """The assumed cost of a failed attempt: the worst case, unless the server certainly did nothing."""
        reserved: Cost = call.tag.reserved
        return reserved if trouble.billed else Cost(requests=1)

"""Sends requests to a server, many at a time, from its own thread. The caller's side is synchronous.

A request counts as under way until its answer has been committed (`Keeper.keep`), so a `kill -9` loses at most the
requests under way. Memory is bounded by what the caller submits: a response is read up to a bound that follows from
its request.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import queue
import random
import threading
import time
import zlib
from collections import Counter, deque
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol

import aiohttp

from potstill.errors import RunError, UserError
from potstill.recipe import EndpointTeacher
from potstill.teachers.endpoint_pace import Breaker, Flight, Pace, Rate, Window, retry_after_seconds
from potstill.teachers.endpoint_wire import (
    ERROR_BYTES,
    Exchange,
    Redactor,
    Trouble,
    Writing,
    encoded,
    read_refusal,
)
from potstill.types import Answer, Reason

GROUP_SECONDS = 0.004
"""How long the first of several answers waits for others, to be committed together."""
DRAIN_SECONDS = 10.0
"""How long to wait for answers under way when the work ends early: they are paid for."""
_CONNECT_SECONDS = 20.0
_PARKED_SECONDS = 0.02
_NO_CONNECTION = "no connection"
_NO_ANSWER_IN_TIME = "no answer in time"
_OVERLOADED = frozenset({503, 529})
_GATEWAY = frozenset({502, 503, 504, 520, 521, 522, 523, 524, 529})
"""Statuses from a proxy in front of the server, or from a server that accepts nothing."""
_IN_A_ROW = 12
"""This many failures in a row, without an answer between them, end the run."""
_UNREADABLE_IN_A_ROW = 100
"""This many requests in a row that are given up because their answers were unreadable end the run."""
_THROTTLED_IN_A_ROW = 24
"""A request is rejected after this many 429s, if others are answered meanwhile."""


# ---- messages between client and caller -----------------------------------------------------------------------------


@dataclass(eq=False)
class Call:
    """One request: its body, and later its outcome.

    Attributes:
        sent: the request's body.
        tokens: an upper bound on the tokens read and written, for limits per minute.
        tag: the caller's own.
        outcome: at the end: the raw answer, or why there is none (never with the action `retry`).
    """

    sent: dict[str, Any]
    tokens: int
    tag: Any = None
    outcome: Answer | Trouble | None = None
    attempts: int = 0
    throttled: int = 0
    """The number of 429s in a row, and how much had been answered at the first of them."""
    answered_before: int = 0
    stream: Stream | None = None


class Keeper(Protocol):
    """Keeps answers and accounts for attempts. `keep` is called from a writer thread, the rest from the client's."""

    @property
    def has_answers(self) -> bool:
        """Whether this server has answered before, in an earlier process."""
        ...

    def begin(self, call: Call) -> None:
        """The request is about to be sent, for the first time or again."""
        ...

    def keep(self, answered: Sequence[tuple[Call, Answer]]) -> None:
        """Commit answers; they are on disk when this returns."""
        ...

    def again(self, call: Call, trouble: Trouble) -> None:
        """An attempt failed, and another follows."""
        ...

    def ready(self, call: Call) -> bool | Reason:
        """Whether the next attempt may be sent; the reason, if it never may."""
        ...

    def lost(self, call: Call, trouble: Trouble) -> None:
        """The request gets no answer; `trouble` is why the last attempt failed."""
        ...


@dataclass
class Traffic:
    """Counts of this process's requests and their outcomes."""

    sent: int = 0
    answered: int = 0
    troubles: Counter[str] = field(default_factory=Counter)
    waited_seconds: float = 0.0


class Stream:
    """The requests of one caller, and their outcomes."""

    def __init__(self, client: EndpointClient) -> None:
        self._client = client
        self._done: queue.SimpleQueue[list[Call]] = queue.SimpleQueue()

    def submit(self, calls: Sequence[Call]) -> None:
        """Queue requests; they are sent in this order as far as the server permits."""
        for call in calls:
            call.stream = self
        self._client._submit(calls)

    def take(self, seconds: float) -> list[Call]:
        """Calls with an outcome; empty if there is none within this time.

        Raises:
            PotstillError: no request at all can be answered (the server, the key, a field).
        """
        with contextlib.suppress(queue.Empty):
            return self._done.get(timeout=seconds)
        self._client.check()
        return []

    def put(self, calls: list[Call]) -> None:
        """Deliver calls with their outcomes to the caller."""
        self._done.put(calls)


@dataclass(frozen=True)
class Reply:
    """The result of one attempt: a response (headers by lower-case name), or the trouble instead."""

    status: int = 0
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    trouble: Trouble | None = None


# ---- the client ------------------------------------------------------------------------------------------------------


class EndpointClient:
    """Use it as a context manager.

    Args:
        settings: the server, and how to send to it.
        key: sent as a bearer token, if any; never in a message, an answer or the `repr`.
        keeper: keeps the answers.
        loop: the event loop, run in its own thread; by default a new one.
        exchange: what is asked and answered; by default texts that the model writes.
    """

    def __init__(
        self,
        settings: EndpointTeacher,
        key: str | None,
        keeper: Keeper,
        *,
        loop: asyncio.AbstractEventLoop | None = None,
        exchange: Exchange | None = None,
    ) -> None:
        self.settings, self._key, self._keeper = settings, key, keeper
        self._exchange: Exchange = exchange or Writing(settings)
        self._redact = Redactor(key)
        self.traffic = Traffic()
        self.messages: queue.SimpleQueue[str] = queue.SimpleQueue()
        """Messages for the user, without the key; the owner of the terminal prints them."""
        self._loop = loop or asyncio.new_event_loop()
        now = self._loop.time()
        self.window = Window(settings.max_in_flight, slow_seconds=settings.timeout_seconds / 2)
        self.breaker, self.pace = Breaker(now), Pace()
        self._rates = [
            (Rate(limit, now), by_tokens)
            for limit, by_tokens in ((settings.requests_per_minute, False), (settings.tokens_per_minute, True))
            if limit is not None
        ]
        self._waiting: deque[Call] = deque()
        self._uncommitted: list[tuple[Call, Answer]] = []
        self._in_flight = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._pause_until = self._next_try = 0.0
        self._patience_message_at = now
        self._probing = False
        self._closing = self._committing = False
        self._stops = self._unreadable = self._given_up = 0  # in a row, with no answer between them
        self._alarm: asyncio.TimerHandle | None = None
        self._fatal: BaseException | None = None
        self._random = random.Random()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._thread = threading.Thread(target=self._loop.run_forever, name="endpoint", daemon=True)

    def __repr__(self) -> str:
        return f"EndpointClient({self.settings.url})"

    def stream(self) -> Stream:
        """A stream for one caller."""
        return Stream(self)

    def check(self) -> None:
        """Raise the error that ended the work, if any (once everything under way has been committed)."""
        if self._fatal is not None and self._in_flight == 0:
            raise self._fatal

    @property
    def in_flight(self) -> int:
        """Requests that are sent and not yet committed."""
        return self._in_flight

    def __enter__(self) -> EndpointClient:
        self._thread.start()
        self._run(self._open())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._run(self._close())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._writer.shutdown()

    # ---- from the caller's thread ------------------------------------------------------------------------------

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _submit(self, calls: Sequence[Call]) -> None:
        self._waiting.extend(calls)
        self._loop.call_soon_threadsafe(self._pump)

    # ---- opening and closing -----------------------------------------------------------------------------------

    async def _open(self) -> None:
        await self._connect()
        self._arrived = asyncio.Event()
        self._keeping = self._loop.create_task(self._keep_answers())

    async def _close(self) -> None:
        """Send nothing more; wait a while for requests under way, whose answers are paid for."""
        self._closing = True
        self._waiting.clear()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=DRAIN_SECONDS)
        for task in self._tasks:
            task.cancel()
        while (self._uncommitted or self._committing or self._tasks) and not self._keeping.done():
            self._arrived.set()
            await asyncio.sleep(GROUP_SECONDS)
        self._keeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._keeping
        await self._disconnect()

    # ---- HTTP --------------------------------------------------------------------------------------------------

    async def _connect(self) -> None:
        headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            "Accept-Encoding": "gzip, deflate",
        }
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        # `_post` limits the time of a whole exchange: a body that trickles in is no answer in time.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=min(_CONNECT_SECONDS, self.settings.timeout_seconds))
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30),
            headers=headers,
            timeout=timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,  # `Body` does it, within a bound
        )

    async def _disconnect(self) -> None:
        await self._session.close()

    async def _post(self, body: bytes, most: int) -> Reply:
        """One exchange. Redirects are not followed: the key is for this address alone.

        Args:
            body: the request's body.
            most: maximum size of an answer's body, in bytes.
        """
        try:
            async with (
                asyncio.timeout(self.settings.timeout_seconds),
                self._session.post(self._exchange.url, data=body, allow_redirects=False) as response,
            ):
                good = response.status == 200
                read = Body(most if good else ERROR_BYTES, response.headers.get("Content-Encoding", ""))
                async for piece in response.content.iter_any():
                    if not read.add(piece):
                        response.close()  # a connection with an unread body cannot be reused
                        break
                headers = {} if good else _by_lower_name(response.headers.items())
                if good and read.over:
                    detail = f"over {most:,} bytes"
                    trouble = Trouble("retry", "an answer longer than max_new_tokens allows", detail, True, True)
                    return Reply(200, trouble=trouble)
                return Reply(response.status, bytes(read.data), headers)
        except zlib.error as error:
            return _broken("an answer that cannot be decompressed", str(error), unreadable=True)
        except aiohttp.ClientConnectorCertificateError as error:
            return Reply(trouble=Trouble("stop", "the server's certificate is not accepted", self._redact(str(error))))
        except aiohttp.ClientConnectorError as error:
            return Reply(trouble=Trouble("retry", _NO_CONNECTION, self._redact(str(error.os_error))))
        except aiohttp.ConnectionTimeoutError:
            return Reply(trouble=Trouble("retry", _NO_CONNECTION, "in time"))
        except TimeoutError:
            return _broken(_NO_ANSWER_IN_TIME, f"after {self.settings.timeout_seconds:g} s")
        except (aiohttp.ClientError, OSError) as error:
            detail = self._redact(str(error) or type(error).__name__)
            return _broken("a broken connection", detail[:400])

    async def _commit(self, group: Sequence[tuple[Call, Answer]]) -> None:
        await self._loop.run_in_executor(self._writer, self._keeper.keep, group)

    # ---- sending -----------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Send what may be sent now. An exception ends the work: in a callback it would go unseen."""
        try:
            self._send_waiting()
        except Exception as error:  # noqa: BLE001 - the caller raises it
            self._end(error)

    def _send_waiting(self) -> None:
        """Send what may be sent now; schedule `_pump` for the rest."""
        while self._waiting and not self._closing and self._fatal is None and self._in_flight < int(self.window.size):
            now = self._loop.time()
            if self.breaker.is_open:
                if self._probing:
                    return None
                if now < self._next_try:
                    return self._wake(self._next_try)
            if now < self._pause_until:
                return self._wake(self._pause_until)
            call = self._waiting[0]
            waits = [rate.wait_seconds(call.tokens if by_tokens else 1, now) for rate, by_tokens in self._rates]
            wait = max([*waits, self.pace.wait_seconds(now)])
            if wait > 0:
                return self._wake(now + wait)
            self._keeper.begin(call)
            self._waiting.popleft()
            for rate, by_tokens in self._rates:
                rate.take(call.tokens if by_tokens else 1, now)
            self.pace.take(now)
            self._in_flight += 1
            probe = self._probing = self.breaker.is_open
            task = self._loop.create_task(self._send(call, probe))
            self._tasks.add(task)
            task.add_done_callback(self._ended)
        return None

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._end(error)
            self._release()

    def _wake(self, at: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        # The loop's clock may run a tick early, and a pause must be kept.
        self._alarm = self._loop.call_later(max(0.0, at - self._loop.time()) + 0.001, self._pump)

    async def _send(self, call: Call, probe: bool) -> None:
        if self._loop.time() < self._pause_until:  # another request was asked to wait in the meantime
            for rate, by_tokens in self._rates:
                rate.give_back(call.tokens if by_tokens else 1)
            self._again(call, 0.0, probe)
            return
        flight = self.window.send(self._loop.time(), self._in_flight)
        self.traffic.sent += 1
        body = encoded(call.sent)
        try:
            reply = await self._post(body, self._exchange.most_bytes(call.sent, len(body)))
        except asyncio.CancelledError:
            self._lose(call, Trouble("reject", Reason.BROKEN_OFF, billed=True))
            raise
        except Exception as error:  # noqa: BLE001 - whatever a server made the HTTP library raise is this attempt's
            reply = _broken("a response that cannot be read", type(error).__name__, unreadable=True)
        found = reply.trouble or self._read(call, reply)
        if isinstance(found, Answer):
            self._answered(call, found, flight, probe)
        else:
            self._failed(call, found, flight, probe, reply)

    def _read(self, call: Call, reply: Reply) -> Answer | Trouble:
        if reply.status == 200:
            return self._exchange.read(reply.body, call.sent, self._redact)
        return read_refusal(reply.status, reply.body, call.sent, self._redact)

    # ---- what comes of it --------------------------------------------------------------------------------------

    def _answered(self, call: Call, answer: Answer, flight: Flight, probe: bool) -> None:
        now = self._loop.time()
        self.window.answered(flight, now, answer.completion_tokens)
        self._up(now, probe)
        self.traffic.answered += 1
        self._stops = self._unreadable = self._given_up = 0
        for rate, by_tokens in self._rates:
            if by_tokens:
                rate.give_back(max(0, call.tokens - answer.prompt_tokens - answer.completion_tokens))
        self._uncommitted.append((call, answer))
        self._arrived.set()

    def _failed(self, call: Call, trouble: Trouble, flight: Flight, probe: bool, reply: Reply) -> None:
        now, throttled = self._loop.time(), reply.status == 429
        self.traffic.troubles[trouble.reason] += 1
        if trouble.action == "reject":
            self._up(now, probe)
            self._lose(call, trouble)
            self._release()
            return
        if self._ends_the_run(trouble):
            self._up(now, probe)
            self._end_for(call, trouble, trouble)
            return
        if throttled:
            self._throttled(call, flight, now, retry_after_seconds(reply.headers, time.time()))
            self._up(now, probe, answered=False)  # the server responds: neither it nor the request failed
        else:
            overloaded = reply.status in _OVERLOADED or trouble.reason == _NO_ANSWER_IN_TIME
            self.window.failed(flight, overloaded=overloaded)
            if (asked := retry_after_seconds(reply.headers, time.time())) is not None:
                self._pause(now, asked)
            self._count_attempt(call, trouble, reply.status, probe, now)
        silent = now - self.breaker.last_answer
        if silent > self.settings.patience_seconds:
            why = f"no answer to any request for {self.settings.patience_seconds:,.0f} seconds: {trouble.reason}"
            fix = "see whether the server runs, and what its log says"
            self._end_for(call, trouble, Trouble("stop", why, trouble.detail, fix=fix))
        elif call.attempts > self.settings.retries or self._is_refused_alone(call):
            self._give_up(call, trouble)
        else:
            self._keeper.again(call, trouble)
            most = 0.0 if throttled else min(30.0, 0.25 * 2.0**call.attempts)
            self._again(call, self._random.uniform(most / 4, most), probe)

    def _ends_the_run(self, trouble: Trouble) -> bool:
        """Whether a failure concerns all requests: it is the server's first response, or has come too often in a
        row."""
        known = self.traffic.answered > 0 or self._keeper.has_answers
        self._stops = self._stops + 1 if trouble.action == "stop" else 0
        self._unreadable = self._unreadable + 1 if trouble.unreadable else 0
        if trouble.action == "stop":
            return not known or self._stops >= _IN_A_ROW
        return not known and self._unreadable >= _IN_A_ROW

    def _count_attempt(self, call: Call, trouble: Trouble, status: int, probe: bool, now: float) -> None:
        """Count a failed attempt against the request, the server, or both."""
        was_open, call.throttled = self.breaker.is_open, 0
        own = trouble.unreadable or trouble.action == "stop"  # the server responded to this request
        connected = trouble.reason != _NO_CONNECTION
        responding = status > 0 and status not in _GATEWAY
        # A repeated failure of one request points to the request rather than the server. While the server is down, a
        # failure counts against a request only if the server responded; a failure to connect never does.
        repeated = connected and call.attempts > 0
        if own:
            self._up(now, probe, answered=False)
        elif (not was_open and not repeated) or probe:
            self._down(now, trouble, responding=responding)
        call.attempts += own or responding or (not was_open and connected)

    def _throttled(self, call: Call, flight: Flight, now: float, asked: float | None) -> None:
        """Slow down after a 429."""
        if call.throttled == 0:
            call.answered_before = self.traffic.answered
        call.throttled += 1
        self.pace.refused()
        first = self.window.refused(flight, paced=self.pace.per_second(now) < math.inf)
        if first:
            self.pace.limited(now, asked)
        if asked is not None:
            self._pause(now, asked)
        elif first:
            self._pause(now, self._random.uniform(0.5, 1.0))

    def _is_refused_alone(self, call: Call) -> bool:
        """Whether a request gets a 429 each time while others are answered."""
        others = self.traffic.answered - call.answered_before
        return min(call.throttled, others) >= _THROTTLED_IN_A_ROW

    def _give_up(self, call: Call, trouble: Trouble) -> None:
        """Reject a request after its last attempt."""
        tries = max(call.attempts, 1) + call.throttled
        self._given_up = self._given_up + 1 if trouble.unreadable else 0
        if self._given_up >= _UNREADABLE_IN_A_ROW:
            why = f"{self._given_up} requests in a row have no readable answer: {trouble.reason}"
            self._end_for(call, trouble, Trouble("stop", why, trouble.detail, fix=trouble.fix))
            return
        last = f"{trouble.reason} ({trouble.detail})" if trouble.detail else trouble.reason
        self._lose(call, Trouble("reject", Reason.UNANSWERED, f"{tries} tries; the last: {last}", trouble.billed))
        self._release()

    def _up(self, now: float, probe: bool, *, answered: bool = True) -> None:
        """The server responds."""
        if probe:
            self._probing = False
        since, last = self.breaker.open_since, self.breaker.last_answer
        if self.breaker.answered(now) and since is not None:
            self.traffic.waited_seconds += now - since
            self.messages.put(f"the server answers again, after {now - since:,.0f} s")
        if not answered:
            self.breaker.last_answer = last

    def _down(self, now: float, trouble: Trouble, *, responding: bool) -> None:
        self._probing = False
        connected = trouble.reason != _NO_CONNECTION
        wait = self.breaker.failed(now, connected=connected, responding=responding)
        if wait is None:
            return
        self._next_try = now + wait
        since = now if self.breaker.open_since is None else self.breaker.open_since
        if now == since or now - self._patience_message_at >= 10.0:
            self._patience_message_at = now
            so_far = f", {now - since:,.0f} s so far" if now > since else ""
            why = f"{trouble.reason}: {trouble.detail}" if trouble.detail else trouble.reason
            self.messages.put(f"{self.settings.base_url} is down ({why}); waiting for it{so_far}")

    def _pause(self, now: float, seconds: float) -> None:
        """Send nothing for this long, but not beyond patience: then a last try decides."""
        until = min(now + seconds, self.breaker.last_answer + self.settings.patience_seconds + 0.001)
        if until <= max(now, self._pause_until):
            return
        if until - now > 10.0:
            short = until < now + seconds - 0.01
            limit = f"; tried again after {until - now:,.0f} s (patience_seconds)" if short else ""
            self.messages.put(f"{self.settings.base_url} asks to wait {seconds:,.0f} s{limit}")
        self.traffic.waited_seconds += until - max(now, self._pause_until)
        self._pause_until = until

    def _again(self, call: Call, wait: float, probe: bool) -> None:
        self._in_flight -= 1
        if probe:
            self._probing = False
        if wait > 0:
            self._loop.call_later(wait, self._requeue, call)
            self._pump()  # send another request in its place
        else:
            self._requeue(call)

    def _requeue(self, call: Call) -> None:
        ready = self._keeper.ready(call)
        if ready is False:
            self._loop.call_later(_PARKED_SECONDS, self._requeue, call)
        elif ready is True and (self.breaker.is_open or call.throttled > 2):
            # To the back: if the failure is the request's own, others must show that the server is up.
            self._waiting.append(call)
        elif ready is True:
            # To the front: earlier requests are waited for first.
            self._waiting.appendleft(call)
        else:
            self._hand_back(call, Trouble("reject", ready, "no room for a second try"))
        self._pump()

    def _lose(self, call: Call, trouble: Trouble) -> None:
        self._keeper.lost(call, trouble)
        self._hand_back(call, trouble)

    def _hand_back(self, call: Call, outcome: Trouble) -> None:
        call.outcome = outcome
        if call.stream is not None:
            call.stream.put([call])

    def _release(self, count: int = 1) -> None:
        self._in_flight -= count
        self._pump()

    def _end_for(self, call: Call, attempt: Trouble, why: Trouble) -> None:
        """End the work without an outcome for the call: `check` raises the reason."""
        self._keeper.lost(call, attempt)
        self._end(refusal(why, self.settings.url))
        self._release()

    def _end(self, error: BaseException) -> None:
        """No further request can be answered. The first error is kept."""
        self._fatal = self._fatal or error

    async def _keep_answers(self) -> None:
        """Commit answers in groups, then deliver them and free their slots."""
        while True:
            await self._arrived.wait()
            await asyncio.sleep(GROUP_SECONDS)
            self._arrived.clear()
            group, self._uncommitted = self._uncommitted, []
            if not group:
                continue
            self._committing = True
            try:
                await self._commit(group)
            except Exception as error:  # noqa: BLE001 - the caller raises it
                self._end(error)
                self._release(len(group))
                continue
            finally:
                self._committing = False
            done: dict[Stream, list[Call]] = {}
            for call, answer in group:
                call.outcome = answer
                if call.stream is not None:
                    done.setdefault(call.stream, []).append(call)
            for stream, calls in done.items():
                stream.put(calls)
            self._release(len(group))


class Body:
    """The body of a response, received in pieces and decompressed, up to a bound.

    Args:
        most: maximum size in bytes, decompressed.
        encoding: the header `Content-Encoding`: empty, `identity`, `gzip` or `deflate`.

    Raises:
        zlib.error: another encoding, or (`add`) the bytes are not in it.
    """

    def __init__(self, most: int, encoding: str) -> None:
        self.most, self.data = most, bytearray()
        self.over = False
        encoding = encoding.strip().lower()
        if encoding not in ("", "identity", "gzip", "x-gzip", "deflate"):
            raise zlib.error(f"the encoding {encoding[:40]!r} was not asked for")
        self._packed = encoding not in ("", "identity")
        self._unpack: Any = None

    def add(self, piece: bytes) -> bool:
        """Add a piece; False once the bound is exceeded."""
        room = self.most + 1 - len(self.data)
        if self._packed:
            if self._unpack is None:
                # Some servers send deflate without the header of zlib.
                headed = piece[:1] in (b"\x1f", b"\x78", b"\x58", b"\x48", b"\x38", b"\x28", b"\x18", b"\x08")
                self._unpack = zlib.decompressobj(47 if headed else -15)
            piece = self._unpack.decompress(piece, room)
        self.data += piece[:room]
        self.over = len(self.data) > self.most
        if self.over:
            del self.data[self.most :]
        return not self.over


def refusal(trouble: Trouble, url: str) -> UserError:
    """The error to show if no request at all can be answered."""
    what = f"{trouble.reason} ({trouble.detail})" if trouble.detail else trouble.reason
    fix = trouble.fix or "see what the server's own log says"
    return RunError(what, where=url, fix=f"{fix}; what was answered is in the journal")


def _broken(reason: str, detail: str, *, unreadable: bool = False) -> Reply:
    return Reply(trouble=Trouble("retry", reason, detail, billed=True, unreadable=unreadable))


def _by_lower_name(headers: Any) -> dict[str, str]:
    """Headers by lower-case name; the first of several with one name."""
    found: dict[str, str] = {}
    for name, value in headers:
        found.setdefault(name.lower(), value)
    return found

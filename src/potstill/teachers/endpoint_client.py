"""Sends requests to a server, many at a time, from a thread of its own; the caller's side is plain and synchronous.

A request holds its place among those under way until its answer has been committed (`Keeper.keep`), so that what a
`kill -9` can lose is what was under way. Memory follows from what the caller submits, not from how much there is.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import random
import threading
import time
from collections import deque
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

import aiohttp

from potstill.recipe import EndpointTeacher
from potstill.teachers.endpoint_calls import Call, Keeper, Stream, Traffic, hidden, refusal, without_key
from potstill.teachers.endpoint_pace import Breaker, Flight, Pace, Rate, Window, retry_after_seconds
from potstill.teachers.endpoint_wire import Trouble, encoded, read_answer, read_refusal
from potstill.types import Answer

GROUP_SECONDS = 0.004
"""How long the first of several answers waits for others to be committed with it."""
DRAIN_SECONDS = 10.0
"""How long answers under way are waited for when the work ends early: they are paid for."""
_CONNECT_SECONDS = 20.0
_PARKED_SECONDS = 0.02
_NO_CONNECTION = "no connection"
_OVERLOADED = frozenset({429, 503, 529})


class EndpointClient:
    """Use it as a context manager.

    Args:
        settings: the server, and how it is asked.
        key: sent as a bearer token, if there is one. It is in no message, and not in the `repr`.
        keeper: is told of answers and failures.
    """

    def __init__(self, settings: EndpointTeacher, key: str | None, keeper: Keeper) -> None:
        self.settings, self._key, self._keeper = settings, key, keeper
        self.traffic = Traffic()
        self.messages: queue.SimpleQueue[str] = queue.SimpleQueue()
        """What a person should be told; whoever has the terminal says it."""
        now = time.monotonic()
        self.window = Window(settings.max_in_flight, slow_seconds=settings.timeout_seconds / 2)
        self.breaker, self.pace = Breaker(now), Pace()
        self._rates = [
            (Rate(limit, now), by_tokens)
            for limit, by_tokens in ((settings.requests_per_minute, False), (settings.tokens_per_minute, True))
            if limit is not None
        ]
        self._streams: dict[int, Stream] = {}
        self._waiting: deque[Call] = deque()
        self._unkept: list[tuple[Call, Answer]] = []
        self._in_flight = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._pause_until = self._next_try = 0.0
        self._patience_said = now
        self._probing = False
        self._closing = self._committing = False
        self._alarm: asyncio.TimerHandle | None = None
        self._fatal: BaseException | None = None
        self._random = random.Random()
        self._loop = asyncio.new_event_loop()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._thread = threading.Thread(target=self._loop.run_forever, name="endpoint", daemon=True)

    def __repr__(self) -> str:
        return f"EndpointClient({self.settings.url})"

    def stream(self) -> Stream:
        """A way in for one caller."""
        return Stream(self)

    def check(self) -> None:
        """Raise what ended the work, if something did (once all that was under way has been committed)."""
        if self._fatal is not None and self._in_flight == 0:
            raise self._fatal

    @property
    def in_flight(self) -> int:
        """Requests under way: sent, and not yet committed."""
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

    # ---- from the caller's thread ----------------------------------------------------------------------------

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _submit(self, calls: Sequence[Call]) -> None:
        self._waiting.extend(calls)
        self._loop.call_soon_threadsafe(self._pump)

    # ---- on the loop ----------------------------------------------------------------------------------------

    async def _open(self) -> None:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        timeout = aiohttp.ClientTimeout(
            total=self.settings.timeout_seconds, sock_connect=min(_CONNECT_SECONDS, self.settings.timeout_seconds)
        )
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=30)
        self._session = aiohttp.ClientSession(
            connector=connector, headers=headers, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()
        )
        self._arrived = asyncio.Event()
        self._keeping = self._loop.create_task(self._keep_answers())

    async def _close(self) -> None:
        """Send nothing more; wait a while for what is under way, so that what was paid for is kept."""
        self._closing = True
        self._waiting.clear()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=DRAIN_SECONDS)
        for task in self._tasks:
            task.cancel()
        while (self._unkept or self._committing or self._tasks) and not self._keeping.done():
            self._arrived.set()
            await asyncio.sleep(GROUP_SECONDS)
        self._keeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._keeping
        await self._session.close()

    def _pump(self) -> None:
        """Send what may be sent now. What goes wrong in it ends the work: nobody hears a callback of the loop."""
        try:
            self._send_waiting()
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller is to see it
            self._end(error)

    def _send_waiting(self) -> None:
        """Send what may be sent now; otherwise see to it that `_pump` is called again when more may."""
        while self._waiting and not self._closing and self._fatal is None and self._in_flight < int(self.window.size):
            now = time.monotonic()
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
        # The loop's clock may run a tick early, and a pause is a promise.
        self._alarm = self._loop.call_later(max(0.0, at - time.monotonic()) + 0.001, self._pump)

    async def _send(self, call: Call, probe: bool) -> None:
        if time.monotonic() < self._pause_until:  # another was told to wait since this one was begun
            for rate, by_tokens in self._rates:
                rate.give_back(call.tokens if by_tokens else 1)
            self._again(call, 0.0, probe)
            return
        flight = self.window.send(time.monotonic())
        self.traffic.sent += 1
        status, headers, body = 0, {}, encoded(call.sent)
        try:
            async with self._session.post(self.settings.url, data=body, allow_redirects=False) as response:
                status = response.status
                content = await response.read()
                if status != 200:
                    headers = {name.lower(): value for name, value in response.headers.items()}
        except asyncio.CancelledError:
            self._lose(call, Trouble("request", "broken off", billed=True))
            raise
        except aiohttp.ClientConnectorCertificateError as error:
            found = Trouble("run", "the server's certificate is not accepted", str(error))
        except aiohttp.ClientConnectorError as error:
            found = Trouble("retry", _NO_CONNECTION, hidden(str(error.os_error), self._key))
        except aiohttp.ConnectionTimeoutError:
            found = Trouble("retry", _NO_CONNECTION, "in time")
        except TimeoutError:
            found = Trouble("retry", "no answer in time", f"after {self.settings.timeout_seconds:g} s", billed=True)
        except (aiohttp.ClientError, OSError) as error:
            found = Trouble("retry", "a broken connection", hidden(str(error) or type(error).__name__, self._key), True)
        else:
            if status == 200:
                answer = read_answer(content, self.settings, call.sent)
                if isinstance(answer, Answer):
                    self._answered(call, answer, flight, probe)
                    return
                found = answer
            else:
                found = read_refusal(status, content, call.sent)
        self._failed(call, without_key(found, self._key), flight, probe, status, headers)

    def _answered(self, call: Call, answer: Answer, flight: Flight, probe: bool) -> None:
        now = time.monotonic()
        self.window.answered(flight, now, answer.completion_tokens)
        self._up(now, probe)
        self.traffic.answered += 1
        for rate, by_tokens in self._rates:
            if by_tokens:
                rate.give_back(max(0, call.tokens - answer.prompt_tokens - answer.completion_tokens))
        self._unkept.append((call, answer))
        self._arrived.set()

    def _failed(
        self, call: Call, trouble: Trouble, flight: Flight, probe: bool, status: int, headers: dict[str, str]
    ) -> None:
        now = time.monotonic()
        self.traffic.troubles[trouble.reason] += 1
        if status == 429:
            self.pace.refused()
        if trouble.what == "run":
            self._up(now, probe)
            self._end_for(call, trouble, trouble)
            return
        if trouble.what == "request":
            self._up(now, probe)
            self._lose(call, trouble)
            self._release()
            return
        if status in _OVERLOADED or (status == 0 and trouble.billed and trouble.reason == "no answer in time"):
            first = flight.cuts == self.window.cuts
            self.window.too_much(flight, 0.9 if status == 429 else 0.5)
        else:
            first = False
        told = retry_after_seconds(headers, time.time())
        if status == 429 and first:
            self.pace.limited(now, told)
        if told is not None:
            self._pause(now, now + told)
        elif status == 429 and first:
            self._pause(now, now + self._random.uniform(0.5, 1.0))
        if status == 429:
            # It is there, and told us to wait: no failure of the server or of the request.
            self._up(now, probe, answered=False)
        else:
            was_open = self.breaker.is_open
            if not was_open or probe:
                self._down(now, trouble)
            # That nobody is there is no fault of the request.
            call.attempts += not was_open and trouble.reason != _NO_CONNECTION
        if now - self.breaker.last_answer > self.settings.patience_seconds:
            why = f"nothing was answered for {self.settings.patience_seconds:,.0f} seconds: {trouble.reason}"
            self._end_for(call, trouble, Trouble("run", why, trouble.detail, fix="see whether the server runs"))
        elif call.attempts > self.settings.retries:
            why = f"no answer in {call.attempts} tries: {trouble.reason}"
            self._lose(call, Trouble("request", why, trouble.detail, trouble.billed))
            self._release()
        else:
            self._keeper.again(call, trouble)
            most = 0.0 if status == 429 else min(30.0, 0.25 * 2.0**call.attempts)
            wait = self._random.uniform(most / 4, most)
            self._again(call, wait, probe)

    def _up(self, now: float, probe: bool, *, answered: bool = True) -> None:
        """The server is there."""
        if probe:
            self._probing = False
        since, last = self.breaker.open_since, self.breaker.last_answer
        if self.breaker.answered(now) and since is not None:
            self.traffic.waited_seconds += now - since
            self.messages.put(f"the server answers again, after {now - since:,.0f} s")
        if not answered:
            self.breaker.last_answer = last

    def _down(self, now: float, trouble: Trouble) -> None:
        self._probing = False
        wait = self.breaker.failed(now, connected=trouble.reason != _NO_CONNECTION)
        if wait is None:
            return
        self._next_try = now + wait
        since = self.breaker.open_since
        assert since is not None
        if now == since or now - self._patience_said >= 10.0:
            self._patience_said = now
            so_far = f", {now - since:,.0f} s so far" if now > since else ""
            why = f"{trouble.reason}: {trouble.detail}" if trouble.detail else trouble.reason
            self.messages.put(f"{self.settings.base_url} is down ({why}); waiting for it{so_far}")

    def _pause(self, now: float, until: float) -> None:
        """Nobody sends until then."""
        if until <= self._pause_until:
            return
        if until - now > 10.0:
            self.messages.put(f"{self.settings.base_url} asks to wait {until - now:,.0f} s")
        self.traffic.waited_seconds += until - max(now, self._pause_until)
        self._pause_until = until

    def _again(self, call: Call, wait: float, probe: bool) -> None:
        self._in_flight -= 1
        if probe:
            self._probing = False
        if wait > 0:
            self._loop.call_later(wait, self._requeue, call)
        else:
            self._requeue(call)

    def _requeue(self, call: Call) -> None:
        ready = self._keeper.ready(call)
        if ready is False:
            self._loop.call_later(_PARKED_SECONDS, self._requeue, call)
        elif ready is True:
            # To the front: what was asked first is waited for first.
            self._waiting.appendleft(call)
        else:
            self._hand_back(call, Trouble("request", ready, "no room for a second try"))
        self._pump()

    def _lose(self, call: Call, trouble: Trouble) -> None:
        self._keeper.lost(call, trouble)
        self._hand_back(call, trouble)

    def _hand_back(self, call: Call, trouble: Trouble) -> None:
        call.outcome = trouble
        self._streams.pop(id(call))._done.put([call])

    def _release(self, count: int = 1) -> None:
        self._in_flight -= count
        self._pump()

    def _end_for(self, call: Call, attempt: Trouble, why: Trouble) -> None:
        """The work ends, and the call has no outcome: `check` says why."""
        self._keeper.lost(call, attempt)
        self._streams.pop(id(call))
        self._end(refusal(why, self.settings.url))
        self._release()

    def _end(self, error: BaseException) -> None:
        """No request can be answered any more. The first reason counts."""
        self._fatal = self._fatal or error

    async def _keep_answers(self) -> None:
        """Commit answers in groups, and only then hand them on and let others take their places."""
        while True:
            await self._arrived.wait()
            await asyncio.sleep(GROUP_SECONDS)
            self._arrived.clear()
            group, self._unkept = self._unkept, []
            if not group:
                continue
            self._committing = True
            try:
                await self._loop.run_in_executor(self._writer, self._keeper.keep, group)
            except Exception as error:  # noqa: BLE001 - whatever it is, the caller is to see it
                self._end(error)
                self._release(len(group))
                continue
            finally:
                self._committing = False
            done: dict[Stream, list[Call]] = {}
            for call, answer in group:
                call.outcome = answer
                done.setdefault(self._streams.pop(id(call)), []).append(call)
            for stream, calls in done.items():
                stream._done.put(calls)
            self._release(len(group))

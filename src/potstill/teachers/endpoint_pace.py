"""How fast a server may be asked: how many at a time, how many a minute, and not at all while it is down.

Pure rules; the time is given to them (seconds of a monotonic clock). Nothing here waits or sends.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

BURST_SECONDS = 1.0
"""Limits per minute are spread evenly: at most this much of a minute's share goes out at once."""


@dataclass(frozen=True)
class Flight:
    """A request under way: when it was sent, and how often the window had been cut by then."""

    sent: float
    cuts: int


class Window:
    """How many requests may be under way: additive increase, multiplicative decrease (Chiu & Jain 1989).

    It opens by one for each answer until the first sign of too much (slow start), and after that by one for each
    windowful of answers. A sign is a 503, a timeout, an answer that took more than half of the time allowed, or
    latency (`Latency`): it halves the window. A 429 takes a tenth (the pause that comes with it is what it asks for).
    Either does so once for all that was under way when the window was last cut. Latency never closes it further than
    where it began: a server that is slow for other reasons would never get it open again.

    Args:
        most: it never opens further.
        start: where it begins.
        slow_seconds: an answer that takes longer is a sign of too much.
    """

    def __init__(self, most: int, start: int = 32, slow_seconds: float = math.inf) -> None:
        self.most = most
        self.size = float(min(start, most))
        self.least = self.size
        self.slow_seconds = slow_seconds
        self.latency = Latency()
        self.cuts = 0
        self._slow_start = True

    def send(self, now: float) -> Flight:
        """Note that a request goes out."""
        return Flight(now, self.cuts)

    def answered(self, flight: Flight, now: float, tokens: int = 1) -> None:
        """Note that one was answered, in so many tokens."""
        if now - flight.sent > self.slow_seconds:
            self.too_much(flight)
            return
        if flight.cuts == self.cuts and self.latency.rises(now - flight.sent, tokens, int(self.size)):
            if self.size > self.least:
                self.too_much(flight, max(0.5, self.least / self.size))
            return
        self.size = min(float(self.most), self.size + (1.0 if self._slow_start else 1.0 / self.size))

    def too_much(self, flight: Flight, factor: float = 0.5) -> None:
        """Note a sign of too much: cut, unless that was done since this request was sent."""
        self._slow_start = False
        if flight.cuts == self.cuts:
            self.cuts += 1
            self.size = max(1.0, self.size * factor)


class Latency:
    """Whether answers take much longer than they might: the sign of too much that delay is (Vegas: Brakmo & Peterson
    1995), from medians of a windowful, by request and by token.

    Both must be more than `TIMES` their least so far. If a server takes a + b·t seconds for t tokens, then whatever t
    comes when, one of them is at most twice its least: the one grows with t, and the other falls. So neither long
    answers nor short ones are taken for a server that has too much to do. Where both are four times as long, requests
    wait for three quarters of their time, and half as many under way keep the server as busy.

    After each sign the least counts for more, so that a server which has become slow for good is not cut for ever.
    """

    TIMES = 4.0
    FORGET = 1.25
    FEWEST = 15

    def __init__(self) -> None:
        self._least = (math.inf, math.inf)
        self._seen: list[tuple[float, float]] = []
        self._windowful = 0

    def rises(self, seconds: float, tokens: int, size: int) -> bool:
        """Note an answer, with so many under way; whether the windowful that it completes took too long."""
        if not self._seen:  # in slow start, the window opens as fast as answers come
            self._windowful = max(self.FEWEST, size | 1)
        self._seen.append((seconds, seconds / max(1, tokens)))
        if len(self._seen) < self._windowful:
            return False
        request, token = (sorted(seen[part] for seen in self._seen)[len(self._seen) // 2] for part in (0, 1))
        self._seen.clear()
        self._least = min(self._least[0], request), min(self._least[1], token)
        rises = request > self.TIMES * self._least[0] and token > self.TIMES * self._least[1]
        if rises:
            self._least = self.FORGET * self._least[0], self.FORGET * self._least[1]
        return rises


class Rate:
    """So many units a minute: never more in any sixty seconds, and evenly spread.

    A bucket that holds `BURST_SECONDS` of the rate and is filled so fast that bucket and filling together are what a
    minute allows.
    """

    def __init__(self, per_minute: float, now: float) -> None:
        self.capacity = max(1.0, per_minute / 60 * BURST_SECONDS)
        self.per_second = max(per_minute - self.capacity, per_minute / 2) / 60
        self.level, self.at = self.capacity, now

    def wait_seconds(self, amount: float, now: float) -> float:
        """How long until so much may go out. More than the bucket holds may go when it is full, and is made up for."""
        self._fill(now)
        return max(0.0, (min(amount, self.capacity) - self.level) / self.per_second)

    def take(self, amount: float, now: float) -> None:
        """Note that it went out."""
        self._fill(now)
        self.level -= amount

    def give_back(self, amount: float) -> None:
        """It turned out to be less."""
        self.level = min(self.capacity, self.level + amount)

    def _fill(self, now: float) -> None:
        self.level = min(self.capacity, self.level + (now - self.at) * self.per_second)
        self.at = now


class Pace:
    """The rate that a server with a limit of its own lets through, found from its 429s.

    Between one 429 and the next, a bucket has gone from empty to empty, so what passed is what it was filled with: the
    rate is that over the time. Sending is then spread at a little more than that, and more with every second without a
    429: a client that only waited and then sent all it could would meet the limit again at once, and lose what the
    bucket cannot hold while it waits.

    Where a server refuses whatever the pace is, since others use its limit up, what is found shrinks each time.
    It is kept from shrinking to nothing by what the server says itself: it is never less than one request in twice the
    longest wait that was asked for. (A wait is what is left until the next request may come, so that a short one says
    nothing: those under a second count as one.)
    """

    MORE = 1.05

    def __init__(self) -> None:
        self._rate: float | None = None
        self._since = self._next = 0.0
        self._first: float | None = None  # when the limit was met before
        self._met: float | None = None  # and again: the estimate is made when sending goes on
        self._passed = 0
        self._longest = 0.0

    def refused(self) -> None:
        """Note a 429: what was sent did not pass."""
        self._passed -= 1

    def limited(self, now: float, told_seconds: float | None = None) -> None:
        """Note that the limit was met: the first 429 of a windowful, which may have said how long to wait."""
        self._met = now
        if told_seconds is not None:
            self._longest = max(self._longest, told_seconds, 1.0)

    def per_second(self, now: float) -> float:
        """How many may go out a second; infinitely many as long as no limit was met twice."""
        return math.inf if self._rate is None else self._rate * self.MORE ** min(now - self._since, 300.0)

    def wait_seconds(self, now: float) -> float:
        """How long until the next may go out."""
        return max(0.0, self._next - now)

    def take(self, now: float) -> None:
        """Note that one went out."""
        if self._met is not None:
            # Refusals come at once, so whatever else was sent by now has passed, though answers may be long in coming.
            if self._first is not None and self._met > self._first and self._passed > 0:
                found = self.MORE * self._passed / (self._met - self._first)
                self._rate, self._since = max(found, 0.5 / self._longest if self._longest else 0.0), now
            self._first, self._met, self._passed = self._met, None, 0
        self._passed += 1
        # Up to 20 ms that were missed are made up for: timers are late.
        self._next = max(self._next, now - 0.02) + 1 / self.per_second(now)


class Breaker:
    """Notices that a server is down, and then lets one request at a time try whether it is up again.

    Down is: so many failures of the connection or the server in a row, with no answer in between, as could not be
    chance. Tries come after 0.5, 1, 2, 4 … at most 15 seconds.
    """

    FAILURES = 12
    LONGEST_SECONDS = 15.0

    def __init__(self, now: float) -> None:
        self.failures = 0
        self.last_answer = now
        self.open_since: float | None = None
        self._tries = 0

    @property
    def is_open(self) -> bool:
        return self.open_since is not None

    def answered(self, now: float) -> bool:
        """Note an answer of any kind; whether the server had been down."""
        was_open = self.is_open
        self.failures, self._tries, self.open_since, self.last_answer = 0, 0, None, now
        return was_open

    def failed(self, now: float, *, connected: bool = True) -> float | None:
        """Note a failure; if the server is now taken to be down, the seconds until the next try. Three times no
        connection at all are enough."""
        self.failures += 1 if connected else self.FAILURES // 3
        if self.failures < self.FAILURES:
            return None
        if self.open_since is None:
            self.open_since = now
        self._tries += 1
        return min(self.LONGEST_SECONDS, 0.5 * 2.0 ** (self._tries - 1))


def retry_after_seconds(headers: dict[str, str], now: float) -> float | None:
    """What a response asks to wait: `retry-after-ms`, or `retry-after` as seconds or as a date (RFC 9110 §10.2.3).

    Args:
        headers: by lower-case name.
        now: seconds since the epoch, for dates.
    """
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        said = headers.get(name, "").strip()
        if not said:
            continue
        try:
            seconds = float(said) * unit
        except ValueError:
            try:
                seconds = parsedate_to_datetime(said).timestamp() - now
            except (TypeError, ValueError):
                continue
        if math.isfinite(seconds):
            return max(0.0, seconds)
    return None

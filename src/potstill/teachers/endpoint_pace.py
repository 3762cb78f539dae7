"""How fast a server may be asked: how many at a time, how many a minute, and not at all while it is down.

Pure rules; the time is given to them (seconds of a monotonic clock). Nothing here waits or sends.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime

BURST_SECONDS = 1.0
"""Limits per minute are spread evenly: at most this much of a minute's share goes out at once."""


@dataclass(frozen=True)
class Flight:
    """A request under way.

    Attributes:
        sent: when it was sent, in seconds.
        cuts: how often the window had been cut by then.
        binding: whether the window was full, so that it is what limited the sending.
    """

    sent: float
    cuts: int
    binding: bool = True


class Window:
    """How many requests may be under way: additive increase, multiplicative decrease (Chiu & Jain 1989).

    It opens by one for each answer until the first sign of overload (slow start), and after that by one for each
    windowful of answers. It is halved

    - where more than `SHARE` of a windowful of outcomes are signs of overload: a 503, or no answer in time. A server
      that has too much to do refuses all that is beyond it, while a few such failures among good answers say nothing
      of how many are under way, and a window that closes on each of them never gets open again;
    - after an answer that took more than half of the time allowed, or where latency rises (`Latency`). Latency never
      closes it further than where it began: a server that is slow for other reasons would never get it open again.

    A 429 takes a tenth where the window was full, once for all that was under way when the window was last cut.

    Args:
        most: it never opens further.
        start: where it begins.
        slow_seconds: an answer that takes longer is a sign of overload.
    """

    SHARE = 1 / 3
    FEWEST = 48
    """Outcomes that are looked at together, at least."""

    def __init__(self, most: int, start: int = 32, slow_seconds: float = math.inf) -> None:
        self.most = most
        self.size = float(min(start, most))
        self.least = self.size
        self.slow_seconds = slow_seconds
        self.latency = Latency()
        self.cuts = 0
        self._slow_start = True
        self._outcomes = self._signs = 0

    def send(self, now: float, under_way: float = math.inf) -> Flight:
        """Note that a request goes out, beside so many."""
        return Flight(now, self.cuts, under_way >= self.size - 1)

    def answered(self, flight: Flight, now: float, tokens: int = 1) -> None:
        """Note that one was answered, in so many tokens."""
        self._outcome(sign=False)
        if now - flight.sent > self.slow_seconds:
            self.cut(flight)
            return
        if flight.cuts == self.cuts and self.latency.rises(now - flight.sent, tokens, int(self.size)):
            if self.size > self.least:
                self.cut(flight, max(0.5, self.least / self.size))
            return
        self.size = min(float(self.most), self.size + (1.0 if self._slow_start else 1.0 / self.size))

    def failed(self, flight: Flight, *, overloaded: bool) -> None:
        """Note that one failed; `overloaded`: in a way that a server does which has too much to do."""
        if self._outcome(sign=overloaded):
            self.cut(flight)

    def refused(self, flight: Flight, *, paced: bool = True) -> bool:
        """Note a 429; whether it is the first of those that were under way together. `paced`: requests were spread at a
        known rate, so that it was not a burst that met the limit: then slow start ends."""
        first = flight.cuts == self.cuts
        if first:
            slow_start = self._slow_start and not (paced and flight.binding)
            self.cut(flight, 0.9 if flight.binding else 1.0)
            self._slow_start = slow_start
        return first

    def cut(self, flight: Flight, factor: float = 0.5) -> None:
        """Close it by a factor, unless it was cut since this request was sent."""
        self._slow_start = False
        if flight.cuts == self.cuts:
            self.cuts += 1
            self.size = max(1.0, self.size * factor)
            self._outcomes = self._signs = 0

    def _outcome(self, *, sign: bool) -> bool:
        """Count an outcome; whether there are now too many signs among the windowful."""
        windowful = max(self.FEWEST, int(self.size))
        if self._outcomes >= windowful:
            self._outcomes = self._signs = 0
        self._outcomes += 1
        self._signs += sign
        return sign and self._signs > self.SHARE * windowful


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

    Where sending has been too fast, nobody sends for a while (usually a second), and what a small bucket cannot hold is
    lost meanwhile. So the limit is to be met seldom, and sending is spread at a rate just below it:

    - Until the limit is met at a known rate, the rate doubles every second (search).
    - After that the rate grows as in CUBIC (RFC 9438): from what is known to pass, at first quickly and ever more
      slowly towards the rate at which the limit was met, stays near it for most of a minute, and then ever faster
      beyond it, in case the limit has been raised.

    What is known to pass: between one 429 and the next, a bucket has gone from empty to empty, so what passed is at
    most what it was filled with, and that over the time is at most the rate. It is much less where the time was mostly
    pause, so the rate never falls below 0.7 of that at which the limit was met.

    Where a server refuses whatever the pace is, since others use its limit up, the rate shrinks each time. It is kept
    from shrinking to nothing by what the server says itself: it is never less than one request in twice the longest
    wait that was asked for. (A wait is what is left until the next request may come, so that a short one says nothing:
    those under a second count as one.)
    """

    FALL = 0.7
    LEAST = 1 / 60
    """Requests a second, at least, where the server does not say how long to wait."""
    LATE_SECONDS = 0.02
    CURVE = 0.05 / 40**3
    """Of the rate, per cubic second: 5 % within 40 seconds of the rate at which the limit was met."""

    def __init__(self) -> None:
        self._met_rate: float | None = None  # at which the limit was met; None while searching
        self._base: float | None = None  # what the rate was when sending went on; None while nothing is known
        self._since = 0.0  # when sending went on
        self._next = 0.0
        self._began: float | None = None
        self._earlier: float | None = None  # when the limit was met before
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
        """How many may go out a second; infinitely many until the limit is met."""
        if self._base is None:
            return math.inf
        passed = max(0.0, now - self._since)
        if self._met_rate is None:
            return self._base * math.pow(2.0, min(passed, 60.0))
        below = max(0.0, 1 - self._base / self._met_rate)
        plateau = math.cbrt(below / self.CURVE)  # seconds until the rate is what it was when the limit was met
        return self._met_rate * (1 + self.CURVE * math.pow(passed - plateau, 3))

    def wait_seconds(self, now: float) -> float:
        """How long until the next may go out."""
        return max(0.0, self._next - now)

    def take(self, now: float) -> None:
        """Note that one went out."""
        if self._began is None:
            self._began = now
        if self._met is not None:
            # Refusals come at once, so whatever else was sent by now has passed, though answers may be long in coming.
            if self._earlier is None:
                base = max(self._passed, 1) / max(now - self._began, 1e-3)
            else:
                met_rate = self.per_second(self._met)
                known = max(0, self._passed) / max(self._met - self._earlier, 1e-3)
                base = max(known, self.FALL * met_rate)
                self._met_rate = max(met_rate, base)
            self._base = max(base, 0.5 / self._longest if self._longest else self.LEAST)
            self._since, self._earlier, self._met, self._passed = now, self._met, None, 0
        self._passed += 1
        # Up to 20 ms that were missed are made up for: timers are late. Where something else holds sending up longer,
        # the rate is not what limits it, and does not grow.
        self._since += max(0.0, now - max(self._next, self._since) - self.LATE_SECONDS)
        self._next = max(self._next, now - self.LATE_SECONDS) + 1 / self.per_second(now)


class Breaker:
    """Notices that a server is down, and then lets one request at a time try whether it is up again.

    Down is: so many failures of the connection or the server in a row, with no answer in between, as could not be
    chance. Tries come after 0.5, 1, 2, 4 … seconds, at most 15; at most 2 where the server responds, if only with
    errors.
    """

    FAILURES = 12
    LONGEST_SECONDS = 15.0
    RESPONDING_SECONDS = 2.0

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

    def failed(self, now: float, *, connected: bool = True, responding: bool = False) -> float | None:
        """Note a failure; if the server is now taken to be down, the seconds until the next try. Three times no
        connection at all are enough."""
        self.failures += 1 if connected else self.FAILURES // 3
        if self.failures < self.FAILURES:
            return None
        if self.open_since is None:
            self.open_since = now
        self._tries += 1
        longest = self.RESPONDING_SECONDS if responding else self.LONGEST_SECONDS
        return min(longest, 0.5 * 2.0 ** min(self._tries - 1, 10))


_SECONDS = re.compile(r"[+-]?\d{1,300}(?:\.\d{1,300})?", re.ASCII)


def retry_after_seconds(headers: Mapping[str, str], now: float) -> float | None:
    """What a response asks to wait: `retry-after-ms`, or `retry-after` as seconds or as a date (RFC 9110 §10.2.3).
    Never negative; None if nothing is asked for in a form that is known. It may be absurdly long.

    Args:
        headers: by lower-case name.
        now: seconds since the epoch, for dates.
    """
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        value = headers.get(name, "").strip()
        if _SECONDS.fullmatch(value):
            return max(0.0, float(value) * unit)
        try:
            date = parsedate_to_datetime(value)
            # A date without a zone is in UTC, as HTTP has it.
            seconds = (date if date.tzinfo is not None else date.replace(tzinfo=UTC)).timestamp() - now
        except (TypeError, ValueError, OverflowError):
            continue
        return max(0.0, seconds)
    return None

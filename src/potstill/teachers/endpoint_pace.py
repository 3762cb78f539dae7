"""The pace of requests: how many at a time, how many a minute, and none while the server is down.

Pure rules that get the time as an argument (seconds of a monotonic clock). Nothing here waits or sends.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime

BURST_SECONDS = 1.0
"""Limits per minute are spread evenly: a burst uses at most this many seconds of the rate."""


@dataclass(frozen=True)
class Flight:
    """A request under way.

    Attributes:
        sent: when it was sent, in seconds.
        cuts: how often the window had been cut when it was sent.
        binding: whether the window was full, and so limited the sending.
    """

    sent: float
    cuts: int
    binding: bool = True


class Window:
    """The number of requests that may be under way: additive increase, multiplicative decrease (Chiu & Jain 1989).

    It grows by one for each answer until the first sign of overload (slow start), and then by one for each windowful
    of answers. It is halved

    - where more than `SHARE` of a windowful of outcomes are signs of overload: a 503, or no answer in time. An
      overloaded server refuses everything beyond its capacity; a few such failures among good answers do not depend on
      the number under way, and a window that shrinks at each of them would never grow again;
    - after an answer that took more than half of the time allowed, or where latency rises (`Latency`). Latency never
      shrinks it below its start: a server that is slow for other reasons would never let it grow again.

    A 429 shrinks it by a tenth where the window was full, once for all requests that were under way at the last cut.

    Args:
        most: maximum size.
        start: initial size.
        slow_seconds: an answer that takes longer is a sign of overload.
    """

    SHARE = 1 / 3
    FEWEST = 48
    """At least this many outcomes are considered together."""

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
        """Note that a request is sent, with this many others under way."""
        return Flight(now, self.cuts, under_way >= self.size - 1)

    def answered(self, flight: Flight, now: float, tokens: int = 1) -> None:
        """Note an answer of this many tokens."""
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
        """Note a failure; `overloaded`: one that suggests an overloaded server."""
        if self._outcome(sign=overloaded):
            self.cut(flight)

    def refused(self, flight: Flight, *, paced: bool = True) -> bool:
        """Note a 429; returns whether it is the first among requests that were under way together. `paced`: requests
        were spread at a known rate, so no burst met the limit: slow start then ends."""
        first = flight.cuts == self.cuts
        if first:
            slow_start = self._slow_start and not (paced and flight.binding)
            self.cut(flight, 0.9 if flight.binding else 1.0)
            self._slow_start = slow_start
        return first

    def cut(self, flight: Flight, factor: float = 0.5) -> None:
        """Shrink it by a factor, unless it has been cut since this request was sent."""
        self._slow_start = False
        if flight.cuts == self.cuts:
            self.cuts += 1
            self.size = max(1.0, self.size * factor)
            self._outcomes = self._signs = 0

    def _outcome(self, *, sign: bool) -> bool:
        """Count an outcome; returns whether the windowful now has too many signs of overload."""
        windowful = max(self.FEWEST, int(self.size))
        if self._outcomes >= windowful:
            self._outcomes = self._signs = 0
        self._outcomes += 1
        self._signs += sign
        return sign and self._signs > self.SHARE * windowful


class Latency:
    """Whether answers take much longer than they could: delay as a sign of congestion (Vegas: Brakmo & Peterson 1995),
    from medians over a windowful, per request and per token.

    Both medians must exceed `TIMES` their minimum so far. If a server takes a + b·t seconds for t tokens, then for any
    sequence of t one of them is at most twice its minimum: one grows with t, the other falls. So neither long nor
    short answers alone look like overload. If both are four times as long, requests spend three quarters of their time
    waiting, and half as many under way would keep the server as busy.

    After each sign the minimum is raised, so that the rate to a server that stays slow is not cut again and again.
    """

    TIMES = 4.0
    FORGET = 1.25
    FEWEST = 15

    def __init__(self) -> None:
        self._least = (math.inf, math.inf)
        self._seen: list[tuple[float, float]] = []
        self._windowful = 0

    def rises(self, seconds: float, tokens: int, size: int) -> bool:
        """Note an answer, with this many under way; returns whether the windowful that it completes took too long."""
        if not self._seen:  # in slow start, the window grows as fast as answers arrive
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
    """A limit of units a minute: never exceeded in any sixty seconds, and spread evenly.

    A bucket holds `BURST_SECONDS` of the rate; its size plus a minute's refill is the limit per minute.
    """

    def __init__(self, per_minute: float, now: float) -> None:
        self.capacity = max(1.0, per_minute / 60 * BURST_SECONDS)
        self.per_second = max(per_minute - self.capacity, per_minute / 2) / 60
        self.level, self.at = self.capacity, now

    def wait_seconds(self, amount: float, now: float) -> float:
        """Seconds until this amount may be sent. An amount above the bucket's size may go when it is full; the debt is
        paid back afterwards."""
        self._fill(now)
        return max(0.0, (min(amount, self.capacity) - self.level) / self.per_second)

    def take(self, amount: float, now: float) -> None:
        """Note that the amount was sent."""
        self._fill(now)
        self.level -= amount

    def give_back(self, amount: float) -> None:
        """Note that the amount turned out smaller."""
        self.level = min(self.capacity, self.level + amount)

    def _fill(self, now: float) -> None:
        self.level = min(self.capacity, self.level + (now - self.at) * self.per_second)
        self.at = now


class Pace:
    """The rate that a server with its own limit permits, estimated from its 429s.

    After a 429, nothing is sent for a while (usually a second), and capacity beyond a small bucket is lost meanwhile.
    So the limit should be met seldom, and sending is spread at a rate just below it:

    - Until the limit is met at a known rate, the rate doubles every second (search).
    - After that the rate grows as in CUBIC (RFC 9438): from a rate known to pass, quickly at first, then ever more
      slowly towards the rate at which the limit was met; it stays near it for most of a minute, and then grows ever
      faster beyond it, in case the limit has been raised.

    The rate known to pass: between one 429 and the next, the bucket goes from empty to empty, so the amount that
    passed is at most its refill, and divided by the time it is at most the permitted rate. It is much less if most of
    the time was pause, so the rate never falls below 0.7 of that at which the limit was met.

    If a server refuses at any pace, because others use up its limit, the rate shrinks each time. Its lower bound comes
    from the server's own responses: one request in twice the longest requested wait. (A wait is the time until the
    next request may come, so a short one carries no information: those under a second count as one.)
    """

    FALL = 0.7
    LEAST = 1 / 60
    """The minimum rate (requests a second) if the server names no wait."""
    LATE_SECONDS = 0.02
    CURVE = 0.05 / 40**3
    """Growth relative to the rate, per cubic second: within 5 % of the rate at which the limit was met for 40
    seconds."""

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
        """Note a 429: the request did not pass."""
        self._passed -= 1

    def limited(self, now: float, told_seconds: float | None = None) -> None:
        """Note that the limit was met: the first 429 of a windowful, with the wait that it requested, if any."""
        self._met = now
        if told_seconds is not None:
            self._longest = max(self._longest, told_seconds, 1.0)

    def per_second(self, now: float) -> float:
        """The permitted rate a second; infinite until the limit is met."""
        if self._base is None:
            return math.inf
        passed = max(0.0, now - self._since)
        if self._met_rate is None:
            return self._base * math.pow(2.0, min(passed, 60.0))
        below = max(0.0, 1 - self._base / self._met_rate)
        plateau = math.cbrt(below / self.CURVE)  # seconds until the rate is what it was when the limit was met
        return self._met_rate * (1 + self.CURVE * math.pow(passed - plateau, 3))

    def wait_seconds(self, now: float) -> float:
        """Seconds until the next request may be sent."""
        return max(0.0, self._next - now)

    def take(self, now: float) -> None:
        """Note that one was sent."""
        if self._began is None:
            self._began = now
        if self._met is not None:
            # Refusals come at once, so everything else sent by now has passed, even if answers take long.
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
        # Up to 20 ms are made up for, because timers are late. If something else delays sending longer, the rate is
        # not the limit, and does not grow.
        self._since += max(0.0, now - max(self._next, self._since) - self.LATE_SECONDS)
        self._next = max(self._next, now - self.LATE_SECONDS) + 1 / self.per_second(now)


class Breaker:
    """Detects that a server is down, and then lets one request at a time test it.

    It is down after so many failures in a row of the connection or the server, without an answer between them, that
    chance is excluded. Tests follow after 0.5, 1, 2, 4 … seconds, at most 15; at most 2 if the server responds, even
    if only with errors.
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
        """Note an answer of any kind; returns whether the server had been down."""
        was_open = self.is_open
        self.failures, self._tries, self.open_since, self.last_answer = 0, 0, None, now
        return was_open

    def failed(self, now: float, *, connected: bool = True, responding: bool = False) -> float | None:
        """Note a failure; returns the seconds until the next test if the server now counts as down. Three failures to
        connect are enough."""
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
    """The wait that a response requests: `retry-after-ms`, or `retry-after` as seconds or as a date (RFC 9110
    §10.2.3). Never negative; None if there is none in a known form. It may be absurdly long.

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

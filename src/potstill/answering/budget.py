"""Budgets: hard caps, reserved before the work and reconciled after it (rule 12)."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from potstill.errors import PotstillError
from potstill.recipe import BudgetSettings
from potstill.teachers.prices import UNITS_PER_DOLLAR
from potstill.types import Reason


class TokenBudget:
    """Counts the tokens of answers, and keeps them within `cap`.

    Before a batch begins, its worst case is reserved; afterwards the reservation is replaced by the actual number.
    Answers from the journal count like new ones: the cap applies to the artifact, however often it was interrupted.

    Args:
        cap: maximum number of tokens; None for no cap.
    """

    def __init__(self, cap: int | None) -> None:
        self.cap = cap
        self.spent = 0
        self.reserved = 0

    @property
    def left(self) -> int | None:
        """Tokens that can still be reserved; None without a cap."""
        return None if self.cap is None else self.cap - self.spent - self.reserved

    def fits(self, tokens: int) -> bool:
        """Whether this many tokens could be reserved."""
        return self.left is None or tokens <= self.left

    def reserve(self, tokens: int) -> None:
        """Reserve tokens for work about to begin. Call `fits` first."""
        if not self.fits(tokens):
            raise PotstillError(f"{tokens} tokens do not fit into the budget: {self.left} of {self.cap} are left")
        self.reserved += tokens

    def settle(self, reserved: int, spent: int) -> None:
        """Replace a reservation by the actual number.

        Raises:
            PotstillError: more than was reserved: the teacher exceeded `max_new_tokens`.
        """
        if spent > reserved:
            raise PotstillError(f"the teacher broke its limit: {spent} tokens where at most {reserved} were asked for")
        self.reserved -= reserved
        self.spent += spent


@dataclass(frozen=True)
class Cost:
    """The cost of requests: their number, tokens written, tokens read and written, and money in billionths of a cent
    (whole numbers, so that sums are exact; 0 for local teachers)."""

    requests: int = 0
    written: int = 0
    tokens: int = 0
    money: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.requests + other.requests,
            self.written + other.written,
            self.tokens + other.tokens,
            self.money + other.money,
        )

    def __sub__(self, other: Cost) -> Cost:
        return Cost(
            self.requests - other.requests,
            self.written - other.written,
            self.tokens - other.tokens,
            self.money - other.money,
        )

    def times(self, factor: int) -> Cost:
        """The cost of `factor` such requests."""
        return Cost(self.requests * factor, self.written * factor, self.tokens * factor, self.money * factor)

    def at_least(self, other: Cost) -> Cost:
        """The larger of each component."""
        return Cost(*(max(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)))

    def to_dict(self) -> dict[str, int]:
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True)
class Caps:
    """A maximum for each component of a cost; None for no cap."""

    requests: int | None = None
    written: int | None = None
    tokens: int | None = None
    money: int | None = None

    @classmethod
    def of(cls, budget: BudgetSettings, token_budget: int | None) -> Caps:
        """The caps of a recipe."""
        money = None if budget.money is None else int(budget.money * UNITS_PER_DOLLAR)
        return cls(budget.requests, token_budget, budget.tokens, money)

    def __bool__(self) -> bool:
        return (self.requests, self.written, self.tokens, self.money) != (None, None, None, None)


_REASONS = {
    "requests": Reason.REQUEST_BUDGET,
    "written": Reason.TOKEN_BUDGET,
    "tokens": Reason.TOKEN_BUDGET,
    "money": Reason.MONEY_BUDGET,
}


class Budget:
    """Several caps, for concurrent requests. Thread-safe.

    Before a request is sent its worst case is reserved; after its answer the reservation is replaced by the actual
    cost. A failed attempt that may have been billed (a timeout, a broken connection) counts as spent at its worst
    case.

    Requests under way in a killed process may have been billed too. So before anything is sent, the journal stores how
    much may be under way (`held`), in large steps that need few flushes; a process that starts with a `held` that was
    never cleared counts it as spent.

    Answers from the journal count as spent when they come up again, in order, so that interruptions do not change
    which requests a cap excludes. Answers that were paid for under these caps (`paid`) are spent money even before
    they come up again, so requests still to be sent have only the remaining room.

    Args:
        caps: the limits.
        entry: the journal's ledger entry, from earlier processes.
    """

    def __init__(self, caps: Caps, entry: Mapping[str, Any] | None = None) -> None:
        self.caps = caps
        earlier = Cost(**entry["lost"]) + Cost(**entry["held"]) if entry else Cost()
        self.spent = self.lost = self._noted = earlier
        self.paid = Cost(**entry.get("paid", {})) if entry else Cost()
        self.reserved = Cost()
        self.out = Cost()
        self.held = Cost()
        self._lock = threading.Lock()

    def exceeded(self, cost: Cost) -> Reason | None:
        """The cap that a cost exceeds; None if it fits."""
        return self._exceeded(self.spent + self.reserved + cost) if self.caps else None

    def reserve(self, cost: Cost, *, to_send: bool = True) -> Reason | None:
        """Reserve the cost of a request before it is sent; returns the cap that it exceeds, if any. `to_send`: the
        journal has no answer to it."""
        with self._lock:
            over = self.exceeded(cost) or (self._overdrawn(cost) if to_send else None)
            if over is None:
                self.reserved += cost
            return over

    def begin(self, reserved: Cost) -> bool:
        """Note that a request with this reservation is about to be sent for the first time; returns whether the
        journal needs a new `entry` first, because its `held` is too small."""
        with self._lock:
            self.out += reserved
            return self._hold()

    def settle(self, reserved: Cost, spent: Cost, *, answered: bool = True, begun: bool = True) -> None:
        """Replace a reservation by the actual cost. `answered`: the journal holds the answer; `begun`: this process
        sent the request."""
        with self._lock:
            self.reserved -= reserved
            if begun:
                self.out -= reserved
            self.spent += spent
            if not answered:
                self.lost += spent

    def fail(self, reserved: Cost, attempt: Cost) -> bool:
        """Note a failed attempt, with another to follow: `attempt` is spent. Returns whether the reservation still
        holds for the next attempt; if the caps leave no room for both, a new reservation is needed."""
        with self._lock:
            stands = self.exceeded(attempt) is None and self._overdrawn(attempt) is None
            if not stands:
                self.reserved -= reserved
                self.out -= reserved
            self.spent += attempt
            self.lost += attempt
            return stands

    def broken(self) -> Reason | None:
        """A cap that was exceeded because the teacher exceeded its limits; None if there is none."""
        return self._exceeded(self.spent)

    def hold(self) -> bool:
        """Whether the journal needs a new `entry` before anything more is sent, because its `held` is too small."""
        with self._lock:
            return self._hold()

    def _hold(self) -> bool:
        out = self.out + self.lost - self._noted
        if self.held.at_least(out) == self.held:
            return False
        # Half as much again, but never more than the caps leave.
        more = out + Cost(*(getattr(out, f.name) // 2 for f in fields(Cost)))
        self.held = self._capped(more).at_least(out)
        return True

    def entry(self, *, paid: Cost | None = None, over: bool = False) -> Mapping[str, Any]:
        """The entry to store in the journal's ledger; the caller must commit it before the next call.

        `paid`: the cost of the answers that are committed with it. `over`: nothing is under way any more.
        """
        with self._lock:
            if paid is not None:
                self.paid += paid
            if over:
                self.held = Cost()
            self._noted = self.lost
            return {"lost": self.lost.to_dict(), "held": self.held.to_dict(), "paid": self.paid.to_dict()}

    def _capped(self, cost: Cost) -> Cost:
        values: dict[str, Any] = {}
        for f in fields(Cost):
            cap = getattr(self.caps, f.name)
            value = getattr(cost, f.name)
            values[f.name] = value if cap is None else min(value, max(0, cap - getattr(self.spent, f.name)))
        return Cost(**values)

    def _overdrawn(self, cost: Cost) -> Reason | None:
        """The cap that sending would exceed, counting everything paid for, whether or not it has come up again."""
        return self._exceeded(self.lost + self.paid + self.reserved + cost) if self.caps else None

    def _exceeded(self, cost: Cost) -> Reason | None:
        for name, reason in _REASONS.items():
            cap = getattr(self.caps, name)
            if cap is not None and getattr(cost, name) > cap:
                return reason
        return None

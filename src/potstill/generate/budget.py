"""Budgets: hard caps, reserved before the work and reconciled after it (rule 12)."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from potstill.errors import PotstillError
from potstill.recipe import BudgetSettings
from potstill.types import Reason

UNITS_PER_DOLLAR = 10**11
"""Money is counted in billionths of a cent."""


class TokenBudget:
    """Counts the tokens that answers have, and never lets them be more than `cap`.

    Before a batch begins, its worst case is reserved; when it is answered, the reservation becomes what it really
    had. Answers from the journal count like new ones: the cap is on the artifact, however often it was interrupted.

    Args:
        cap: the most tokens in all; None is no cap.
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
        """Whether so many could be reserved."""
        return self.left is None or tokens <= self.left

    def reserve(self, tokens: int) -> None:
        """Set tokens aside for work about to begin. Ask `fits` first."""
        if not self.fits(tokens):
            raise PotstillError(f"{tokens} tokens do not fit into the budget: {self.left} of {self.cap} are left")
        self.reserved += tokens

    def settle(self, reserved: int, spent: int) -> None:
        """Replace a reservation by what the work really took.

        Raises:
            PotstillError: it took more than was reserved: the teacher did not keep to `max_new_tokens`.
        """
        if spent > reserved:
            raise PotstillError(f"the teacher broke its limit: {spent} tokens where at most {reserved} were asked for")
        self.reserved -= reserved
        self.spent += spent


@dataclass(frozen=True)
class Cost:
    """What requests cost: how many they are, tokens written, tokens read and written, and money in billionths of a cent
    (whole numbers, so that sums are exact; 0 where nobody asks)."""

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
        """So many of it."""
        return Cost(self.requests * factor, self.written * factor, self.tokens * factor, self.money * factor)

    def at_least(self, other: Cost) -> Cost:
        """The greater of both, each by itself."""
        return Cost(*(max(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)))

    def to_dict(self) -> dict[str, int]:
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True)
class Caps:
    """The most of each; None is no cap."""

    requests: int | None = None
    written: int | None = None
    tokens: int | None = None
    money: int | None = None

    @classmethod
    def of(cls, budget: BudgetSettings, token_budget: int | None) -> Caps:
        """Those of a recipe."""
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
    """Several caps at once, for requests that are under way side by side. Safe to use from several threads.

    Before a request is sent its worst case is reserved; when it is answered the reservation becomes what it cost. An
    attempt that failed, and that may have been billed all the same (no answer in time, a broken connection), stays
    spent at its worst case.

    What a killed process had under way may have been billed too. So the journal holds, before anything is sent, how
    much may be out (`held`), in steps, so that few flushes are needed; and whoever begins with a `held` that was never
    cleared counts it as spent.

    Answers that the journal holds are spent as they come up again, in order, so that which requests a cap leaves out
    does not depend on interruptions. Those that were paid for under these caps (`paid`) are money gone all the same,
    though they may stand behind requests that are yet to be sent: these have room only beside them.

    Args:
        caps: the limits.
        entry: what the journal's ledger holds, from earlier processes.
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
        """The cap into which a cost does not fit; None if it fits."""
        return self._exceeded(self.spent + self.reserved + cost) if self.caps else None

    def reserve(self, cost: Cost, *, to_send: bool = True) -> Reason | None:
        """Set aside what a request may cost, before it is sent; the cap into which it does not fit, if there is one.
        `to_send`: it is not answered yet."""
        with self._lock:
            over = self.exceeded(cost) or (self._overdrawn(cost) if to_send else None)
            if over is None:
                self.reserved += cost
            return over

    def begin(self, reserved: Cost) -> bool:
        """A request with this reservation is about to be sent for the first time; whether the journal must be given a
        new `entry` before that, since it holds less than may then be out."""
        with self._lock:
            self.out += reserved
            return self._hold()

    def settle(self, reserved: Cost, spent: Cost, *, answered: bool = True, begun: bool = True) -> None:
        """Replace a reservation by what the request cost. `answered`: the journal holds an answer that says so;
        `begun`: it was sent by this process."""
        with self._lock:
            self.reserved -= reserved
            if begun:
                self.out -= reserved
            self.spent += spent
            if not answered:
                self.lost += spent

    def fail(self, reserved: Cost, attempt: Cost) -> bool:
        """An attempt failed, and another is due: `attempt` is spent. Whether the reservation still stands for the next;
        where the caps leave no room for both, it does not, and a new one is to be made."""
        with self._lock:
            stands = self.exceeded(attempt) is None and self._overdrawn(attempt) is None
            if not stands:
                self.reserved -= reserved
                self.out -= reserved
            self.spent += attempt
            self.lost += attempt
            return stands

    def broken(self) -> Reason | None:
        """A cap that was exceeded all the same, since the teacher did not keep to its limits; None if all is well."""
        return self._exceeded(self.spent)

    def hold(self) -> bool:
        """Whether the journal must be given a new `entry` before anything more is sent: it holds less than may be
        out."""
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
        """What the journal's ledger is to hold now; whoever asks commits it before anybody else can ask.

        `paid`: what the answers cost that are committed with it. `over`: nothing is under way any more.
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
        """The cap that sending would exceed by what was really paid for, whatever came up again of it."""
        return self._exceeded(self.lost + self.paid + self.reserved + cost) if self.caps else None

    def _exceeded(self, cost: Cost) -> Reason | None:
        for name, reason in _REASONS.items():
            cap = getattr(self.caps, name)
            if cap is not None and getattr(cost, name) > cap:
                return reason
        return None

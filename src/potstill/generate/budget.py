"""A token budget: a hard cap, reserved before the work and reconciled after it (rule 12)."""

from __future__ import annotations

from potstill.errors import PotstillError


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

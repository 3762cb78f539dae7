"""What a generation program is: it turns records into records, by way of a teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from potstill.artifacts import Work
from potstill.data.split import Side
from potstill.generate.answering import Answering
from potstill.types import Record, Reject


class Program(Protocol):
    """One way to have a teacher write. Built by `registry.build(settings)`."""

    def write(
        self,
        records: Iterable[Record | Reject],
        answering: Answering,
        *,
        side_of: Callable[[Record], Side],
        work: Work,
    ) -> Iterator[Record | Reject]:
        """Have the teacher answer, and say what came of it, in an order that depends on the input and the answers alone
        (not on when they came). Whatever is not kept is a reject, with its reason.

        Memory must not grow with the number of records, but for some bytes each.

        Args:
            records: the prompts, or records whose last answer is to be written anew; and rows that were rejected while
                they were read, which are passed on in their place.
            answering: asks, journals, and keeps to the budget.
            side_of: the side of the split that a record is on; its answers inherit it.
            work: where counts go (the stage counts what is yielded).
        """
        ...

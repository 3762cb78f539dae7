"""What a generation program is: it turns records into records, by way of a teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from potstill.artifacts import Work
from potstill.data.chat import ChatTokenizer
from potstill.data.split import Side
from potstill.generate.journaled import JournaledTeacher
from potstill.types import Record, Reject


@dataclass
class Written:
    """What came of it: records with an answer, in the order of the data, and what was kept out."""

    records: list[Record] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)


class Program(Protocol):
    """One way to have a teacher write. Built by `registry.build(settings)`."""

    def write(
        self,
        records: Sequence[Record],
        teacher: JournaledTeacher,
        *,
        side_of: Callable[[Record], Side],
        chat: ChatTokenizer,
        context_length: int | None,
        work: Work,
    ) -> Written:
        """Have the teacher answer, and say what came of it. Whatever is not kept is a reject, with its reason.

        Args:
            records: the prompts, or records whose last answer is to be written anew.
            teacher: asks, journals, and keeps to the budget.
            side_of: the side of the split that a record is on; its answers inherit it.
            chat: renders prompts as the teacher sees them.
            context_length: how many tokens the teacher reads and writes in all; None if that is not known.
            work: where counts go.
        """
        ...

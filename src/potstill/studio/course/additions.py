"""Problems that a model of a million parameters can learn to work: sums of two numbers, digit by digit.

A source of data of the recipe's own (`data: {kind: "additions.py:Additions"}`): `reasoning.yaml` needs
problems whose worked steps can be made, and whose answers can be checked.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Literal

from pydantic import Field, PositiveInt

from potstill.data.source import SourceRow
from potstill.recipe import DataSettings
from potstill.registry import implements
from potstill.types import Record, group_of


class Additions(DataSettings):
    """`size` different sums of two numbers of `digits` digits, drawn by `seed`; each with its answer as the reference.
    `worked` ones have the steps as the record's completion; of the others only the sum is asked."""

    kind: Literal["additions"] = "additions"
    size: PositiveInt
    seed: int = 0
    digits: int = Field(4, ge=1, le=9)
    worked: bool = False


@implements(Additions)
class AdditionsSource:
    """The same settings give the same problems."""

    def __init__(self, settings: Additions) -> None:
        self.settings = settings

    def rows(self) -> Iterator[SourceRow]:
        """A record per problem."""
        settings = self.settings
        seen: set[tuple[int, int]] = set()
        drawn = random.Random(f"additions {settings.seed}")
        low, high = 10 ** (settings.digits - 1), 10**settings.digits - 1
        while len(seen) < settings.size:
            pair = drawn.randint(low, high), drawn.randint(low, high)
            if pair in seen:
                continue
            seen.add(pair)
            question, number = f"{pair[0]}+{pair[1]}=", len(seen)
            record = Record(
                prompt=question,
                completion=worked(*pair) if settings.worked else None,
                group=group_of(question),
                metadata={"reference": str(sum(pair))},
            )
            yield SourceRow(record, "additions", number, f"additions, problem {number}")

    def digests(self) -> dict[str, str]:
        """What the settings do not say: how steps are written."""
        return {"data": f"additions: {worked(95, 17)}"}


def worked(one: int, other: int) -> str:
    """The steps, from the last digit to the first: 95 and 17 give `5+7+0=12, 9+1+1=11, The answer is 112`.

    All steps are of one length, which makes it easy for a small model to see where its next digit stands.
    """
    steps, carried = [], 0
    for place in range(max(len(str(one)), len(str(other)))):
        ours, theirs = one // 10**place % 10, other // 10**place % 10
        steps.append(f"{ours}+{theirs}+{carried}={ours + theirs + carried:02}")
        carried = (ours + theirs + carried) // 10
    return ", ".join([*steps, f"The answer is {one + other}"])

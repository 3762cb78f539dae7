"""Near twins across the split: held-out records that share most of their text with a training record.

Groups keep equal questions on one side, but do not see a difference in case, punctuation or one sentence. Near twins
are found by their words and reported: on such records a metric shows how well a student memorises.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from potstill.types import Record, opening_turns

RUN_WORDS = 3
SIMILARITY = 0.8
"""Two texts are near twins if their sets of `RUN_WORDS`-word runs have this Jaccard similarity."""

MOST_TRAIN, MOST_HELD_OUT = 10_000, 2_000
"""At most this many records of each side are compared, evenly spaced, so that a check stays quick."""

_CHARACTERS = 2_000
"""Only the beginning of a long document is compared."""


@dataclass(frozen=True)
class Twins:
    """Near twins across the split.

    Args:
        compared: the number of records compared on each side, training side first.
        found: held-out records that have a near twin.
        same_words: the number of those whose twin has exactly the same words.
        example: a training record and its held-out twin.
    """

    compared: tuple[int, int]
    found: int = 0
    same_words: int = 0
    example: tuple[Record, Record] | None = None

    def __str__(self) -> str:
        if self.example is None:
            return f"no near twins among {self.compared[0]:,} training and {self.compared[1]:,} held-out records"
        rows = " and ".join(f"row {record.row}" for record in self.example)
        return (
            f"{self.found:,} of {self.compared[1]:,} held-out records have a near twin on the training side "
            f"({self.same_words:,} in the same words; {rows}, for example): put them into one group by data.group_by: "
            "column:NAME, or leave one out"
        )


def near_twins(train: Sequence[object], held_out: Sequence[object]) -> Twins:
    """Compare the prompts (or texts) of both sides. Images are skipped."""
    from potstill.verify.decontaminate import plain_words, runs

    some_train = list(_evenly([r for r in train if isinstance(r, Record)], MOST_TRAIN))
    some_held_out = list(_evenly([r for r in held_out if isinstance(r, Record)], MOST_HELD_OUT))
    by_words: dict[str, list[int]] = defaultdict(list)
    run_sets: list[set[int]] = []
    by_run: dict[int, list[int]] = defaultdict(list)
    for number, record in enumerate(some_held_out):
        words = plain_words(_text(record))
        by_words[words].append(number)
        run_sets.append(runs(words, RUN_WORDS))
        for run in _first(run_sets[-1]):
            by_run[run].append(number)
    by_words.pop("", None)
    found: set[int] = set()
    same: set[int] = set()
    example: tuple[Record, Record] | None = None
    for record in some_train:
        words = plain_words(_text(record))
        twins = by_words.get(words, ())
        same.update(twins)
        if not twins:
            own = runs(words, RUN_WORDS)
            near = {number for run in _first(own) for number in by_run.get(run, ())}
            twins = [n for n in near if len(own & run_sets[n]) >= SIMILARITY * len(own | run_sets[n])]
        found.update(twins)
        if twins and example is None:
            example = record, some_held_out[min(twins)]
    return Twins((len(some_train), len(some_held_out)), len(found), len(same), example)


def _text(record: Record) -> str:
    text = record.text if record.text is not None else opening_turns(record.messages or record.prompt or "")
    return text[:_CHARACTERS]


def _evenly(records: Sequence[Record], most: int) -> Iterator[Record]:
    step = max(math.ceil(len(records) / most), 1)
    yield from records[::step]


def _first(found: set[int]) -> list[int]:
    """The runs by which a twin is looked up. Of two sets with similarity `SIMILARITY` or more, the first few in one
    order always meet (prefix filtering, Chaudhuri et al. 2006)."""
    return sorted(found)[: len(found) - math.ceil(SIMILARITY * len(found)) + 1]

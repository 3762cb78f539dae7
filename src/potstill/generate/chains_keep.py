"""Which samples are asked for, and which of the accepted are kept. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from potstill.generate.chains_filters import words_of

T = TypeVar("T")
_RUN = 3
"""Words of the runs by which chains are compared."""


@dataclass(frozen=True)
class Chain:
    """A chain that may be kept: which sample it is, its text, its length in the teacher's tokens, whether it was
    accepted (with `accept_all` others may be kept too), and the score of its verdict, if that has one."""

    sample: int
    text: str
    tokens: int
    accepted: bool = True
    score: float | None = None


def next_samples(asked: int, accepted: int, *, samples: int, at_once: int | None, stop_at: int | None) -> range:
    """The samples to ask for next; empty when there are `samples` of them, or `stop_at` are accepted."""
    if stop_at is not None and accepted >= stop_at:
        return range(asked, asked)
    return range(asked, min(samples, asked + (at_once or samples)))


def choose(
    chains: Sequence[Chain], keep: Literal["all", "shortest", "diverse", "best"], kept: int | None
) -> tuple[list[int], list[int]]:
    """The samples that are kept and those that are not, in order of sample.

    `all`: the first `kept`, or all. `shortest`: the `kept` (by itself 1) with fewest tokens. `diverse`: the shortest,
    and then again and again the chain that is farthest from the nearest of those chosen; the distance is 1 less the
    share of runs of three words that two chains have in common (Jaccard). `best`: those with the highest score, and
    last what has none. Ties go to the earlier sample.
    """
    ordered = sorted(chains, key=lambda c: c.sample)
    by_length = sorted(ordered, key=lambda c: (c.tokens, c.sample))
    if keep == "all":
        chosen = ordered[:kept]
    elif keep == "shortest":
        chosen = by_length[: kept or 1]
    elif keep == "best":
        chosen = best(ordered, [c.score for c in ordered], kept or 1)
    else:
        chosen = _spread(by_length, kept or 1)
    samples = {c.sample for c in chosen}
    return sorted(samples), [c.sample for c in ordered if c.sample not in samples]


def best(items: Sequence[T], scores: Sequence[float | None], count: int) -> list[T]:
    """The `count` items with the highest scores, the highest first; of equals the earlier, and last what has none."""
    ranked = sorted(zip(items, scores, strict=True), key=lambda pair: math.inf if pair[1] is None else -pair[1])
    return [item for item, _ in ranked[:count]]


def distance(one: str, other: str) -> float:
    """1 − |A ∩ B| / |A ∪ B| of the runs of three words of two texts, in [0, 1]."""
    return _apart(_runs(one), _runs(other))


def _spread(chains: Sequence[Chain], count: int) -> list[Chain]:
    """`chains` begin with the shortest."""
    left = {c.sample: (c, _runs(c.text)) for c in chains}
    nearest = dict.fromkeys(left, 2.0)
    chosen: list[Chain] = []
    while left and len(chosen) < count:
        first = not chosen
        sample = chains[0].sample if first else min(left, key=lambda s: (-nearest[s], s))
        chain, runs = left.pop(sample)
        chosen.append(chain)
        for other, (_, theirs) in left.items():
            nearest[other] = min(nearest[other], _apart(runs, theirs))
    return chosen


def _runs(text: str) -> frozenset[tuple[str, ...]]:
    words = words_of(text)
    return frozenset(tuple(words[at : at + _RUN]) for at in range(max(1, len(words) - _RUN + 1)))


def _apart(one: frozenset[tuple[str, ...]], other: frozenset[tuple[str, ...]]) -> float:
    return 1 - len(one & other) / len(one | other)

"""A long conversation in pieces of whole pairs, each pair in exactly one of them or named as too long."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple


class Piece(NamedTuple):
    """Pairs `start` up to, not including, `stop`. Where it does not fit, it is one pair that is too long by itself."""

    start: int
    stop: int
    fits: bool
    tokens: int


def split_pairs(pairs: int, tokens_of: Callable[[int, int], int], limit: int | None) -> Iterator[Piece]:
    """Pieces in order, which together are 0 … `pairs` without gap or overlap, each as long as the limit allows.

    Args:
        pairs: how many there are.
        tokens_of: tokens of a piece as it is rendered; never fewer with a pair more.
        limit: the most tokens of a piece; None for no limit.
    """
    if not pairs:
        return
    if limit is None or (whole := tokens_of(0, pairs)) <= limit:
        yield Piece(0, pairs, True, 0 if limit is None else whole)
        return
    start = 0
    while start < pairs:
        stop, tokens = start + 1, tokens_of(start, start + 1)
        fits = tokens <= limit
        while fits and stop < pairs and (more := tokens_of(start, stop + 1)) <= limit:
            stop, tokens = stop + 1, more
        yield Piece(start, stop, fits, tokens)
        start = stop

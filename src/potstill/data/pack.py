"""Several short records in one row, kept apart by segment ids and by positions that restart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from potstill.data.tokenize import IGNORE, Tokenized


@dataclass(frozen=True)
class Packed:
    """Records that share one row. `segment_ids` count from 1; `position_ids` restart at 0 in each."""

    rows: tuple[Tokenized, ...]

    @property
    def input_ids(self) -> list[int]:
        return [token for row in self.rows for token in row.input_ids]

    @property
    def labels(self) -> list[int]:
        """The records' labels, without the first token of each: no token of its segment predicts it."""
        return [label for row in self.rows for label in (IGNORE, *row.labels[1:])]

    @property
    def weights(self) -> list[float]:
        """The records' weights, in order; empty where none has any."""
        if not any(row.weights for row in self.rows):
            return []
        return [weight for row in self.rows for weight in (row.weights or [1.0] * len(row))]

    @property
    def position_ids(self) -> list[int]:
        return [position for row in self.rows for position in range(len(row))]

    @property
    def segment_ids(self) -> list[int]:
        return [segment for segment, row in enumerate(self.rows, 1) for _ in row.input_ids]

    @property
    def teacher(self) -> Packed | None:
        """The same records in the teacher's view, if there is one."""
        views = tuple(row.teacher for row in self.rows if row.teacher is not None)
        return Packed(views) if views else None

    def __len__(self) -> int:
        return sum(map(len, self.rows))


def pack(rows: Sequence[Tokenized], max_length: int) -> list[Packed]:
    """Put records into rows of at most `max_length` tokens: each into the first row with room, longest first.

    First-fit decreasing needs at most 11/9 of the optimal number of rows, plus one (Johnson 1973). Equal lengths keep
    their order, so the result depends on the records alone. A record longer than `max_length` gets a row of its own.
    """
    sizes = [max(len(row), len(row.teacher) if row.teacher else 0) for row in rows]
    room = _FirstFit(max_length)
    bins: list[list[Tokenized]] = []
    for index in sorted(range(len(rows)), key=lambda i: -sizes[i]):
        place = room.place(sizes[index])
        if place == len(bins):
            bins.append([])
        bins[place].append(rows[index])
    return [Packed(tuple(bin_)) for bin_ in bins]


class _FirstFit:
    """The first bin with room, in logarithmic time: a tree whose nodes hold the most room below them."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.leaves = 1
        self.tree = [capacity, capacity]
        self.used = 0

    def place(self, size: int) -> int:
        """Place an item in the first bin with room, or in a new one; returns the bin's index."""
        size = min(size, self.capacity)
        if self.tree[1] < size:
            self._grow()
        node = 1
        while node < self.leaves:
            node = 2 * node if self.tree[2 * node] >= size else 2 * node + 1
        index = node - self.leaves
        self.tree[node] -= size
        while node > 1:
            node //= 2
            self.tree[node] = max(self.tree[2 * node], self.tree[2 * node + 1])
        return index

    def _grow(self) -> None:
        leaves = self.tree[self.leaves :] + [self.capacity] * self.leaves
        self.leaves *= 2
        self.tree = [0] * self.leaves + leaves
        for node in range(self.leaves - 1, 0, -1):
            self.tree[node] = max(self.tree[2 * node], self.tree[2 * node + 1])

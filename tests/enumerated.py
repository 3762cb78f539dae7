"""Models of two to four tokens whose distributions are tables, and chance that is enumerated."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from potstill.decoding import acceptance
from potstill.decoding.tree import Tree

GRID = 16
"""Probabilities of targets are multiples of 1/16, those of drafts powers of two: ratios are multiples of 1/16 too."""


class Table:
    """Next-token distributions by history, drawn once for each history from a seed."""

    def __init__(self, vocab: int, seed: int, powers_of_two: bool = False, smooth: bool = False) -> None:
        self.vocab, self._seed, self._powers, self._smooth = vocab, seed, powers_of_two, smooth

    def row(self, history: Sequence[int]) -> list[float]:
        dice = random.Random(repr((self._seed, list(history))))
        if self._powers:
            parts = {2: [[8, 8], [16, 0]], 3: [[8, 4, 4], [8, 8, 0]], 4: [[4, 4, 4, 4], [8, 4, 2, 2]]}[self.vocab]
            chosen = list(dice.choice(parts))
            dice.shuffle(chosen)
        else:
            cuts = sorted(dice.randrange(GRID + 1) for _ in range(self.vocab - 1))
            chosen = [b - a for a, b in itertools.pairwise([0, *cuts, GRID])]
        if self._smooth:  # no zeros, and off the grid
            return [(part + 2) / (GRID + 2 * self.vocab) for part in chosen]
        return [part / GRID for part in chosen]


class TableModel:
    """Reads blocks as `CachedModel` does, and answers by what stands in its own slots: wrong slots, wrong answer."""

    limit: int | None = None
    hidden_BH: Tensor | None = None

    def __init__(self, table: Table, vocabulary: Tensor | None = None, lender: TableModel | None = None) -> None:
        self.table, self.vocabulary, self._lender = table, vocabulary, lender
        self.vocab_size = table.vocab
        self.slots: list[list[int]] = []
        self._capacity = 0
        self._starts: Sequence[int] = ()

    @property
    def lends(self) -> bool:
        return self._lender is not None

    def start(self, capacity: int) -> None:
        self._capacity, self.slots = capacity, []

    def keep_hidden(self) -> None:
        """It has none."""

    def __call__(
        self, tokens_Bn: Tensor, starts: Sequence[int], ends: Sequence[int] | None = None, tree: Tree | None = None
    ) -> Tensor:
        owner = self if self._lender is None else self._lender
        if not owner.slots:
            owner.slots = [[-1] * owner._capacity for _ in starts]
        logits = []
        for row, (slots, tokens, start) in enumerate(zip(owner.slots, tokens_Bn.tolist(), starts, strict=True)):
            slots[start : start + len(tokens)] = tokens
            if tree is not None:
                along = [torch.nonzero(sees).flatten().tolist() for sees in tree.sees]
                logits.append([self.table.row(slots[:start] + [slots[start + i] for i in nodes]) for nodes in along])
                continue
            places = range(start, start + len(tokens)) if ends is None else [start + ends[row]]
            logits.append([self.table.row(slots[: place + 1]) for place in places])
        self._starts = starts
        probabilities = torch.tensor(logits, dtype=torch.float64)
        chosen = probabilities if self.vocabulary is None else probabilities[..., self.vocabulary]
        return chosen.log()

    def settle(self, paths: Sequence[Sequence[int]]) -> None:
        for slots, start, path in zip(self.slots, self._starts, paths, strict=True):
            stands = [slots[start + place] for place in path]
            slots[start + 1 : start + 1 + len(stands)] = stands

    def keep(self, rows: Tensor) -> None:
        if self._lender is None and self.slots:
            self.slots = [self.slots[row] for row in rows.tolist()]


class Enumerated:
    """Chance along one path of choices; the weight of the path is the product of the probabilities.

    With `grid`, acceptance is tried with each r of a grid, by the rule in use; without, it has probability p/q.
    """

    def __init__(self, path: list[int], grid: bool) -> None:
        self.path, self._grid = path, grid
        self.options: list[int] = []
        self.weight = 1.0

    def _choose(self, weights: Sequence[float]) -> int:
        place = len(self.options)
        if place == len(self.path):
            self.path.append(0)
        self.options.append(len(weights))
        self.weight *= weights[self.path[place]]
        return self.path[place]

    def draw(self, weights_BV: Tensor) -> Tensor:
        drawn = []
        for row in weights_BV.tolist():
            tokens = [token for token, weight in enumerate(row) if weight > 1e-15]
            total = sum(row)
            drawn.append(tokens[self._choose([row[token] / total for token in tokens])])
        return torch.tensor(drawn)

    def accepts(self, p: Tensor, q: Tensor) -> Tensor:
        verdicts = []
        for p_row, q_row in zip(p.tolist(), q.tolist(), strict=True):
            row: list[bool] = []
            for p_token, q_token in zip(p_row, q_row, strict=True):
                probability = self._probability(p_token, q_token)
                sure = not all(row) or probability in (0.0, 1.0)  # behind a rejection nothing matters
                row.append(bool(probability) if sure else self._choose([1 - probability, probability]) == 1)
            verdicts.append(row)
        return torch.tensor(verdicts, dtype=torch.bool).view(p.shape)

    def _probability(self, p: float, q: float) -> float:
        if q <= 0:
            return 0.0
        if not self._grid:
            return min(1.0, p / q)
        exact = [torch.tensor(round(x * 4 * GRID) / (4 * GRID), dtype=torch.float64) for x in (p, q)]
        stands = [bool(acceptance.stands(torch.tensor(k / GRID, dtype=torch.float64), *exact)) for k in range(GRID)]
        return sum(stands) / GRID


def enumerate_paths(run: Callable[[Enumerated], object], grid: bool) -> Iterator[tuple[object, float]]:
    """The result and the weight of every path."""
    path: list[int] = []
    while True:
        source = Enumerated(path, grid)
        yield run(source), source.weight
        while path and path[-1] + 1 == source.options[len(path) - 1]:
            path.pop()
        if not path:
            return
        path[-1] += 1

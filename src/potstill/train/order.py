"""Which rows make an optimiser step, and how a step is dealt out into micro-batches.

A step is a set of rows that depends on the seed, the epoch and the number of rows per step, and on nothing else:
not on how the step is split into micro-batches, nor on how many processes share it. So the same step size gives the
same training, however it is split. Rows of like length stand together, which keeps padding small.

Where rows run out, the last step of an epoch is smaller. No row is repeated to fill it up (it would count twice): the
rows are spread evenly, and a process that gets none takes part with a batch that has no tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Sampler

STEPS_PER_WINDOW = 16
"""Rows are sorted by length within a window of so many steps: far fewer padding tokens, and steps still differ."""


class StepOrder(Sampler[list[Any]]):
    """A batch sampler: the micro-batches of one process, in order, as lists of row indices (one may be empty); with
    `visits`, of pairs (row index, epoch), for rows that are not the same in every epoch.

    Args:
        lengths: tokens of each row.
        batch_size: rows of a micro-batch.
        accumulation: micro-batches per optimiser step and process.
        processes: how many processes share a step.
        process: which of them this is.
        seed: what the order depends on, beside the epoch.
        shuffle: False keeps the rows' own order.
        drop_last: leave out the last, smaller step of an epoch.
        visits: give the epoch with each row.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        batch_size: int,
        accumulation: int = 1,
        processes: int = 1,
        process: int = 0,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        visits: bool = False,
    ) -> None:
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.batch_size, self.accumulation = batch_size, accumulation
        self.processes, self.process = processes, process
        self.seed, self.shuffle, self.drop_last = seed, shuffle, drop_last
        self.visits = visits
        self.epoch = 0

    @property
    def rows_per_step(self) -> int:
        """Rows of a whole optimiser step, over all micro-batches and processes."""
        return self.batch_size * self.accumulation * self.processes

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch, counted from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Micro-batches of this process per epoch; the same for every process."""
        whole, rest = divmod(len(self.lengths), self.rows_per_step)
        last = 0 if self.drop_last else math.ceil(rest / (self.batch_size * self.processes))
        return whole * self.accumulation + last

    def __iter__(self) -> Iterator[list[Any]]:
        for step in self.steps():
            parts = math.ceil(len(step) / (self.batch_size * self.processes)) * self.processes
            for micro_batch in np.array_split(step, parts)[self.process :: self.processes]:
                rows = micro_batch.tolist()
                yield [(row, self.epoch) for row in rows] if self.visits else rows

    def steps(self) -> list[np.ndarray]:
        """The rows of each optimiser step of this epoch, longest first."""
        size = self.rows_per_step
        if not self.shuffle:
            order = np.arange(len(self.lengths))
            steps = [order[start : start + size] for start in range(0, len(order), size)]
        else:
            random = np.random.default_rng([self.seed, self.epoch])
            order = random.permutation(len(self.lengths))
            whole = len(order) // size * size
            steps = []
            for start in range(0, whole, size * STEPS_PER_WINDOW):
                window = self._longest_first(order[start : min(start + size * STEPS_PER_WINDOW, whole)])
                steps.extend(window[i : i + size] for i in range(0, len(window), size))
            steps = [steps[i] for i in random.permutation(len(steps))]
            steps.append(order[whole:])
        if steps and len(steps[-1]) < size and (self.drop_last or len(steps[-1]) == 0):
            steps.pop()
        return [self._longest_first(step) for step in steps]

    def _longest_first(self, rows: np.ndarray) -> np.ndarray:
        return rows[np.argsort(-self.lengths[rows], kind="stable")]

"""The rows of an optimiser step, and their division into micro-batches.

A *step source* gives the rows of optimiser step n as a function of n and its seed. So a checkpoint needs to keep n
alone, and every process computes the same rows and takes its share. The division of a step into micro-batches and
processes does not affect its rows.

The last step of an epoch may be smaller. No row is repeated to fill it up (it would count twice): the rows are spread
evenly, and a process without rows takes part with a batch that has no tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import TrainingArguments

from potstill.data.masking import Visit
from potstill.data.tokenize import Tokenized
from potstill.train.rows import Row, length_of

STEPS_PER_WINDOW = 16
"""Rows are sorted by length within a window of this many steps: far less padding, and steps still differ."""


class StepSource(Protocol):
    """The rows of every optimiser step, counted from 0 over all epochs."""

    @property
    def steps_per_epoch(self) -> int: ...

    def size(self, n: int) -> int:
        """The number of rows of step n, known without making them."""
        ...

    def step(self, n: int) -> list[Any]:
        """The rows of step n, over all micro-batches and processes: a function of n and the source's seed."""
        ...


class FixedRows:
    """The step source of a data set: each row once per epoch, in an order that depends on the seed and the epoch.

    Rows of similar length are in the same step, which keeps padding small.

    Args:
        rows: the training rows.
        rows_per_step: rows of a whole optimiser step.
        seed: determines the order, together with the epoch.
        shuffle: False keeps the rows' own order.
        drop_last: leave out the last, smaller step of an epoch.
        visits: wrap each row with its epoch (`Visit`), for rows that differ between epochs (by masking, say).
    """

    def __init__(
        self,
        rows: Sequence[Row],
        rows_per_step: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        visits: bool = False,
    ) -> None:
        self.rows, self.rows_per_step = rows, rows_per_step
        self.seed, self.shuffle, self.drop_last, self.visits = seed, shuffle, drop_last, visits
        self._lengths = np.asarray([length_of(row) for row in rows], dtype=np.int64)
        self._order: tuple[int, list[np.ndarray]] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch."""
        whole, rest = divmod(len(self.rows), self.rows_per_step)
        return whole + bool(rest and not self.drop_last)

    @property
    def tokens_per_epoch(self) -> int:
        """Tokens of an epoch without padding; if the last step is dropped, those of epoch 0."""
        return sum(int(self._lengths[rows].sum()) for rows in self.order(0))

    def size(self, n: int) -> int:
        """The number of rows of step n."""
        return min(self.rows_per_step, len(self.rows) - n % self.steps_per_epoch * self.rows_per_step)

    def step(self, n: int) -> list[Row | Visit]:
        """The rows of step n, longest first."""
        epoch, index = divmod(n, self.steps_per_epoch)
        return [self._row(int(row), epoch) for row in self.order(epoch)[index]]

    def order(self, epoch: int) -> list[np.ndarray]:
        """The row numbers of each optimiser step of an epoch, longest first."""
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, self._ordered(epoch)
        return self._order[1]

    def _row(self, number: int, epoch: int) -> Row | Visit:
        row = self.rows[number]
        if not self.visits:
            return row
        if not isinstance(row, Tokenized):
            raise TypeError(f"only texts differ from epoch to epoch, not a {type(row).__name__}")
        return Visit(row, epoch)

    def _ordered(self, epoch: int) -> list[np.ndarray]:
        size = self.rows_per_step
        if not self.shuffle:
            order = np.arange(len(self.rows))
            steps = [order[start : start + size] for start in range(0, len(order), size)]
        else:
            random = np.random.default_rng([self.seed, epoch])
            order = random.permutation(len(self.rows))
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
        return rows[np.argsort(-self._lengths[rows], kind="stable")]


class MicroBatches(Sampler[list[Any]]):
    """A batch sampler: the micro-batches of one process in an epoch, each a list of rows, which may be empty.

    Args:
        source: gives the rows of each step.
        batch_size: rows of a micro-batch.
        processes: how many processes share a step.
        process: which of them this is.
    """

    def __init__(self, source: StepSource, *, batch_size: int, processes: int = 1, process: int = 0) -> None:
        self.source, self.batch_size = source, batch_size
        self.processes, self.process = processes, process
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose an epoch, counted from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Micro-batches of this process in the epoch; the same for every process."""
        return sum(self._rounds(self.source.size(n)) for n in self._steps())

    def __iter__(self) -> Iterator[list[Any]]:
        for n in self._steps():
            rows = self.source.step(n)
            parts = self._rounds(len(rows)) * self.processes
            for places in np.array_split(np.arange(len(rows)), parts)[self.process :: self.processes]:
                yield [rows[place] for place in places]

    def _steps(self) -> range:
        first = self.epoch * self.source.steps_per_epoch
        return range(first, first + self.source.steps_per_epoch)

    def _rounds(self, rows: int) -> int:
        """The number of micro-batches of each process in a step."""
        return math.ceil(rows / (self.batch_size * self.processes))


class _AsGiven(Dataset[Any]):
    """A data set whose keys are its rows, so that a batch sampler yields the rows themselves."""

    def __getitem__(self, row: Any) -> Any:
        return row


class _EpochLoader(DataLoader[Any]):
    """A loader with the method `set_epoch`, which the training loop calls."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch."""
        if isinstance(self.batch_sampler, MicroBatches):
            self.batch_sampler.set_epoch(epoch)


def loader(
    batches: Sampler[list[Any]] | Iterable[list[Any]], collate: Callable[[Any], Any], args: TrainingArguments
) -> DataLoader[Any]:
    """A `DataLoader` of micro-batches of rows, without the library's sharding."""
    workers: dict[str, Any] = {}
    if args.dataloader_num_workers > 0:
        workers = {
            "persistent_workers": args.dataloader_persistent_workers,
            "prefetch_factor": args.dataloader_prefetch_factor,
            "multiprocessing_context": args.dataloader_multiprocessing_context,
        }
    return _EpochLoader(
        _AsGiven(),
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory and args.device.type == "cuda",
        # Its own generator: a loader draws a random number at the start of each pass, which must not shift dropout's.
        generator=torch.Generator().manual_seed(args.seed),
        **workers,
    )

"""Micro-batches as a `DataLoader`, without the library's sharding: the order of rows is ours (`order.py`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import TrainingArguments

from potstill.data.masking import Visit
from potstill.data.tokenize import Tokenized
from potstill.train.order import StepOrder
from potstill.train.rows import Row


class TrainLoader(DataLoader[Any]):
    """Micro-batches of one process, in the order of an epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; the training loop calls it."""
        assert isinstance(self.batch_sampler, StepOrder)
        self.batch_sampler.set_epoch(epoch)


class Visited(Dataset[Visit]):
    """Rows that are not the same in every epoch (masked anew, say), by pairs (row, epoch)."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def __getitem__(self, visit: tuple[int, int]) -> Visit:
        row, epoch = visit
        found = self.rows[row]
        assert isinstance(found, Tokenized)
        return Visit(found, epoch)


def loader(
    rows: list[Row],
    batches: Sampler[list[Any]] | Iterable[list[Any]],
    collate: Callable[[Any], Any],
    args: TrainingArguments,
) -> DataLoader[Any]:
    """A loader of micro-batches that are given as row indices, or as pairs (row index, epoch)."""
    workers: dict[str, Any] = {}
    if args.dataloader_num_workers > 0:
        workers = {
            "persistent_workers": args.dataloader_persistent_workers,
            "prefetch_factor": args.dataloader_prefetch_factor,
            "multiprocessing_context": args.dataloader_multiprocessing_context,
        }
    kind = TrainLoader if isinstance(batches, StepOrder) else DataLoader
    visits = isinstance(batches, StepOrder) and batches.visits
    return kind(
        Visited(rows) if visits else rows,  # type: ignore[arg-type]  # a list is a data set
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory and args.device.type == "cuda",
        # A generator of its own: a loader takes a random number whenever it is begun, and dropout must not see it.
        generator=torch.Generator().manual_seed(args.seed),
        **workers,
    )

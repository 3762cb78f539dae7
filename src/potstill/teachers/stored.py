"""A teacher whose signals were stored: nothing of it is loaded.

Signals are joined to rows while a batch is collated, by the record's id and the digest of its rendering (`joining`), so
before truncation could part them, whatever is packed with what, and in the loader's processes. A batch carries them as
tensors (`Batch.stored`):

    offsets [N+1], ids [E], weights [E]    the entries of each target, as in `Sparse`
    entropy [N], target_log_prob [N]       of the full distribution, in nats
    rest [N]                               the logarithm of what is not kept, of top-k alone
    hidden [N,H]                           the input of the output layer, of a store that keeps it
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from potstill.data.pack import Packed
from potstill.data.reader import Collate
from potstill.data.tokenize import Tokenized
from potstill.errors import CapabilityError, DataError
from potstill.models.load import load_tokenizer
from potstill.signals import Ask, Batch, ModelDims, Signals, Sparse
from potstill.store.codec import HIDDEN, Entries
from potstill.store.files import SignalStore
from potstill.store.output_layer import OutputLayer
from potstill.types import Answer, Capability, Request


class StoredTeacher:
    """The signals of a store.

    Args:
        folder: of the store.

    Raises:
        DataError: as `SignalStore`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.store = folder, SignalStore(folder)
        self._layer: OutputLayer | None = None
        self.estimator = self.store.identity["estimator"]["signal"]

    @property
    def capabilities(self) -> frozenset[Capability]:
        """Whole distributions, or some entries of each."""
        return frozenset({"head" if self._keeps_hidden else "top_logprobs"})

    @property
    def at_temperature(self) -> float | None:
        """The temperature of the stored distributions; None: any."""
        return None if self._keeps_hidden else float(self.store.identity["temperature"])

    @property
    def _keeps_hidden(self) -> bool:
        return any(part.name == HIDDEN for part in self.store.grid.tensors)

    def _output_layer_on(self, device: torch.device) -> OutputLayer:
        if self._layer is None or self._layer.weight.device != device:
            found = OutputLayer.load(self.folder)
            bias = None if found.bias is None else found.bias.to(device)
            self._layer = replace(found, weight=found.weight.to(device), bias=bias)
        return self._layer

    @property
    def identity(self) -> Mapping[str, Any]:
        """What the store is of."""
        return self.store.identity

    @cached_property
    def dims(self) -> ModelDims:
        """The sizes of the teacher that was captured."""
        return ModelDims(**self.store.identity["dims"])

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the teacher that was captured."""
        return load_tokenizer(self.folder / "tokenizer")

    def joining(self, collate: Collate) -> Collate:
        """The collator with the stored signals of its rows.

        Raises (the returned function):
            DataError: a row has no record id, is not in the store, is rendered otherwise than it was captured, or is
                longer than what was captured.
        """

        def joined(rows: Sequence[Any]) -> dict[str, Any]:
            found = [self._entries(row) for row in _records(rows)]
            tensors = _tensors(found)
            if self._keeps_hidden:
                none = np.zeros((0, self.dims.hidden), np.float32)
                tensors["hidden"] = torch.from_numpy(np.concatenate([none, *(e.tensors[HIDDEN] for e in found)]))
            return {**collate(rows), "stored": tensors}

        return joined

    def signals(self, batch: Batch, ask: Ask) -> Signals:
        """The batch's stored distributions.

        Raises:
            CapabilityError: inner tensors are asked for.
            DataError: the batch was not collated by `joining`.
        """
        if ask.taps:
            raise CapabilityError(
                f"the store has no {min(ask.taps)}: it keeps distributions",
                fix="use objectives on the response (forward_kl), or drop the section capture",
            )
        stored = batch.stored
        if ask.response and "offsets" not in stored:
            raise DataError("a batch came without its stored signals", fix="collate it by StoredTeacher.joining")
        if not ask.response:
            return Signals(dims=self.dims)
        if self._keeps_hidden:
            return Signals(head=self._output_layer_on(batch.target_ids.device).head(stored["hidden"]), dims=self.dims)
        sparse = Sparse(
            stored["offsets"],
            stored["ids"],
            stored["weights"],
            stored["entropy"],
            self.estimator,
            float(self.store.identity["temperature"]),
            self.store.grid.vocab,
            stored.get("rest"),
        )
        return Signals(sparse=sparse, dims=self.dims)

    def generate(
        self, requests: Sequence[Request], *, seed: int, wrote: Callable[[int], None] | None = None
    ) -> list[Answer]:
        """A store does not write.

        Raises:
            CapabilityError: always.
        """
        raise CapabilityError("a store of signals writes no text", fix="use its teacher (kind: local)")

    def _entries(self, row: Tokenized) -> Entries:
        if not row.record_id:
            raise DataError(
                "a row has no record id, by which stored signals are found", fix="train on records (see docs/data.md)"
            )
        entries = self.store.read(row.record_id, row.rendered)
        targets = len(row.learned)
        if targets > entries.entropy.size:
            raise DataError(
                f"record {row.record_id!r} has {targets:,} learned tokens, and {entries.entropy.size:,} were captured",
                where=str(self.folder),
                fix="capture with a larger capture.max_length, or lower train.max_length",
            )
        return part_of(entries, 0, targets)  # a row that is cut has its first targets


def _records(rows: Sequence[Any]) -> Iterator[Tokenized]:
    """The records in some rows, in the teacher's view."""
    for row in rows:
        for one in row.rows if isinstance(row, Packed) else (row,):
            if not isinstance(one, Tokenized):
                raise DataError("stored signals need rows of records", fix="give rows with messages or text, with ids")
            yield one.teacher or one


def part_of(entries: Entries, first: int, last: int) -> Entries:
    """The entries of the targets first:last."""
    begin, end = int(entries.offsets[first]), int(entries.offsets[last])
    return Entries(
        entries.offsets[first : last + 1] - begin,
        entries.ids[begin:end],
        entries.weights[begin:end],
        entries.entropy[first:last],
        entries.target_log_prob[first:last],
        entries.rest[first:last],
        {name: rows[first:last] for name, rows in entries.tensors.items()},
    )


def _tensors(found: Sequence[Entries]) -> dict[str, Tensor]:
    """The entries of consecutive rows as one ragged array."""
    sizes = [np.zeros(1, np.int64), *(np.diff(entries.offsets) for entries in found)]
    columns = {"offsets": np.cumsum(np.concatenate(sizes))}
    for name, dtype in _COLUMNS.items():
        columns[name] = np.concatenate([np.zeros(0, dtype), *(getattr(entries, name) for entries in found)])
    tensors = {name: torch.from_numpy(column) for name, column in columns.items()}
    return tensors if tensors["rest"].numel() else {name: t for name, t in tensors.items() if name != "rest"}


_COLUMNS = {
    "ids": np.int32,
    "weights": np.float32,
    "entropy": np.float32,
    "target_log_prob": np.float32,
    "rest": np.float32,
}

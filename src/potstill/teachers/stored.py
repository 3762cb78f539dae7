"""A teacher whose signals were stored: nothing of it is loaded.

Signals are joined to rows while a batch is collated, by the record's id and the digest of its rendering (`joining`), so
before truncation could part them, whatever is packed with what, and in the loader's processes. A batch carries them as
tensors (`Batch.stored`):

    offsets [N+1], ids [E], weights [E]    the entries of each target, as in `Sparse`
    entropy [N], target_log_prob [N]       of the full distribution, in nats
    rest [N]                               the logarithm of what is not kept, of top-k alone
    hidden [N,H]                           the input of the output layer, of a store that keeps it
    logits [N,V]                           all logits, likewise
    <name>                                 inner tensors as in `Signals.taps`, padded as the batch is
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from potstill.data.images import Pixels
from potstill.data.pack import Packed
from potstill.data.reader import Collate
from potstill.data.tokenize import Tokenized
from potstill.errors import CapabilityError, DataError
from potstill.models.load import load_tokenizer
from potstill.signals import Ask, Batch, Dense, ModelDims, Signals, Sparse
from potstill.store.codec import HIDDEN, LOGITS, Entries, TensorPart
from potstill.store.files import OUTPUT_LAYER, TOKENIZER, SignalStore
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
        named = {part.name: part for part in self.store.grid.tensors}
        self._whole = next((named.pop(name) for name in (HIDDEN, LOGITS) if name in named), None)
        self.features: Mapping[str, TensorPart] = named
        """The inner tensors that it keeps."""

    @property
    def capabilities(self) -> frozenset[Capability]:
        """Whole distributions, or some entries of each, or none; and inner tensors."""
        found: set[Capability] = {"taps"} if self.features else set()
        if self._whole is not None:
            found.add("head" if self._whole.name == HIDDEN else "dense")
        elif self.store.identity["targets"] != "none":
            found.add("top_logprobs")
        return frozenset(found)

    @property
    def at_temperature(self) -> float | None:
        """The temperature of the stored distributions; None: any."""
        return float(self.store.identity["temperature"]) if "top_logprobs" in self.capabilities else None

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The names of the teacher's classes, in order; None if it has none."""
        named = self.store.identity["labels"]
        return None if named is None else tuple(named)

    def _output_layer_on(self, device: torch.device) -> OutputLayer:
        if self._layer is None or self._layer.weight.device != device:
            if self._layer is None:
                self.store.check_files(OUTPUT_LAYER)
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
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer of the teacher that was captured; None if it reads no text. Raises DataError: it is damaged."""
        return load_tokenizer(self.folder / TOKENIZER) if self.store.check_files(TOKENIZER) else None

    def joining(self, collate: Collate) -> Joining:
        """The collator with the stored signals of its rows."""
        return Joining(self, collate)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens the store itself: maps of files cannot be sent there."""
        return type(self), (self.folder,)

    def stored(self, rows: Sequence[Any], batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The signals of some rows, as `Batch.stored` has them.

        Args:
            rows: of records, which may be packed.
            batch: the same rows, collated.

        Raises:
            DataError: a row has no record id, is not in the store, is rendered otherwise than it was captured, or is
                longer than what was captured.
        """
        found = [[self._entries(one) for one in _records(row)] for row in rows]
        alone = [entries for of_row in found for entries in of_row]
        tensors = _tensors(alone)
        if self._whole is not None:
            tensors[_WHOLE[self._whole.name]] = _joined([e.tensors[self._whole.name] for e in alone], self._whole)
        for name, part in self.features.items():
            if part.rows == "example":
                tensors[name] = _joined([entries.tensors[name] for entries in alone], part)
            else:
                shape = batch["teacher_input_ids" if "teacher_input_ids" in batch else "input_ids"].shape
                of_rows = [_joined([entries.tensors[name] for entries in of_row], part) for of_row in found]
                tensors[name] = _padded(name, of_rows, part, shape)
        return tensors

    def signals(self, batch: Batch, ask: Ask) -> Signals:
        """The batch's stored distributions.

        Raises:
            CapabilityError: something is asked for that is not kept.
            DataError: the batch was not collated by `joining`.
        """
        names = self._names(ask.taps)
        stored = batch.stored
        if ask and "offsets" not in stored:
            raise DataError("a batch came without its stored signals", fix="collate it by StoredTeacher.joining")
        response = self._response(batch) if ask.response else Signals()
        return replace(response, taps={name: stored[name] for name in names}, dims=self.dims)

    def check_kept(self, taps: Iterable[str]) -> None:
        """Whether it keeps these inner tensors, or pooled ones in their place. Raises CapabilityError."""
        self._names(taps)

    def _names(self, taps: Iterable[str]) -> list[str]:
        """The stored names of inner tensors: a state that is kept pooled alone is given pooled."""
        found: list[str] = []
        for name in sorted(taps):
            pooled = [kept for kept in self.features if kept.startswith(f"pooled.{name.removeprefix('hidden.')}.")]
            if name not in self.features and not pooled:
                raise CapabilityError(
                    f"the store has no {name}; it keeps {', '.join(self.features) or 'responses alone'}",
                    fix="set capture.features: asked and capture again, or drop the section capture",
                )
            found += [name] if name in self.features else pooled
        return found

    def _response(self, batch: Batch) -> Signals:
        stored = batch.stored
        if self._whole is not None and self._whole.name == HIDDEN:
            return Signals(head=self._output_layer_on(batch.target_ids.device).head(stored["hidden"]))
        if self._whole is not None:
            logits = stored["logits"]
            of_examples = batch.targets_are == "examples"
            return Signals(dense=Dense(logits[batch.target_positions["teacher"]] if of_examples else logits))
        if "top_logprobs" not in self.capabilities:
            raise CapabilityError("the store keeps no responses", fix="set capture.kind to one that keeps them")
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
        return Signals(sparse=sparse)

    def generate(
        self, requests: Sequence[Request], *, seed: int, wrote: Callable[[int], None] | None = None
    ) -> list[Answer]:
        """A store does not write.

        Raises:
            CapabilityError: always.
        """
        raise CapabilityError("a store of signals writes no text", fix="use its teacher (kind: local)")

    def _entries(self, row: Tokenized | Pixels) -> Entries:
        if not row.record_id:
            raise DataError(
                "a row has no record id, by which stored signals are found", fix="train on records (see docs/data.md)"
            )
        entries = self.store.read(row.record_id, row.rendered)
        length, captured = len(row) if isinstance(row, Tokenized) else 1, self.store.length(row.record_id)
        kept_by = {part.rows for part in self.features.values()}
        if (length > captured and "tokens" in kept_by) or (length != captured and "example" in kept_by):
            raise DataError(
                f"record {row.record_id!r} has {length:,} tokens here, and what is stored is of {captured:,}",
                where=str(self.folder),
                fix="capture with the same train.max_length",
            )
        entries = replace(entries, tensors={n: t[: self._rows(n, t, length)] for n, t in entries.tensors.items()})
        if self.store.identity["targets"] != "tokens" or not isinstance(row, Tokenized):
            return entries
        targets = len(row.learned)
        if targets > entries.entropy.size:
            raise DataError(
                f"record {row.record_id!r} has {targets:,} learned tokens, and {entries.entropy.size:,} were captured",
                where=str(self.folder),
                fix="capture with a larger capture.max_length, or lower train.max_length",
            )
        return part_of(entries, 0, targets)  # a row that is cut has its first targets

    def _rows(self, name: str, tensor: NDArray[np.float32], length: int) -> int:
        """How many rows of a tensor a record of so many tokens has."""
        part = self.features.get(name)
        return length if part is not None and part.rows == "tokens" else tensor.shape[0]


class Signalled(Protocol):
    """What gives the stored signals of rows."""

    def stored(self, rows: Sequence[Any], batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """As `StoredTeacher.stored`."""
        ...


class Joining:
    """A collator whose batches have the stored signals of their rows. It can be pickled: the processes of a loader may
    be spawned.

    Raises (when called):
        DataError: as `StoredTeacher.stored`.
    """

    def __init__(self, teacher: Signalled, collate: Collate) -> None:
        self.teacher, self.collate = teacher, collate

    def __call__(self, rows: Sequence[Any]) -> dict[str, Any]:
        batch = self.collate(rows)
        return {**batch, "stored": self.teacher.stored(rows, batch)}


_WHOLE = {HIDDEN: "hidden", LOGITS: "logits"}


def _records(row: Any) -> Iterator[Tokenized | Pixels]:
    """The records in a row, in the teacher's view."""
    for one in row.rows if isinstance(row, Packed) else (row,):
        if not isinstance(one, (Tokenized, Pixels)):
            raise DataError("stored signals need rows of records", fix="give rows with messages or text, with ids")
        yield (one.teacher or one) if isinstance(one, Tokenized) else one


def _joined(arrays: Sequence[NDArray[np.float32]], part: TensorPart) -> Tensor:
    return torch.from_numpy(np.concatenate([np.zeros((0, *part.shape), np.float32), *arrays]))


def _padded(name: str, rows: Sequence[Tensor], part: TensorPart, shape: Sequence[int]) -> Tensor:
    """[B,T,H] of states, [B,A,T,d] of attention, from the tokens of each row. Padding is 0."""
    whole = torch.zeros(*shape, *part.shape)
    for number, tokens in enumerate(rows):
        whole[number, : tokens.shape[0]] = tokens
    return whole if name.startswith("hidden.") else whole.transpose(1, 2)


def part_of(entries: Entries, first: int, last: int) -> Entries:
    """The entries of the targets first:last, and their rows of a whole response; other tensors as they are."""
    begin, end = int(entries.offsets[first]), int(entries.offsets[last])
    return Entries(
        entries.offsets[first : last + 1] - begin,
        entries.ids[begin:end],
        entries.weights[begin:end],
        entries.entropy[first:last],
        entries.target_log_prob[first:last],
        entries.rest[first:last],
        {name: t[first:last] if name in _WHOLE else t for name, t in entries.tensors.items()},
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

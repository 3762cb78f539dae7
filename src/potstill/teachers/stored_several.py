"""Several stores as one teacher: the mean of their distributions, as an ensemble's (Hinton, Vinyals, Dean 2015, §2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from potstill.data.reader import Collate
from potstill.errors import CapabilityError, ModelError
from potstill.models.labels import check_same_labels
from potstill.models.tokenizers import check_same_tokenizer
from potstill.signals import Ask, Batch, Dense, Head, ModelDims, Signals, Sparse
from potstill.teachers.ensemble import average
from potstill.teachers.stored import Joining, StoredTeacher
from potstill.types import Answer, Capability, Request


class StoredTeachers:
    """The mean of the teachers of some stores, of the same records.

    Whole distributions are averaged, and are then dense. Of entries, each teacher's count with its share: without bias
    if each is. The entropy is the mean of theirs, so that the value of forward_kl is the mean of the KL from each
    teacher (its gradient is that of the KL from their mean).

    Args:
        folders: of the stores, two or more.

    Raises:
        DataError: as `StoredTeacher`.
        ModelError: their teachers differ in classes, or in the size of the vocabulary.
        CapabilityError: a store keeps no responses, or the likeliest tokens alone: what one keeps another has in its
            rest.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.members = tuple(map(StoredTeacher, folders))
        first = self.members[0]
        for number, member in enumerate(self.members[1:], start=1):
            if member.capabilities != first.capabilities or member.at_temperature != first.at_temperature:
                raise CapabilityError("the stores were captured differently", fix="capture them by one section capture")
            if member.labels is not None and first.labels is not None:
                who = f"store {number}"
                check_same_labels(member.labels, first.labels, who=who, where=str(member.folder), than="the first")
            if member.dims.vocab != first.dims.vocab:
                raise ModelError(
                    f"store {number} is of {member.dims.vocab} tokens or classes, and the first of {first.dims.vocab}",
                    where=str(member.folder),
                    fix="use teachers over the same ones",
                )
        if first.estimator == "top_k" or not first.capabilities & {"head", "dense", "top_logprobs"}:
            raise CapabilityError(
                "the mean of several stores needs their responses, and not the likeliest tokens alone",
                where="capture.kind",
                fix="use kind: threshold, hidden or dense",
            )

    @property
    def capabilities(self) -> frozenset[Capability]:
        """Whole logits, or entries. Each teacher has its own inner tensors."""
        sparse = "top_logprobs" in self.members[0].capabilities
        return frozenset({"top_logprobs" if sparse else "dense"})

    @property
    def at_temperature(self) -> float | None:
        """As `StoredTeacher.at_temperature`."""
        return self.members[0].at_temperature

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The names of the classes."""
        return self.members[0].labels

    @property
    def identity(self) -> Mapping[str, Any]:
        """What the stores are of."""
        return {"kind": "stores", "members": [dict(member.identity) for member in self.members]}

    @cached_property
    def dims(self) -> ModelDims:
        """The number of tokens or classes."""
        first = self.members[0].dims
        return ModelDims(first.vocab, hidden=0, layers=0, heads=0, kv_heads=0, causal=first.causal)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The teachers' tokenizer. Raises TokenizerMismatch: they differ."""
        first, *others = (member.tokenizer for member in self.members)
        for other in others:
            if first is not None and other is not None:
                check_same_tokenizer(first, other)
        return first

    def joining(self, collate: Collate) -> Joining:
        """As `StoredTeacher.joining`."""
        return Joining(self, collate)

    def __reduce__(self) -> tuple[Any, ...]:
        """As `StoredTeacher`."""
        return type(self), ([member.folder for member in self.members],)

    def stored(self, rows: Sequence[Any], batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """As `StoredTeacher.stored`, from each store; the names of its tensors begin with its number."""
        found = [member.stored(rows, batch) for member in self.members]
        return {f"{number}/{name}": tensor for number, of in enumerate(found) for name, tensor in of.items()}

    def check_kept(self, taps: Iterable[str]) -> None:
        """Raises CapabilityError: several teachers have no inner tensors in common."""
        if name := min(taps, default=None):
            raise CapabilityError(f"several stores have no {name}: each teacher has its own", fix="drop capture.also")

    def signals(self, batch: Batch, ask: Ask) -> Signals:
        """The mean of the stored distributions at the batch's targets. Raises as `StoredTeacher.signals`."""
        self.check_kept(ask.taps)
        if not ask.response:
            return Signals(dims=self.dims)
        found = [member.signals(_part(batch, number), ask) for number, member in enumerate(self.members)]
        if all(signals.sparse is not None for signals in found):
            return Signals(sparse=mean_of([s.sparse for s in found if s.sparse is not None]), dims=self.dims)
        logits = [_logits(signals.head or signals.dense) for signals in found]
        return Signals(dense=Dense(average(logits, "probabilities")), dims=self.dims)

    def generate(
        self, requests: Sequence[Request], *, seed: int, wrote: Callable[[int], None] | None = None
    ) -> list[Answer]:
        """Stores do not write. Raises CapabilityError: always."""
        raise CapabilityError("stores of signals write no text", fix="use their teachers (kind: local)")


def mean_of(several: Sequence[Sparse]) -> Sparse:
    """The mean of signals of the same rows: a token that more than one of them has is one entry."""
    first, share = several[0], 1 / len(several)
    vocab = max(int(signal.ids.max()) + 1 if signal.ids.numel() else 1 for signal in several)
    rows = torch.arange(first.entropy.shape[0], device=first.ids.device)
    keys = torch.cat([rows.repeat_interleave(s.offsets.diff()) * vocab + s.ids.long() for s in several])
    found, place = keys.unique(return_inverse=True)
    weights = torch.zeros(found.shape[0], dtype=first.weights.dtype, device=first.weights.device)
    weights.index_add_(0, place, torch.cat([signal.weights for signal in several]) * share)
    counts = torch.bincount(found // vocab, minlength=rows.shape[0])
    return replace(
        first,
        offsets=torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
        ids=(found % vocab).to(first.ids.dtype),
        weights=weights,
        entropy=torch.stack([signal.entropy for signal in several]).mean(0),
    )


def _part(batch: Batch, number: int) -> Batch:
    """The batch with the tensors of one store."""
    mark = f"{number}/"
    return replace(batch, stored={n.removeprefix(mark): t for n, t in batch.stored.items() if n.startswith(mark)})


def _logits(response: Head | Dense | None) -> torch.Tensor:
    if response is None:
        raise CapabilityError("a store gives no response", fix="capture with a kind that keeps responses")
    return response.logits() if isinstance(response, Head) else response.logits

"""A teacher's batches into a store. Never [B,T,V]: rows of the vocabulary are made, kept and dropped some at a time."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from potstill.artifacts import write_atomically
from potstill.capture.estimators import Estimator
from potstill.capture.plan import Plan
from potstill.console import Console
from potstill.data.collate import Collator
from potstill.data.tokenize import Tokenized
from potstill.errors import CapabilityError
from potstill.signals import Ask, Batch, Dense, Head, Sparse
from potstill.store.codec import HIDDEN, Entries
from potstill.store.estimators import joined
from potstill.store.files import StoreWriter
from potstill.store.output_layer import save_output_layer
from potstill.teachers.base import Teacher
from potstill.teachers.stored import part_of

_CHUNK, _CHUNK_ON_GPU = 16, 1024
"""Rows of the vocabulary at a time: as many as stay in a processor's cache, or fill a GPU."""


@dataclass(frozen=True)
class Reading:
    """What the teacher gives for some rows: its response at their targets [N], in order, and the targets."""

    rows: tuple[Tokenized, ...]
    response: Head | Dense
    target_ids: Int[Tensor, " N"]

    def log_probabilities(self) -> Iterator[tuple[slice, Float[Tensor, "C V"]]]:
        """Some rows at a time: log softmax(z) at temperature 1, in fp32."""
        response = self.response
        held = response.hidden if isinstance(response, Head) else response.logits
        size = _CHUNK_ON_GPU if held.is_cuda else _CHUNK
        for start in range(0, held.shape[0], size):
            rows = slice(start, min(start + size, held.shape[0]))
            logits = response.logits(rows) if isinstance(response, Head) else response.logits[rows]
            yield rows, logits.float().log_softmax(-1)


class Capturing:
    """One teacher read batch by batch.

    Attributes:
        seconds, encoding_seconds: that the teacher took for `tokens`, and what was kept took; with those before a kill.
    """

    def __init__(self, teacher: Teacher, temperature: float, pad_id: int, seed: int) -> None:
        self.teacher, self.temperature, self.seed = teacher, temperature, seed
        self._collate = Collator(pad_id)
        self.seconds, self.encoding_seconds, self.tokens = 0.0, 0.0, 0

    def read(self, rows: Sequence[Tokenized]) -> Reading:
        """The teacher's response to some rows.

        Raises:
            CapabilityError: it gives no distribution.
        """
        began = time.perf_counter()
        with torch.inference_mode():
            batch = Batch.from_inputs(self._collate(rows))
            signals = self.teacher.signals(batch, Ask(response=True))
        response = signals.head or signals.dense
        if response is None:
            raise CapabilityError("the teacher gives no distribution", fix="use a teacher of kind local")
        self.seconds += time.perf_counter() - began
        self.tokens += sum(map(len, rows))
        return Reading(tuple(rows), response, batch.target_ids)

    def keep(self, reading: Reading, estimator: Estimator) -> list[Entries]:
        """What is kept of each row's targets."""
        began, making = time.perf_counter(), 0.0
        rows, targets = reading.rows, reading.target_ids
        uniforms = torch.from_numpy(np.concatenate([self._uniforms(row, estimator.draws) for row in rows]))
        parts, at_target = [], []
        with torch.inference_mode():
            made = time.perf_counter()
            for some, log_p in reading.log_probabilities():
                making += time.perf_counter() - made
                at_target.append(log_p.gather(1, targets[some, None]).squeeze(1))
                if self.temperature != 1.0:
                    log_p = (log_p / self.temperature).log_softmax(-1)
                parts.append(estimator.keep(log_p, uniforms[some].to(log_p.device)))
                made = time.perf_counter()
            sparse, target_log_prob = joined(parts), torch.cat(at_target)
        self.seconds += making  # the output layer is the teacher's
        self.encoding_seconds += time.perf_counter() - began - making
        tensors = {HIDDEN: _hidden_of(reading.response)} if estimator.hidden else {}
        return _by_row(sparse, target_log_prob, tensors, [len(row.learned) for row in rows])

    def fill(self, writer: StoreWriter, plan: Plan, estimator: Estimator, console: Console, progress: Path) -> None:
        """Write what is missing. A batch that was begun is computed again as a whole, so that it rounds as it did.

        Args:
            progress: a file that keeps the seconds over kills.
        """
        if progress.is_file():
            self._restore(json.loads(progress.read_text(encoding="utf-8")))
        missing: dict[int, set[int]] = {}
        for shard, place in writer.missing():
            missing.setdefault(shard, set()).add(place)
        todo = list(_batches(plan, missing))
        total = sum(len(row) for number, _ in todo for row in plan.batches[number])
        with console.task("capturing", total=total, unit="tokens") as task:
            for number, wanted in todo:
                rows = plan.batches[number]
                reading = self.read(rows)
                if estimator.hidden and isinstance(reading.response, Head):
                    save_output_layer(reading.response, writer.folder)
                found = self.keep(reading, estimator)
                began = time.perf_counter()
                writer.append([(found[i], self.uniforms_of_weights(rows[i], found[i])) for i in wanted])
                self.encoding_seconds += time.perf_counter() - began
                write_atomically(progress, json.dumps(self._facts()))
                task.advance(sum(map(len, rows)))

    def _facts(self) -> Mapping[str, Any]:
        return {name: getattr(self, name) for name in _KEPT}

    def _restore(self, facts: Mapping[str, Any]) -> None:
        for name in _KEPT:
            setattr(self, name, facts[name])

    def uniforms_of_weights(self, row: Tokenized, entries: Entries) -> NDArray[np.float64]:
        """A uniform number for each entry of a row: see `codec.encode`."""
        return _generator(self.seed, row, "weights").random(entries.ids.size)

    def _uniforms(self, row: Tokenized, draws: int) -> NDArray[np.float32]:
        return _generator(self.seed, row, "tokens").random((len(row.learned), draws), np.float32)


_KEPT = ("seconds", "encoding_seconds", "tokens")


def _generator(seed: int, row: Tokenized, what: str) -> np.random.Generator:
    """Of one record: the same draws in any batch, whatever was captured before."""
    key = hashlib.sha256(f"{seed} {row.record_id} {what}".encode()).digest()
    return np.random.default_rng(np.frombuffer(key, np.uint32))


def _batches(plan: Plan, missing: Mapping[int, set[int]]) -> Iterator[tuple[int, list[int]]]:
    """(batch, its rows that are missing), in order."""
    for shard, numbers in enumerate(plan.shards):
        place = 0
        for number in numbers:
            size = len(plan.batches[number])
            wanted = [i for i in range(size) if place + i in missing.get(shard, ())]
            if wanted:
                yield number, wanted
            place += size


def _hidden_of(response: Head | Dense) -> NDArray[np.float32]:
    """[N, H] the input of the output layer. Raises CapabilityError."""
    if not isinstance(response, Head):
        raise CapabilityError(
            "the teacher's output layer cannot be taken apart", where="capture.kind", fix="use kind: threshold"
        )
    found: NDArray[np.float32] = response.hidden.float().cpu().numpy()
    return found


def _by_row(
    sparse: Sparse, target_log_prob: Tensor, tensors: Mapping[str, NDArray[np.float32]], sizes: Sequence[int]
) -> list[Entries]:
    offsets, ids, weights = (t.cpu().numpy() for t in (sparse.offsets, sparse.ids, sparse.weights))
    entropy, target = sparse.entropy.cpu().numpy(), target_log_prob.cpu().numpy()
    rest = sparse.rest.cpu().numpy() if sparse.rest is not None else np.zeros(0, np.float32)
    whole = Entries(offsets, ids, weights.astype(np.float32), entropy, target, rest, tensors)
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    return [part_of(whole, int(first), int(last)) for first, last in pairwise(bounds)]

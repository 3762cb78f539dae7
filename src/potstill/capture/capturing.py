"""A teacher's batches into a store. [B,T,V] is never materialised: logits are computed, reduced and dropped a few rows
at a time."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from potstill.capture.features import NO_FEATURES, Features
from potstill.capture.filling import Filling
from potstill.capture.plan import Plan, length_of
from potstill.console import Console
from potstill.data.reader import Collate, Row
from potstill.errors import CapabilityError, ModelError
from potstill.signals import Ask, Batch, Dense, Head, Sparse
from potstill.store.codec import HIDDEN, LOGITS, Entries
from potstill.store.earlier import Matching
from potstill.store.estimators import entries_of, joined
from potstill.store.files import OUTPUT_LAYER, Appended, StoreWriter
from potstill.store.output_layer import save_output_layer
from potstill.teachers.base import Teacher, input_device
from potstill.teachers.stored import part_of

_CHUNK, _CHUNK_ON_GPU = 16, 1024
"""Rows of logits at a time: as many as stay in a processor's cache, or fill a GPU."""


@dataclass(frozen=True)
class Reading:
    """A teacher's output for some rows: its response at their targets [N], in order, the targets, and the inner tensors
    of each row. N is 0 if the store keeps no responses."""

    rows: tuple[Row, ...]
    response: Head | Dense
    target_ids: Int[Tensor, " N"]
    sizes: tuple[int, ...]
    """The number of targets of each row."""
    features: tuple[Mapping[str, NDArray[np.float32]], ...] = field(default=())

    def log_probabilities(self) -> Iterator[tuple[slice, Float[Tensor, "C V"]]]:
        """Some rows at a time: log softmax(z) at temperature 1, in fp32.

        Raises:
            ModelError: the teacher gives NaN, or an infinite logit.
        """
        response = self.response
        held = response.hidden if isinstance(response, Head) else response.logits
        size = _CHUNK_ON_GPU if held.is_cuda else _CHUNK
        for start in range(0, held.shape[0], size):
            rows = slice(start, min(start + size, held.shape[0]))
            logits = response.logits(rows) if isinstance(response, Head) else response.logits[rows]
            if logits.device.type == "mps":  # estimators sum in double precision, which Apple's GPUs lack
                logits = logits.cpu()
            log_p = logits.float().log_softmax(-1)
            if log_p[:, :1].isnan().any():  # one NaN or +∞ makes a whole row NaN
                raise ModelError(
                    f"the teacher gives logits that are not finite, for one of {_named(self.rows)}",
                    fix="compute in another precision (the teacher's dtype: float32), or check its weights",
                )
            yield rows, log_p


class Capturing:
    """One teacher read batch by batch.

    Args:
        teacher: gives the signals.
        plan: says what is stored of each row.
        collate: makes batches of rows.
        temperature: of the stored distributions.
        seed: of the draws.
        features: inner tensors that are kept beside the response.

    Attributes:
        seconds: the teacher's time for `tokens`. encoding_seconds: the time of estimators and codec. Both include the
            time of a killed attempt that this one continues.
    """

    def __init__(
        self,
        teacher: Teacher,
        plan: Plan,
        collate: Collate,
        temperature: float = 1.0,
        seed: int = 0,
        features: Features = NO_FEATURES,
    ) -> None:
        self.teacher, self.plan, self.temperature, self.seed = teacher, plan, temperature, seed
        self.features, self._collate = features, collate
        self.seconds, self.encoding_seconds, self.tokens = 0.0, 0.0, 0

    def read(self, rows: Sequence[Row], *, features: bool = False) -> Reading:
        """The teacher's response to some rows, if the plan stores responses.

        Args:
            features: read its inner tensors too.

        Raises:
            CapabilityError: it gives no distribution.
        """
        began, wanted = time.perf_counter(), self.plan.targets_are != "none"
        with torch.inference_mode():
            batch = Batch.from_inputs(self._collate(rows), input_device(self.teacher))
            taps = self.features.taps if features else frozenset()
            signals = self.teacher.signals(batch, Ask(wanted, taps))
        response = (signals.head or signals.dense) if wanted else Dense(torch.zeros(0, 2))
        if response is None:
            raise CapabilityError("the teacher gives no distribution", fix="use a teacher of kind local")
        self.seconds += time.perf_counter() - began
        self.tokens += sum(map(length_of, rows))
        sizes = tuple(map(self.plan.targets, rows))
        made = tuple(self.features.of_rows(signals.taps, batch, rows)) if features else ()
        return Reading(tuple(rows), response, batch.target_ids if wanted else batch.target_ids[:0], sizes, made)

    def keep(self, reading: Reading, estimator: Estimator) -> list[Entries]:
        """The entries to store for each row."""
        began, making = time.perf_counter(), 0.0
        targets = reading.target_ids
        drawn = [
            self._uniforms(row, size, estimator.draws) for row, size in zip(reading.rows, reading.sizes, strict=True)
        ]
        uniforms = torch.from_numpy(np.concatenate(drawn))
        parts, at_target = [], []
        with torch.inference_mode():
            made = time.perf_counter()
            for some, log_p in reading.log_probabilities():
                making += time.perf_counter() - made
                at_target.append(log_p.gather(1, targets[some, None].to(log_p.device)).squeeze(1))
                if self.temperature != 1.0:
                    log_p = (log_p / self.temperature).log_softmax(-1)
                parts.append(estimator.keep(log_p, uniforms[some].to(log_p.device)))
                made = time.perf_counter()
            if not parts:  # no responses
                parts, at_target = [estimator.keep(torch.zeros(0, 2), uniforms)], [torch.zeros(0)]
            sparse, target_log_prob = joined(parts), torch.cat(at_target)
        self.seconds += making  # the output layer is the teacher's
        self.encoding_seconds += time.perf_counter() - began - making
        kept = _by_row(sparse, target_log_prob, _whole(reading.response, estimator), reading.sizes)
        if not reading.features:
            return kept
        return [
            replace(entries, tensors={**entries.tensors, **own})
            for entries, own in zip(kept, reading.features, strict=True)
        ]

    def fill(
        self,
        writer: StoreWriter,
        plan: Plan,
        estimator: Estimator,
        console: Console,
        progress: Path,
        earlier: Matching | None = None,
    ) -> None:
        """Write the missing sequences. A batch with a missing one is computed whole, so that it rounds as before.

        Args:
            progress: a file that carries the seconds over to an attempt that continues this one.
            earlier: what an earlier store has of them.
        """
        if progress.is_file():
            self._restore(json.loads(progress.read_text(encoding="utf-8")))
        filling = Filling(writer, plan, earlier)
        unit = "tokens" if any(length_of(row) > 1 for row in plan.rows[:1]) else "examples"
        if estimator.keeps == "hidden" and not (writer.folder / OUTPUT_LAYER).is_file():
            response = self.read(plan.batches[-1][-1:]).response
            if isinstance(response, Head):
                save_output_layer(response, writer.folder)
        with console.task("capturing", total=filling.tokens, unit=unit) as task:

            def read(rows: Sequence[Row], missing: frozenset[str]) -> Iterator[Appended]:
                reading = self.read(rows, features=bool(self.features.names))
                for row, entries in zip(rows, self.keep(reading, estimator), strict=True):
                    if row.record_id in missing:
                        yield row.record_id, entries, self.uniforms_of_weights(row, entries)
                task.advance(sum(map(length_of, rows)))

            for batch in filling.batches(read):
                began = time.perf_counter()
                writer.append(batch)
                self.encoding_seconds += time.perf_counter() - began
                write_atomically(progress, json.dumps(self._facts()))

    def _facts(self) -> Mapping[str, Any]:
        return {name: getattr(self, name) for name in _KEPT}

    def _restore(self, facts: Mapping[str, Any]) -> None:
        for name in _KEPT:
            setattr(self, name, facts[name])

    def uniforms_of_weights(self, row: Row, entries: Entries) -> NDArray[np.float64]:
        """One uniform number per entry of a row, for `codec.encode`."""
        return _generator(self.seed, row, "weights").random(entries.ids.size)

    def _uniforms(self, row: Row, targets: int, draws: int) -> NDArray[np.float64]:
        return _generator(self.seed, row, "tokens").random((targets, draws))


_KEPT = ("seconds", "encoding_seconds", "tokens")


def _named(rows: Sequence[Row]) -> str:
    """The ids of some records."""
    ids = [repr(row.record_id) for row in rows]
    return f"the records {', '.join(ids[:3])}{', …' * (len(ids) > 3)}"


def _generator(seed: int, row: Row, what: str) -> np.random.Generator:
    """The generator of one record: it has the same draws in any batch."""
    key = hashlib.sha256(f"{seed} {row.record_id} {what}".encode()).digest()
    return np.random.default_rng(np.frombuffer(key, np.uint32))


def _whole(response: Head | Dense, estimator: Estimator) -> dict[str, NDArray[np.float32]]:
    """The whole response: [N, H] the input of the output layer, or [N, V] logits. Raises CapabilityError."""
    if estimator.keeps == "logits":
        logits = response.logits() if isinstance(response, Head) else response.logits
        return {LOGITS: logits.float().cpu().numpy()}
    if estimator.keeps != "hidden":
        return {}
    if not isinstance(response, Head):
        raise CapabilityError(
            "the teacher's output layer cannot be taken apart", where="capture.kind", fix="use kind: threshold"
        )
    return {HIDDEN: response.hidden.float().cpu().numpy()}


def _by_row(
    sparse: Sparse, target_log_prob: Tensor, tensors: Mapping[str, NDArray[np.float32]], sizes: Sequence[int]
) -> list[Entries]:
    whole = entries_of(sparse, target_log_prob, tensors)
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    return [part_of(whole, int(first), int(last)) for first, last in pairwise(bounds)]

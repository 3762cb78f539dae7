"""A teacher's side of an evaluation, read from the store of `capture`: its weights are not opened.

From whole distributions (hidden states, logits) everything is measured as with the teacher itself. From entries alone:
its NLL, its entropy, and the students' KL and agreement with it (see `objectives.statistics.token_statistics`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from potstill.errors import DataError
from potstill.evaluate.fidelity import Advance, Batches, check_numbers, scores_of
from potstill.evaluate.neighbours import embedded
from potstill.evaluate.scores import Scores
from potstill.recipe import Pooling
from potstill.signals import Ask, Batch, Dense, Head, Sparse
from potstill.teachers.stored import StoredTeacher


class StoredResponses:
    """The stored side of every held-out batch.

    Args:
        folder: of the store.
        batches: the held-out rows.

    Raises:
        DataError: as `StoredTeacher`.
    """

    def __init__(self, folder: Path, batches: Batches) -> None:
        self.teacher, self.batches = StoredTeacher(folder), batches
        self._collate = self.teacher.joining(batches.held_out.collate)

    @property
    def whole(self) -> bool:
        """Whether whole distributions are kept."""
        return bool(self.teacher.capabilities & {"head", "dense"})

    @property
    def targets_without(self) -> int:
        """The number of targets without a distribution: a server gave none there."""
        if self.teacher.estimator != "top_k":
            return 0
        return sum(int((self.batch(index).stored["offsets"].diff() == 0).sum()) for index in range(len(self.batches)))

    def batch(self, index: int) -> Batch:
        """A batch with its stored signals. Raises DataError: a record is not in the store, or was rendered
        otherwise."""
        rows = [self.batches.held_out.rows[i] for i in self.batches.rows[index]]
        return Batch.from_inputs(self._collate(rows))

    def signal(self, index: int) -> Head | Dense | Sparse:
        """The teacher's side of a batch."""
        signals = self.teacher.signals(self.batch(index), Ask(response=True))
        found = signals.head or signals.dense or signals.sparse
        if found is None:
            raise DataError("the store keeps no responses", where=str(self.teacher.folder))
        return found

    def scores(self, advance: Advance, columns: tuple[str, ...]) -> Scores:
        """The teacher's own scores. Arguments and errors as `fidelity.measure_teacher`."""
        if self.whole:
            return scores_of(self._respond, self.batches, None, advance, "teacher", columns)
        nll = np.full(self.batches.targets, np.nan, dtype=np.float32)
        entropy = np.full_like(nll, np.nan)
        for index in range(len(self.batches)):
            stored, numbers = self.batch(index).stored, self.batches.numbers(index)
            nll[numbers], entropy[numbers] = -stored["target_log_prob"].numpy(), stored["entropy"].numpy()
            advance(len(numbers))
        check_numbers(nll, "teacher")
        return Scores(nll, entropy=entropy)

    def _respond(self, index: int) -> tuple[Batch, Head | Dense]:
        batch = self.batch(index)
        signals = self.teacher.signals(batch, Ask(response=True))
        response = signals.head or signals.dense
        if response is None:
            raise DataError("the store keeps no whole responses", where=str(self.teacher.folder))
        return batch, response

    def vectors(self, pooling: Pooling, advance: Advance) -> Float[Tensor, "N D"]:
        """The embeddings of all held-out examples, as `neighbours.embed` gives them."""
        tap = f"hidden.{self.teacher.dims.layers}"

        def states(index: int) -> tuple[Batch, dict[str, Tensor]]:
            batch = self.batch(index)
            return batch, dict(self.teacher.signals(batch, Ask(taps=frozenset({tap}))).taps)

        with torch.no_grad():
            return embedded(states, self.batches, tap, pooling, advance, "teacher")

"""The missing sequences of a store, in the order of its plan: some from an earlier store, the others from the teacher.

The teacher reads only what no earlier store has, in batches of their own. Both orders are by length, so that a batch
is computed when the first of its rows is due. A batch with a missing row is the same after a kill as before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from potstill.capture.plan import Plan, batched, length_of
from potstill.data.reader import Row
from potstill.store.earlier import Matching
from potstill.store.files import Appended, StoreWriter

Read = Callable[[Sequence[Row], frozenset[str]], Iterable[Appended]]
"""From a batch of rows, and the records of it that are missing, to what is stored of these, in order."""


class Filling:
    """What is left to write of a store.

    Attributes:
        reading: the batches that the teacher reads: those with a missing record.
        missing: the records that are not written yet.
    """

    def __init__(self, writer: StoreWriter, plan: Plan, earlier: Matching | None) -> None:
        self._plan, self._earlier = plan, earlier
        self.missing = frozenset(writer.shards[shard][place].record for shard, place in writer.missing())
        batches = plan.batches
        if earlier is not None:
            batches = batched((row for row in plan.rows if row.record_id not in earlier), plan.batch_tokens)
        self.reading = [batch for batch in batches if any(row.record_id in self.missing for row in batch)]

    @property
    def tokens(self) -> int:
        """Tokens of all rows that the teacher reads."""
        return sum(length_of(row) for batch in self.reading for row in batch)

    def batches(self, read: Read) -> Iterator[list[Appended]]:
        """What is missing of each batch of the plan, for `StoreWriter.append`. Raises as `read` and `Matching.kept`."""
        computed = (one for batch in self.reading for one in read(batch, self.missing))
        for batch in self._plan.batches:
            due = [row.record_id for row in batch if row.record_id in self.missing]
            if due:
                yield [self._taken_over(record) or next(computed) for record in due]

    def _taken_over(self, record: str) -> Appended | None:
        if self._earlier is None or record not in self._earlier:
            return None
        return record, self._earlier.kept(record), np.zeros(0)

"""How a training reads its rows and makes batches of them, by the task of its student."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedTokenizerBase

from potstill.data.chat import ChatTokenizer
from potstill.data.collate import Collator
from potstill.data.reader import TaskReader
from potstill.tasks import Task
from potstill.train.rows import Row, rows_of, task_rows_of


class Reading:
    """Rows of data sets, and batches of rows.

    Args:
        task: of the student.
        tokenizer: the student's; None where every row is tokenised already, and for images.
        max_length: longer rows are cut at the end.
        packing: several rows in one (causal language models alone).
        reader: what reads rows of the other tasks, and knows their classes.
    """

    def __init__(
        self,
        task: Task,
        tokenizer: PreTrainedTokenizerBase | None,
        *,
        max_length: int,
        packing: bool = False,
        reader: TaskReader | None = None,
    ) -> None:
        self.task, self.max_length, self.packing, self.reader = task, max_length, packing, reader
        self._chat = ChatTokenizer.from_transformers(tokenizer) if tokenizer is not None and reader is None else None
        self.collate: Callable[[Any], dict[str, Any]]
        if reader is not None:
            self.collate = reader.collator()
        else:
            self.collate = Collator(self._chat.pad_id if self._chat is not None else 0)

    @property
    def visits(self) -> bool:
        """Whether a row is another one in every epoch: masked anew."""
        return self.task == "masked_lm"

    def rows(self, dataset: Any, name: str) -> list[Row]:
        """Every row of a data set, as the student sees it. Raises DataError as `rows_of`."""
        if self.reader is not None:
            return task_rows_of(dataset, self.reader, name=name)
        return rows_of(dataset, self._chat, max_length=self.max_length, packing=self.packing, name=name)

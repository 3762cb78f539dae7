"""What held-out targets are, as text: their words, their records' columns, and what stands before them."""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potstill.data import ChatTokenizer
from potstill.errors import DataError
from potstill.evaluate.held_out import HeldOut, text_of
from potstill.tasks import SPECS

_SHOWN = 200
"""Characters before a target."""

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
"""Letters, with apostrophes within."""


class TargetTexts:
    """The texts of held-out targets.

    Args:
        held_out: records and rows of texts.
        chat: their tokenizer; None where a target is a whole example.
    """

    def __init__(self, held_out: HeldOut, chat: ChatTokenizer | None) -> None:
        self._held_out, self._chat = held_out, chat

    def column(self, name: str) -> NDArray[np.object_]:
        """The value of a column of the data, as text, of each target's record [N]. Raises as `column_of`."""
        values = column_of(self._held_out.records, name)
        # Objects, not characters: a column of long texts would take their longest for each target.
        return np.repeat(np.array(values, dtype=np.object_), self._held_out.counts)

    def words(self) -> list[str]:
        """The word that each target is, or is a part of [N], in lower case; empty for what is none."""
        if self._chat is None:
            return [""] * int(self._held_out.starts[-1])
        return [word for index in range(len(self._held_out.rows)) for word in self._words_of(index)]

    def _words_of(self, index: int) -> Iterator[str]:
        pieces = self._pieces(list(self._held_out.rows[index].input_ids))
        ends = list(accumulate(map(len, pieces)))
        text = "".join(pieces)
        found = [(match.start(), match.end()) for match in _WORD.finditer(text)]
        starts = [start for start, _ in found]
        for place, _ in self._held_out.targets[index]:
            begin, end = ends[place] - len(pieces[place]), ends[place]
            at = bisect.bisect_left(starts, end) - 1  # the last word that begins before the token ends
            inside = at >= 0 and found[at][1] > begin
            yield text[slice(*found[at])].lower() if inside else ""

    def _pieces(self, ids: list[int]) -> list[str]:
        """The text that each token adds to the one before it: a space before a word is seen only there."""
        if self._chat is None:
            return []
        decode = self._chat.decode
        return [decode(ids[:1]), *(decode([a, b]).removeprefix(decode([a])) for a, b in pairwise(ids))]

    def shown(self, index: int) -> tuple[str, str]:
        """The text before one target, and the target; of an example its text, and its class."""
        held_out = self._held_out
        row = int(np.searchsorted(held_out.starts, index, side="right")) - 1
        place, number = held_out.targets[row][index - int(held_out.starts[row])]
        if self._chat is None or not SPECS[held_out.task].has_vocabulary:
            name = held_out.classes[number] if 0 <= number < len(held_out.classes) else str(number)
            return text_of(held_out.records[row])[:_SHOWN], name
        ids = list(held_out.rows[row].input_ids)
        return self._chat.decode(ids[:place])[-_SHOWN:], self._chat.decode([number])


def column_of(records: Sequence[Any], name: str) -> list[str]:
    """The value of a column of held-out records, as text; empty where one has none. `label` is the class of a record,
    other names are keys of its metadata.

    Raises:
        DataError: no record has that column.
    """
    values = [_value(record, name) for record in records]
    if not any(values):
        known = sorted({key for record in records for key in getattr(record, "metadata", {})})
        raise DataError(
            f"no held-out record has a column {name!r}",
            where="evaluate.measures tails",
            fix=f"name one of {', '.join(known)}" if known else "drop tails.columns: the data has no such columns",
        )
    return values


def _value(record: Any, name: str) -> str:
    """A record's value in a column; empty if it has none."""
    value = getattr(record, "label", None) if name == "label" else getattr(record, "metadata", {}).get(name)
    return "" if value is None else str(value)[:80]

"""A draft's acceptance from a signal store: on texts that the target wrote before, and without running it.

A store of whole distributions (`hidden`, `dense`) gives p at every position, at any temperature. The other estimators
give log p of the text's own token, and that suffices: a token x ~ p would stand with probability min(1, q(x)/p(x)) if
the draft had drawn it, and the mean of that over x ~ p is Σ min(p, q). Of a greedy text nothing is needed but the text:
its tokens are the target's choices.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from potstill.artifacts import Work
from potstill.data import ChatTokenizer, load_records, tokenize
from potstill.data.tokenize import IGNORE, Tokenized
from potstill.decoding.drafts import Reads
from potstill.decoding.sampler import Sampler
from potstill.errors import DataError
from potstill.speculate.opening import Target
from potstill.speculate.traces import Agreement, Text, compared, rows_of
from potstill.store.codec import HIDDEN, LOGITS, Entries
from potstill.store.files import SignalStore
from potstill.store.output_layer import OutputLayer


class StoredTexts:
    """Texts that the target wrote, whose distributions are in a store: held-out ones if there are any, each once, those
    with the smallest record ids.

    Attributes:
        texts: the texts.

    Args:
        folder: of the store.
        records: `records.parquet` of the stage `generate`.
        chat: the target's tokenizer.
        most: number of texts.
        longest: number of their tokens; texts are cut there.
        captured: largest number of tokens of a record that was captured.
        target: is not run.
        work: takes counts and warnings.

    Raises:
        DataError: the store cannot be opened, is of another number of tokens, or has fewer than two texts.
    """

    def __init__(
        self,
        folder: Path,
        records: Path,
        chat: ChatTokenizer,
        *,
        most: int,
        longest: int,
        captured: int,
        target: Target,
        work: Work,
    ) -> None:
        self._store, self._device, self._vocab_size = SignalStore(folder), target.device, target.cached.vocab_size
        if self._store.grid.vocab != self._vocab_size:
            raise DataError(
                f"the store is of {self._store.grid.vocab:,} token ids, and the target has {self._vocab_size:,}",
                where=str(folder),
                fix="capture again with this target",
            )
        kept = {part.name for part in self._store.grid.tensors}
        self._layer = OutputLayer.load(folder) if HIDDEN in kept else None
        self._whole = bool(kept & {HIDDEN, LOGITS})
        written = load_records(records, "held_out")
        if not written:
            written = load_records(records, "train")
            work.warn("no text is held out, so acceptance is measured on texts that training saw: set data.held_out")
        self.texts: list[Text] = []
        self._entries: list[Entries] = []
        for record in sorted(written, key=lambda record: record.id):
            row = tokenize(record, chat, captured)
            if not isinstance(row, Tokenized):
                work.count(f"no text to measure on: {row.reason}")
                continue
            first, last = (next(i for i in order if row.labels[i] != IGNORE) for order in _both_ways(len(row)))
            if last + 1 - first > len(row.learned):
                work.count("no text to measure on: several answers")
                continue
            self.texts.append(Text(tuple(row.input_ids[:first]), tuple(row.input_ids[first : last + 1][:longest])))
            self._entries.append(self._store.read(row.record_id, row.rendered))
            if len(self.texts) == most:
                break
        if len(self.texts) < 2:
            raise DataError(
                f"an interval needs two texts at least, and the store has {len(self.texts)}",
                where=str(folder),
                fix="generate more, or leave speculate.texts out",
            )

    @torch.no_grad()
    def agreement(self, number: int, reader: Reads, sampler: Sampler) -> Agreement:
        """As `traces.agreement` of one text, from what is stored."""
        text, entries = self.texts[number], self._entries[number]
        rows = rows_of(text, self._vocab_size, self._device)

        def own(first: int, count: int) -> Tensor:
            places = slice(first, first + count)
            if sampler.greedy:
                return torch.empty(0)
            if not self._whole:
                return torch.from_numpy(entries.target_log_prob[places]).to(self._device).exp()
            return sampler.distributions(self._logits(entries, places)[None], rows, 0)[0]

        return compared(own, reader, text, rows, sampler)

    def _logits(self, entries: Entries, places: slice) -> Tensor:
        if self._layer is None:
            return torch.from_numpy(entries.tensors[LOGITS][places]).to(self._device)
        return self._layer.head(entries.tensors[HIDDEN][places]).logits().to(self._device)


def _both_ways(length: int) -> tuple[range, range]:
    return range(length), range(length - 1, -1, -1)

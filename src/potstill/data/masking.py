"""Dynamic masking for masked language models (Devlin et al. 2019, arXiv 1810.04805, §3.1 and A.1). No torch."""

from __future__ import annotations

import hashlib
import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from potstill.data.tokenize import IGNORE, Tokenized
from potstill.recipe import Masking


@dataclass(frozen=True)
class Visit:
    """A row as it is seen in one epoch: masked anew in each."""

    row: Tokenized
    epoch: int

    def __len__(self) -> int:
        return len(self.row)


class Masker:
    """Hides tokens of a row, and says what they were.

    Of the n tokens that may be masked (those with a label), max(1, round(`probability`·n)) are targets, chosen without
    replacement; each of these becomes the mask token with probability `replaced`, a token drawn evenly from `ordinary`
    with probability `random`, and else stays. Which, follows from the seed, the epoch and the row's own tokens alone:
    not from its batch, its place or the process that reads it.

    Args:
        settings: the three shares.
        mask_id: the mask token.
        ordinary: the tokens that may stand in for another: all but the special ones.
        seed: another seed is another mask.
    """

    def __init__(self, settings: Masking, mask_id: int, ordinary: Sequence[int], seed: int = 0) -> None:
        self.settings, self.mask_id, self.ordinary, self.seed = settings, mask_id, ordinary, seed

    def __call__(self, row: Tokenized | Visit) -> tuple[list[int], list[int]]:
        """`input_ids` with tokens hidden, and `masked_labels`: what they were, IGNORE everywhere else. Of a row without
        an epoch (a held-out one) always the same."""
        row, epoch = (row.row, str(row.epoch)) if isinstance(row, Visit) else (row, "held out")
        ids, labels = list(row.input_ids), [IGNORE] * len(row.input_ids)
        draw = self._random(row.input_ids, epoch)
        places = [place for place, label in enumerate(row.labels) if label != IGNORE]
        amount = max(1, int(self.settings.probability * len(places) + 0.5))
        # `random()` alone is promised to give the same numbers in every version of Python.
        for _, place in sorted((draw.random(), place) for place in places)[:amount]:
            labels[place] = ids[place]
            kind = draw.random()
            if kind < self.settings.replaced:
                ids[place] = self.mask_id
            elif kind < self.settings.replaced + self.settings.random:
                ids[place] = self.ordinary[int(draw.random() * len(self.ordinary))]
        return ids, labels

    def _random(self, ids: Sequence[int], epoch: str) -> random.Random:
        hashed = hashlib.sha256(f"{self.seed}:{epoch}:".encode())
        hashed.update(array("q", ids).tobytes())
        return random.Random(int.from_bytes(hashed.digest(), "big"))

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
    """A row in one epoch: its mask differs between epochs."""

    row: Tokenized
    epoch: int

    def __len__(self) -> int:
        return len(self.row)


class Masker:
    """Masks tokens of a row.

    Of the n tokens that may be masked (those with a label), max(1, round(`probability`·n)) become targets, drawn
    without replacement. Each target becomes the mask token with probability `replaced`, a uniformly drawn token of
    `ordinary` with probability `random`, and otherwise stays. The mask depends only on the seed, the epoch and the
    row's tokens, not on its batch, position or process.

    Args:
        settings: the three shares.
        mask_id: the mask token.
        ordinary: the tokens that may replace another: all but the special ones.
        seed: changes the mask.
    """

    def __init__(self, settings: Masking, mask_id: int, ordinary: Sequence[int], seed: int = 0) -> None:
        self.settings, self.mask_id, self.ordinary, self.seed = settings, mask_id, ordinary, seed

    def __call__(self, row: Tokenized | Visit) -> tuple[list[int], list[int]]:
        """`input_ids` with masked tokens, and `masked_labels`: the original tokens, IGNORE elsewhere. A row without an
        epoch (a held-out row) always gets the same mask."""
        row, epoch = (row.row, str(row.epoch)) if isinstance(row, Visit) else (row, "held out")
        ids, labels = list(row.input_ids), [IGNORE] * len(row.input_ids)
        draw = self._random(row.input_ids, epoch)
        places = [place for place, label in enumerate(row.labels) if label != IGNORE]
        amount = max(1, int(self.settings.probability * len(places) + 0.5))
        # Only `random()` gives the same numbers in every version of Python.
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

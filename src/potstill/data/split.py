"""Which side of the split a group is on: by hash, so that a record never changes side."""

from __future__ import annotations

import hashlib
from typing import Literal

from potstill.errors import DataError
from potstill.recipe import DataSettings
from potstill.types import Record

Side = Literal["train", "held_out"]
"""Records that are learned from, and records that never are."""


def side_of(record: Record, split: DataSettings) -> Side:
    """The side of a record: that of its source, with `held_out: own`, else that of its group, by hash.

    Raises:
        DataError: `held_out: own`, and the source has no sides.
    """
    return own_side_or_hashed(record.side, record.group, split)


def own_side_or_hashed(own: Side | Literal[""], group: str, split: DataSettings) -> Side:
    """The same of anything with a group, and perhaps a side in its source. Raises as `side_of`."""
    if split.held_out == "own":
        if not own:
            raise DataError(
                "held_out: own, and this source has no sides of its own",
                where="data.held_out",
                fix="give the share to hold out: 0.1, say",
            )
        return own
    return side_of_group(group, split.held_out, split.split_seed)


def side_of_group(group: str, held_out: float, split_seed: int) -> Side:
    """The side of a group: it depends on the group and the seed alone, not on what else is in the data.

    A larger `held_out` keeps every group held out that a smaller one did.

    Args:
        group: `Record.group`.
        held_out: the expected share of groups that are held out, in [0, 1).
        split_seed: another seed is another split.
    """
    hashed = hashlib.sha256(f"{split_seed}:{group}".encode()).digest()
    return "held_out" if int.from_bytes(hashed[:8], "big") < held_out * 2**64 else "train"

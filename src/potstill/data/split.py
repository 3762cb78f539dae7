"""Which side of the split a group is on. It follows from the group's hash, so every stage finds the same side."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from potstill.errors import DataError
from potstill.recipe.data import DataSettings
from potstill.types import Record

SplitSide = Literal["train", "held_out"]
"""Records that are trained on, and records that never are."""

FEW_GROUPS = 100
"""Smaller data sets are split exactly. From this number of groups on, a share by hash has a standard deviation of at
most five groups, and a group's side depends only on the group and the seed."""


@dataclass(frozen=True)
class Split:
    """The split of one data set.

    A group is held out if its hash is below the share. With fewer than `FEW_GROUPS` groups, those with the lowest
    hashes are held out: the share, rounded, but never all, and at least two of four or more (an interval needs two).

    As data grow: from `FEW_GROUPS` groups on, no group changes side. Below, each added group moves at most one other.
    The order of rows never matters. A larger share keeps everything that a smaller share held out.

    Args:
        held_out: the share, in [0, 1), or `own` for the source's own sides.
        seed: changes the split.
        few: the sides of the groups of a small data set. Other groups are split by hash.
    """

    held_out: float | Literal["own"]
    seed: int
    few: Mapping[str, SplitSide] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: DataSettings, groups: Iterable[str]) -> Split:
        """The split of a data set with these groups. Reads `FEW_GROUPS` groups at most."""
        if settings.held_out == "own" or settings.held_out == 0:
            return cls(settings.held_out, settings.split_seed)
        few: set[str] = set()
        for group in groups:
            few.add(group)
            if len(few) == FEW_GROUPS:
                return cls(settings.held_out, settings.split_seed)
        amount = exact_count(settings.held_out, len(few))
        lowest = sorted(few, key=lambda group: (_hash(group, settings.split_seed), group))
        sides: dict[str, SplitSide] = {group: "held_out" if n < amount else "train" for n, group in enumerate(lowest)}
        return cls(settings.held_out, settings.split_seed, sides)

    def side_of(self, record: Record) -> SplitSide:
        """The side of a record. Raises as `side`."""
        return self.side(record.group, record.side)

    def side(self, group: str, own: SplitSide | Literal[""] = "") -> SplitSide:
        """The side of a group; `own` is the side that the source itself gives it, if any.

        Raises:
            DataError: `held_out: own`, and the source has no sides.
        """
        if self.held_out == "own":
            if not own:
                raise DataError(
                    "held_out: own, and this source has no sides of its own",
                    where="data.held_out",
                    fix="set data.held_out to the share to hold out, e.g. 0.1",
                )
            return own
        return self.few.get(group) or side_by_hash(group, self.held_out, self.seed)


def exact_count(held_out: float, groups: int) -> int:
    """The number of held-out groups of a small data set."""
    if not held_out:
        return 0
    return min(max(int(held_out * groups + 0.5), min(2, groups // 2)), max(groups - 1, 0))


def side_by_hash(group: str, held_out: float, seed: int) -> SplitSide:
    """The side of a group by hash alone: held out with a chance of `held_out`, in [0, 1)."""
    return "held_out" if _hash(group, seed) < held_out * 2**64 else "train"


def selects(group: str) -> bool:
    """Whether a held-out group belongs to the third by which `keep: best` chooses weights. Results are reported on the
    rest.

    Depends on the group's hash alone, so that training and evaluation agree.
    """
    return int.from_bytes(hashlib.sha256(f"selects:{group}".encode()).digest()[:8], "big") < 2**64 // 3


def check_selection(groups: Iterable[str]) -> tuple[int, int]:
    """The numbers of held-out groups for `keep: best` to choose weights by, and of those left to report on.

    Raises:
        DataError: there is none to choose by, or fewer than two are left, which an interval needs.
    """
    held_out = set(groups)
    choosing = sum(map(selects, held_out))
    if choosing < 1 or len(held_out) - choosing < 2:
        raise DataError(
            f"keep: best chooses weights on a third of the held-out groups and reports on the others; of "
            f"{len(held_out)} groups that leaves {choosing} to choose by and {len(held_out) - choosing} to report on",
            where="train.keep",
            fix="hold out a larger share (data.held_out), or use keep: last",
        )
    return choosing, len(held_out) - choosing


def _hash(group: str, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{group}".encode()).digest()[:8], "big")

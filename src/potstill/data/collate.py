"""Training rows and images → the tensors of a batch.

This module needs torch; `potstill.data` itself does not import it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from potstill.data.images import Pixels
from potstill.data.masking import Masker, Visit
from potstill.data.pack import Packed
from potstill.data.tokenize import Tokenized
from potstill.errors import DataError
from potstill.signals import IGNORE

Row = Tokenized | Packed | Mapping[str, Any]


class Collator:
    """Pads rows on the right to the longest, as `Batch.from_inputs` expects them.

    Padding is marked by `segment_ids == 0`, never by its token id, so `pad_id` may be the end token. In a row of a
    single record, positions continue into the padding (so that `transformers` sees plain causal rows and builds no
    mask); behind packed records they restart (so that padding belongs to none of them).

    Args:
        pad_id: the token of padding.
    """

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """`input_ids`, `labels`, `position_ids` and `segment_ids` [B,T]; `weights` [B,T] where a
        row has any; the same with the prefix `teacher_` where the
        rows have a view of their own for the teacher; and `record_ids`, one text per record. No rows at all give one
        row of one padding token.

        Raises:
            DataError: a mapping without labels, or padded on the left.
        """
        batch = _padded([_columns(row) for row in rows], self.pad_id)
        teachers = [_columns(row.teacher) for row in rows if isinstance(row, (Tokenized, Packed)) and row.teacher]
        if teachers and len(teachers) != len(rows):
            raise DataError("some rows of a batch have a view of their own for the teacher, and others do not")
        if teachers:
            batch |= {f"teacher_{name}": column for name, column in _padded(teachers, self.pad_id).items()}
        weights = [row.weights if isinstance(row, (Tokenized, Packed)) else [] for row in rows]
        if any(weights):
            width = batch["input_ids"].shape[1]
            filled = [w + [1.0] * (width - len(w)) for w in weights]
            batch["weights"] = torch.tensor(filled, dtype=torch.float32)
        return {**batch, "record_ids": [name for row in rows for name in _record_ids(row)]}


class ExampleCollator:
    """Pads whole texts on the right, for an encoder with one output per text: a class or an embedding.

    Args:
        pad_id: the token of padding.
    """

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, rows: Sequence[Tokenized]) -> dict[str, Any]:
        """`input_ids`, `position_ids` and `segment_ids` [B,T], `classes` [B], IGNORE where a row has no label, and
        `record_ids`. No rows at all give one row of one padding token."""
        batch = _padded([_columns(row) for row in rows], self.pad_id)
        del batch["labels"]
        labels = [IGNORE if row.label is None else row.label for row in rows] or [IGNORE]
        classes = torch.tensor(labels, dtype=torch.long)
        return {**batch, "classes": classes, "record_ids": [row.record_id for row in rows]}


class MaskingCollator:
    """Pads texts on the right and masks some of their tokens, differently in every epoch.

    Args:
        pad_id: the token of padding.
        mask: masks the tokens of a row.
    """

    def __init__(self, pad_id: int, mask: Masker) -> None:
        self.pad_id, self.mask = pad_id, mask

    def __call__(self, rows: Sequence[Tokenized | Visit]) -> dict[str, Any]:
        """`input_ids` with masked tokens, `masked_labels` (the original tokens, else IGNORE), `position_ids` and
        `segment_ids` [B,T], and `record_ids`. A row that is no `Visit` (a held-out row) always gets the same mask."""
        hidden = [self.mask(row) for row in rows]
        columns = [_Columns(ids, labels, list(range(len(ids))), [1] * len(ids)) for ids, labels in hidden]
        batch = _padded(columns, self.pad_id)
        names = [(row.row if isinstance(row, Visit) else row).record_id for row in rows]
        masked = batch.pop("labels")
        return {**batch, "masked_labels": masked, "record_ids": names}


class ImageCollator:
    """Stacks images as a model takes them: channels first, and uint8 pixels x as (x / 255 − mean) / std.

    Args:
        mean: the value that becomes 0, as a share of the maximum.
        std: the distance from it that becomes 1.
    """

    def __init__(self, mean: float, std: float) -> None:
        self.mean, self.std = mean, std
        self._shape: tuple[int, ...] = ()

    def __call__(self, rows: Sequence[Pixels]) -> dict[str, Any]:
        """`pixel_values` [B,C,H,W] (float32), `classes` [B], IGNORE where an image has none, and `record_ids`. Floats
        are not rescaled. An empty batch has the shape of the images before it.

        Raises:
            DataError: the images of a batch are not of one size.
        """
        if not rows:
            none = torch.zeros(0, *(self._shape or (1, 1, 1)))
            return {"pixel_values": none, "classes": torch.zeros(0, dtype=torch.long), "record_ids": []}
        shapes = sorted({row.pixels.shape for row in rows})
        if len(shapes) > 1:
            raise DataError(
                f"images of one batch are {' and '.join(str(list(shape)) for shape in shapes)}",
                fix="bring all images to one size",
            )
        pixels = torch.from_numpy(np.stack([row.pixels for row in rows]))
        if pixels.dtype == torch.uint8:
            # Grey images have no channel axis; colours are the last axis.
            pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
            pixels = ((pixels.float() / 255 - self.mean) / self.std).contiguous()
        self._shape = tuple(pixels.shape[1:])
        labels = [IGNORE if row.label is None else row.label for row in rows]
        classes = torch.tensor(labels, dtype=torch.long)
        return {"pixel_values": pixels.float(), "classes": classes, "record_ids": [row.record_id for row in rows]}


def _padded(rows: Sequence[_Columns], pad_id: int) -> dict[str, Tensor]:
    rows = rows or [_Columns([], [], [], [])]
    width = max(1, *(len(row.input_ids) for row in rows))
    columns = {
        "input_ids": [_filled(row.input_ids, pad_id, width) for row in rows],
        "labels": [_filled(row.labels, IGNORE, width) for row in rows],
        "position_ids": [row.positions_to(width) for row in rows],
        "segment_ids": [_filled(row.segment_ids, 0, width) for row in rows],
    }
    return {name: torch.tensor(column, dtype=torch.long) for name, column in columns.items()}


@dataclass(frozen=True)
class _Columns:
    input_ids: list[int]
    labels: list[int]
    position_ids: list[int]
    segment_ids: list[int]
    packed: bool = False

    def positions_to(self, width: int) -> list[int]:
        """Positions of the row and of its padding."""
        length = len(self.position_ids)
        first = 0 if self.packed else length
        return self.position_ids + list(range(first, first + width - length))


def _filled(values: list[int], fill: int, width: int) -> list[int]:
    return values + [fill] * (width - len(values))


def _columns(row: Row) -> _Columns:
    if isinstance(row, Packed):
        return _Columns(row.input_ids, row.labels, row.position_ids, row.segment_ids, packed=True)
    if isinstance(row, Tokenized):
        return _Columns(row.input_ids, row.labels, list(range(len(row))), [1] * len(row))
    return _of_mapping(row)


def _record_ids(row: Row) -> list[str]:
    """The ids of a row's records, in order; empty where unknown."""
    if isinstance(row, Packed):
        return [inner.record_id for inner in row.rows]
    if isinstance(row, Tokenized):
        return [row.record_id]
    return [""] * len(set(_of_mapping(row).segment_ids))


def _of_mapping(row: Mapping[str, Any]) -> _Columns:
    """A row of a user's own data set, as usual with `transformers`: packed rows have `position_ids` that restart, or
    `segment_ids`, or both."""
    if "labels" not in row or "input_ids" not in row:
        raise DataError(
            f"a row needs input_ids and labels, and has {', '.join(sorted(row)) or 'nothing'}",
            fix=f"label what is learned with its id and the rest with {IGNORE}",
        )
    mask = _ints(row["attention_mask"]) if "attention_mask" in row else [1] * len(row["input_ids"])
    length = sum(mask)
    if any(mask[length:]):
        raise DataError(
            "a row is padded on the left, or its attention_mask has gaps", fix="pad on the right, or not at all"
        )
    if "position_ids" in row:
        positions = _ints(row["position_ids"])[:length]
    elif "segment_ids" in row:
        positions = _restarting(_ints(row["segment_ids"])[:length])
    else:
        positions = list(range(length))
    segments = _ints(row["segment_ids"])[:length] if "segment_ids" in row else _segments(positions)
    ids, labels = _ints(row["input_ids"])[:length], _ints(row["labels"])[:length]
    return _Columns(ids, labels, positions, segments, packed=len(set(segments)) > 1)


def _segments(positions: list[int]) -> list[int]:
    """Segment ids from positions: a new segment wherever positions do not increase by one."""
    steps = [b != a + 1 for a, b in pairwise(positions)]
    return [1 + passed for passed in accumulate([0, *steps])][: len(positions)]


def _restarting(segments: list[int]) -> list[int]:
    return [position for _, run in groupby(segments) for position, _ in enumerate(run)]


def _ints(values: Any) -> list[int]:
    return [int(value) for value in values]

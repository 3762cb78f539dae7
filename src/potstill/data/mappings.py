"""Rows of somebody's own data set, as users of `transformers` hand them over, for tasks other than causal language
models: mappings with `text`, `input_ids` or `pixel_values`, and a `label`."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from potstill.data.formats import Malformed, Unusable, label_name
from potstill.data.images import Pixels
from potstill.data.tokenize import IGNORE, Tokenized
from potstill.errors import DataError, did_you_mean
from potstill.tasks import Task
from potstill.types import Record, Reject, group_of

if TYPE_CHECKING:
    from potstill.data.reader import ExampleReader, ImageReader, MaskedReader, Row, TaskReader

_FORMS: Mapping[Task, str] = {
    "masked_lm": "text, or input_ids",
    "sequence_classification": "text or input_ids, and label",
    "sentence_embedding": "text or input_ids",
    "image_classification": "pixel_values and label",
}


def row_of_mapping(task: Task, mapping: Mapping[str, Any], reader: TaskReader, where: str) -> list[Row | Reject]:
    """The rows of one row of a data set: one, or of a long text for a masked model several; or why there are none.

    Args:
        task: must be the reader's.
        mapping: its columns. A `label` is the number of a class or its name; `labels` is read as `label`.
        reader: knows tokenizer and classes.
        where: names the row in messages.

    Raises:
        DataError: it cannot be read.
    """
    if task != reader.task:
        raise ValueError(f"a reader for {reader.task}, and rows for {task}")
    return reader.rows_of_mapping(mapping, where)


def masked_rows(mapping: Mapping[str, Any], reader: MaskedReader, where: str) -> list[Row | Reject]:
    """Every piece of a text that can be masked."""
    given = _given(mapping, where, "masked_lm")
    if "input_ids" not in given:
        return reader.rows(_record(given, where, "masked_lm"))
    labels = given.get("labels", ())
    if any(int(label) != IGNORE for label in labels):
        raise DataError(
            "the row is masked already (it has labels), and would be masked again",
            where=where,
            fix="give input_ids as the tokenizer made them: tokens are masked here, anew in every epoch",
        )
    ids = _ids(given, where)
    cut, ids = len(ids) > reader.max_length, ids[: reader.max_length]
    special = reader.tokenizer.special_ids
    row = Tokenized(ids, [IGNORE if token in special else token for token in ids], cut=cut)
    return [row if row.learned else Reject("nothing to learn", where, 0, detail="no token is text")]


def example_rows(mapping: Mapping[str, Any], reader: ExampleReader, where: str) -> list[Row | Reject]:
    """One text, with the number of its class."""
    given = _given(mapping, where, reader.task)
    try:
        label = _label(given, reader.classes, where)
    except Unusable as unusable:
        if reader.task == "sequence_classification":
            return [Reject(str(unusable), where, 0)]
        label = None
    if "input_ids" in given:
        ids = _ids(given, where)
        if not ids:
            return [Reject("nothing to learn", where, 0, detail="no token")]
        cut, ids = len(ids) > reader.max_length, ids[: reader.max_length]
        return [Tokenized(ids, [IGNORE] * len(ids), cut=cut, label=label)]
    record = _record(given, where, reader.task)
    named = reader.classes[label] if label is not None else None
    return reader.rows(Record(text=record.text, group=record.group, label=named))


def image_rows(mapping: Mapping[str, Any], reader: ImageReader, where: str) -> list[Row | Reject]:
    """One image: whole numbers of 0 to 255 as `Pixels` has them, or floats, channels first, as a model sees them."""
    import numpy as np

    given = _given(mapping, where, "image_classification")
    if "pixel_values" not in given:
        raise _unreadable(given, where, "image_classification")
    try:
        pixels = np.asarray(given["pixel_values"])
    except (TypeError, ValueError) as error:
        raise DataError(f"pixel_values are no array: {error}", where=where) from error
    if pixels.dtype != np.uint8:
        if pixels.dtype.kind not in "fiu" or (pixels.dtype.kind != "f" and not _are_pixels(pixels)):
            raise DataError(
                f"pixel_values are {pixels.dtype}, neither floats nor whole numbers from 0 to 255", where=where
            )
        pixels = pixels.astype(np.float32 if pixels.dtype.kind == "f" else np.uint8)
    if pixels.dtype == np.uint8 and pixels.ndim not in (2, 3):
        raise DataError(
            f"pixel_values of 0 to 255 are {list(pixels.shape)}, not [H,W] or [H,W,C]",
            where=where,
            fix="give floats for anything else: a model sees those as they are",
        )
    try:
        return [Pixels(pixels, _label(given, reader.classes, where))]
    except Unusable as unusable:
        return [Reject(str(unusable), where, 0)]


def _are_pixels(values: Any) -> bool:
    return bool(values.size) and values.min() >= 0 and values.max() <= 255


def _given(mapping: Mapping[str, Any], where: str, task: Task) -> dict[str, Any]:
    if not isinstance(mapping, Mapping):
        raise DataError(
            f"a row is a mapping, not a {type(mapping).__name__}", where=where, fix=f"give rows with {_FORMS[task]}"
        )
    return {key: value for key, value in mapping.items() if value is not None}


def _record(given: Mapping[str, Any], where: str, task: Task) -> Record:
    if "text" not in given:
        raise _unreadable(given, where, task)
    if not isinstance(given["text"], str):
        raise DataError(f"text is {type(given['text']).__name__}, not a text", where=where)
    return Record(text=given["text"], group=group_of(given["text"]))


def _unreadable(given: Mapping[str, Any], where: str, task: Task) -> DataError:
    has = ", ".join(sorted(given)) or "nothing"
    return DataError(f"a row with {has} cannot be read for {task}", where=where, fix=f"give rows with {_FORMS[task]}")


def _ids(given: Mapping[str, Any], where: str) -> list[int]:
    """The tokens of a row, without somebody else's padding on either side."""
    ids = [int(token) for token in given["input_ids"]]
    mask = [int(real) for real in given.get("attention_mask", [1] * len(ids))]
    if len(mask) != len(ids):
        raise DataError(f"{len(ids)} input_ids, and an attention_mask of {len(mask)}", where=where)
    return [token for token, real in zip(ids, mask, strict=True) if real]


def _label(given: Mapping[str, Any], classes: Sequence[str], where: str) -> int | None:
    """The number of a class, by its number or name; None where there are no classes.

    Raises:
        DataError: it is not among the classes.
        Unusable: there is none.
    """
    label = given.get("label", given.get("labels"))
    label = label.item() if hasattr(label, "item") and getattr(label, "size", 0) != 0 else label
    if not classes:
        return None
    if isinstance(label, numbers.Integral) and not isinstance(label, bool):
        if int(label) == IGNORE:
            raise Unusable("no label")
        if not 0 <= int(label) < len(classes):
            raise DataError(
                f"label {int(label)}, and there are {len(classes)} classes (0 to {len(classes) - 1})",
                where=where,
                fix="number the classes from 0, or open the student with the classes of your data",
            )
        return int(label)
    try:
        name = label_name(label)
    except Malformed as error:
        raise DataError(str(error), where=where) from error
    if name not in classes:
        raise DataError(f"no class is called {name!r}{did_you_mean(name, classes)}", where=where)
    return classes.index(name)

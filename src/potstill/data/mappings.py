"""Rows of a `datasets.Dataset` (or any list of mappings): validates the columns that each task reads."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from potstill.data.formats import FACTS, Malformed, Unusable, find_format, label_name, to_record
from potstill.data.store import is_stored_row, record_of_row
from potstill.data.tokenize import IGNORE
from potstill.errors import DataError, did_you_mean
from potstill.tasks import Task
from potstill.types import DataReason, Record, group_of

if TYPE_CHECKING:
    import numpy as np

FORMS: Mapping[Task, str] = {
    "causal_lm": "messages, prompt and completion, text, or input_ids and labels",
    "masked_lm": "text, or input_ids",
    "sequence_classification": "text or input_ids, and label",
    "sentence_embedding": "text or input_ids",
    "image_classification": "pixel_values and label",
}
"""The columns that each task reads, for messages."""


def given_columns(mapping: Any, task: Task, where: str) -> dict[str, Any]:
    """The non-null columns of a row. Raises DataError if it is no mapping."""
    if not isinstance(mapping, Mapping):
        raise DataError(
            f"a row is a mapping, not a {type(mapping).__name__}", where=where, fix=f"give rows with {FORMS[task]}"
        )
    return {str(key): value for key, value in mapping.items() if value is not None}


def conversation_of(given: Mapping[str, Any], where: str) -> Record:
    """The record of a row of text, as a recipe's data source reads it: one validation for both.

    Raises:
        DataError: it is malformed, or of no known format.
        Unusable: it is well formed, and holds nothing to learn (an empty answer).
    """
    if is_stored_row(given):
        return record_of_row(given)
    # Columns for verifiers and classes mean nothing to a causal model, and whatever stands there is left alone.
    texts = {key: _as_lists(value) for key, value in given.items() if key not in (*FACTS, "label")}
    try:
        format_ = find_format(texts, where)
    except DataError as error:
        raise unreadable(given, "causal_lm", where) from error
    record = to_record(texts, format_, where)
    if record.is_prompt:
        raise DataError(
            "a prompt without an answer cannot be learned from",
            where=where,
            fix="have the teacher answer first (`potstill generate`), or add the answer",
        )
    return record


def text_of(given: Mapping[str, Any], task: Task, where: str) -> Record:
    """The record of a row's `text`. Raises DataError if it has none."""
    if "text" not in given:
        raise unreadable(given, task, where)
    if not isinstance(given["text"], str):
        raise DataError(f"text is {type(given['text']).__name__}, not a text", where=where)
    return Record(text=given["text"], group=group_of(given["text"]))


def unreadable(given: Mapping[str, Any], task: Task, where: str) -> DataError:
    """The error for a row without the columns that a task reads."""
    has = ", ".join(sorted(given)) or "nothing"
    return DataError(f"a row with {has} cannot be read for {task}", where=where, fix=f"give rows with {FORMS[task]}")


def tokens_of(given: Mapping[str, Any], where: str, *columns: str) -> list[list[int]]:
    """`input_ids` and other columns with one number per token, without the padding.

    Raises:
        DataError: columns differ in length.
    """
    ids = _whole_numbers(given["input_ids"], "input_ids", where)
    values = [ids, *(_whole_numbers(given[name], name, where) for name in columns)]
    for name, column in zip(columns, values[1:], strict=True):
        if len(column) != len(ids):
            raise DataError(
                f"{len(ids)} input_ids and {len(column)} {name}", where=where, fix="give one value per token"
            )
    if "attention_mask" not in given:
        return values
    mask = _whole_numbers(given["attention_mask"], "attention_mask", where)
    if len(mask) != len(ids):
        raise DataError(f"{len(ids)} input_ids, and an attention_mask of {len(mask)}", where=where)
    return [[value for value, real in zip(column, mask, strict=True) if real] for column in values]


def labelled_tokens(given: Mapping[str, Any], where: str) -> tuple[list[int], list[int]]:
    """`input_ids` and `labels` of a causal model.

    Raises:
        DataError: there are no labels, not one per token, or one that is no token.
    """
    if "labels" not in given:
        raise DataError(
            "input_ids without labels",
            where=where,
            fix=f"label what is learned with its token id and the rest with {IGNORE}",
        )
    ids, labels = tokens_of(given, where, "labels")
    if wrong := [label for label in labels if label < 0 and label != IGNORE]:
        raise DataError(f"label {wrong[0]} is neither a token id nor {IGNORE}", where=where)
    return ids, labels


def refuse_masked(given: Mapping[str, Any], where: str) -> None:
    """Raises DataError if some tokens of a row are masked already."""
    if any(int(label) != IGNORE for label in given.get("labels", ())):
        raise DataError(
            "the row is masked already (it has labels), and would be masked again",
            where=where,
            fix="give input_ids as the tokenizer made them: tokens are masked here, anew in every epoch",
        )


def class_of(given: Mapping[str, Any], classes: Sequence[str], where: str) -> int:
    """The number of a row's class, from its number or its name (column `label`, or `labels`).

    Raises:
        DataError: it is not among the classes.
        Unusable: there is none.
    """
    label = given.get("label", given.get("labels"))
    label = label.item() if hasattr(label, "item") and getattr(label, "size", 0) != 0 else label
    if label is None or (isinstance(label, str) and not label.strip()):
        raise Unusable(DataReason.NO_LABEL)
    if isinstance(label, numbers.Integral) and not isinstance(label, bool):
        if int(label) == IGNORE:
            raise Unusable(DataReason.NO_LABEL)
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


def pixels_of(given: Mapping[str, Any], where: str) -> np.ndarray[Any, Any]:
    """`pixel_values` as `Pixels` holds them: whole numbers of 0 to 255 as uint8 [H,W] or [H,W,C]; floats unchanged.

    Raises:
        DataError: there are none, or they are neither.
    """
    import numpy as np

    if "pixel_values" not in given:
        raise unreadable(given, "image_classification", where)
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
    return pixels


def _are_pixels(values: Any) -> bool:
    return bool(values.size) and values.min() >= 0 and values.max() <= 255


def _as_lists(value: Any) -> Any:
    """Tuples and arrays of messages as lists."""
    return value.tolist() if hasattr(value, "tolist") else list(value) if isinstance(value, tuple) else value


def _whole_numbers(values: Any, column: str, where: str) -> list[int]:
    try:
        return [int(value) for value in values]
    except (TypeError, ValueError) as error:
        raise DataError(f"{column} are no whole numbers: {error}", where=where) from error

"""From a data set, as users of `transformers` hand one over, to rows of tokens."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from typing import Any, TypeVar

from potstill.data.chat import ChatTokenizer
from potstill.data.images import Pixels
from potstill.data.pack import Packed, pack
from potstill.data.reader import TaskReader
from potstill.data.tokenize import Tokenized, tokenize
from potstill.errors import DataError
from potstill.types import Record, Reject, group_of

logger = logging.getLogger(__name__)

Row = Tokenized | Packed | Pixels
R = TypeVar("R", Tokenized, Row)
_FORMS = "rows with messages, prompt and completion, text, or input_ids and labels"


def length_of(row: Row) -> int:
    """How many tokens a row has; 1 of what has none (an image)."""
    return len(row) if isinstance(row, (Tokenized, Packed)) else 1


def task_rows_of(dataset: Any, reader: TaskReader, *, name: str = "train_dataset") -> list[Row]:
    """The rows of a data set for a task that is not causal; what is cut or left out is counted in one warning.

    Raises:
        DataError: not a data set with a length, a row that cannot be read, or nothing that can be learned.
    """

    def read(item: Any, where: str) -> Sequence[Row | Reject]:
        return reader.rows_of_mapping(item, where) if isinstance(item, Mapping) else [item]

    return _gathered(_items(dataset, name), read, reader.max_length, name)


def rows_of(
    dataset: Any, chat: ChatTokenizer | None, *, max_length: int, packing: bool = False, name: str = "train_dataset"
) -> list[Row]:
    """Tokens and labels of every row of a data set; what is cut or left out is counted in one warning.

    Args:
        dataset: a `datasets.Dataset`, or any sequence of mappings, or rows that are tokenised already.
        chat: the tokenizer; None will do where every row is tokenised.
        max_length: longer rows are cut at the end.
        packing: several rows in one, kept apart by their positions.
        name: what the data set is called in messages.

    Raises:
        DataError: not a data set with a length, a row that cannot be read, or nothing that can be learned.
    """
    items = _items(dataset, name)
    if items and all(isinstance(item, (Tokenized, Packed)) for item in items):
        loose = packing and not any(isinstance(item, Packed) for item in items)
        return list(pack(items, max_length)) if loose else items
    rows = _gathered(items, lambda item, where: [_row_of(item, chat, max_length, where)], max_length, name, _FORMS)
    return list(pack(rows, max_length)) if packing else list(rows)


def _gathered(
    items: Sequence[Any],
    read: Callable[[Any, str], Sequence[R | Reject]],
    max_length: int,
    name: str,
    forms: str | None = None,
) -> list[R]:
    """What is read of all items; what is cut or left out is counted in one warning.

    Raises:
        DataError: nothing can be learned; `forms` says of what it could.
    """
    rows: list[R] = []
    dropped: Counter[str] = Counter()
    for index, item in enumerate(items):
        for row in read(item, f"{name}[{index}]"):
            if isinstance(row, Reject):
                dropped[row.reason] += 1
            else:
                rows.append(row)
    if not rows:
        why = f": {_counted(dropped)}" if dropped else ""
        raise DataError(
            f"there is nothing to learn from{why}", where=name, fix=f"give {forms}" if forms is not None else None
        )
    cut = sum(bool(getattr(row, "cut", False)) for row in rows)
    if dropped or cut:
        said = [f"{_counted(dropped)} left out"] if dropped else []
        said += [f"{cut} cut at {max_length} tokens"] if cut else []
        logger.warning("%s: of %d rows, %s", name, len(items), ", ".join(said))
    return rows


def _items(dataset: Any, name: str) -> list[Any]:
    if not isinstance(dataset, Iterable) or not isinstance(dataset, Sized):
        raise DataError(
            f"a {type(dataset).__name__} has no length: the steps of a schedule could not be counted",
            where=name,
            fix="give a datasets.Dataset or a list (of a stream, a part: list(stream.take(10_000)))",
        )
    return list(dataset)


def _row_of(item: Any, chat: ChatTokenizer | None, max_length: int, where: str) -> Tokenized | Reject:
    if not isinstance(item, Mapping):
        raise DataError(f"a row is a mapping, not a {type(item).__name__}", where=where, fix=f"give {_FORMS}")
    given = {key: value for key, value in item.items() if value is not None}
    if "input_ids" in given:
        return _tokenised(given, max_length, where)
    if chat is None:
        raise DataError("text needs a tokenizer", where=where, fix="give processing_class=tokenizer")
    record = _record_of(given, where)
    if record.is_prompt:
        raise DataError(
            "a prompt without an answer cannot be learned from",
            where=where,
            fix="have the teacher answer first (`potstill generate`), or add the answer",
        )
    return tokenize(record, chat, max_length)


def _record_of(given: Mapping[str, Any], where: str) -> Record:
    if "messages" in given:
        messages = tuple({k: v for k, v in message.items() if v is not None} for message in given["messages"])
        tools = tuple(given["tools"]) if given.get("tools") else None
        return Record(messages=messages, tools=tools, group=group_of(messages))
    if "prompt" in given and "completion" in given:
        prompt, completion = given["prompt"], given["completion"]
        if isinstance(prompt, str) and isinstance(completion, str):
            return Record(prompt=prompt, completion=completion, group=group_of(prompt))
        messages = (*prompt, *completion)
        return Record(messages=messages, group=group_of(prompt))
    if "text" in given:
        return Record(text=given["text"], group=group_of(given["text"]))
    has = ", ".join(sorted(given)) or "nothing"
    raise DataError(f"a row with {has} cannot be read", where=where, fix=f"give {_FORMS}")


def _tokenised(given: Mapping[str, Any], max_length: int, where: str) -> Tokenized | Reject:
    if "labels" not in given:
        raise DataError(
            "input_ids without labels",
            where=where,
            fix="label what is learned with its token id and the rest with -100",
        )
    ids, labels = _ints(given["input_ids"]), _ints(given["labels"])
    if len(ids) != len(labels):
        raise DataError(f"{len(ids)} input_ids and {len(labels)} labels", where=where, fix="give one label per token")
    mask = _ints(given["attention_mask"]) if "attention_mask" in given else [1] * len(ids)
    # Padding of somebody else's is taken off, on either side; the collator makes its own.
    ids, labels = ([v for v, real in zip(values, mask, strict=True) if real] for values in (ids, labels))
    cut = any(label >= 0 for label in labels[max_length:])
    ids, labels = ids[:max_length], labels[:max_length]
    if not any(label >= 0 for label in labels[1:]):
        return Reject("nothing to learn", where, 0)
    return Tokenized(ids, labels, cut=cut)


def _ints(values: Sequence[Any]) -> list[int]:
    return [int(value) for value in values]


def _counted(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{amount} {reason}" for reason, amount in reasons.items())

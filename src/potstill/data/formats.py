"""From a row's columns to a record. The recipe names the format, or it follows from the columns.

| format              | columns                                                                                   |
|---------------------|-------------------------------------------------------------------------------------------|
| `messages`          | `messages`: list of `role` and `content` (and what the template reads); `system`, `tools`  |
| `sharegpt`          | `conversations`: list of `from` and `value`; `id`, `system`, `tools`                       |
| `alpaca`            | `instruction`, `input`, `output`, `system`                                                 |
| `prompt_completion` | `prompt` and `completion`: two texts, or two lists of messages                             |
| `prompt`            | `prompt`: a text, or a list of messages                                                    |
| `labelled`          | `text` and `label`: the name of its class, or a whole number (whose digits name it)        |
| `text`              | `text`                                                                                     |

Beside a prompt stands what verifiers need to judge an answer: the columns of `FACTS`, which go into `record.metadata`.
"""

from __future__ import annotations

import json
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from potstill.errors import DataError, did_you_mean
from potstill.recipe.data import Format
from potstill.types import DataReason, Message, Record, digest, group_of

FACTS = ("metadata", "reference", "choices", "tests", "entry_point", "pattern", "schema", "reasoning_gym")
"""Columns for verifiers, in formats with a prompt: `metadata` (an object), and its keys as columns of their own."""

COLUMNS: Mapping[Format, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "messages": (("messages",), ("system", "tools", *FACTS)),
    "sharegpt": (("conversations",), ("id", "system", "tools", *FACTS)),
    "alpaca": (("instruction",), ("input", "output", "system", *FACTS)),
    "prompt_completion": (("prompt", "completion"), ("tools", *FACTS)),
    "prompt": (("prompt",), ("tools", *FACTS)),
    "labelled": (("text", "label"), ()),
    "text": (("text",), ()),
}
"""The columns that each format needs and those that it also reads, in the order in which formats are tried."""

_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}


ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
"""The roles that chat templates know."""


class Unusable(ValueError):
    """A row that is well formed but of no use. The reason (a `DataReason`, or a text with a detail in it) goes to the
    reject ledger."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Malformed(ValueError):
    """A row that does not fit its format, with the fix where it is known."""

    def __init__(self, what: str, fix: str | None = None) -> None:
        super().__init__(what)
        self.fix = fix


def find_format(columns: Iterable[str], where: str) -> Format:
    """The first format whose columns are all there.

    Raises:
        DataError: none fits; columns and formats are named.
    """
    present = set(columns)
    for name, (needed, _) in COLUMNS.items():
        if present.issuperset(needed):
            return name
    known = {column for needed, taken in COLUMNS.values() for column in needed + taken}
    near = next((n for c in sorted(present - known) if "did you mean" in (n := did_you_mean(c, known))), "")
    formats = "; ".join(f"{name}: {', '.join(needed)}" for name, (needed, _) in COLUMNS.items())
    raise DataError(
        f"no format has the columns {', '.join(sorted(present)) or '(none)'}{near}",
        where=where,
        fix=f"rename the columns, or name the format (data.format). Formats: {formats}",
    )


def unused_columns(columns: Iterable[str], format_: Format) -> list[str]:
    """Columns that a format does not read."""
    needed, taken = COLUMNS[format_]
    return sorted(set(columns) - set(needed) - set(taken))


def to_record(row: Mapping[str, Any], format_: Format, where: str) -> Record:
    """A row as a record, with its group.

    Raises:
        DataError: the row is malformed.
        Unusable: it is well formed, and holds nothing to ask or to learn.
    """
    missing = [column for column in COLUMNS[format_][0] if column not in row]
    try:
        if missing:
            raise Malformed(f"no column {missing[0]!r} (it has {', '.join(sorted(map(str, row))) or 'none'})")
        record = _CONVERTERS[format_](row)
        digest(record.content)  # what has no digest has no identity
        if "metadata" in COLUMNS[format_][1] and (facts := _facts(row)):
            record = replace(record, metadata={**record.metadata, **facts})
    except Malformed as error:
        raise DataError(f"{error}; read as format {format_!r}", where=where, fix=error.fix) from error
    except UnicodeEncodeError as error:
        raise Unusable(DataReason.NOT_UNICODE) from error
    except (TypeError, ValueError, RecursionError) as error:
        if isinstance(error, Unusable):
            raise
        raise _not_plain(row, format_, where, error) from error
    return record


def _not_plain(row: Mapping[str, Any], format_: Format, where: str, error: Exception) -> DataError:
    """The error for a row that holds something other than JSON; names its column."""
    needed, taken = COLUMNS[format_]
    for column in (*needed, *taken):
        try:
            digest(row.get(column))
        except (TypeError, ValueError, RecursionError):
            value = row[column]
            return DataError(f"column {column!r} holds {_type_of(value)}", where=where, fix=_as_text(value, column))
    return DataError(f"holds what is not JSON: {error}", where=where)


def _type_of(value: Any) -> str:
    kind = type(value).__name__
    if kind == "_Unconvertible":
        return "a value that Python has no type for (a date out of range, or nanoseconds)"
    return f"{kind} values, which are not JSON" if not isinstance(value, list | dict) else "what is not JSON"


def _as_text(value: Any, column: str) -> str:
    """The fix: how to write a column as text."""
    if value is None or isinstance(value, int | str | list | dict):
        return "write it as a text"
    if isinstance(value, float):
        return "write a text, or null where there is no value"
    if isinstance(value, bytes):
        return "decode it to text before the file is written"
    return f'write it as text: with pyarrow, table.set_column(i, {column!r}, table[{column!r}].cast("string"))'


def _facts(row: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata in the columns of `FACTS`. An object may be written as JSON, as in CSV and in potstill's own files;
    a column of its own overrides the same key of the object. Nulls (from tables) and empty texts (from CSV) mean that
    the row has no such value."""
    stated = {name: row[name] for name in FACTS if row.get(name) not in (None, "")}
    whole = stated.pop("metadata", {})
    if isinstance(whole, str):
        try:
            whole = json.loads(whole)
        except (ValueError, RecursionError) as error:
            raise Malformed(f"metadata is a text, and no JSON object ({error}): rename the column") from error
    if not isinstance(whole, Mapping):
        raise Malformed(f"metadata is {type(whole).__name__}, not an object: rename the column")
    facts = {**{str(name): value for name, value in whole.items() if value is not None}, **stated}
    digest(facts)
    return facts


def _messages(row: Mapping[str, Any]) -> Record:
    return _conversation(_message_list(row["messages"], "messages"), row, _text(row, "system"))


def _sharegpt(row: Mapping[str, Any]) -> Record:
    turns = _parsed(row["conversations"], "conversations")
    messages = []
    for turn in _objects(turns, "conversations"):
        if "from" not in turn:
            messages.append(turn)
            continue
        speaker = str(turn["from"]).lower()
        if speaker not in _SHAREGPT_ROLES:
            raise Malformed(
                f"unknown speaker {turn['from']!r} in conversations{did_you_mean(speaker, _SHAREGPT_ROLES)}"
            )
        rest = {key: value for key, value in turn.items() if key not in ("from", "value")}
        messages.append({"role": _SHAREGPT_ROLES[speaker], "content": turn.get("value"), **rest})
    record = _conversation(_message_list(messages, "conversations"), row, _text(row, "system"))
    return record if row.get("id") is None else replace(record, metadata={"id": str(row["id"])})


def _alpaca(row: Mapping[str, Any]) -> Record:
    instruction, context = _text(row, "instruction"), _text(row, "input")
    if not instruction.strip():
        raise Unusable(DataReason.EMPTY_PROMPT)
    question = f"{instruction}\n\n{context}" if context.strip() else instruction
    messages: list[Message] = [{"role": "user", "content": question}]
    if "output" in row:
        messages.append({"role": "assistant", "content": _text(row, "output")})
    record = _conversation(messages, row, _text(row, "system"))
    return replace(record, metadata={"input": context}) if context.strip() else record


def _prompt(row: Mapping[str, Any]) -> Record:
    prompt = _parsed(row["prompt"], "prompt", only_lists=True)
    if isinstance(prompt, list):
        return _conversation(_message_list(prompt, "prompt"), row)
    question = _text(row, "prompt")
    if not question.strip():
        raise Unusable(DataReason.EMPTY_PROMPT)
    return Record(prompt=question, tools=_tools(row), group=group_of(question))


def _prompt_completion(row: Mapping[str, Any]) -> Record:
    prompt = _parsed(row["prompt"], "prompt", only_lists=True)
    completion = _parsed(row["completion"], "completion", only_lists=True)
    if isinstance(prompt, list):
        if isinstance(completion, str):
            completion = [{"role": "assistant", "content": completion}]
        return _conversation(_message_list(prompt, "prompt") + _message_list(completion, "completion"), row)
    question, answer = _text(row, "prompt"), _text(row, "completion")
    if not question.strip():
        raise Unusable(DataReason.EMPTY_PROMPT)
    if not answer.strip():
        raise Unusable(DataReason.EMPTY_COMPLETION)
    return Record(prompt=question, completion=answer, tools=_tools(row), group=group_of(question))


def _document(row: Mapping[str, Any]) -> Record:
    text = _text(row, "text")
    if not text.strip():
        raise Unusable(DataReason.EMPTY_TEXT)
    return Record(text=text, group=group_of(text))


def _labelled(row: Mapping[str, Any]) -> Record:
    return replace(_document(row), label=label_name(row["label"]))


def label_name(label: Any) -> str:
    """The name of a class, from the value of a label column.

    Raises:
        Malformed: it is neither a text nor a whole number nor a truth value.
        Unusable: there is none.
    """
    if isinstance(label, bool):
        return "true" if label else "false"
    if isinstance(label, numbers.Integral):
        return str(int(label))
    if label is None or (isinstance(label, str) and not label.strip()):
        raise Unusable(DataReason.NO_LABEL)
    if not isinstance(label, str):
        fix = "write it as a whole number or a name" if isinstance(label, float) else _as_text(label, "label")
        raise Malformed(f"label is {type(label).__name__}, not a name or a whole number", fix)
    return label.strip()


def with_class_name(row: Mapping[str, Any], column: str, names: Sequence[str] | None) -> dict[str, Any]:
    """The row with the name of its class in the label column, if the source numbers and names its classes (a
    `ClassLabel` of `datasets`, where −1 means none)."""
    label = row.get(column)
    if not names or not isinstance(label, int):
        return dict(row)
    return {**row, column: names[label] if 0 <= label < len(names) else None}


_CONVERTERS: Mapping[str, Callable[[Mapping[str, Any]], Record]] = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "prompt_completion": _prompt_completion,
    "prompt": _prompt,
    "labelled": _labelled,
    "text": _document,
}


def _conversation(messages: Sequence[Message], row: Mapping[str, Any], system: str = "") -> Record:
    """A record of messages."""
    if system.strip() and (not messages or messages[0]["role"] != "system"):
        messages = [{"role": "system", "content": system}, *messages]
    if not messages:
        raise Unusable(DataReason.EMPTY_PROMPT)
    for message in messages:
        content = message.get("content") or message.get("tool_calls")
        if isinstance(content, str) and not content.strip():
            content = None
        if not content and message["role"] == "assistant":
            raise Unusable(DataReason.EMPTY_COMPLETION)
        if not content and message["role"] == "user":
            raise Unusable(DataReason.EMPTY_PROMPT)
    return Record(messages=tuple(messages), tools=_tools(row), group=group_of(messages))


def _message_list(value: Any, column: str) -> list[Message]:
    messages: list[Message] = []
    for message in _objects(_parsed(value, column), column):
        role = message.get("role")
        if not isinstance(role, str) or not role:
            raise Malformed(f"a message without a role in {column}")
        if role not in ROLES:
            raise Malformed(
                f"unknown role {role!r} in {column}{did_you_mean(role, ROLES)}",
                "name the roles as chat templates do: system, user, assistant, tool",
            )
        # Tables fill in a null for what a message does not have.
        kept = {key: inner for key, inner in message.items() if inner is not None}
        if "content" in kept:
            kept["content"] = _content(kept["content"])
        if "tool_calls" in kept:
            _check_tool_calls(kept["tool_calls"], role, column)
        messages.append(kept)
    return messages


def _check_tool_calls(calls: Any, role: str, column: str) -> None:
    """Raises Malformed for tool calls that chat templates cannot read."""
    fix = 'write [{"function": {"name": …, "arguments": {…}}}], or leave tool_calls out'
    if not isinstance(calls, list):
        raise Malformed(f"tool_calls of a message in {column} is {type(calls).__name__}, not a list", fix)
    if calls and role != "assistant":
        raise Malformed(f"tool_calls of role {role!r} in {column}: only the assistant calls tools", fix)
    for call in calls:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
            raise Malformed(f"a call in tool_calls of {column} names no function", fix)
        arguments = function.get("arguments", {})
        if not isinstance(arguments, Mapping | str):
            raise Malformed(
                f"the arguments of {function['name']!r} in tool_calls of {column} are {type(arguments).__name__}, not "
                "an object or its JSON",
                fix,
            )


def _content(content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise Malformed(f"the content of a message is {type(content).__name__}, not a text")
    parts = []
    for part in content:
        if not isinstance(part, Mapping):
            raise Malformed("the content of a message is a list, and not of parts")
        if part.get("type", "text") != "text":
            raise Unusable(f"holds {part['type']}, not only text")
        parts.append(str(part.get("text", "")))
    return "".join(parts)


def _objects(value: Any, column: str) -> list[Mapping[str, Any]]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        raise Malformed(f"{column} is not a list of messages")
    return value


def _parsed(value: Any, column: str, *, only_lists: bool = False) -> Any:
    """A cell that may hold JSON (in CSV, say), parsed. With `only_lists`, only a list of messages is parsed: a
    `prompt` or `completion` may well begin with a bracket."""
    if not isinstance(value, str) or (only_lists and not value.lstrip().startswith("[{")):
        return value
    try:
        inner = json.loads(value)
    except (ValueError, RecursionError) as error:
        if only_lists:
            return value
        raise Malformed(f"{column} is neither a list nor JSON: {getattr(error, 'msg', error)}") from error
    is_messages = isinstance(inner, list) and all(isinstance(m, dict) and "role" in m for m in inner)
    return inner if is_messages or not only_lists else value


def _text(row: Mapping[str, Any], column: str) -> str:
    """The text in a column; empty for null."""
    value = row.get(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Malformed(f"{column} is {type(value).__name__}, not a text", _as_text(value, column))
    return value


def _tools(row: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...] | None:
    tools = _parsed(row.get("tools") or None, "tools")
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise Malformed("tools is not a list of objects")
    return tuple(tools)

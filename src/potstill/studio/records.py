"""Records and rejects of a run, a page at a time: filtered by side and reason, searched by words."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from potstill.artifacts import parse_json
from potstill.errors import DataError
from potstill.studio.workspace import Run

PAGE = 20
MOST_SHOWN = 4000
"""Characters of one text on the page; the rest is counted."""
_BATCH = 512


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation, or a prompt, a completion, a text."""

    role: str
    text: str
    cut: int = 0


@dataclass(frozen=True)
class Row:
    """One record or reject as it is shown. `facts` are its provenance, `verdicts` what verifiers said."""

    number: int
    label: str
    turns: tuple[Turn, ...]
    facts: Mapping[str, str]
    verdicts: tuple[Mapping[str, Any], ...] = ()
    kept: bool = True


@dataclass(frozen=True)
class Found:
    """One page of what a search found. `choices` are the sides or reasons with their counts, before filtering."""

    rows: tuple[Row, ...]
    matches: int
    page: int
    choices: Mapping[str, int]

    @property
    def pages(self) -> int:
        return max(1, -(-self.matches // PAGE))


def find_records(run: Run, words: str = "", side: str = "", page: int = 1) -> Found:
    """Records whose content has all the words (case aside).

    Raises:
        DataError: the file cannot be read.
    """
    file = run.path / "generate" / "records.parquet"
    return _search(_records(file) if file.is_file() else iter(()), words, side, page)


def find_rejects(run: Run, words: str = "", reason: str = "", page: int = 1) -> Found:
    """Rejects whose excerpt or detail has all the words; also of a generation that is under way."""
    return _search(_rejects(run.rejects) if run.rejects is not None else iter(()), words, reason, page)


def _search(rows: Iterator[tuple[str, str, Any, Any]], words: str, choice: str, page: int) -> Found:
    """Rows are (choice, text to search, what is shown, how to show it): only those of the page are made."""
    wanted, choices, matches = words.casefold().split(), Counter[str](), 0
    first = (max(page, 1) - 1) * PAGE
    shown: list[Row] = []
    for of, text, raw, show in rows:
        choices[of] += 1
        if choice and of != choice:
            continue
        if wanted and not all(word in text.casefold() for word in wanted):
            continue
        if first <= matches < first + PAGE:
            shown.append(show(matches + 1, raw))
        matches += 1
    return Found(tuple(shown), matches, max(page, 1), dict(sorted(choices.items())))


def _records(file: Path) -> Iterator[tuple[str, str, Any, Any]]:
    try:
        parquet = pq.ParquetFile(file)
        for batch in parquet.iter_batches(_BATCH):
            for raw in batch.to_pylist():
                yield str(raw.get("side") or "?"), _text(raw), raw, _record
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"the records cannot be read: {error}",
            where=f"generate/{file.name}",
            fix="make the stage again: potstill generate RECIPE --force",
        ) from error


def _rejects(file: Path) -> Iterator[tuple[str, str, Any, Any]]:
    with file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                raw = parse_json(line)
            except ValueError:
                continue  # the line that is being written
            if isinstance(raw, dict):
                text = f"{raw.get('excerpt', '')} {raw.get('detail', '')}"
                yield str(raw.get("reason", "?")), text, raw, _reject


def _text(raw: Mapping[str, Any]) -> str:
    return " ".join(turn.text for turn in _turns(raw, most=1_000_000))


def _turns(raw: Mapping[str, Any], most: int = MOST_SHOWN) -> tuple[Turn, ...]:
    made: list[Turn] = []
    messages = _plain(raw.get("messages"))
    for message in messages if isinstance(messages, list) else ():
        if isinstance(message, Mapping):
            content = message.get("content")
            text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
            reasoning = message.get("reasoning_content")
            if isinstance(reasoning, str) and reasoning:
                made.append(_turn("reasoning", reasoning, most))
            made.append(_turn(str(message.get("role", "?")), text, most))
    for name in ("prompt", "completion", "text", "label"):
        if isinstance(raw.get(name), str) and raw[name]:
            made.append(_turn(name, raw[name], most))
    return tuple(made)


def _turn(role: str, text: str, most: int) -> Turn:
    return Turn(role, text[:most], max(0, len(text) - most))


def _record(number: int, raw: Mapping[str, Any]) -> Row:
    provenance = _plain(raw.get("provenance"))
    facts = {n: _short(raw[n]) for n in ("id", "group", "sample", "row", "finished") if raw.get(n) is not None}
    for name, value in (provenance if isinstance(provenance, Mapping) else {}).items():
        if value not in (None, "", {}, []):
            facts[name] = _short(value)
    verdicts = _plain(raw.get("verdicts"))
    judged = tuple(v for v in verdicts if isinstance(v, Mapping)) if isinstance(verdicts, list) else ()
    return Row(number, str(raw.get("side") or "?"), _turns(raw), facts, judged)


def _reject(number: int, raw: Mapping[str, Any]) -> Row:
    facts = {name: _short(raw[name]) for name in ("source", "row", "detail") if raw.get(name) not in (None, "")}
    return Row(number, str(raw.get("reason", "?")), (_turn("excerpt", str(raw.get("excerpt", "")), MOST_SHOWN),), facts,
               kept=False)  # fmt: skip


def _plain(value: Any) -> Any:
    """Columns that hold JSON as text, as what they hold."""
    if isinstance(value, str):
        try:
            return parse_json(value)
        except ValueError:
            return value
    return value


def _short(value: Any, most: int = 300) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= most else f"{text[:most]}…"

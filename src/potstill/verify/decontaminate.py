"""Removes evaluation sets from training records: finds shared prompts and answers by runs of words and by edit
similarity."""

from __future__ import annotations

import bisect
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from potstill.recipe.verify import Decontamination
from potstill.types import Reason, Record, Reject
from potstill.verify.workers import require

Part = Literal["prompt", "answer"]
How = Literal["the same", "a run of words", "overlap", "similar"]
LONG_WORDS, CLUE_WORDS, CLUE_SHARE = 24, 3, 0.05
"""A text of at least `LONG_WORDS` is compared only with items that share this fraction of its runs of `CLUE_WORDS`:
texts without shared runs can only be similar if nearly every word was edited. Shorter texts are compared with all items
of similar length."""

"""The reason in the reject ledger."""

_WORD = re.compile(r"\w+(?:['’]\w+)*", re.UNICODE)
_LONE = re.compile(r"[぀-ヿ㐀-鿿가-힯]")


@dataclass(frozen=True)
class Match:
    """Where a record was found: which side of it, in which set, item (its row there) and side, and how.

    `excerpt` shows the shared words if they are one run, else the item.
    """

    side: Part
    evaluation: str
    row: int
    of: Part
    how: How
    similarity: float
    excerpt: str

    def __str__(self) -> str:
        by = self.how if self.how != "overlap" else f"{self.similarity:.0%} of its runs of words"
        by = f"{by} ({self.similarity:.2f})" if self.how == "similar" else by
        return f"its {self.side} is in the {self.of} of {self.evaluation}, row {self.row}: {by}"


@dataclass(frozen=True)
class Report:
    """What was compared and found. `uncompared_answers` were too short to compare. Counts are of records; those of
    `by_how` are of matches by side and method."""

    records: int
    contaminated: int
    items: Mapping[str, int]
    by_evaluation: Mapping[str, int]
    by_how: Mapping[str, int]
    uncompared_answers: int

    @property
    def sentence(self) -> str:
        """The report in one sentence, for a card."""
        named = ", ".join(f"{name} ({count})" for name, count in sorted(self.items.items()))
        return (
            f"{self.contaminated} of {self.records} records were found in the evaluation sets {named} and left out; "
            f"{self.uncompared_answers} answers were too short to compare."
        )


@dataclass(frozen=True)
class Decontaminated:
    """The kept records, the removed ones (with the match as detail), and the report."""

    kept: list[Record]
    rejects: list[Reject]
    report: Report


@dataclass
class _Text:
    evaluation: str
    row: int
    side: Part
    plain: str
    runs: int = 0


@dataclass
class _Index:
    """All texts of one side of the evaluation sets, by runs of words and by length."""

    exact: dict[str, _Text] = field(default_factory=dict)
    long_runs: dict[int, _Text] = field(default_factory=dict)
    short_runs: dict[int, list[_Text]] = field(default_factory=dict)
    clues: dict[int, list[int]] = field(default_factory=dict)
    by_length: list[tuple[int, int]] = field(default_factory=list)
    texts: list[_Text] = field(default_factory=list)


class Decontaminator:
    """Looks records up in evaluation sets; memory grows with the sets, not with the records.

    Args:
        evaluations: the records of the sets, by name.
        settings: the criteria of a match.

    Raises:
        MissingExtra: rapidfuzz is not installed.
    """

    def __init__(self, evaluations: Mapping[str, Iterable[Record]], settings: Decontamination) -> None:
        require("rapidfuzz", "rapidfuzz", "verify", "decontamination")
        self.settings = settings
        self.items: Counter[str] = Counter()
        self._index: dict[Part, _Index] = {"prompt": _Index(), "answer": _Index()}
        for name, records in evaluations.items():
            for number, record in enumerate(records, 1):
                self.items[name] += 1
                for side, text in sides(record):
                    self._add(_Text(name, record.row or number, side, plain_words(text)))
        for index in self._index.values():
            index.by_length.sort()

    def match(self, record: Record) -> Match | None:
        """The first match of a record, prompt before answer; None if it is nowhere."""
        return next(self.matches(record), None)

    def matches(self, record: Record) -> Iterator[Match]:
        """Every side of a record against both sides of every item, at most one match per pair of sides: a benchmark's
        question may appear in an answer."""
        for side, text in sides(record):
            plain = plain_words(text)
            if side == "answer" and not self._compared(plain):
                continue
            for of in ("prompt", "answer"):
                found = self._found(plain, side, of)
                if found is not None:
                    yield found

    def too_short(self, record: Record) -> int:
        """How many of a record's answers are too short to compare."""
        return sum(side == "answer" and not self._compared(plain_words(text)) for side, text in sides(record))

    def _compared(self, plain: str) -> bool:
        return plain.count(" ") + 1 >= self.settings.answer_words

    def _add(self, text: _Text) -> None:
        if not text.plain or (text.side == "answer" and not self._compared(text.plain)):
            return
        index = self._index[text.side]
        index.exact.setdefault(text.plain, text)
        for run in runs(text.plain, self.settings.ngram):
            index.long_runs.setdefault(run, text)
        short = runs(text.plain, self.settings.overlap_ngram)
        text.runs = len(short)
        for run in short:
            index.short_runs.setdefault(run, []).append(text)
        if len(text.plain) <= self.settings.fuzzy_characters:
            for run in runs(text.plain, CLUE_WORDS):
                index.clues.setdefault(run, []).append(len(index.texts))
            index.by_length.append((len(text.plain), len(index.texts)))
            index.texts.append(text)

    def _found(self, plain: str, side: Part, of: Part) -> Match | None:
        index = self._index[of]
        same = index.exact.get(plain)
        if same is not None:
            return _match(side, same, "the same", 1.0)
        for start, run in enumerate(_runs_in_order(plain, self.settings.ngram)):
            if run in index.long_runs:
                shared_words = " ".join(plain.split(" ")[start : start + self.settings.ngram])
                return replace(_match(side, index.long_runs[run], "a run of words", 1.0), excerpt=shared_words)
        shared: Counter[int] = Counter()
        texts: dict[int, _Text] = {}
        for run in dict.fromkeys(_runs_in_order(plain, self.settings.overlap_ngram)):
            for text in index.short_runs.get(run, ()):
                shared[id(text)] += 1
                texts[id(text)] = text
        for key, count in shared.most_common(1):
            if count / texts[key].runs >= self.settings.overlap:
                return _match(side, texts[key], "overlap", count / texts[key].runs)
        return self._similar(plain, side, of) if side == of else None

    def _similar(self, plain: str, side: Part, of: Part) -> Match | None:
        """Similarity `1 − edits / (sum of both lengths)`, with insertions and deletions as edits."""
        from rapidfuzz import fuzz, process

        index, least = self._index[of], self.settings.similarity
        if not plain or len(plain) > self.settings.fuzzy_characters:
            return None
        # Texts shorter than s/(2−s) or longer than (2−s)/s of this one cannot reach a ratio of s.
        reach = least / (2 - least)
        low = bisect.bisect_left(index.by_length, (int(len(plain) * reach), 0))
        high = bisect.bisect_right(index.by_length, (int(len(plain) / reach) + 1, len(index.texts)))
        numbers: Iterable[int] = (number for _, number in index.by_length[low:high])
        clues = list(dict.fromkeys(_runs_in_order(plain, CLUE_WORDS)))
        if len(clues) > LONG_WORDS - CLUE_WORDS:
            shared = Counter(number for clue in clues for number in index.clues.get(clue, ()))
            numbers = [number for number, count in shared.items() if count >= CLUE_SHARE * len(clues)]
        near = [index.texts[number] for number in numbers]
        found = process.extractOne(plain, [t.plain for t in near], scorer=fuzz.ratio, score_cutoff=100 * least)
        return _match(side, near[found[2]], "similar", found[1] / 100) if found else None


def decontaminate(
    records: Sequence[Record], evaluations: Mapping[str, Iterable[Record]], settings: Decontamination
) -> Decontaminated:
    """Leave out the records that are found in evaluation sets.

    Args:
        evaluations: the records of each set, by the name under which the settings have it.

    Raises:
        MissingExtra: rapidfuzz is not installed.
    """
    look = Decontaminator(evaluations, settings)
    kept, rejects = [], []
    by_evaluation: Counter[str] = Counter()
    by_how: Counter[str] = Counter()
    uncompared = 0
    for record in records:
        uncompared += look.too_short(record)
        match = look.match(record)
        if match is None:
            kept.append(record)
            continue
        by_evaluation[match.evaluation] += 1
        by_how[f"{match.side}: {match.how}"] += 1
        excerpt = next(text for side, text in sides(record) if side == match.side)
        rejects.append(Reject.of(record, Reason.CONTAMINATED, " ".join(excerpt.split()), str(match)))
    report = Report(len(records), len(rejects), dict(look.items), dict(by_evaluation), dict(by_how), uncompared)
    return Decontaminated(kept, rejects, report)


def sides(record: Record) -> list[tuple[Part, str]]:
    """The texts of a record: prompt, and answers (with reasoning, and a reference answer). System prompts, which many
    records share, are not compared."""
    found: list[tuple[Part, str]] = []
    for message in record.messages or ():
        content = message.get("content")
        if isinstance(content, str) and message["role"] in ("user", "assistant"):
            found.append(("prompt" if message["role"] == "user" else "answer", content))
        reasoning = message.get("reasoning_content")
        if isinstance(reasoning, str) and message["role"] == "assistant":
            found.append(("answer", reasoning))
    if record.text is not None:
        found.append(("prompt", record.text))
    if record.prompt is not None:
        found.append(("prompt", record.prompt))
    if record.completion is not None:
        found.append(("answer", record.completion))
    reference = record.metadata.get("reference")
    if record.is_prompt and isinstance(reference, str):
        found.append(("answer", reference))
    return [(side, text) for side, text in found if text.strip()]


def plain_words(text: str) -> str:
    """The words of a text in lower case, with one space between; letters of scripts that write no spaces are words."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(_WORD.findall(_LONE.sub(lambda m: f" {m.group()} ", folded)))


def runs(plain: str, length: int) -> set[int]:
    """Hashes of the runs of `length` words."""
    return set(_runs_in_order(plain, length))


def _runs_in_order(plain: str, length: int) -> list[int]:
    # Hashes of words, and so the order of a set, differ between processes. The reported match must be the same in every
    # run.
    words = plain.split(" ")
    return [hash(tuple(words[i : i + length])) for i in range(len(words) - length + 1)]


def _match(side: Part, text: _Text, how: How, similarity: float) -> Match:
    return Match(side, text.evaluation, text.row, text.side, how, similarity, text.plain[:200])

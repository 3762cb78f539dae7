"""Keep evaluation sets out of a program's records: prompts before requests, answers after.

Only the training side is filtered: a held-out record in an evaluation set does not leak into training. Such records
are counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from potstill.answering.base import Answering
from potstill.artifacts import Work
from potstill.data.problems import as_prompt
from potstill.data.read import source_digests, stream_records
from potstill.errors import DataError
from potstill.generate.program import Item, Program, SideOfRecord
from potstill.recipe import Decontamination
from potstill.types import DataReason, Reason, Record, Reject
from potstill.verify import Decontaminator, Match

_WHERE = "generate.decontaminate.against"


class Decontaminating:
    """A program whose training records contain no evaluation items.

    Args:
        inner: the program.
        settings: the sets, and what counts as a match.
        asks: whether the program sends requests. If so, records whose prompt matches never reach it, and cost nothing.
    """

    def __init__(self, inner: Program, settings: Decontamination, *, asks: bool) -> None:
        self.inner, self.settings, self.asks = inner, settings, asks

    def write(
        self, records: Iterable[Item], answering: Answering, *, side_of: SideOfRecord, work: Work
    ) -> Iterator[Item]:
        """The program's output, with rejects in place of records that match.

        Raises:
            DataError: an evaluation set cannot be read.
            MissingExtra: rapidfuzz is not installed.
        """
        look = open_sets(self.settings, work)
        caught: Counter[str] = Counter()

        def clean() -> Iterator[Record | Reject]:
            for record in records:
                if isinstance(record, Reject):
                    yield record
                    continue
                match = match_of_prompt(look, record) if side_of(record) == "train" else None
                if match is None:
                    yield record
                    continue
                caught[match.evaluation] += 1
                work.count("prompts in an evaluation set (not asked)")
                yield _caught(_asked(record) or record, match)

        rows = clean() if self.asks else records
        for item in self.inner.write(rows, answering, side_of=side_of, work=work):
            if isinstance(item, Reject):
                yield item
                continue
            match = look.match(item)
            if match is not None and side_of(item) == "held_out":
                work.count("held-out records in an evaluation set (kept)")
                match = None
            if match is not None:
                caught[match.evaluation] += 1
                yield _caught(item, match)
                continue
            if short := look.too_short(item):
                work.count("answers too short to compare with evaluation sets", short)
            yield item
        work.facts["decontamination"] = {
            name: {"items": look.items[name], "caught": caught[name]} for name in sorted(self.settings.against)
        }


def open_sets(settings: Decontamination, work: Work | None = None) -> Decontaminator:
    """The evaluation sets, read into memory. Unusable rows are a warning.

    Raises:
        DataError: a set is not there, or nothing in it is usable.
        MissingExtra: rapidfuzz is not installed.
    """
    unread: Counter[str] = Counter()

    def read(name: str) -> Iterator[Record]:
        try:
            for item in stream_records(settings.against[name]):
                if isinstance(item, Record):
                    yield item
                elif item.reason != DataReason.EXACT_DUPLICATE:
                    unread[name] += 1
        except DataError as error:
            raise _in(name, error) from error

    look = Decontaminator({name: read(name) for name in sorted(settings.against)}, settings)
    for name, count in unread.items():
        if work is not None:
            work.warn(f"{count} rows of the evaluation set {name!r} are not usable, and nothing is compared with them")
    return look


def set_digests(settings: Decontamination) -> dict[str, str]:
    """Digests of the sets' files, by set and name; part of the stage's key.

    Raises:
        DataError: a set is not there.
    """
    digests = {}
    for name, source in sorted(settings.against.items()):
        try:
            digests.update({f"decontaminate/{name}/{file}": of for file, of in source_digests(source).items()})
        except DataError as error:
            raise _in(name, error) from error
    return digests


def match_of_prompt(look: Decontaminator, record: Record) -> Match | None:
    """The evaluation-set match for a record's prompt, if any. Its own answer is ignored: a teacher writes a new
    one."""
    asked = _asked(record)
    return None if asked is None else look.match(asked)


def without_caught(settings: Decontamination, train: Sequence[Record]) -> tuple[list[Record], Mapping[str, int]]:
    """The training records whose prompts match no evaluation set, and the number of matches by set. Raises as
    `open_sets`."""
    look = open_sets(settings)
    kept: list[Record] = []
    caught: Counter[str] = Counter()
    for record in train:
        match = match_of_prompt(look, record)
        if match is None:
            kept.append(record)
        else:
            caught[match.evaluation] += 1
    return kept, caught


def _asked(record: Record) -> Record | None:
    asked = as_prompt(record, turns=True)
    return None if isinstance(asked, str) else replace(asked, metadata={})


def _caught(record: Record, match: Match) -> Reject:
    answer = ""
    if match.side == "answer" and not record.is_prompt:
        last = (record.messages or ({},))[-1]
        answer = record.completion or str(last.get("content") or "")
    sample = "" if record.is_prompt else f"sample {record.sample}: "
    return Reject.of(record, Reason.CONTAMINATED, answer, f"{sample}{match}: ‘{match.excerpt}’")


def _in(name: str, error: DataError) -> DataError:
    where = f"{_WHERE}.{name}"
    return DataError(error.what, where=f"{where}: {error.where}" if error.where else where, fix=error.fix)

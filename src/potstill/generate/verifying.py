"""What a program writes, judged before it is kept: rejection sampling and best-of-n for any program of answers.

A block at a time: memory does not grow with the number of records, and a judge is asked many questions together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, islice

from potstill.artifacts import Work
from potstill.data.problems import as_prompt, own_answer, prompt_hash, with_reference
from potstill.data.split import Side
from potstill.generate.answering import Answered, Answering, PassingOn, SideOf, ask_all
from potstill.generate.chains_keep import best
from potstill.generate.program import Program
from potstill.generate.records import of_sample, reject
from potstill.generate.verification import Verification
from potstill.recipe.generate import VerifiedSettings
from potstill.recipe.verify import VerifierSettings, references_of
from potstill.types import Answer, Finish, Record, Reject, Request, Verdict
from potstill.verify.preconditions import refuse_unjudgeable

_AT_ONCE = 1024
"""Records of a block, and those beyond it that have the same prompt as its last."""


class Verifying:
    """A program whose records a verifier accepts.

    Args:
        inner: the program.
        settings: of the program; `verify` is set.
    """

    def __init__(self, inner: Program, settings: VerifiedSettings) -> None:
        self.inner, self.settings = inner, settings

    def write(
        self,
        records: Iterable[Record | Reject],
        answering: Answering,
        *,
        side_of: Callable[[Record], Side],
        work: Work,
    ) -> Iterator[Record | Reject]:
        """What the program yields, with rejects in the place of what the verifier does not accept.

        Raises:
            DataError: the verifier can judge none of the (first thousand) prompts, since what it needs is in none.
            Besides as the program and the verifier do.
        """
        verify = self.settings.verify
        assert verify is not None
        stream = iter(records)
        head = list(islice(stream, _AT_ONCE))
        asked = [prompt for item in head if isinstance(item, Record) and (prompt := _with_references(item, verify))]
        if asked and self.settings.unjudged == "reject":
            # Before anything is paid for. A later one might have what it needs; a thousand without are no data for it.
            called = f"{'first ' if len(head) == _AT_ONCE else ''}{len(asked):,} prompts"
            refuse_unjudgeable(verify, asked, called=called, where="generate.verify")
        records = chain(head, stream)
        with Verification(verify, partial(ask_all, answering, self.settings.teacher)) as verification:
            if verification.asks and answering.reads_ahead:
                answering = _Drained(answering)
            for block in _blocks(self.inner.write(records, answering, side_of=side_of, work=work)):
                written = [item for item in block if isinstance(item, Record)]
                verdicts = iter(list(verification.verdicts((_prompt(record), _answer(record)) for record in written)))
                judged = [item if isinstance(item, Reject) else self._judged(item, next(verdicts)) for item in block]
                yield from judged if self.settings.best is None else _chosen(judged, self.settings.best)
            work.facts["verifier"] = dict(verification.verifier.identity)

    def _judged(self, record: Record, verdict: Verdict) -> Record | Reject:
        outcome = verdict.outcome
        if outcome == "accept" or (outcome == "cannot_judge" and self.settings.unjudged == "accept"):
            return replace(record, verdicts=(*record.verdicts, verdict))
        reason = "rejected by the verifier" if outcome == "reject" else "cannot be judged"
        return reject(record, reason, own_answer(record) or "", of_sample(record.sample, verdict.reason))


class _Drained(PassingOn):
    """Answers a block of requests whole before any of it is looked at, so that nothing is under way while a judge is
    asked: what a cap leaves out then follows from the requests, and a server that fails is heard of."""

    def answers(self, requests: Iterable[Request], *, side_of: SideOf | None = None) -> Iterator[Answered]:
        stream = iter(requests)
        while block := list(islice(stream, _AT_ONCE)):
            yield from list(self.inner.answers(block, side_of=side_of))


def _blocks(items: Iterable[Record | Reject]) -> Iterator[list[Record | Reject]]:
    """Some at a time; the samples of a prompt, which stand side by side, are never parted."""
    block: list[Record | Reject] = []
    for item in items:
        if len(block) >= _AT_ONCE and _place(item) != _place(block[-1]):
            yield block
            block = []
        block.append(item)
    if block:
        yield block


def _with_references(record: Record, verify: VerifierSettings) -> Record | None:
    """What would be judged of a row, but for the answer; None where nothing is asked of it."""
    prompt = as_prompt(record, turns=True)
    return None if isinstance(prompt, str) else with_reference(prompt, record, *references_of(verify))


def _place(item: Record | Reject) -> tuple[str, int]:
    """Which row of which source it is of."""
    return item.source if isinstance(item, Reject) else item.provenance.source, item.row


def _prompt(record: Record) -> Record:
    prompt = as_prompt(record, turns=False)
    assert isinstance(prompt, Record)  # it has an answer
    return prompt


def _answer(record: Record) -> Answer:
    last = (record.messages or ({},))[-1]
    finish: Finish = "stop" if record.finished else "length"
    return Answer(own_answer(record) or "", finish, 0, 0, last.get("reasoning_content"))


def _chosen(items: Sequence[Record | Reject], kept: int) -> Iterator[Record | Reject]:
    """Of the records of each prompt the `kept` with the highest score; the others as rejects, in their places."""
    of_prompt: dict[str, list[Record]] = {}
    among: dict[int, int] = {}  # how many were accepted beside one that is not kept
    for item in items:
        if isinstance(item, Record):
            of_prompt.setdefault(prompt_hash(_prompt(item)), []).append(item)
    for several in of_prompt.values():
        chosen = {id(record) for record in best(several, [record.verdicts[-1].score for record in several], kept)}
        among |= {id(record): len(several) for record in several if id(record) not in chosen}
    for item in items:
        if isinstance(item, Reject) or id(item) not in among:
            yield item
        else:
            said = f"{kept} of {among[id(item)]} accepted are kept, and its score is {item.verdicts[-1].score}"
            yield reject(item, "not chosen (keep: best)", own_answer(item) or "", of_sample(item.sample, said))

"""Verdicts on a program's records before they are kept: rejection sampling and best-of-n for any program of answers.

Records are judged block by block: memory does not grow with their number, and a judge gets many questions together.
Judges use a teacher. Their questions are gathered from many answers and sent by the calling thread, since `Answering`
is not thread-safe. A group is sent when every verdict in progress waits for an answer, so the same answers give the
same groups, which affect a local teacher's output.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from queue import SimpleQueue
from threading import local
from typing import Any

from potstill.answering.base import Answered, Answering, PassingOn, SideOf, ask_all
from potstill.artifacts import Work
from potstill.data.problems import as_prompt, own_answer, prompt_hash, with_reference
from potstill.errors import PotstillError
from potstill.generate.program import Item, Program, SideOfRecord, of_sample
from potstill.generate.reasoning_chains import best
from potstill.recipe.generate import VerifiedSettings
from potstill.recipe.verify import VerifierSettings, judges_of, references_of, workers_of
from potstill.types import Answer, Finish, Reason, Record, Reject, Request, Verdict
from potstill.verify import Ask, Verifier, open_verifier, verdicts
from potstill.verify.preconditions import refuse_unjudgeable

_JUDGED_AT_ONCE = 64
_AT_ONCE = 1024
"""Records in a block, plus those beyond it that have the same prompt as its last."""

_Question = tuple[int, str | None, Sequence[Request], "Future[list[Answer]]"]
"""Number of the verdict, teacher, requests, and the future for the answers."""


class Verification:
    """A verifier, opened, and the number of answers it judges concurrently. A context manager.

    Args:
        settings: of the verifier.
        ask: how a judge puts its questions. Only called from the thread that iterates.

    Raises:
        RecipeError, MissingExtra: as `open_verifier`.
    """

    def __init__(self, settings: VerifierSettings, ask: Ask) -> None:
        self.asks = any(True for _ in judges_of(settings))
        self._workers = workers_of(settings)
        self._ask = ask
        self._place = local()
        self._questions: SimpleQueue[_Question | None] = SimpleQueue()
        self.verifier: Verifier = open_verifier(settings, self._gathered)

    def verdicts(self, items: Iterable[tuple[Record, Answer]]) -> Iterator[Verdict]:
        """The verdict on each answer, in order."""
        if not self.asks:
            yield from verdicts(self.verifier, items, self._workers)
            return
        with ThreadPoolExecutor(_JUDGED_AT_ONCE) as threads:
            yield from self._judged(iter(items), threads)

    def __enter__(self) -> Verification:
        self.verifier.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.verifier.__exit__(*error)

    def _judged(self, items: Iterator[tuple[Record, Answer]], threads: ThreadPoolExecutor) -> Iterator[Verdict]:
        under_way: deque[Future[Verdict]] = deque()
        started = running = 0
        waiting: list[_Question] = []
        exhausted = False
        try:
            while True:
                while running < _JUDGED_AT_ONCE and not exhausted:
                    item = next(items, None)
                    if item is None:
                        exhausted = True
                        break
                    under_way.append(threads.submit(self._one, started, *item))
                    started, running = started + 1, running + 1
                if running == 0:
                    break
                if len(waiting) == running:
                    self._answer(waiting)
                    waiting = []
                question = self._questions.get()  # one that waits for an answer, or None for one that is done
                if question is None:
                    running -= 1
                else:
                    waiting.append(question)
                while under_way and under_way[0].done():
                    yield under_way.popleft().result()
            for future in under_way:
                yield future.result()
        finally:
            # Wake the threads that wait for answers which will not come.
            while running:
                for *_, answers in waiting:
                    answers.cancel()
                waiting = []
                question = self._questions.get()
                if question is None:
                    running -= 1
                else:
                    waiting = [question]

    def _one(self, place: int, record: Record, answer: Answer) -> Verdict:
        self._place.number = place
        try:
            return self.verifier.verify_answer(record, answer)
        finally:
            self._questions.put(None)

    def _gathered(self, teacher: str | None, requests: Sequence[Request]) -> list[Answer]:
        """In a verdict's own thread: hand over its questions, and wait."""
        future: Future[list[Answer]] = Future()
        self._questions.put((self._place.number, teacher, requests, future))
        return future.result()

    def _answer(self, waiting: Sequence[_Question]) -> None:
        ordered = sorted(waiting, key=lambda asked: asked[0])
        for teacher in dict.fromkeys(teacher for _, teacher, _, _ in ordered):
            its_own = [(requests, future) for _, name, requests, future in ordered if name == teacher]
            answers = iter(self._ask(teacher, [request for requests, _ in its_own for request in requests]))
            for requests, future in its_own:
                future.set_result(list(islice(answers, len(requests))))


class Verifying:
    """A program whose records a verifier accepts.

    Args:
        inner: the program.
        settings: of the program.
        verify: the verifier.
    """

    def __init__(self, inner: Program, settings: VerifiedSettings, verify: VerifierSettings) -> None:
        self.inner, self.settings, self.verify = inner, settings, verify

    def write(
        self, records: Iterable[Item], answering: Answering, *, side_of: SideOfRecord, work: Work
    ) -> Iterator[Item]:
        """The program's output, with rejects in place of records that the verifier does not accept.

        Raises:
            DataError: the verifier can judge none of the (first thousand) prompts, since what it needs is in none.
            Besides as the program and the verifier do.
        """
        verify = self.verify
        stream = iter(records)
        head = list(islice(stream, _AT_ONCE))
        asked = [prompt for item in head if isinstance(item, Record) and (prompt := _with_references(item, verify))]
        if asked and self.settings.unjudged == "reject":
            # Before anything is paid for. A later prompt might have what the verifier needs, but a thousand have not.
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
        reason = Reason.REJECTED if outcome == "reject" else Reason.UNJUDGED
        return Reject.of(record, reason, own_answer(record) or "", of_sample(record.sample, verdict.reason))


class _Drained(PassingOn):
    """Answers a whole block of requests before yielding any, so that nothing is under way while a judge is used: the
    requests alone then determine what a cap excludes, and errors of the server are raised."""

    def answers(self, requests: Iterable[Request], *, side_of: SideOf | None = None) -> Iterator[Answered]:
        stream = iter(requests)
        while block := list(islice(stream, _AT_ONCE)):
            yield from list(self.inner.answers(block, side_of=side_of))


def _blocks(items: Iterable[Record | Reject]) -> Iterator[list[Record | Reject]]:
    """Blocks of items; the samples of a prompt, which are adjacent, are in one block."""
    block: list[Record | Reject] = []
    for item in items:
        if len(block) >= _AT_ONCE and _place(item) != _place(block[-1]):
            yield block
            block = []
        block.append(item)
    if block:
        yield block


def _with_references(record: Record, verify: VerifierSettings) -> Record | None:
    """The prompt of a row with the references for its verdict; None if the row has none."""
    prompt = as_prompt(record, turns=True)
    return None if isinstance(prompt, str) else with_reference(prompt, record, *references_of(verify))


def _place(item: Record | Reject) -> tuple[str, int]:
    """(source, row) of an item."""
    return item.source if isinstance(item, Reject) else item.provenance.source, item.row


def _prompt(record: Record) -> Record:
    """The prompt of a record that has an answer."""
    prompt = as_prompt(record, turns=False)
    if isinstance(prompt, str):
        raise PotstillError(f"a record without a prompt is to be judged: {prompt}")
    return prompt


def _answer(record: Record) -> Answer:
    last = (record.messages or ({},))[-1]
    finish: Finish = "stop" if record.finished else "length"
    return Answer(own_answer(record) or "", finish, 0, 0, last.get("reasoning_content"))


def _chosen(items: Sequence[Record | Reject], kept: int) -> Iterator[Record | Reject]:
    """For each prompt, the `kept` records with the highest scores; the others as rejects, in place."""
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
            detail = f"keep: best: {kept} of {among[id(item)]} accepted are kept; its score: {item.verdicts[-1].score}"
            yield Reject.of(item, Reason.NOT_CHOSEN, own_answer(item) or "", of_sample(item.sample, detail))

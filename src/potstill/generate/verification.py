"""Verdicts on many answers, side by side where that saves time, in an order and in groups that repeat.

Judges ask a teacher. Their questions are gathered from many answers and asked together, by the thread that called:
answering is not for several threads, and a server is not asked one question at a time. A group is asked when every
verdict under way waits for an answer: so the same answers give the same groups, which what a local teacher says depends
on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from queue import SimpleQueue
from threading import local
from typing import Any

from potstill.recipe.verify import VerifierSettings, judges_of, workers_of
from potstill.types import Answer, Record, Request, Verdict
from potstill.verify import Ask, Verifier, open_verifier, verdicts

_JUDGED_AT_ONCE = 64

_Asked = tuple[int, str | None, Sequence[Request], "Future[list[Answer]]"]


class Verification:
    """A verifier, opened, and how many answers it is given at once. A context manager.

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
        self._questions: SimpleQueue[_Asked | None] = SimpleQueue()
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
        waiting: list[_Asked] = []
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
            # Nobody waits for ever for an answer that will not come.
            while running:
                for *_, hoped in waiting:
                    hoped.cancel()
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
        """In a verdict's own thread: hand its questions over, and wait."""
        hoped: Future[list[Answer]] = Future()
        self._questions.put((self._place.number, teacher, requests, hoped))
        return hoped.result()

    def _answer(self, waiting: Sequence[_Asked]) -> None:
        ordered = sorted(waiting, key=lambda asked: asked[0])
        for teacher in dict.fromkeys(teacher for _, teacher, _, _ in ordered):
            of_it = [(requests, hoped) for _, name, requests, hoped in ordered if name == teacher]
            answers = iter(self._ask(teacher, [request for requests, _ in of_it for request in requests]))
            for requests, hoped in of_it:
                hoped.set_result(list(islice(answers, len(requests))))

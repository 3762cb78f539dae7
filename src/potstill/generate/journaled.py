"""A teacher with a journal and a budget: what is answered once is never asked again, and never lost."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from potstill.console import Console, Task
from potstill.errors import PotstillError
from potstill.generate.budget import TokenBudget
from potstill.generate.journal import Journal
from potstill.generate.plan import PlannedBatch, cut
from potstill.types import Answer, Request

if TYPE_CHECKING:
    from potstill.teachers.base import Teacher


class JournaledTeacher:
    """Answers planned batches, in their order: from the journal where they are in it, else from the teacher.

    Every answer is committed to the journal before it is yielded (rule 11), and every batch fits into the budget
    before it begins (rule 12): the last one is cut to what is left, and what no longer fits is in `unanswered`.
    Since answers from the journal are replayed in the same order against the same budget, an interrupted run ends
    with the same batches as an uninterrupted one.

    The counts are of what was yielded: `answers`, of which `finished`; `tokens`; `seconds` (time the teacher took,
    whenever that was); and of these, what this process had the teacher write: `new_answers`, `new_tokens`.
    """

    def __init__(self, teacher: Teacher, journal: Journal, *, budget: TokenBudget, seed: int, console: Console) -> None:
        self.teacher, self.journal, self.budget, self.seed, self.console = teacher, journal, budget, seed, console
        self.unanswered: list[Request] = []
        self.answers = self.finished = self.tokens = self.new_answers = self.new_tokens = 0
        self.seconds = 0.0

    def answer(self, batches: Sequence[PlannedBatch]) -> Iterator[tuple[PlannedBatch, list[Answer], bool]]:
        """Yield each batch with its answers, in the order of its requests, and whether the journal had them."""
        waiting = sum(len(b.requests) for b in batches if not self.journal.holds(b.digest))
        most = max((r.sampling.max_new_tokens for b in batches for r in b.requests), default=0)
        with self.console.task("generating", total=self._expected(waiting, most), unit="tokens") as task:
            queue = deque(batches)
            while queue:
                batch = self._fitting(queue)
                if batch is None:
                    break
                before = self.new_answers
                answers = self._answer(batch)
                if self.new_answers > before:
                    waiting = max(0, waiting - len(answers))
                    self._show(task, answers, waiting)
                yield batch, answers, self.new_answers == before
            self.unanswered = [request for batch in queue for request in batch.requests]

    def facts(self) -> dict[str, Any]:
        """Tokens, seconds, rate and the share of answers that ended by themselves, for the manifest."""
        return {
            "answers": self.answers,
            "share_finished": round(self.finished / self.answers, 4) if self.answers else None,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 2),
            "tokens_per_second": round(self.tokens / self.seconds, 1) if self.seconds > 0 else None,
            "answers_from_journal": self.answers - self.new_answers,
            "token_budget": self.budget.cap,
        }

    def _fitting(self, queue: deque[PlannedBatch]) -> PlannedBatch | None:
        """The next batch, or as much of it as the budget allows; the rest goes back to the head of the queue."""
        batch = queue.popleft()
        left = self.budget.left
        if left is None or batch.most_tokens <= left:
            return batch
        first, rest = cut(batch, left // batch.requests[0].sampling.max_new_tokens, self.teacher.identity, self.seed)
        if rest is not None:
            queue.appendleft(rest)
        return first

    def _answer(self, batch: PlannedBatch) -> list[Answer]:
        self.budget.reserve(batch.most_tokens)
        answers = self.journal.get_batch(batch.keys, batch.digest)
        if answers is None:
            answers = self._ask(batch)
        tokens = sum(a.completion_tokens for a in answers)
        self.budget.settle(batch.most_tokens, tokens)
        self.answers += len(answers)
        self.finished += sum(a.finish == "stop" for a in answers)
        self.tokens += tokens
        self.seconds += self.journal.seconds_of(batch.digest)
        return answers

    def _ask(self, batch: PlannedBatch) -> list[Answer]:
        started = time.monotonic()
        answers = self.teacher.generate(batch.requests, seed=batch.seed)
        seconds = time.monotonic() - started
        if len(answers) != len(batch.requests):
            raise PotstillError(f"the teacher gave {len(answers)} answers to {len(batch.requests)} requests")
        self.journal.put_batch(list(zip(batch.keys, answers, strict=True)), batch.digest, seconds)
        self.new_answers += len(answers)
        self.new_tokens += sum(a.completion_tokens for a in answers)
        return answers

    def _show(self, task: Task, answers: Sequence[Answer], waiting: int) -> None:
        mean = self.new_tokens / self.new_answers
        expected = self.new_tokens + self._expected(waiting, mean)
        task.advance(sum(a.completion_tokens for a in answers), note=f"{waiting:,} answers left", total=expected)

    def _expected(self, answers: int, mean_tokens: float) -> float:
        """How many more tokens are to be written: as long as so far, within the budget."""
        tokens = answers * mean_tokens
        return tokens if self.budget.left is None else min(tokens, self.budget.left)

"""A teacher on this machine: batches planned over all requests, through the journal, within a budget."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from potstill.console import Console, Progress
from potstill.data.chat import ChatTokenizer
from potstill.data.tokenize import prompt_ids
from potstill.errors import PotstillError
from potstill.generate.answering import NO_JUDGES, Answered, Answering, Counts, Failure, NothingToClose, SideOf, parsed
from potstill.generate.budget import TokenBudget
from potstill.generate.journal import Journal
from potstill.generate.plan import PlannedBatch, Question, cut, plan_batches
from potstill.types import Answer, Reason, Request

if TYPE_CHECKING:
    from potstill.teachers.base import Teacher


@dataclass
class _Shown:
    """The tokens of one batch that progress has shown, while it is being written."""

    task: Progress
    tokens: int = 0

    def wrote(self, tokens: int) -> None:
        """Show some more."""
        self.tokens += tokens
        self.task.advance(tokens)


class JournaledTeacher:
    """Answers planned batches, in order: from the journal if it has them, else from the teacher.

    Every answer is committed to the journal before it is yielded (rule 11), and every batch fits the budget before it
    begins (rule 12): the last one is cut to what is left, and requests that no longer fit are in `unanswered`. Answers
    from the journal are replayed in the same order against the same budget, so an interrupted run ends with the same
    batches as an uninterrupted one.

    Attributes:
        counts: of the yielded answers.
        seconds: the teacher's time for them, in this process or an earlier one.
        unanswered: requests that no longer fit into the budget.
    """

    def __init__(self, teacher: Teacher, journal: Journal, *, budget: TokenBudget, seed: int, console: Console) -> None:
        self.teacher, self.journal, self.budget, self.seed, self.console = teacher, journal, budget, seed, console
        self.unanswered: list[Request] = []
        self.counts = Counts()
        self.seconds = 0.0
        self._new_answers = self._new_tokens = 0  # by this process

    def answer(self, batches: Sequence[PlannedBatch]) -> Iterator[tuple[PlannedBatch, list[Answer], bool]]:
        """Yield each batch with its answers, in the order of its requests, and whether they came from the journal."""
        waiting = sum(len(b.requests) for b in batches if not self.journal.holds(b.digest))
        most = max((r.sampling.max_new_tokens for b in batches for r in b.requests), default=0)
        with self.console.task("generating", total=self._expected(waiting, most), unit="tokens") as task:
            queue = deque(batches)
            while queue:
                batch = self._fitting(queue)
                if batch is None:
                    break
                shown = _Shown(task)
                answers, from_journal = self._answer(batch, shown)
                if not from_journal:
                    waiting = max(0, waiting - len(answers))
                    self._show(shown, answers, waiting)
                yield batch, answers, from_journal
            self.unanswered = [request for batch in queue for request in batch.requests]

    def facts(self) -> dict[str, Any]:
        """Counts, seconds and rate, for the manifest."""
        return {
            **self.counts.facts(),
            "seconds": round(self.seconds, 2),
            "tokens_per_second": round(self.counts.written / self.seconds, 1) if self.seconds > 0 else None,
            "token_budget": self.budget.cap,
        }

    def _fitting(self, queue: deque[PlannedBatch]) -> PlannedBatch | None:
        """The next batch, or the part of it that fits the budget; the rest goes back to the front of the queue."""
        batch = queue.popleft()
        left = self.budget.left
        if left is None or batch.most_tokens <= left:
            return batch
        first, rest = cut(batch, left // batch.requests[0].sampling.max_new_tokens, self.teacher.identity, self.seed)
        if rest is not None:
            queue.appendleft(rest)
        return first

    def _answer(self, batch: PlannedBatch, shown: _Shown) -> tuple[list[Answer], bool]:
        """The answers of a batch, and whether they came from the journal."""
        self.budget.reserve(batch.most_tokens)
        found = self.journal.get_batch(batch.keys, batch.digest)
        answers = self._ask(batch, shown) if found is None else found
        self.budget.settle(batch.most_tokens, sum(a.completion_tokens for a in answers))
        for answer in answers:
            self.counts.add(answer, from_journal=found is not None)
        self.seconds += self.journal.seconds_of(batch.digest)
        return answers, found is not None

    def _ask(self, batch: PlannedBatch, shown: _Shown) -> list[Answer]:
        started = time.monotonic()
        answers = self.teacher.generate(batch.requests, seed=batch.seed, wrote=shown.wrote)
        seconds = time.monotonic() - started
        if len(answers) != len(batch.requests):
            raise PotstillError(f"the teacher gave {len(answers)} answers to {len(batch.requests)} requests")
        self.journal.put_batch(list(zip(batch.keys, answers, strict=True)), batch.digest, seconds)
        self._new_answers += len(answers)
        self._new_tokens += sum(a.completion_tokens for a in answers)
        return answers

    def _show(self, shown: _Shown, answers: Sequence[Answer], waiting: int) -> None:
        mean = self._new_tokens / self._new_answers
        expected = self._new_tokens + self._expected(waiting, mean)
        rest = sum(a.completion_tokens for a in answers) - shown.tokens
        shown.task.advance(rest, note=f"{waiting:,} answers left", total=expected)

    def _expected(self, answers: int, mean_tokens: float) -> float:
        """The expected number of further tokens, at the mean length so far, within the budget."""
        tokens = answers * mean_tokens
        return tokens if self.budget.left is None else min(tokens, self.budget.left)


class LocalAnswering(NothingToClose):
    """A teacher on this machine; answers batches planned over all requests (`generate.plan`).

    Args:
        journaled: the teacher, with journal and budget.
        batch_size: number of sequences in a batch.
    """

    def __init__(self, journaled: JournaledTeacher, *, batch_size: int) -> None:
        self.journaled, self.batch_size = journaled, batch_size
        self.judges: Mapping[str, Answering] = NO_JUDGES
        self.chat = ChatTokenizer.from_transformers(self.teacher.tokenizer)

    reads_ahead = False

    @property
    def teacher(self) -> Teacher:
        return self.journaled.teacher

    @property
    def identity(self) -> Mapping[str, Any]:
        return self.teacher.identity

    @property
    def turns(self) -> bool:
        return self.chat.template is not None

    @property
    def context_length(self) -> int | None:
        return getattr(self.teacher, "context_length", None)

    def prompt_tokens(self, request: Request) -> int:
        return len(prompt_ids(_asked(request), self.chat, request.tools))

    def rendered(self, request: Request) -> str:
        return self.chat.decode(prompt_ids(_asked(request), self.chat, request.tools))

    def answers(self, requests: Iterable[Request], *, side_of: SideOf | None = None) -> Iterator[Answered]:
        asked = list(requests)
        came: dict[str, Answered] = {}
        keys = [request.key(self.identity) for request in asked]
        for batches in self._planned(asked, keys, side_of):
            for batch, answers, from_journal in self.journaled.answer(batches):
                for request, key, raw in zip(batch.requests, batch.keys, answers, strict=True):
                    seed = batch.seed if request.sampling.temperature > 0 else None
                    came[key] = parsed(request, raw, from_journal=from_journal, seed=seed)
        for request, key in zip(asked, keys, strict=True):
            yield came.get(key) or Answered(request, Failure(Reason.TOKEN_BUDGET))

    def facts(self) -> dict[str, Any]:
        return self.journaled.facts()

    def _planned(self, asked: Sequence[Request], keys: Sequence[str], side_of: SideOf | None) -> Iterator[Any]:
        """The batches of requests, one sampling setting after the other, in order of first occurrence. The samples of
        a prompt are one question, wherever they are."""
        once: dict[str, Request] = {}
        for request, key in zip(asked, keys, strict=True):
            once.setdefault(key, request)
        fresh = list(once.values())
        for sampling in dict.fromkeys(request.sampling for request in fresh):
            samples: dict[str, list[Request]] = {}
            for request in fresh:
                if request.sampling == sampling:
                    samples.setdefault(replace(request, sample=0).key({}), []).append(request)
            questions = []
            for same in samples.values():
                together = tuple(sorted(same, key=lambda r: r.sample))
                side = side_of(together[0]) if side_of is not None else "train"
                questions.append(Question(together, side, self.prompt_tokens(together[0])))
            yield plan_batches(questions, self.identity, batch_size=self.batch_size, seed=self.journaled.seed)


def _asked(request: Request) -> Any:
    return request.messages if request.messages is not None else request.prompt or ""

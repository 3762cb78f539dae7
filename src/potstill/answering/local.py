"""A teacher on this machine: batches planned over all requests, through the journal, within a budget.

The plan says which requests form a batch, in which order, with which seeds. It is a pure function of *all* requests,
the teacher's identity and the recipe's seed, never of existing answers. So an interrupted run plans as the
uninterrupted one, finds whole batches in the journal, and answers the others in the same way: low-precision answers
depend on the rest of the batch.

Each side of the split is planned separately, since held-out prompts are answered too, for evaluation: answers to
held-out prompts then do not change when training prompts are added. Within a side, prompts are sorted by length, to
save padding, and cut into batches of nearly equal size. The batches are ordered by their digests, which is independent
of length, and the two sides are interleaved in proportion, a held-out batch first: wherever a token budget ends the
work, long and short prompts, training and held-out ones had the same chance, and some held-out ones are answered.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from potstill.answering.base import NO_JUDGES, Answered, Answering, Counts, Failure, NothingToClose, SideOf, parsed
from potstill.answering.budget import TokenBudget
from potstill.answering.journal import Journal
from potstill.console import Console, Progress
from potstill.data.chat import ChatTokenizer
from potstill.data.split import SplitSide
from potstill.data.tokenize import prompt_ids
from potstill.errors import PotstillError
from potstill.types import Answer, Reason, Request, digest

if TYPE_CHECKING:
    from potstill.teachers.base import Teacher


# ---- the plan --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """One prompt, as requests (its samples, in order), with its length as rendered (`prompt_tokens`)."""

    requests: tuple[Request, ...]
    side: SplitSide
    prompt_tokens: int


@dataclass(frozen=True)
class PlannedBatch:
    """Requests that are answered together, in one call of `Teacher.generate`.

    `keys` are the journal's keys of the requests; `digest` is that of the batch: of the keys in order and, for sampled
    answers, of the recipe's seed. `seed` is derived from the digest. `step` requests belong together (the beams of a
    prompt): a batch is cut only at a multiple of it.
    """

    requests: tuple[Request, ...]
    keys: tuple[str, ...]
    digest: str
    seed: int
    step: int

    @property
    def most_tokens(self) -> int:
        """Maximum number of tokens of its answers: the reservation before it begins."""
        return sum(r.sampling.max_new_tokens for r in self.requests)


def make_batch(requests: Sequence[Request], teacher: Mapping[str, Any], seed: int, step: int = 1) -> PlannedBatch:
    """A batch of requests in this order, for this teacher (`Teacher.identity`)."""
    keys = tuple(r.key(teacher) for r in requests)
    sampled = any(r.sampling.temperature > 0 for r in requests)
    own = digest([keys, seed if sampled else None])
    return PlannedBatch(tuple(requests), keys, own, int(own[:8], 16), step)


def cut(
    batch: PlannedBatch, most: int, teacher: Mapping[str, Any], seed: int
) -> tuple[PlannedBatch | None, PlannedBatch | None]:
    """The first at most `most` requests of a batch, and the rest, each as a batch (None if empty)."""
    first = most // batch.step * batch.step
    parts = batch.requests[:first], batch.requests[first:]
    one, other = (make_batch(part, teacher, seed, batch.step) if part else None for part in parts)
    return one, other


def plan_batches(
    questions: Sequence[Question], teacher: Mapping[str, Any], *, batch_size: int, seed: int
) -> list[PlannedBatch]:
    """All batches, in order.

    Args:
        questions: every prompt, each once, with equal sampling settings. Prompts with more samples than others get
            their own batches.
        teacher: `Teacher.identity`.
        batch_size: number of sequences in a batch. The samples of a prompt stay together, unless they alone are more;
            each of a prompt's beams is a sequence too.
        seed: the recipe's.
    """
    placed: list[tuple[float, int, PlannedBatch]] = []
    for rank, side in enumerate(("held_out", "train")):
        alike: dict[int, list[Question]] = {}
        for question in questions:
            if question.side == side:
                alike.setdefault(len(question.requests), []).append(question)
        batches = [
            make_batch(requests, teacher, seed, step)
            for some in alike.values()
            for requests, step in _by_length(some, batch_size)
        ]
        batches.sort(key=lambda b: b.digest)
        placed.extend((index / len(batches), rank, batch) for index, batch in enumerate(batches))
    placed.sort(key=lambda p: p[:2])
    return [batch for _, _, batch in placed]


def _by_length(questions: Sequence[Question], batch_size: int) -> list[tuple[list[Request], int]]:
    """Requests in batches by length, and how many of them belong together; all questions have equally many samples."""
    # Equal lengths are ordered by content: the order of the data does not matter.
    ordered = sorted(questions, key=lambda q: (q.prompt_tokens, q.requests[0].key({})))
    beams = ordered[0].requests[0].sampling.beams
    samples = len(ordered[0].requests)
    step = samples if beams > 1 else min(samples, batch_size)
    units = [q.requests[i : i + step] for q in ordered for i in range(0, samples, step)]
    per_batch = max(1, batch_size // max(step, beams))
    count = math.ceil(len(units) / per_batch)
    edges = [round(index * len(units) / count) for index in range(count + 1)]
    return [
        ([request for unit in units[a:b] for request in unit], step if beams > 1 else 1) for a, b in pairwise(edges)
    ]


# ---- answering by the plan -------------------------------------------------------------------------------------------


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
    """A teacher on this machine; answers batches planned over all requests (`plan_batches`).

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

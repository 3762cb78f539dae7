"""The plan of a local teacher: which requests form a batch, in which order, with which seeds.

The plan is a pure function of *all* requests, the teacher's identity and the recipe's seed, never of existing answers.
So an interrupted run plans as the uninterrupted one, finds whole batches in the journal, and answers the others in the
same way: low-precision answers depend on the rest of the batch.

Each side of the split is planned separately, since held-out prompts are answered too, for evaluation: answers to
held-out prompts then do not change when training prompts are added. Within a side, prompts are sorted by length, to
save padding, and cut into batches of nearly equal size. The batches are ordered by their digests, which is independent
of length, and the two sides are interleaved in proportion, a held-out batch first: so wherever a token budget ends the
work, long and short prompts, training and held-out ones had the same chance, and some held-out ones are answered.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from potstill.data.split import SplitSide
from potstill.types import Request, digest


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

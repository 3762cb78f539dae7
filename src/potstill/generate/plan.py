"""The plan: which requests a local teacher answers together, in which order, with which seeds.

The plan is a pure function of *all* requests, of who is asked and of the recipe's seed, never of what is answered
already. So a run that was interrupted plans as the uninterrupted one did, finds its whole batches in the journal, and
does the others as they would have been done: low-precision answers depend on what else is in the batch.

Each side of the split is planned by itself, since held-out prompts are answered too, for evaluation: then answers to
held-out prompts do not change when training prompts are added. Inside a side prompts are sorted by length, so that
little is padding, and cut into batches of nearly equal size. The batches are then put into an order that has nothing
to do with length (that of their digests, which is as good as drawn by lot), and the two sides are dealt out in
proportion, a held-out batch first: wherever a token budget ends the work, long prompts and short ones, training
prompts and held-out ones have had the same chance, and some held-out ones are answered.
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
    """One prompt, as requests (its samples, in order), with what planning needs to know.

    `prompt_tokens` is the length of the prompt as rendered.
    """

    requests: tuple[Request, ...]
    side: SplitSide
    prompt_tokens: int


@dataclass(frozen=True)
class PlannedBatch:
    """Requests that are answered together, in one call of `Teacher.generate`.

    `keys` are the journal's keys of the requests, `digest` is the batch's own: of the keys in their order and, for
    sampled answers, of the recipe's seed. `seed` follows from the digest. `step` requests belong together (the beams
    of a prompt): where the batch is cut, it is cut at a multiple of it.
    """

    requests: tuple[Request, ...]
    keys: tuple[str, ...]
    digest: str
    seed: int
    step: int

    @property
    def most_tokens(self) -> int:
        """The most tokens that its answers can have: what is reserved before it begins."""
        return sum(r.sampling.max_new_tokens for r in self.requests)


def make_batch(requests: Sequence[Request], teacher: Mapping[str, Any], seed: int, step: int = 1) -> PlannedBatch:
    """A batch of requests in this order, to this teacher (`Teacher.identity`)."""
    keys = tuple(r.key(teacher) for r in requests)
    sampled = any(r.sampling.temperature > 0 for r in requests)
    own = digest([keys, seed if sampled else None])
    return PlannedBatch(tuple(requests), keys, own, int(own[:8], 16), step)


def cut(
    batch: PlannedBatch, most: int, teacher: Mapping[str, Any], seed: int
) -> tuple[PlannedBatch | None, PlannedBatch | None]:
    """The first at most `most` requests of a batch, and the rest, each a batch of its own (None if empty)."""
    first = most // batch.step * batch.step
    parts = batch.requests[:first], batch.requests[first:]
    one, other = (make_batch(part, teacher, seed, batch.step) if part else None for part in parts)
    return one, other


def plan_batches(
    questions: Sequence[Question], teacher: Mapping[str, Any], *, batch_size: int, seed: int
) -> list[PlannedBatch]:
    """All batches, in the order in which they are done.

    Args:
        questions: every prompt, each once, with equal sampling settings. Those with more samples than others have
            batches of their own.
        teacher: `Teacher.identity`.
        batch_size: how many sequences are written side by side. The samples of a prompt stay together, unless they
            alone are more than that; each of a prompt's beams is a sequence too.
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
    """Requests in batches by length, and how many of them belong together; all questions have as many samples."""
    # Equal lengths are told apart by content: the order of the data does not matter.
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

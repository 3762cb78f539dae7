"""The time of each part of a round, measured on this machine: reading n tokens, drafting n, and the rest.

Parts are timed in the order in which the loop runs them (draft, read, judge), since a draft that has just run has its
weights in the processor's cache, and one that runs after the target has not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from potstill.decoding.acceptance import Chance
from potstill.decoding.drafts import Draft, Proposal, Reads
from potstill.decoding.rows import Rows
from potstill.decoding.sampler import Sampler
from potstill.decoding.speculative import judge, read_ahead
from potstill.speculate.forecast import Floats, Timing
from potstill.speculation import Costs

REPETITIONS = 7
RESAMPLINGS = 20

R = TypeVar("R")


@dataclass(frozen=True)
class Timed:
    """Seconds of every repetition [R, most + 1]; the first column of `draft` is 0."""

    verify: Floats
    draft: Floats
    other: Floats
    prefill: float
    draft_prefill: float

    def medians(self) -> Timing:
        """The median of each part."""
        return self._timing(np.arange(len(self.verify)))

    def resampled(self, seed: int) -> list[Timing]:
        """Medians of repetitions drawn with replacement."""
        draws = np.random.default_rng(seed)
        return [self._timing(draws.integers(len(self.verify), size=len(self.verify))) for _ in range(RESAMPLINGS)]

    def costs(self, batch_size: int) -> Costs:
        """The medians as a record."""
        medians = self.medians()
        verify, draft, other = (tuple(map(float, part)) for part in (medians.verify, medians.draft, medians.other))
        return Costs(batch_size, verify, draft[1:], other, self.prefill, self.draft_prefill)

    def _timing(self, chosen: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> Timing:
        verify, draft, other = (np.median(part[chosen], axis=0) for part in (self.verify, self.draft, self.other))
        return Timing(verify, draft, other, self.prefill, self.draft_prefill)


@torch.no_grad()
def measure(
    target: Reads,
    draft: Draft | None,
    texts: Sequence[Sequence[int]],
    prompt_tokens: int,
    sampler: Sampler,
    most: int,
    device: torch.device,
    advance: Callable[[float], None],
) -> Timed:
    """Time each part of a round for 0 to `most` drafted tokens.

    Args:
        target: the target.
        draft: a model draft that never stops early; None times the target alone.
        texts: token ids, one text a row, each more than `most` + 1 tokens long.
        prompt_tokens: how many of them a prompt has, for the time of the first reading.
        sampler: how tokens are chosen.
        most: largest number of drafted tokens.
        device: of the tensors.
        advance: called after each repetition.
    """
    clock = _Clock(device)
    starting = [list(text[: min(prompt_tokens, len(text) - most - 1)]) for text in texts]
    chance = Chance(0, device)
    prefill = draft_prefill = 0.0
    for _ in range(2):  # the first warms up
        rows = Rows(starting, most + 1, target.vocab_size, device)
        target.start(rows.capacity)
        if draft is not None:
            draft.start(rows, target)
        prefill, _ = clock.of(read_ahead, target, rows)
        if draft is not None:
            draft_prefill, _ = clock.of(draft.propose, rows, 1, sampler, chance)
    rows = Rows([list(text[: len(text) - most - 1]) for text in texts], most + 1, target.vocab_size, device)
    for row, text in enumerate(texts):
        rows.ids_BT[row, len(text) - most - 1 : len(text)] = torch.tensor(text[-most - 1 :], device=device)
    target.start(rows.capacity)
    if draft is not None:
        draft.start(rows, target)
    read_ahead(target, rows)
    if draft is not None:
        draft.propose(rows, most, sampler, chance)
        draft.roll_back(rows)
    shape = (REPETITIONS, most + 1)
    verify, drafting, other = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    order = np.random.default_rng(0)
    for repetition in range(-1, REPETITIONS):  # the first warms up
        for count in map(int, order.permutation(most + 1)):
            proposal, spent = Proposal([0] * len(texts)), 0.0
            if draft is not None and count:
                spent, proposal = clock.of(draft.propose, rows, count, sampler, chance)
            starts = [length - 1 for length in rows.lengths]
            block = rows.block(starts, count + 1)
            made = proposal if proposal.most == count else Proposal([count] * len(texts))
            read, logits = clock.of(target, block, starts, None, made.tree)
            rest, _ = clock.of(_judge, target, logits, block, made, rows, sampler, chance)
            if draft is not None:
                draft.roll_back(rows)
            if repetition >= 0:
                verify[repetition, count], drafting[repetition, count], other[repetition, count] = read, spent, rest
        advance(min(repetition + 1, 1))
    once = drafting[:, 1].mean() if most else 0.0
    return Timed(verify, drafting, other, prefill, max(0.0, draft_prefill - once))


def _judge(
    target: Reads,
    logits: torch.Tensor,
    block: torch.Tensor,
    proposal: Proposal,
    rows: Rows,
    sampler: Sampler,
    chance: Chance,
) -> None:
    target.settle([stood.places for stood in judge(logits, block, proposal, rows, sampler, chance)])


class _Clock:
    """Seconds of a call, with the device's queue empty before and after."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def of(self, call: Callable[..., R], *given: Any) -> tuple[float, R]:
        self._wait()
        begun = time.perf_counter()
        result = call(*given)
        self._wait()
        return time.perf_counter() - begun, result

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

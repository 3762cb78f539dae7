"""Times on this machine: of each part of a round (reading n tokens, drafting n, the rest), from which a forecast is
made; and of whole texts, with a draft and without, which it is held against.

Parts are timed in the order in which the loop runs them (draft, read, judge), since a draft that has just run has its
weights in the processor's cache, and one that runs after the target has not.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch

from potstill.decoding.acceptance import Chance
from potstill.decoding.drafts import Draft, Proposal, Reads
from potstill.decoding.rows import Rows
from potstill.decoding.sampler import Sampler
from potstill.decoding.speculative import Account, Request, SpeculativeDecoder, judge, read_prompts
from potstill.measures import Interval
from potstill.speculate.forecast import DRAWS, LEVEL, Floats, Timing
from potstill.speculation import Costs, Trial

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
        prefill, _ = clock.of(read_prompts, target, rows)
        if draft is not None:
            draft_prefill, _ = clock.of(draft.propose, rows, 1, sampler, chance)
    rows = Rows([list(text[: len(text) - most - 1]) for text in texts], most + 1, target.vocab_size, device)
    for row, text in enumerate(texts):
        rows.ids_BT[row, len(text) - most - 1 : len(text)] = torch.tensor(text[-most - 1 :], device=device)
    target.start(rows.capacity)
    if draft is not None:
        draft.start(rows, target)
    read_prompts(target, rows)
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


# ---- whole texts ---------------------------------------------------------------------------------------------------


@dataclass
class Runs:
    """Seconds and tokens of every prompt, and what its decoding did."""

    seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    accounts: list[Account] = field(default_factory=list)

    @property
    def per_second(self) -> float:
        """Tokens per second."""
        return sum(self.tokens) / sum(self.seconds)


def run_in_turn(
    decoders: Sequence[SpeculativeDecoder],
    prompts: Sequence[Sequence[int]],
    budget: int,
    stops: Sequence[int],
    sampler: Sampler,
    advance: Callable[[float], None],
) -> list[Runs]:
    """Every decoder on every prompt; the order turns with each prompt, so that other load falls on all alike."""
    runs = [Runs() for _ in decoders]
    for number, prompt in enumerate(prompts):
        turn = list(range(len(decoders)))
        for place in turn[number % len(turn) :] + turn[: number % len(turn)]:
            begun = time.perf_counter()
            (written,) = decoders[place].write(Request([prompt], budget, stops, sampler), seed=number)
            runs[place].seconds.append(time.perf_counter() - begun)
            runs[place].tokens.append(len(written))
            runs[place].accounts.append(decoders[place].account)
        advance(1)
    return runs


def compare(
    alone: Runs, drafted: Runs, *, temperature: float, gamma: int, threshold: float, predicted: Interval
) -> Trial:
    """The speed-up of the drafted runs, with an interval over prompts."""
    stood = Counter(accepted for account in drafted.accounts for _, accepted in account.accepted_by_round)
    rounds = sum(account.rounds for account in drafted.accounts)
    draft, verify, other = (
        sum(getattr(account, f"{part}_seconds") for account in drafted.accounts) / rounds
        for part in ("draft", "verify", "other")
    )
    return Trial(
        temperature=temperature,
        gamma=gamma,
        threshold=threshold,
        speedup=speedup(alone, drafted),
        predicted=predicted,
        tokens_per_second=drafted.per_second,
        alone_per_second=alone.per_second,
        accepted=tuple(stood[count] for count in range(max(stood) + 1)),
        draft_seconds=draft,
        verify_seconds=verify,
        other_seconds=other,
    )


def speedup(alone: Runs, drafted: Runs, seed: int = 0) -> Interval:
    """Seconds per token alone ÷ drafted, with a bootstrap interval over prompts, which are paired."""
    columns = np.array([alone.seconds, alone.tokens, drafted.seconds, drafted.tokens], dtype=float)

    def ratio(sums: Floats) -> Floats:
        return np.asarray((sums[0] / sums[1]) / (sums[2] / sums[3]))

    picks = np.random.default_rng(seed).integers(columns.shape[1], size=(DRAWS, columns.shape[1]))
    low, high = np.quantile(ratio(columns[:, picks].sum(-1)), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    value = float(ratio(columns.sum(-1)))
    return Interval(value, float(min(low, value)), float(max(high, value)))

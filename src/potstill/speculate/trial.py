"""Decode with a draft and without, in turn, prompt by prompt, and compare seconds per token."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from potstill.decoding.sampler import Sampler
from potstill.decoding.speculative import Account, Request, SpeculativeDecoder
from potstill.measures import Interval
from potstill.speculate.forecast import DRAWS, LEVEL, Floats
from potstill.speculation import Trial


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

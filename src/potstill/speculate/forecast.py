"""How long a text takes with a draft, computed from what was measured: acceptance per token, and the time of each part.

A text that the target wrote tells more than a mean acceptance. Given the text x, the drafted token at position t stands
with probability min(1, q(x_t)/p(x_t)), independently of what follows, since the text has the target's distribution
whatever was drafted (Leviathan et al. 2022, theorem 1). So the expected number of rounds over a text is a sum over the
positions at which a round may begin, and no assumption of equal or independent acceptance is made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from potstill.measures import Interval

Floats = NDArray[np.float64]

LEVEL = 0.95
DRAWS = 400


@dataclass(frozen=True)
class Trace:
    """One text of the target, and what the drafts would have made of it.

    Attributes:
        length: T, tokens written.
        budget: the most tokens that it could have had.
        accept: probability that the token at each position stands when the model draft proposes it [T]; None without a
            model.
        sure: the model draft's largest probability at each position [T]; None likewise.
        found: drafted tokens of a lookup at each position, and how many of them are the text's own [T, 2]; None
            without a lookup.
        ranks: the rank of the text's next tokens among the choices of each depth (of each head), in a round that
            begins at each position [T, depth]; None without a tree.
        nodes: of the tree of heads or of a model, best first.
    """

    length: int
    budget: int
    accept: Floats | None = None
    sure: Floats | None = None
    found: NDArray[np.int64] | None = None
    ranks: NDArray[np.int64] | None = None
    nodes: tuple[tuple[int, ...], ...] = ()

    def matched(self, t: int, most: int) -> int:
        """How many tokens of a tree of the first `most` nodes are the text's own, in a round that begins at t."""
        ranks = () if self.ranks is None else tuple(map(int, self.ranks[t]))
        depth, known = 0, self._known
        while depth < len(ranks) and known.get(ranks[: depth + 1], most) < most:
            depth += 1
        return depth

    @cached_property
    def _known(self) -> dict[tuple[int, ...], int]:
        return {node: place for place, node in enumerate(self.nodes)}


@dataclass(frozen=True)
class Timing:
    """Seconds of the parts of a round, by number of tokens.

    Attributes:
        verify: [most + 1], of reading 1, 2, … tokens.
        draft: [most + 1], of drafting 0, 1, … tokens.
        other: [most + 1], of the rest, with 0, 1, … drafted tokens.
        prefill: of the target.
        draft_prefill: of the draft.
    """

    verify: Floats
    draft: Floats
    other: Floats
    prefill: float = 0.0
    draft_prefill: float = 0.0

    @property
    def alone(self) -> float:
        """Seconds of one token of the target alone."""
        return float(self.verify[0] + self.other[0])

    def round(self, drafted: int, steps: int) -> float:
        """Seconds of a round with `drafted` tokens, for which the draft ran `steps` times."""
        return float(self.draft[steps] + self.verify[drafted] + self.other[drafted])


def expected(trace: Trace, timing: Timing, gamma: int, threshold: float = 0.0) -> tuple[float, float]:
    """(rounds, seconds) that a text is expected to take with drafts of `gamma` tokens, behind its first token, which
    comes with the prompt."""
    starts = np.zeros(trace.length)
    starts[1:2] = 1.0
    rounds = seconds = 0.0
    surely = float((trace.sure >= threshold).mean()) if trace.sure is not None else 1.0
    for t in range(trace.length):
        weight = float(starts[t])
        if weight == 0.0:
            continue
        stands, cost = _round(trace, timing, t, min(gamma, trace.budget - t - 1), threshold, surely)
        rounds += weight
        seconds += weight * cost
        reach = stands[: trace.length - t - 1]  # k tokens stand: the next round begins at t + k + 1
        starts[t + 1 : t + 1 + len(reach)] += weight * np.asarray(reach)
    return rounds, seconds


def _round(
    trace: Trace, timing: Timing, t: int, most: int, threshold: float, surely: float
) -> tuple[Sequence[float], float]:
    """Of a round that begins at t: the probabilities that 0, 1, … drafted tokens stand, and its expected seconds."""
    if most < 1:
        return [1.0], timing.round(0, 0)
    if trace.found is not None and (count := min(int(trace.found[t, 0]), most)) > 0:
        matched = min(int(trace.found[t, 1]), count)
        return [0.0] * matched + [1.0], timing.verify[count] + timing.other[count]
    if trace.ranks is not None:
        drafted = min(most, len(trace.nodes))
        return [0.0] * trace.matched(t, drafted) + [1.0], timing.round(drafted, drafted)
    if trace.accept is None or trace.sure is None:
        return [1.0], timing.round(0, 0)
    accept, sure = trace.accept[t : t + most], trace.sure[t : t + most]
    # Once a drafted token is not the text's, how sure the draft is of what follows is unknown: its mean is taken.
    beyond = [0.0] * (most + 1)
    beyond[most] = timing.round(most, most)
    for drafted in range(most - 1, 0, -1):
        stop = timing.round(drafted, drafted + 1) if surely < 1 else 0.0
        beyond[drafted] = surely * beyond[drafted + 1] + (1 - surely) * stop
    stands, cost, here = [], 0.0, 1.0
    for place in range(most):
        if place == len(accept):  # behind the text's end token
            stands.append(here)
            return stands, cost + here * beyond[max(place, 1)]
        if sure[place] < threshold:
            stands.append(here)
            return stands, cost + here * timing.round(place, place + 1)
        missed = here * (1 - float(accept[place]))
        stands.append(missed)
        cost += missed * beyond[place + 1]
        here -= missed
    stands.append(here)
    return stands, cost + here * timing.round(most, most)


@dataclass(frozen=True)
class Gain:
    """Speed-up over the target alone, and tokens a round."""

    speedup: Interval
    tokens_per_round: float


def gain(traces: Sequence[Trace], timings: Sequence[Timing], gamma: int, threshold: float = 0.0, seed: int = 0) -> Gain:
    """The speed-up over all texts, with an interval over texts and over repetitions of the timing.

    Args:
        traces: one per text.
        timings: the medians first, then one timing per resampling of the repetitions (may be none).
        gamma: drafted tokens a round.
        threshold: see `ModelDraft`.
        seed: of the draws.
    """
    medians, resampled = timings[0], timings[1:]
    parts = np.array([expected(trace, medians, gamma, threshold) for trace in traces])
    behind = np.array([trace.length - 1 for trace in traces], dtype=float)  # the first token comes with the prompt
    alone = medians.prefill + behind * medians.alone
    withdraft = medians.prefill + medians.draft_prefill + parts[:, 1]
    value = float(alone.sum() / withdraft.sum())
    draws = np.random.default_rng(seed)
    picks = draws.integers(len(traces), size=(DRAWS, len(traces)))
    ratios = alone[picks].sum(1) / withdraft[picks].sum(1)
    if resampled:
        # What noise of the timing does to the ratio, by one factor a resampling, from a few texts.
        factors = np.array([_ratio(traces, timing, gamma, threshold) for timing in resampled])
        factors /= _ratio(traces, medians, gamma, threshold)
        ratios = ratios * draws.choice(factors, size=DRAWS)
    low, high = np.quantile(ratios, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    speedup = Interval(value, float(min(low, value)), float(max(high, value)))
    return Gain(speedup, float(behind.sum() / max(parts[:, 0].sum(), 1.0)))


_FEW = 4


def _ratio(traces: Sequence[Trace], timing: Timing, gamma: int, threshold: float) -> float:
    few = traces[:_FEW]
    seconds = sum(expected(trace, timing, gamma, threshold)[1] for trace in few)
    alone = sum(trace.length - 1 for trace in few) * timing.alone
    return (len(few) * timing.prefill + alone) / (len(few) * (timing.prefill + timing.draft_prefill) + seconds)


def expected_speedup(traces: Sequence[Trace], timing: Timing, gamma: int, threshold: float = 0.0) -> float:
    """The speed-up of the rounds behind the prompts, over all texts."""
    seconds = sum(expected(trace, timing, gamma, threshold)[1] for trace in traces)
    return sum(trace.length - 1 for trace in traces) * timing.alone / seconds if seconds else 1.0


# ---- what would have to change ---------------------------------------------------------------------------------


def tokens_at(alpha: float, gamma: int) -> float:
    """Expected tokens a round if each drafted token stands with probability alpha, independently: 1 + α + … + α^γ."""
    return float(sum(alpha**i for i in range(gamma + 1)))


def needed_alpha(timing: Timing, gamma: int) -> float | None:
    """The acceptance per token at which a round of `gamma` drafted tokens costs what its tokens cost alone; None where
    even a draft that is always right gains nothing."""
    asked = timing.round(gamma, gamma) / timing.alone
    return _root(lambda alpha: tokens_at(alpha, gamma) - asked)


def needed_c(timing: Timing, gamma: int, tokens_per_round: float) -> float | None:
    """The draft's seconds per token by the target's at which a round breaks even, with the tokens that it gives now;
    None where even a draft that costs nothing would not."""
    rest = tokens_per_round * timing.alone - float(timing.verify[gamma] + timing.other[gamma])
    return rest / gamma / float(timing.verify[0]) if rest > 0 else None


def _root(rising: Callable[[float], float]) -> float | None:
    """Where a rising function on [0, 1] crosses 0; None if it stays below."""
    low, high = 0.0, 1.0
    if rising(high) <= 0:
        return None
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return high

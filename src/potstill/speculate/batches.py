"""How long a batch of texts takes with a draft: its rounds are played out, since a round is one block for all rows.

Each round reads as many tokens as the row with most of them has drafted, goes on until the last row has ended, and has
fewer rows once some have ended. A chain asks its model as soon as one row has found nothing. None of this is seen from
one row; `forecast.py` has the closed sum for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from potstill.measures import Interval
from potstill.speculate.forecast import DRAWS, LEVEL, Floats, Gain, Timing, Trace

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Rounds:
    """What happened in batches, counted for each draw of texts.

    Attributes:
        drafted: rounds by rows, drafted tokens and runs of the draft [draws, B + 1, γ + 1, γ + 1].
        alone: tokens of the target alone by rows [draws, B + 1].
        row_rounds: rounds of all rows, each counted [draws].
        tokens: of all rows, behind their first [draws].
        batches: of a draw.
    """

    drafted: Floats
    alone: Floats
    row_rounds: Floats
    tokens: Floats
    batches: int

    def speedups(self, timings: Mapping[int, Timing]) -> Floats:
        """Seconds alone ÷ with the draft, of each draw, given the times at some batch sizes."""
        most, gamma = self.alone.shape[1] - 1, self.drafted.shape[2] - 1
        verify, other, draft = (
            _by_rows({rows: getattr(timing, part) for rows, timing in timings.items()}, most)[:, : gamma + 1]
            for part in ("verify", "other", "draft")
        )
        whole = timings[max(timings)]
        seconds = self.alone @ (verify[:, 0] + other[:, 0])
        costs = (verify + other)[:, :, None] + draft[:, None, :]
        with_draft = np.tensordot(self.drafted, costs, 3)
        prompts = self.batches * whole.prefill
        found: Floats = (prompts + seconds) / (prompts + self.batches * whole.draft_prefill + with_draft)
        return found


def _by_rows(known: Mapping[int, Floats], most: int) -> Floats:
    """A part's seconds at 0, 1, … `most` rows, linear between the batch sizes that were timed."""
    sizes = sorted(known)
    columns = np.array([known[size] for size in sizes]).T
    return np.array([np.interp(np.arange(most + 1), sizes, column) for column in columns]).T


def gain_of_batches(
    traces: Sequence[Trace],
    timings: Mapping[int, Sequence[Timing]],
    batch_size: int,
    gamma: int,
    threshold: float = 0.0,
    seed: int = 0,
    plays: int = DRAWS,
) -> Gain:
    """The speed-up over the target alone in batches of texts like these, with an interval over texts and over
    repetitions of the timing.

    Args:
        traces: one per text.
        timings: at some batch sizes up to this one: the medians first, then one timing per resampling of the
            repetitions (may be none; as many for all sizes).
        batch_size: rows.
        gamma: drafted tokens a round.
        threshold: see `ModelDraft`.
        seed: of the draws.
        plays: how often as many texts are drawn and played out.
    """
    draws = np.random.default_rng(seed)
    batches = -(-len(traces) // batch_size)
    picks = draws.integers(len(traces), size=(plays, batches, batch_size))
    rounds = play(traces, picks, gamma, threshold, draws)
    ratios = rounds.speedups({rows: found[0] for rows, found in timings.items()})
    value = float(np.mean(ratios))
    resampled = min(len(found) for found in timings.values()) - 1
    if resampled:
        noisy = [rounds.speedups({rows: found[1 + i] for rows, found in timings.items()}) for i in range(resampled)]
        ratios = np.stack(noisy)[draws.integers(resampled, size=plays), np.arange(plays)]
    low, high = np.quantile(ratios, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    speedup = Interval(value, float(min(low, value)), float(max(high, value)))
    return Gain(speedup, float(rounds.tokens.sum() / max(rounds.row_rounds.sum(), 1.0)))


def play(traces: Sequence[Trace], picks: Ints, gamma: int, threshold: float, draws: np.random.Generator) -> Rounds:
    """Play the rounds of batches out, as the loop runs them.

    Args:
        traces: one per text.
        picks: which texts each batch has [draws, batches, B].
        gamma: drafted tokens a round.
        threshold: see `ModelDraft`.
        draws: whether a token stands that is accepted with some probability.
    """
    count, batches, rows = picks.shape
    draw_of = np.repeat(np.arange(count), batches)
    texts = picks.reshape(-1, rows)
    known = _Known(traces, gamma, threshold)
    lengths, budgets = known.lengths[texts], known.budgets[texts]
    drafted = np.zeros((count, rows + 1, gamma + 1, gamma + 1))
    row_rounds = np.zeros(count)
    at = np.ones_like(texts)  # the first token comes with the prompt
    while (going := at < lengths).any():
        left = np.where(going, budgets - at, 0).max(1)
        many, steps, stood = known.round(texts, at, going, np.minimum(gamma, left - 1).clip(0), draws)
        alive = going.sum(1)
        some = alive > 0
        np.add.at(drafted, (draw_of[some], alive[some], many[some], steps[some]), 1.0)
        np.add.at(row_rounds, draw_of, alive)
        at = np.where(going, np.minimum(at + stood + 1, lengths), at)
    alone = np.zeros((count, rows + 1))
    for step in range(1, int(lengths.max())):
        alive = (step < lengths).sum(1)
        np.add.at(alone, (draw_of[alive > 0], alive[alive > 0]), 1.0)
    tokens = np.bincount(draw_of, (lengths - 1).sum(1), count).astype(np.float64)
    return Rounds(drafted, alone, row_rounds, tokens, batches)


class _Known:
    """The traces as tables [texts, positions]."""

    def __init__(self, traces: Sequence[Trace], gamma: int, threshold: float) -> None:
        self._gamma, self._threshold = gamma, threshold
        self.lengths = np.array([trace.length for trace in traces])
        self.budgets = np.array([trace.budget for trace in traces])
        shape = (len(traces), int(self.lengths.max()) + gamma)
        self._found = np.zeros((*shape, 2), dtype=np.int64)
        self._accept, self._sure = np.zeros(shape), np.zeros(shape)
        self._matched = np.zeros((gamma + 1, *shape), dtype=np.int64)
        first = traces[0]
        self._looks_up, self._has_model = first.found is not None, first.accept is not None
        self._nodes = len(first.nodes) if first.ranks is not None else 0
        for text, trace in enumerate(traces):
            if trace.found is not None:
                self._found[text, : trace.length] = trace.found
            if trace.accept is not None and trace.sure is not None:
                self._accept[text, : trace.length], self._sure[text, : trace.length] = trace.accept, trace.sure
            if trace.ranks is not None:
                for many in range(gamma + 1):
                    self._matched[many, text, : trace.length] = [trace.matched(t, many) for t in range(trace.length)]
        sure = [trace.sure for trace in traces if trace.sure is not None]
        self._surely = float((np.concatenate(sure) >= threshold).mean()) if sure else 1.0

    def round(
        self, texts: Ints, at: Ints, going: NDArray[np.bool_], most: Ints, draws: np.random.Generator
    ) -> tuple[Ints, Ints, Ints]:
        """Of each batch the drafted tokens and the runs of the draft, of each row how many tokens stand."""
        many, steps, stood = np.zeros_like(most), np.zeros_like(most), np.zeros_like(at)
        asks = most > 0  # the model or the heads
        if self._looks_up:
            found = np.where(going[..., None], self._found[texts, at], 0)
            counts = np.minimum(found[..., 0], most[:, None])
            several = self._has_model or self._nodes > 0
            found_all = np.asarray(((counts > 0) | ~going).all(1) if several else (counts > 0).any(1))
            many = np.where(found_all, counts.max(1), 0)
            stood = np.where(found_all[:, None], np.minimum(found[..., 1], counts), 0)
            asks = asks & ~found_all
        if self._nodes:
            nodes = np.where(asks, np.minimum(most, self._nodes), 0)
            stood = np.where(asks[:, None], self._matched[nodes[:, None], texts, at], stood)
            return np.where(asks, nodes, many), nodes, stood
        if self._has_model:
            drafted, steps, stand = self._model_round(texts, at, going, np.where(asks, most, 0), draws)
            many, stood = np.where(asks, drafted, many), np.where(asks[:, None], stand, stood)
        return many, steps, stood

    def _model_round(
        self, texts: Ints, at: Ints, going: NDArray[np.bool_], most: Ints, draws: np.random.Generator
    ) -> tuple[Ints, Ints, Ints]:
        counts, stood, steps = np.zeros_like(at), np.zeros_like(at), np.zeros_like(most)
        drafting, own = going.copy(), going.copy()  # has not stopped; has drafted the text's own tokens so far
        for place in range(self._gamma):
            here = np.minimum(at + place, self._accept.shape[1] - 1)
            steps += (place < most) & drafting.any(1)
            if self._threshold:
                # Off the text how sure the draft is, is unknown: its mean is taken.
                known = own & (at + place < self.lengths[texts])
                drafting &= np.where(
                    known, self._sure[texts, here] >= self._threshold, draws.random(at.shape) < self._surely
                )
            drafts = drafting & (place < most)[:, None]
            own &= draws.random(at.shape) < self._accept[texts, here]
            counts += drafts
            stood += drafts & own
        return counts.max(1), steps, stood

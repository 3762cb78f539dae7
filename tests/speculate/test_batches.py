"""Claims about forecasts of batches: against the loop itself, row by row of each round."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from potstill.decoding.cached_model import CachedModel
from potstill.decoding.drafts import ChainedDraft, Draft, LookupDraft, ModelDraft
from potstill.decoding.medusa import MedusaDraft
from potstill.decoding.speculative import Request, SpeculativeDecoder
from potstill.speculate.advice import fit_threshold
from potstill.speculate.batches import gain_of_batches, play
from potstill.speculate.forecast import Timing, Trace, expected, gain
from potstill.speculate.traces import agreement, head_ranks, lookups, sampler_of, trace_of, write_text
from tiny_models import random_heads, tiny_model

BUDGET, CPU = 40, torch.device("cpu")
PROMPTS = [[5, 9, 30], [7, 7, 8, 7, 7], list(range(40, 60)), [9], [30, 9, 30, 9]]
NODES = (*((rank,) for rank in range(6)), *((first, second) for first in range(6) for second in range(6)))


class Counting(CachedModel):
    """Counts its blocks by rows and drafted tokens."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.blocks: Counter[tuple[int, int]] = Counter()

    def __call__(self, tokens_Bn: Tensor, starts: Sequence[int], *rest: Any, **more: Any) -> Tensor:
        self.blocks[len(starts), tokens_Bn.shape[1] - 1] += 1
        return super().__call__(tokens_Bn, starts, *rest, **more)


def near() -> CachedModel:
    return CachedModel(tiny_model(seed=3, spread=0.29))


DRAFTS: dict[str, Callable[[CachedModel], Draft]] = {
    "model": lambda target: ModelDraft(near()),
    "lookup": lambda target: LookupDraft(),
    "chained": lambda target: ChainedDraft([LookupDraft(), ModelDraft(near())]),
    "stopped": lambda target: ModelDraft(near(), threshold=0.15),
    "heads": lambda target: MedusaDraft(random_heads(target.model, 2), NODES),
}


def traces_of(target: CachedModel, kind: str, gamma: int, stops: Sequence[int]) -> tuple[list[Trace], list[list[int]]]:
    alone, sampler, traces, texts = SpeculativeDecoder(target), sampler_of(0), [], []
    for prompt in PROMPTS:
        text = write_text(alone, prompt, BUDGET, stops, sampler, 0)
        texts.append(list(text.written))
        agreed = agreement(target, near(), text, sampler, CPU) if kind in ("model", "chained", "stopped") else None
        found = lookups(LookupDraft(), text, gamma, target.vocab_size) if kind in ("lookup", "chained") else None
        heads = kind == "heads"
        ranks = head_ranks(target.model, random_heads(target.model, 2), text, 6) if heads else None
        traces.append(trace_of(text, BUDGET, agreed, found, ranks, NODES if heads else ()))
    return traces, texts


@torch.no_grad()
@pytest.mark.parametrize("kind", DRAFTS)
@pytest.mark.parametrize("gamma", [1, 5])
def test_of_greedy_texts_a_batch_has_the_rounds_that_the_loop_has(kind: str, gamma: int) -> None:
    """How many, how many rows each has, and how many tokens it reads: rows end one after another, some by a token."""
    target = Counting(tiny_model(seed=3, spread=0.3))
    whole = [write_text(SpeculativeDecoder(target), p, BUDGET, [], sampler_of(0), 0).written for p in PROMPTS]
    stops = [whole[1][11], whole[3][25]]
    traces, texts = traces_of(target, kind, gamma, stops)
    assert len({trace.length for trace in traces}) > 2
    target.blocks.clear()
    decoder = SpeculativeDecoder(target, DRAFTS[kind](target), gamma=gamma)
    assert decoder.write(Request(PROMPTS, BUDGET, stops)) == texts
    target.blocks[len(PROMPTS), max(map(len, PROMPTS)) - 1] -= 1  # the prompts
    threshold = 0.15 if kind == "stopped" else 0.0
    rounds = play(traces, np.arange(len(PROMPTS))[None, None], gamma, threshold, np.random.default_rng(0))
    played = rounds.drafted[0].sum(-1)
    if kind == "stopped":  # once a drafted token is wrong, how sure the draft is of the next is not known
        assert played.sum() == decoder.account.rounds
    else:
        wanted = np.zeros_like(played)
        for (rows, drafted), count in target.blocks.items():
            if count:
                wanted[rows, drafted] = count
        assert (played == wanted).all()
    assert rounds.row_rounds[0] == len(decoder.account.accepted_by_round)
    assert decoder.account.accepted > 3, "or nothing was tested"


def test_a_batch_of_one_is_expected_to_have_the_rounds_of_the_sum() -> None:
    rng = np.random.default_rng(0)
    trace = Trace(60, 64, rng.uniform(0.2, 0.9, 60), rng.uniform(0, 1, 60))
    counts = np.arange(6)
    timing = Timing(1 + 0.2 * counts, 0.1 * counts, 0.01 * counts, prefill=2.0, draft_prefill=0.5)
    for threshold in (0.0, 0.3):
        played = play([trace], np.zeros((4000, 1, 1), dtype=np.int64), 5, threshold, np.random.default_rng(1))
        error = played.row_rounds.std() / np.sqrt(len(played.row_rounds))
        assert abs(played.row_rounds.mean() - expected(trace, timing, 5, threshold)[0]) < 4 * error
        found = played.speedups({1: timing})
        value = gain([trace], [timing], 5, threshold).speedup.value
        assert abs(1 / (1 / found).mean() - value) < 4 * found.std() / np.sqrt(len(found)), "ratios of equal numerators"


def test_sampled_rows_of_a_batch_have_the_rounds_that_the_loop_has_on_average() -> None:
    target, draft = CachedModel(tiny_model(seed=3, spread=0.3)), CachedModel(tiny_model(seed=3, spread=0.25))
    sampler, prompts, rounds, traces = sampler_of(0.8, 0.9), PROMPTS[:3], [], []
    for seed in range(60):
        decoder = SpeculativeDecoder(target, ModelDraft(draft), gamma=3)
        decoder.write(Request(prompts, 12, [], sampler), seed)
        rounds.append(decoder.account.rounds)
        for number, prompt in enumerate(prompts):
            text = write_text(SpeculativeDecoder(target), prompt, 12, [], sampler, 1000 + 10 * seed + number)
            traces.append(trace_of(text, 12, agreement(target, draft, text, sampler, CPU), None))
    picks = np.arange(len(traces)).reshape(60, 1, 3)
    played = play(traces, picks, 3, 0.0, np.random.default_rng(0)).drafted.sum((1, 2, 3))
    assert np.mean(rounds) < 10.5, "or nothing was accepted"
    error = np.hypot(np.std(rounds), np.std(played)) / np.sqrt(len(rounds))
    assert abs(np.mean(rounds) - played.mean()) < 3 * error


def test_one_row_that_is_never_right_holds_no_other_back_but_makes_their_blocks_longer() -> None:
    """Times of two batch sizes; a batch whose second row ends early goes on at the times of one row."""
    counts = np.arange(3)
    timings = {
        1: [Timing(1 + 0.0 * counts, 0.0 * counts, 0.0 * counts)],
        2: [Timing(1 + counts, 0 * counts, 0 * counts)],
    }
    right = Trace(41, 100, found=np.tile([2, 2], (41, 1)))
    never = Trace(11, 100, found=np.zeros((11, 2), dtype=np.int64))
    played = play([right, never], np.array([[[0, 1]]]), 2, 0.0, np.random.default_rng(0))
    found = played.speedups({rows: timing[0] for rows, timing in timings.items()})
    # Alone: 10 steps of two rows and 30 of one, a second each. Drafted: of 14 rounds of three tokens ten have two rows.
    assert found[0] == pytest.approx(40 / (10 * 3 + 4 * 1))
    alone = gain_of_batches([never], timings, 2, 2)
    assert alone.speedup.value == alone.speedup.low == 1.0 and alone.tokens_per_round == 1.0


def test_a_threshold_is_fitted_for_the_batch_in_which_it_is_used() -> None:
    """A draft that knows how sure it is: stopping saves a row a round's time, and a batch only that of its last row."""
    rng, counts = np.random.default_rng(0), np.arange(9)
    sure = [rng.uniform(0, 1, 60) for _ in range(16)]
    traces = [Trace(60, 64, own, own) for own in sure]
    timings = {rows: Timing(1 + 0.3 * counts, 0.3 * counts, 0.0 * counts) for rows in (1, 8)}
    of_row, of_batch = (fit_threshold(traces, timings, 8, rows) for rows in (1, 8))

    def best(threshold: float) -> float:
        medians = {rows: [timing] for rows, timing in timings.items()}
        return max(gain_of_batches(traces, medians, 8, gamma, threshold, seed=5).speedup.value for gamma in range(1, 9))

    assert of_batch < 0.1 < 0.2 < of_row
    assert best(of_batch) > best(of_row) * 1.01

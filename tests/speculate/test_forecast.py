"""Claims about forecasts: against the loop itself, closed forms, and worked numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from potstill.decoding.cached_model import CachedModel, first_layers
from potstill.decoding.drafts import LookupDraft, ModelDraft
from potstill.decoding.medusa import MedusaDraft
from potstill.decoding.speculative import Request, SpeculativeDecoder
from potstill.measures import Interval
from potstill.recipe.speculate import ChainedDraftSettings, LayersDraft, LookupDraftSettings
from potstill.speculate.advice import WORTH, advise, fit_shortest, fit_threshold, hopeless
from potstill.speculate.forecast import (
    Timing,
    Trace,
    expected,
    gain,
    needed_alpha,
    needed_c,
    tokens_at,
)
from potstill.speculate.opening import OpenDraft
from potstill.speculate.traces import agreement, head_ranks, lookups, sampler_of, trace_of, write_text
from tiny_models import random_heads, tiny_model

BUDGET, CPU = 40, torch.device("cpu")


def timing(c: float, v: float, most: int = 8) -> Timing:
    """One token of the target takes a second; each further one in a block takes v more, each drafted one c."""
    counts = np.arange(most + 1)
    return Timing(1 + v * counts, c * counts, np.zeros(most + 1))


def even(alpha: float, length: int = 2000) -> Trace:
    return Trace(length, length + 100, np.full(length, alpha), np.full(length, 0.5))


def drafts() -> dict[str, OpenDraft]:
    target = CachedModel(tiny_model(seed=3, spread=0.3))
    near = tiny_model(seed=3, spread=0.29)
    layers, frequent = LayersDraft(layers=3), torch.arange(200)
    chained = ChainedDraftSettings(then=layers)
    exit_ = CachedModel(first_layers(target.model, 3), frequent, cache=target)
    return {
        "model": OpenDraft(layers, "", CachedModel(near), None, near),
        "frequent": OpenDraft(layers, "", exit_, None, None),
        "lookup": OpenDraft(LookupDraftSettings(), "", None, LookupDraft(), None),
        "chained": OpenDraft(chained, "", CachedModel(near), LookupDraft(), near),
    }


@pytest.mark.parametrize("kind", ["model", "frequent", "lookup", "chained"])
@pytest.mark.parametrize("threshold", [0.0, 0.15])
def test_of_greedy_text_the_forecast_has_the_rounds_that_the_loop_has(kind: str, threshold: float) -> None:
    draft = drafts()[kind]
    target = CachedModel(tiny_model(seed=3, spread=0.3))
    if draft.reader is not None and draft.reader.lends:
        draft = OpenDraft(
            draft.settings,
            "",
            CachedModel(first_layers(target.model, 3), draft.reader.vocabulary, cache=target),
            None,
            None,
        )
    alone, sampler = SpeculativeDecoder(target), sampler_of(0)
    seen = 0
    for gamma in (1, 3, 5):
        for prompt in ([5, 9, 30], [7, 7, 8, 7, 7], list(range(40, 60))):
            text = write_text(alone, prompt, BUDGET, [2], sampler, 0)
            agreed = agreement(target, draft.reader, text, sampler, CPU) if draft.reader is not None else None
            found = lookups(draft.lookup, text, gamma, target.vocab_size) if draft.lookup is not None else None
            decoder = SpeculativeDecoder(target, draft.drafting(threshold), gamma=gamma)
            (written,) = decoder.write(Request([prompt], BUDGET, [2], sampler))
            assert written == list(text.written)
            rounds, _ = expected(trace_of(text, BUDGET, agreed, found), timing(0.1, 0.1), gamma, threshold)
            assert rounds == pytest.approx(decoder.account.rounds)
            seen += decoder.account.accepted
    assert seen > 3, "or nothing was tested"


@torch.no_grad()
def test_of_greedy_text_the_forecast_of_heads_has_the_rounds_that_the_loop_has() -> None:
    """Each tree is made from the state behind the last token but one, wherever that token stood in the tree before."""
    model = tiny_model(seed=3, spread=0.3)
    target, heads, seen = CachedModel(model), random_heads(model, 2), 0
    alone, sampler = SpeculativeDecoder(target), sampler_of(0)
    nodes = (*((rank,) for rank in range(6)), *((first, second) for first in range(6) for second in range(6)))
    for prompt in ([5, 9, 30], [7, 7, 8, 7, 7], list(range(40, 60))):
        text = write_text(alone, prompt, BUDGET, [2], sampler, 0)
        decoder = SpeculativeDecoder(target, MedusaDraft(heads, nodes), gamma=len(nodes))
        (written,) = decoder.write(Request([prompt], BUDGET, [2], sampler))
        assert written == list(text.written)
        trace = trace_of(text, BUDGET, None, None, head_ranks(model, heads, text, 6), nodes)
        rounds, _ = expected(trace, timing(0.1, 0.1, len(nodes)), len(nodes))
        assert rounds == pytest.approx(decoder.account.rounds)
        seen += decoder.account.accepted
    assert seen > 3, "or nothing was tested"


def test_of_sampled_text_the_forecast_has_the_rounds_that_the_loop_has_on_average() -> None:
    """Given the text, acceptance is independent of it beyond each position: the forecast has no bias."""
    target, near = CachedModel(tiny_model(seed=3, spread=0.3)), CachedModel(tiny_model(seed=3, spread=0.25))
    sampler, prompt, rounds, forecasts = sampler_of(0.8, 0.9), [5, 9, 30], [], []
    for seed in range(150):
        decoder = SpeculativeDecoder(target, ModelDraft(near), gamma=3)
        decoder.write(Request([prompt], 12, [], sampler), seed)
        rounds.append(decoder.account.rounds)
        text = write_text(SpeculativeDecoder(target), prompt, 12, [], sampler, 1000 + seed)
        agreed = agreement(target, near, text, sampler, CPU)
        forecasts.append(expected(trace_of(text, 12, agreed, None), timing(0, 0), 3)[0])
    assert np.mean(rounds) < 11, "or nothing was accepted"
    error = np.hypot(np.std(rounds), np.std(forecasts)) / np.sqrt(len(rounds))
    assert abs(np.mean(rounds) - np.mean(forecasts)) < 3 * error


def test_acceptance_given_the_text_has_the_mean_of_the_overlap() -> None:
    """E over x ~ p of min(1, q(x)/p(x)) is Σ min(p, q)."""
    target, near = CachedModel(tiny_model(seed=3, spread=0.3)), CachedModel(tiny_model(seed=3, spread=0.25))
    sampler, given, overlap = sampler_of(1.0), [], []
    for seed in range(300):
        text = write_text(SpeculativeDecoder(target), [5, 9, 30], 1, [], sampler, seed)
        found = agreement(target, near, text, sampler, CPU)
        given.append(found.accept[0])
        overlap.append(found.alpha[0])
    assert np.mean(given) == pytest.approx(np.mean(overlap), abs=3 * np.std(given) / np.sqrt(300))
    assert 0.05 < np.mean(overlap) < 0.95


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("gamma", [1, 4])
def test_with_equal_acceptance_the_tokens_of_a_round_have_the_closed_form(alpha: float, gamma: int) -> None:
    found = gain([even(alpha)], [timing(0.1, 0.05)], gamma)
    assert found.tokens_per_round == pytest.approx(tokens_at(alpha, gamma), rel=0.01)
    cost = 1 + 0.15 * gamma
    assert found.speedup.value == pytest.approx(tokens_at(alpha, gamma) / cost, rel=0.01)


def test_the_break_even_acceptance_and_cost_break_even() -> None:
    times = timing(0.2, 0.1)
    alpha = needed_alpha(times, 4)
    assert alpha is not None
    assert gain([even(alpha)], [times], 4).speedup.value == pytest.approx(1, rel=0.01)
    found = gain([even(0.5)], [times], 4)
    cost = needed_c(times, 4, found.tokens_per_round)
    assert cost is not None
    assert gain([even(0.5)], [timing(cost, 0.1)], 4).speedup.value == pytest.approx(1, rel=0.01)


def test_a_draft_as_slow_as_its_target_is_hopeless_and_a_free_one_is_not() -> None:
    assert hopeless(timing(1.0, 0.1), 8)
    assert needed_alpha(timing(1.0, 0.1), 4) is None
    assert not hopeless(timing(0.1, 0.1), 8)


def test_advice_is_to_use_only_what_surely_gains_and_else_says_what_would_have_to_change() -> None:
    rng = np.random.default_rng(0)
    good = [even(a, 200) for a in rng.uniform(0.7, 0.9, 10)]
    found = advise(good, {1: [timing(0.1, 0.05)]}, 8, 0.0, 0.0, 1)
    assert found.use and found.reason.startswith("use it") and found.at_best.speedup.low > WORTH
    weak = [even(a, 200) for a in rng.uniform(0.0, 0.2, 10)]
    found = advise(weak, {1: [timing(0.3, 0.3)]}, 8, 0.0, 0.0, 1)
    assert not found.use and "because a round gives" in found.reason and "acceptance above" in found.reason
    assert "0.30" in found.reason, "the draft's cost"
    # A mean above 1 with an interval that is not is no reason to use it.
    mixed = [even(0.0, 200)] * 5 + [even(0.8, 200)] * 6
    found = advise(mixed, {1: [timing(0.15, 0.1)]}, 8, 0.0, 0.0, 1)
    assert isinstance(found.at_best.speedup, Interval)
    assert found.at_best.speedup.value > 1 > found.at_best.speedup.low
    assert not found.use and "may be less than 1.05" in found.reason
    # A sure gain of a few percent is within what forecasts miss.
    alpha = next(a for a in np.arange(0.0, 1.0, 0.005) if gain([even(a)], [timing(0.1, 0.1)], 1).speedup.value > 1.02)
    found = advise([even(float(alpha))], {1: [timing(0.1, 0.1)]}, 1, 0.0, 0.0, 1)
    assert 1 < found.at_best.speedup.low < WORTH
    assert not found.use
    hopeless_ = advise(weak, {1: [timing(1.2, 0.3)]}, 8, 0.0, 0.0, 1)
    assert "always right" in hopeless_.reason


def test_noise_of_the_timing_widens_the_interval() -> None:
    traces = [even(0.6, 100)] * 6
    calm = gain(traces, [timing(0.1, 0.1)], 3).speedup
    noisy = gain(traces, [timing(0.1, 0.1), timing(0.3, 0.3), timing(0.05, 0.02)], 3).speedup
    assert calm.high - calm.low < 0.01 < noisy.high - noisy.low


def test_the_shortest_n_gram_is_fitted_to_what_stands_of_what_it_finds() -> None:
    """Single tokens are found everywhere, pairs at every fourth place, of which all stand."""
    pairs, single = np.zeros((60, 2), dtype=np.int64), np.ones((60, 2), dtype=np.int64)
    pairs[::4] = 1
    for right, free, best in ((0, False, 2), (1, False, 1), (0, True, 1)):
        found = np.where(pairs > 0, pairs, single * [1, right])
        traces = {1: [[Trace(60, 64, found=found)]], 2: [[Trace(60, 64, found=pairs)]]}
        assert fit_shortest(traces, [timing(0.1, 0.0 if free else 0.3)], 3) == best


def test_a_threshold_is_fitted_where_sureness_tells_what_stands() -> None:
    rng = np.random.default_rng(0)
    sure = rng.uniform(0, 1, 400)
    telling = Trace(400, 500, (sure > 0.6).astype(float), sure)
    blind = Trace(400, 500, np.full(400, 0.6), np.full(400, 0.5))
    fitted = fit_threshold([telling], {1: timing(0.3, 0.3)}, 8, 1)
    assert 0.4 < fitted < 0.75
    assert _best([telling], fitted) > _best([telling], 0.0) * 1.05
    blindly = fit_threshold([blind], {1: timing(0.05, 0.05)}, 8, 1)
    assert _best([blind], blindly) == pytest.approx(_best([blind], 0.0))


def _best(traces: list[Trace], threshold: float) -> float:
    return max(gain(traces, [timing(0.3, 0.3)], gamma, threshold).speedup.value for gamma in range(1, 9))

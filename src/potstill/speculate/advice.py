"""From forecasts to a recommendation: use the draft, or do not, why, and what would have to change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from potstill.decoding.tree import Path as Node
from potstill.decoding.tree import Tree, best_nodes
from potstill.measures import Interval
from potstill.speculate.batches import gain_of_batches
from potstill.speculate.forecast import Timing, Trace, expected_speedup, gain, needed_alpha, needed_c
from potstill.speculate.traces import Ranks, chain_accuracies
from potstill.speculation import Advice, Forecast

# A forecast below this may be a loss: forecasts miss the measured speed-up by up to a tenth, and by more where few
# texts were seen (`benchmarks.advice`: 1.01 [1.01, 1.03] was advised once, and measured 0.86).
WORTH = 1.05
_PLAYS = 60
"""How often batches are played out for each threshold that is tried."""


def advise(
    traces: Sequence[Trace],
    timings: Mapping[int, Sequence[Timing]],
    most: int,
    threshold: float,
    temperature: float,
    batch_size: int,
) -> Advice:
    """The forecast of every gamma at one temperature and batch size.

    Args:
        traces: of texts that the target wrote at this temperature.
        timings: the medians first, then resampled ones; of this batch size, and of smaller ones, which a batch has once
            rows have ended.
        most: largest gamma.
        threshold: of the draft's confidence.
        temperature: 0 is greedy.
        batch_size: rows.
    """
    forecasts = []
    for gamma in range(1, most + 1):
        if batch_size == 1:
            found = gain(traces, timings[1], gamma, threshold)
        else:
            found = gain_of_batches(traces, timings, batch_size, gamma, threshold)
        forecasts.append(Forecast(gamma, found.tokens_per_round, found.speedup))
    best = max(forecasts, key=lambda forecast: forecast.speedup.value)
    tree = any(trace.ranks is not None for trace in traces)
    timing, has_model = timings[batch_size][0], not tree and any(trace.accept is not None for trace in traces)
    alpha = needed_alpha(timing, best.gamma) if has_model else None
    cost = needed_c(timing, best.gamma, best.tokens_per_round) if has_model else None
    use = best.speedup.low > WORTH
    return Advice(
        temperature=temperature,
        batch_size=batch_size,
        threshold=threshold,
        forecasts=tuple(forecasts),
        best=best.gamma,
        use=use,
        reason=_reason_of_a_tree(timing, best, use) if tree else _reason(timing, best, use, has_model, alpha, cost),
        needed_alpha=alpha,
        needed_c=cost,
    )


def fit_threshold(
    traces: Sequence[Trace], timings: Mapping[int, Timing], most: int, batch_size: int, candidates: int = 12
) -> float:
    """The threshold with the best forecast over all gammas up to `most`; 0 if stopping gains nothing.

    A batch has another one than a row: its draft goes on until the last row has stopped.

    Args:
        traces: of texts that the target wrote.
        timings: of this batch size, and of smaller ones.
        most: largest gamma.
        batch_size: rows.
        candidates: how many quantiles of the draft's sureness on these texts are tried.
    """
    sure = np.concatenate([trace.sure for trace in traces if trace.sure is not None] or [np.zeros(0)])
    if sure.size == 0:
        return 0.0
    medians = {rows: [timing] for rows, timing in timings.items()}

    def value(gamma: int, threshold: float) -> float:
        if batch_size == 1:
            return expected_speedup(traces, timings[1], gamma, threshold)
        return gain_of_batches(traces, medians, batch_size, gamma, threshold, plays=_PLAYS).speedup.value

    tried = [0.0, *np.quantile(sure, np.linspace(0.02, 0.9, candidates)).tolist()]
    gammas = [gamma for gamma in sorted({1, 2, 3, 4, most // 2, most} - {0}) if gamma <= most]
    return float(max(tried, key=lambda threshold: max(value(gamma, threshold) for gamma in gammas)))


def fit_shortest(traces: Mapping[int, Sequence[Sequence[Trace]]], timings: Sequence[Timing], most: int) -> int:
    """The shortest n-gram of a lookup with the best expected speed-up, as a product over temperatures, each at its best
    gamma up to `most`.

    Args:
        traces: by the shortest n-gram, of each temperature and text.
        timings: of each temperature.
        most: largest gamma.
    """

    def value(shortest: int) -> float:
        found = zip(traces[shortest], timings, strict=True)
        return float(np.prod([max(expected_speedup(of, at, g) for g in range(1, most + 1)) for of, at in found]))

    return max(traces, key=value)


def fit_tree(
    traces: Sequence[Trace], ahead: Sequence[Ranks], timing: Timing, most: int, choices: int
) -> tuple[Node, ...]:
    """The nodes of a model's tree with the best expected speed-up, best first; none if no tree is better than a chain.

    A tree of n nodes costs the target the reading of n + 1 tokens, and the draft one step a depth: so nodes go by their
    probability, and the depth by the forecast.

    Args:
        traces: of texts, for a chain.
        ahead: see `ranks_ahead`, of each text [T, most].
        timing: of a chain.
        most: largest number of nodes.
        choices: largest number of the draft's choices at a place.
    """
    best: tuple[Node, ...] = ()
    highest = max(expected_speedup(traces, timing, gamma) for gamma in range(1, most + 1))
    for depth in range(1, most + 1):
        accuracies = chain_accuracies([own[:, :depth] for own in ahead], choices)
        nodes = best_nodes(accuracies, most, beside_a_chain=True)
        if Tree(nodes).depth < depth:
            break
        steps = [Tree(nodes[:count]).depth for count in range(len(nodes) + 1)]
        trees = [replace(trace, ranks=own, nodes=nodes) for trace, own in zip(traces, ahead, strict=True)]
        of_trees = replace(timing, draft=timing.draft[steps])
        value = max(expected_speedup(trees, of_trees, count) for count in range(1, len(nodes) + 1))
        if value > highest:
            best, highest = nodes, value
    return best


def _reason(timing: Timing, best: Forecast, use: bool, has_model: bool, alpha: float | None, cost: float | None) -> str:
    speedup, gamma = best.speedup, best.gamma
    range_ = f"[{speedup.low:.2f}, {speedup.high:.2f}]"
    verify = float(timing.verify[gamma] / timing.verify[0])
    if use:
        return (
            f"use it: {speedup.value:.2f} × {range_} at gamma {gamma}, with {best.tokens_per_round:.2f} tokens a round"
        )
    said = f"do not use it: {speedup.value:.2f} × {range_} at gamma {gamma}, the best{_too_little(speedup)}"
    spent = f"reading {gamma + 1} tokens costs {verify:.2f} times one"
    if not has_model:
        return f"{said}, because a round gives {best.tokens_per_round:.2f} tokens and {spent}"
    c = float(timing.draft[gamma] / gamma / timing.verify[0])
    why = f"because a round gives {best.tokens_per_round:.2f} tokens, a drafted token costs {c:.2f} and {spent}"
    if alpha is None:
        return f"{said}, {why}: not even a draft that is always right would gain; it needs fewer layers or rows"
    change = f"it would gain with an acceptance above {alpha:.2f} per token"
    if cost is not None:
        change += f", or a cost below {cost:.2f}"
    return f"{said}, {why}: {change}"


def _reason_of_a_tree(timing: Timing, best: Forecast, use: bool) -> str:
    speedup, nodes = best.speedup, best.gamma
    gain = f"{speedup.value:.2f} × [{speedup.low:.2f}, {speedup.high:.2f}]"
    if use:
        return f"use it: {gain} with a tree of {nodes} nodes and {best.tokens_per_round:.2f} tokens a round"
    costs = timing.round(nodes, nodes) / timing.alone
    return (
        f"do not use it: {gain} with a tree of {nodes} nodes, the best{_too_little(speedup)}, because a round gives "
        f"{best.tokens_per_round:.2f} tokens and costs {costs:.2f} times one token alone: it would gain with more than "
        f"{costs:.2f} tokens a round"
    )


def _too_little(speedup: Interval) -> str:
    """What a forecast above 1 is told that is not advised."""
    return f", which may be less than {WORTH:.2f}" if speedup.value > 1 else ""


def hopeless(timing: Timing, most: int, heads: int | None = None) -> bool:
    """Whether no gamma gains anything even if every drafted token stands; of heads, each once."""
    if heads is not None:
        return all(timing.round(n, n) >= (1 + n) * timing.alone for n in range(1, min(most, heads) + 1))
    return all(needed_alpha(timing, gamma) is None for gamma in range(1, most + 1))

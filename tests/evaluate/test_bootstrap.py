"""Claims about intervals: by group, paired, and about as wide as they say."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from potstill.errors import DataError
from potstill.evaluate.bootstrap import PairedBootstrap, expanded_levels


def bootstrap(groups: np.ndarray, resamples: int = 2000, seed: int = 0) -> PairedBootstrap:
    return PairedBootstrap([f"g{g}" for g in groups], resamples=resamples, confidence=0.95, seed=seed)


def tokens(rng: np.random.Generator, count: int, spread: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Groups of unequal size whose tokens are alike: (group of each token, value of each token)."""
    sizes = rng.integers(5, 60, count)
    groups = np.repeat(np.arange(count), sizes)
    return groups, np.repeat(rng.normal(1.0, spread, count), sizes) + rng.normal(0, 0.3, sizes.sum())


def test_interval_agrees_with_scipy() -> None:
    groups, values = tokens(np.random.default_rng(1), 25)
    sums, sizes = np.bincount(groups, weights=values), np.bincount(groups)
    ours = bootstrap(groups, resamples=20_000).mean(values)
    low, high = expanded_levels(0.95, 25)
    theirs = stats.bootstrap(
        (np.arange(25),),
        lambda drawn, axis: sums[drawn].sum(axis) / sizes[drawn].sum(axis),
        vectorized=True,
        n_resamples=20_000,
        confidence_level=high - low,
        method="percentile",
        rng=np.random.default_rng(2),
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours.value == pytest.approx(values.mean())
    assert abs(ours.low - theirs.low) < 0.03 * width and abs(ours.high - theirs.high) < 0.03 * width


def test_identical_models_differ_by_exactly_nothing() -> None:
    groups, values = tokens(np.random.default_rng(2), 12)
    interval = bootstrap(groups).difference(values, values.copy())
    assert (interval.value, interval.low, interval.high) == (0.0, 0.0, 0.0)


def test_a_constant_difference_is_known_exactly() -> None:
    groups, values = tokens(np.random.default_rng(3), 12, spread=5.0)
    interval = bootstrap(groups).difference(values + 0.25, values)
    assert (interval.low, interval.high) == (pytest.approx(0.25), pytest.approx(0.25))


def test_repeating_tokens_within_their_groups_does_not_narrow() -> None:
    groups, values = tokens(np.random.default_rng(4), 20)
    once = bootstrap(groups).mean(values)
    often = bootstrap(np.repeat(groups, 10)).mean(np.repeat(values, 10))
    assert (often.low, often.high) == (pytest.approx(once.low), pytest.approx(once.high))


def test_more_groups_do_narrow() -> None:
    rng = np.random.default_rng(5)
    (few, a), (many, b) = tokens(rng, 20), tokens(rng, 320)
    narrow, wide = bootstrap(many).mean(b), bootstrap(few).mean(a)
    assert 0.15 < (narrow.high - narrow.low) / (wide.high - wide.low) < 0.4


def test_a_group_counts_by_its_tokens() -> None:
    interval = bootstrap(np.array([0, 1, 1, 1])).mean(np.array([0.0, 1.0, 1.0, 1.0]))
    assert interval.value == 0.75


def test_pairing_removes_what_both_models_share() -> None:
    rng = np.random.default_rng(6)
    groups, values = tokens(rng, 30, spread=2.0)
    other = values + 0.1 + rng.normal(0, 0.05, len(values))
    paired = bootstrap(groups)
    difference, single = paired.difference(other, values), paired.mean(values)
    assert difference.low > 0
    assert difference.high - difference.low < 0.05 * (single.high - single.low)


@pytest.mark.parametrize("count", [10, 40])
def test_intervals_cover_about_as_often_as_they_say(count: int) -> None:
    rng = np.random.default_rng(count)
    hits = 0
    for trial in range(300):
        groups, values = tokens(rng, count)
        interval = bootstrap(groups, resamples=400, seed=trial).mean(values)
        hits += interval.low <= 1.0 <= interval.high
    # Two standard errors of 300 trials are 2.5 points.
    assert 0.90 <= hits / 300 <= 0.99


def test_the_seed_alone_decides_the_draws() -> None:
    groups, values = tokens(np.random.default_rng(7), 15)
    assert bootstrap(groups).mean(values) == bootstrap(groups).mean(values)
    assert bootstrap(groups).mean(values) != bootstrap(groups, seed=1).mean(values)


def test_one_group_is_refused() -> None:
    with pytest.raises(DataError, match="two held-out groups"):
        bootstrap(np.zeros(50, dtype=int))


@pytest.mark.long
def test_on_skewed_groups_the_expanded_interval_covers_better_than_plain_percentiles() -> None:
    rng, hits, trials = np.random.default_rng(0), {"expanded": 0, "percentile": 0, "bca": 0}, 1000
    for trial in range(trials):
        sizes = np.maximum(1, rng.lognormal(4.2, 0.6, 10).astype(int))
        means = rng.lognormal(0.3, 0.5, 10)
        true = np.exp(0.3 + 0.5**2 / 2)
        ours = bootstrap(np.repeat(np.arange(10), sizes), resamples=1000, seed=trial).mean(np.repeat(means, sizes))
        hits["expanded"] += ours.low <= true <= ours.high
        for method in ("percentile", "bca"):
            low, high = stats.bootstrap(
                (np.arange(10),),
                lambda drawn, axis, m=means, n=sizes: (m * n)[drawn].sum(axis) / n[drawn].sum(axis),
                vectorized=True,
                n_resamples=1000,
                method=method,
                rng=rng,
            ).confidence_interval
            hits[method] += low <= true <= high
    print({name: count / trials for name, count in hits.items()})
    assert hits["expanded"] / trials > 0.9
    assert hits["expanded"] - max(hits["percentile"], hits["bca"]) > 0.02 * trials

"""A smooth curve follows what was planted, has no bias at its ends, and a band that covers."""

from __future__ import annotations

import numpy as np
import pytest

from potstill.evaluate.bootstrap import PairedBootstrap
from potstill.evaluate.smoothing import local_linear, places_of, smooth

GROUPS = [f"g{n // 10}" for n in range(2000)]


def bootstrap(groups: list[str] = GROUPS) -> PairedBootstrap:
    return PairedBootstrap(groups, resamples=200, confidence=0.95, seed=0)


def test_a_line_is_a_line_at_its_ends_too() -> None:
    x = np.random.default_rng(0).uniform(0, 4, 2000)
    found = smooth(x, [3 - 0.5 * x], bootstrap())
    assert len(found) == 13
    for at, value in found:
        assert value.value == pytest.approx(3 - 0.5 * at, abs=1e-9)


def test_the_value_at_a_place_is_that_of_weighted_least_squares() -> None:
    random = np.random.default_rng(1)
    x, y = random.normal(0, 1, 2000), random.normal(0, 1, 2000)
    weights = np.exp(-(((x - 0.7) / 0.4) ** 2) / 2)
    _, intercept = np.polyfit(x - 0.7, y, 1, w=np.sqrt(weights))
    assert bootstrap().value(local_linear(x, y, 0.7, 0.4)) == pytest.approx(intercept)


def test_where_all_targets_are_at_one_place_it_is_their_mean() -> None:
    x, y = np.full(2000, 3.0), np.arange(2000.0)
    assert bootstrap().value(local_linear(x, y, 3.0, 0.5)) == pytest.approx(y.mean())
    assert smooth(x, [y], bootstrap()) == []


def test_places_with_few_groups_near_them_are_left_out() -> None:
    x = np.where(np.arange(2000) < 40, 9.0, np.random.default_rng(2).uniform(0, 1, 2000))  # four groups, far away
    assert max(at for at, _ in smooth(x, [x], bootstrap())) < 5
    assert places_of(x).max() == 9.0


@pytest.mark.slow
def test_the_band_covers_what_was_planted_at_each_place() -> None:
    held = np.zeros(13)
    for seed in range(200):
        random = np.random.default_rng(seed)
        common = np.repeat(random.normal(0, 0.5, 100), 10)
        x = random.uniform(0, 4, 1000)
        y = 2 - 0.4 * x + common + random.normal(0, 1, 1000)
        found = smooth(x, [y], bootstrap([f"g{n // 10}" for n in range(1000)]))
        held += [value.low <= 2 - 0.4 * at <= value.high for at, value in found]
    assert (held / 200 >= 0.91).all()
    assert held.mean() / 200 <= 0.99

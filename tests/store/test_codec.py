"""Entries come back from bytes as they were, within the grid's step, and without bias."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.store.codec import Entries, Grid, decode, encode, pack, unpack


@st.composite
def sequences(draw: st.DrawFn) -> tuple[Entries, Grid]:
    vocab = draw(st.integers(2, 200_000))
    constant = draw(st.sampled_from([0.0, 0.01]))
    counts = draw(st.lists(st.integers(0, 12), max_size=20))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    total = sum(counts)
    weights = np.exp(random.uniform(-9, 0, total)).astype(np.float32)
    if constant:
        weights[random.random(total) < 0.5] = constant
    rest = random.uniform(-30, 0, len(counts)) if draw(st.booleans()) else np.zeros(0)
    entries = Entries(
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        random.integers(0, vocab, total).astype(np.int32),
        weights,
        random.uniform(0, math.log(vocab), len(counts)).astype(np.float32),
        random.uniform(-60, 0, len(counts)).astype(np.float32),
        rest.astype(np.float32),
    )
    return entries, Grid(vocab, draw(st.integers(6, 16)), -10.0, constant)


def by_target(entries: Entries, target: int) -> dict[int, list[float]]:
    found: dict[int, list[float]] = {}
    for at in range(entries.offsets[target], entries.offsets[target + 1]):
        found.setdefault(int(entries.ids[at]), []).append(float(entries.weights[at]))
    return {token: sorted(weights) for token, weights in found.items()}


@settings(max_examples=200, deadline=None)
@given(sequences(), st.integers(0, 2**32))
def test_what_is_decoded_is_what_was_encoded(made: tuple[Entries, Grid], seed: int) -> None:
    entries, grid = made
    data = encode(entries, grid, np.random.default_rng(seed).random(entries.ids.size))
    found = decode(data, entries.entropy.size, grid)
    assert (found.offsets == entries.offsets).all()
    for target in range(entries.entropy.size):
        theirs, ours = by_target(found, target), by_target(entries, target)
        assert theirs.keys() == ours.keys()
        for token, weights in ours.items():
            for weight, got in zip(weights, theirs[token], strict=True):
                assert abs(math.log(got / weight)) <= grid.step * 1.001 + 1e-6
    assert np.abs(found.entropy - entries.entropy).max(initial=0) <= math.log(grid.vocab) / 65_535 + 1e-5
    assert np.abs(found.target_log_prob - entries.target_log_prob).max(initial=0) <= 64 / 65_535 + 1e-5
    assert found.rest.size == entries.rest.size


@settings(max_examples=100, deadline=None)
@given(sequences(), st.data())
def test_bytes_that_are_cut_or_too_many_are_refused_and_never_more_than_that(
    made: tuple[Entries, Grid], data: st.DataObject
) -> None:
    entries, grid = made
    whole = encode(entries, grid, np.zeros(entries.ids.size))
    cut = data.draw(st.integers(0, len(whole) - 1))
    for wrong in (whole[:cut], whole + b"\0"):
        with pytest.raises(ValueError):
            decode(wrong, entries.entropy.size, grid)


@pytest.mark.parametrize("width", [1, 3, 8, 15, 16, 17, 18, 24])
def test_packed_integers_come_back_in_as_many_bits(width: int) -> None:
    values = np.random.default_rng(width).integers(0, 2**width, 1001)
    packed = pack(values, width)
    assert len(packed) == (1001 * width + 7) // 8
    assert (unpack(np.frombuffer(packed, np.uint8), 1001, width) == values).all()


def test_quantised_weights_have_the_right_expectation() -> None:
    """Over the middles of 2,000 equal parts of [0, 1)."""
    grid, many = Grid(100, 6, -6.0, 0.0), (np.arange(2000) + 0.5) / 2000
    for weight in (0.003, 0.05, 0.72):
        entries = Entries(
            np.array([0, 2000]),
            np.zeros(2000, np.int32),
            np.full(2000, weight, np.float32),
            *(np.zeros(1, np.float32) for _ in range(2)),
            np.zeros(0, np.float32),
        )
        found = decode(encode(entries, grid, many), 1, grid).weights
        assert float(found.mean(dtype=np.float64)) == pytest.approx(weight, rel=1e-3)
        assert len(set(found.tolist())) == 2  # it lies between two values of the grid


def test_sampled_entries_of_threshold_take_no_byte_for_their_weight() -> None:
    def size(weight: float) -> int:
        entries = Entries(
            np.array([0, 1000]),
            np.arange(1000, dtype=np.int32),
            np.full(1000, weight, np.float32),
            *(np.zeros(1, np.float32) for _ in range(2)),
            np.zeros(0, np.float32),
        )
        return len(encode(entries, Grid(49_152, 8, -6.0, 0.01), np.zeros(1000)))

    assert size(0.02) - size(0.01) == 1000


def test_ids_beyond_the_vocabulary_are_refused() -> None:
    entries = Entries(
        np.array([0, 1]),
        np.array([100], np.int32),
        np.ones(1, np.float32),
        *(np.zeros(1, np.float32) for _ in range(2)),
        np.zeros(0, np.float32),
    )
    with pytest.raises(ValueError, match="none of the 100 tokens"):
        encode(entries, Grid(100, 8, -6.0, 0.0), np.zeros(1))

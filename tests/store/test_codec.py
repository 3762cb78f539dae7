"""Entries come back from bytes as they were, within the grid's step, and without bias."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.store.codec import HIDDEN, Entries, Grid, TensorPart, decode, encode, ids_in, renamed
from potstill.store.packing import pack, pack_ascending, unpack, unpack_ascending


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    """Of any kind, with any tensors beside."""
    vocab = draw(st.integers(2, 200_000))
    parts = draw(
        st.lists(
            st.builds(
                TensorPart,
                st.sampled_from(["hidden.3", "queries.0", "pooled"]),
                st.sampled_from(["targets", "tokens", "example"]),
                st.lists(st.integers(1, 70), min_size=1, max_size=2).map(tuple),
                st.sampled_from(["float32", "bfloat16", "int8"]),
            ),
            max_size=2,
            unique_by=lambda part: part.name,
        )
    )
    kind = draw(st.sampled_from(["threshold", "sampled", "topk", "hidden", "dense"]))
    beside = tuple(parts)
    if kind == "threshold":
        return Grid.threshold(vocab, draw(st.floats(1e-4, 1)), beside)
    if kind == "sampled":
        return Grid.sampled(vocab, draw(st.integers(2, 300)), beside)
    if kind == "topk":
        return Grid.topk(vocab, beside)
    if kind == "hidden":
        return Grid.hidden(vocab, draw(st.integers(1, 130)), draw(st.sampled_from(["bfloat16", "int8"])), beside)
    return Grid.dense(draw(st.integers(2, 200)), draw(st.sampled_from(["float32", "bfloat16"])), beside)


@st.composite
def sequences(draw: st.DrawFn) -> tuple[Entries, Grid, int]:
    """Entries, their grid, and the tokens of their sequence."""
    grid = draw(grids())
    counts = [min(count, grid.vocab) for count in draw(st.lists(st.integers(0, 12), max_size=200))]
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    if any(part.name.startswith("response.") for part in grid.tensors):
        counts = [0] * len(counts)
    total, targets = sum(counts), len(counts)
    if grid.floor:
        weights = np.exp(random.uniform(grid.floor, 0, total))
        weights[random.random(total) < 0.5] = grid.constant or 0.5
    else:
        weights = random.integers(1, 1 + round(1 / grid.constant), total) * grid.constant
    rest = random.uniform(-30, 0, targets) if draw(st.booleans()) else np.zeros(0)
    tokens = targets + draw(st.integers(0, 5))
    tensors = {
        part.name: random.normal(0, 3, (part.count(targets, tokens), *part.shape)).astype(np.float32)
        for part in grid.tensors
    }
    ids = [
        random.choice(grid.vocab, count, replace=False)
        if grid.vocab < 500
        else np.unique(random.integers(0, grid.vocab, count))
        for count in counts
    ]
    sizes = [one.size for one in ids]
    entries = Entries(
        np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        np.concatenate([np.zeros(0), *ids]).astype(np.int32),
        weights[: sum(sizes)].astype(np.float32),
        random.uniform(0, math.log(grid.vocab), targets).astype(np.float32),
        random.uniform(-31, 0, targets).astype(np.float32),
        rest.astype(np.float32),
        tensors,
    )
    return entries, grid, tokens


def by_target(entries: Entries, target: int) -> dict[int, float]:
    span = slice(entries.offsets[target], entries.offsets[target + 1])
    return dict(zip(entries.ids[span].tolist(), entries.weights[span].tolist(), strict=True))


@settings(max_examples=300, deadline=None)
@given(sequences(), st.integers(0, 2**32))
def test_what_is_decoded_is_what_was_encoded(made: tuple[Entries, Grid, int], seed: int) -> None:
    entries, grid, tokens = made
    data = encode(entries, grid, np.random.default_rng(seed).random(entries.ids.size))
    found = decode(data, entries.entropy.size, grid, tokens)
    assert (found.offsets == entries.offsets).all()
    for target in range(entries.entropy.size):
        theirs, ours = by_target(found, target), by_target(entries, target)
        assert theirs.keys() == ours.keys()
        for token, weight in ours.items():
            assert abs(math.log(theirs[token] / weight)) <= grid.step * 1.001 + 1e-6
    half = 1 / (2 * 4095)
    assert np.abs(found.entropy - entries.entropy).max(initial=0) <= math.log(grid.vocab) * half + 1e-5
    assert np.abs(found.target_log_prob - entries.target_log_prob).max(initial=0) <= 32 * half + 1e-5
    assert found.rest.size == entries.rest.size
    assert np.abs(found.rest - entries.rest).max(initial=0) <= 64 / (2 * 65_535) + 1e-5
    for part in grid.tensors:
        check_tensor(part, entries.tensors[part.name], found.tensors[part.name])


def check_tensor(part: TensorPart, ours: np.ndarray, theirs: np.ndarray) -> None:
    """Within the stated bound: none, 2⁻⁸ of each number, or 1/252 of the largest of 64 neighbours."""
    assert ours.shape == theirs.shape
    error = np.abs(ours - theirs)
    if part.dtype == "float32":
        assert (error == 0).all()
    elif part.dtype == "bfloat16":
        assert (error <= np.abs(ours) * 2**-8).all()
        assert torch.equal(torch.from_numpy(ours).bfloat16().float(), torch.from_numpy(theirs))
    else:
        rows = ours.reshape(len(ours), part.size)
        for at in range(0, rows.shape[1], 64):
            most = np.abs(rows[:, at : at + 64]).max(1, initial=0) / 252
            assert (error.reshape(rows.shape)[:, at : at + 64] <= most[:, None]).all()


@settings(max_examples=200, deadline=None)
@given(sequences(), st.data())
def test_bytes_that_are_cut_or_too_many_are_refused_and_never_more_than_that(
    made: tuple[Entries, Grid, int], data: st.DataObject
) -> None:
    entries, grid, tokens = made
    whole = encode(entries, grid, np.zeros(entries.ids.size))
    cut = data.draw(st.integers(0, len(whole) - 1))
    for wrong in (whole[:cut], whole + b"\0"):
        with pytest.raises(ValueError):
            decode(wrong, entries.entropy.size, grid, tokens)


@settings(max_examples=300, deadline=None)
@given(sequences(), st.data())
def test_any_change_of_the_bytes_gives_entries_of_the_vocabulary_or_a_value_error(
    made: tuple[Entries, Grid, int], data: st.DataObject
) -> None:
    entries, grid, tokens = made
    content = bytearray(encode(entries, grid, np.zeros(entries.ids.size)))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = decode(bytes(content), entries.entropy.size, grid, tokens)
    except ValueError:
        return
    assert ((found.ids >= 0) & (found.ids < grid.vocab)).all()
    assert found.offsets.size == entries.entropy.size + 1
    assert found.offsets[-1] == found.ids.size == found.weights.size


@pytest.mark.parametrize("width", [1, 3, 8, 12, 15, 16, 17, 18, 24])
def test_packed_integers_come_back_in_as_many_bits(width: int) -> None:
    values = np.random.default_rng(width).integers(0, 2**width, 1001)
    packed = pack(values, width)
    assert len(packed) == (1001 * width + 7) // 8
    assert (unpack(np.frombuffer(packed, np.uint8), 1001, width) == values).all()


@settings(max_examples=200, deadline=None)
@given(st.sets(st.integers(0, 2**40), max_size=300))
def test_ascending_integers_come_back(values: set[int]) -> None:
    ascending = np.array(sorted(values), np.int64)
    packed = pack_ascending(ascending)
    found, used = unpack_ascending(np.frombuffer(packed, np.uint8), ascending.size)
    assert used == len(packed)
    assert (found == ascending).all()


@pytest.mark.parametrize("share", [0.3, 0.01, 0.0002])
def test_ascending_integers_take_little_more_than_the_entropy_of_their_set(share: float) -> None:
    """−log₂ of the set's probability where each integer is in it with probability `share`."""
    universe = round(20_000 / share)
    values = np.flatnonzero(np.random.default_rng(0).random(universe) < share)
    entropy = universe * (-share * math.log2(share) - (1 - share) * math.log2(1 - share)) / values.size
    assert entropy <= len(pack_ascending(values)) * 8 / values.size <= entropy + 0.125 + 0.08


def test_quantised_weights_have_the_right_expectation() -> None:
    """Over the middles of 2,000 equal parts of [0, 1)."""
    grid, many = Grid(2000, 6, -6.0, 0.0), (np.arange(2000) + 0.5) / 2000
    for weight in (0.003, 0.05, 0.72):
        entries = Entries(
            np.array([0, 2000]),
            np.arange(2000, dtype=np.int32),
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


def test_counts_of_draws_are_kept_without_error() -> None:
    counts = np.array([1, 2, 3, 17, 50])
    entries = Entries(
        np.array([0, 5]),
        np.arange(5, dtype=np.int32),
        (counts / 50).astype(np.float32),
        *(np.zeros(1, np.float32) for _ in range(2)),
        np.zeros(0, np.float32),
    )
    grid = Grid.sampled(100, 50)
    found = decode(encode(entries, grid, np.zeros(5)), 1, grid)
    assert dict(zip(found.ids.tolist(), (found.weights * 50).tolist(), strict=True)) == pytest.approx(
        dict(enumerate(counts.tolist()))
    )


def test_hidden_states_in_bfloat16_are_kept_exactly() -> None:
    hidden = torch.randn(5, 70, generator=torch.Generator().manual_seed(0)).bfloat16().float().numpy()
    grid = Grid.hidden(100, 70, "bfloat16")
    nothing = Entries(
        np.zeros(6, np.int64),
        np.zeros(0, np.int32),
        np.zeros(0, np.float32),
        *(np.zeros(5, np.float32) for _ in range(2)),
        np.zeros(0, np.float32),
        {HIDDEN: hidden},
    )
    data = encode(nothing, grid, np.zeros(0))
    assert (decode(data, 5, grid).tensors[HIDDEN] == hidden).all()
    assert len(data) < 5 * (70 * 2 + 3) + 32
    with pytest.raises(ValueError, match=r"response.hidden is missing, and its rows should have the shape \(70,\)"):
        encode(replace(nothing, tensors={}), grid, np.zeros(0))
    with pytest.raises(ValueError, match="not finite"):
        encode(replace(nothing, tensors={HIDDEN: hidden * np.inf}), Grid.hidden(100, 70, "int8"), np.zeros(0))


def test_ids_beyond_the_vocabulary_are_refused() -> None:
    entries = Entries(
        np.array([0, 1]),
        np.array([100], np.int32),
        np.ones(1, np.float32),
        *(np.zeros(1, np.float32) for _ in range(2)),
        np.zeros(0, np.float32),
    )
    with pytest.raises(ValueError, match="outside the vocabulary of 100 tokens"):
        encode(entries, Grid(100, 8, -6.0, 0.0), np.zeros(1))


def test_a_token_that_a_target_has_twice_is_refused() -> None:
    entries = Entries(
        np.array([0, 2]),
        np.array([3, 3], np.int32),
        np.full(2, 0.5, np.float32),
        *(np.zeros(1, np.float32) for _ in range(2)),
        np.zeros(0, np.float32),
    )
    with pytest.raises(ValueError, match="an id twice"):
        encode(entries, Grid(100, 8, -6.0, 0.0), np.zeros(2))


@given(made=sequences())
@settings(max_examples=60, deadline=None)
def test_a_sequence_with_other_ids_is_as_if_it_had_been_encoded_with_these(made: tuple[Entries, Grid, int]) -> None:
    entries, grid, _ = made
    draws = np.random.default_rng(0)
    names = draws.permutation(grid.vocab).astype(np.int32)
    uniforms = draws.random(entries.ids.size)
    blob = encode(entries, grid, uniforms)
    assert sorted(ids_in(blob, entries.entropy.size, grid)) == sorted(entries.ids)
    other = encode(replace(entries, ids=names[entries.ids]), grid, uniforms)
    assert renamed(blob, entries.entropy.size, grid, names) == other

"""The entries of one sequence as bytes, and back. NumPy alone; the specification is `docs/store.md`.

Ids are packed at ⌈log₂ V⌉ bits. A logarithm of a weight takes `bits` bits, on a grid from `floor` to 0; it is off by
less than a `step` of it. Which of its two neighbours a weight gets is drawn, so that the weight has the right
expectation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]
UNIT = 65_535
"""Entropies and logarithms of one number a token take two bytes."""


@dataclass(frozen=True)
class Grid:
    """How numbers are quantised.

    Attributes:
        vocab: tokens of the teacher; entropies are stored from 0 to log(vocab).
        bits: of the logarithm of a weight.
        floor: the smallest logarithm that can be stored (negative). Smaller ones are stored as it.
        constant: the weight of entries that are stored without one (the τ of `threshold`, 1 / N of `sampled`); 0: none.
    """

    vocab: int
    bits: int
    floor: float
    constant: float

    @property
    def id_bits(self) -> int:
        return max(1, (self.vocab - 1).bit_length())

    @property
    def step(self) -> float:
        """Of the grid of logarithms, in nats: the largest error of one."""
        return -self.floor / ((1 << self.bits) - 1)


@dataclass(frozen=True)
class Entries:
    """What is kept of the distributions at n targets, ragged: entries `offsets[i]:offsets[i + 1]` are of target i.

    `entropy` [n] is that of the full distribution and `target_log_prob` [n] the target's, both in nats; `rest` [n] the
    logarithm of the mass that is not kept (of `topk` alone, else empty).
    """

    offsets: NDArray[np.int64]
    ids: NDArray[np.int32]
    weights: NDArray[np.float32]
    entropy: NDArray[np.float32]
    target_log_prob: NDArray[np.float32]
    rest: NDArray[np.float32]


LOWEST = -64.0
"""Logarithms of one number a token are stored from here to 0."""


def encode(entries: Entries, grid: Grid, uniforms: NDArray[np.float64]) -> bytes:
    """The bytes of a sequence.

    Args:
        uniforms: in [0, 1), one an entry: which neighbour on the grid a weight gets.

    Raises:
        ValueError: an id is none of the vocabulary's, or a weight is above 1.
    """
    ids, weights = entries.ids, entries.weights.astype(np.float64)
    if ids.size and (ids.min() < 0 or ids.max() >= grid.vocab):
        raise ValueError(f"an id is none of the {grid.vocab} tokens")
    if weights.size and weights.max() > 1 + 1e-6:
        raise ValueError("a weight is above 1")
    bare = np.isclose(weights, grid.constant, rtol=1e-6, atol=0) if grid.constant else np.zeros(ids.size, bool)
    counts = np.diff(entries.offsets)
    target = np.repeat(np.arange(counts.size), counts)
    bare_counts = np.bincount(target[bare], minlength=counts.size)
    with_weight = counts - bare_counts
    widths = [max(1, int(c.max(initial=0)).bit_length()) for c in (with_weight, bare_counts)]
    codes = _quantised(np.log(np.maximum(weights[~bare], 1e-300)), grid, uniforms[~bare])
    order = np.lexsort((np.arange(ids.size), bare, target))  # of each target those with a weight, then those without
    halves = [_halved(entries.entropy, 0.0, math.log(grid.vocab)), _halved(entries.target_log_prob, LOWEST, 0.0)]
    halves += [_halved(entries.rest, LOWEST, 0.0)] if entries.rest.size else []
    parts = [
        np.array([*widths, int(bool(entries.rest.size))], np.uint8).tobytes(),
        pack(with_weight, widths[0]),
        pack(bare_counts, widths[1]),
        pack(ids[order], grid.id_bits),
        pack(codes, grid.bits),
        *(half.tobytes() for half in halves),
    ]
    return b"".join(parts)


def decode(data: bytes | memoryview, targets: int, grid: Grid) -> Entries:
    """The entries of a sequence with so many targets.

    Raises:
        ValueError: the bytes do not hold what they say.
    """
    raw = np.frombuffer(data, np.uint8)
    if raw.size < 3:
        raise ValueError("a sequence of fewer than three bytes")
    at = 3

    def take(count: int, width: int) -> NDArray[np.int64]:
        nonlocal at
        size = (count * width + 7) // 8
        if at + size > raw.size:
            raise ValueError("a sequence ends early")
        values = unpack(raw[at : at + size], count, width)
        at += size
        return values

    with_weight, bare = take(targets, int(raw[0])), take(targets, int(raw[1]))
    counts = with_weight + bare
    offsets = np.concatenate([[0], np.cumsum(counts)])
    ids = take(int(offsets[-1]), grid.id_bits).astype(np.int32)
    codes = take(int(with_weight.sum()), grid.bits)
    weights = np.full(ids.size, grid.constant, np.float32)
    first = np.repeat(offsets[:-1], with_weight)
    within = np.arange(codes.size) - np.repeat(np.cumsum(with_weight) - with_weight, with_weight)
    weights[first + within] = np.exp(grid.floor + codes * grid.step)
    halves = [take(targets, 16) for _ in range(3 if raw[2] else 2)]
    if at != raw.size:
        raise ValueError("a sequence is longer than what it holds")
    entropy = _wholed(halves[0], 0.0, math.log(grid.vocab))
    rest = _wholed(halves[2], LOWEST, 0.0) if raw[2] else np.zeros(0, np.float32)
    return Entries(offsets, ids, weights, entropy, _wholed(halves[1], LOWEST, 0.0), rest)


def _quantised(logs: NDArray[np.float64], grid: Grid, uniforms: NDArray[np.float64]) -> NDArray[np.int64]:
    """Codes whose weight, exp(floor + code · step), has the expectation exp(log)."""
    exact = np.clip((logs - grid.floor) / grid.step, 0, (1 << grid.bits) - 1)
    below = np.floor(exact)
    # With weights w0 < w1 = w0 · exp(step) of the neighbours, w1 with probability (w − w0) / (w1 − w0).
    share = np.expm1((exact - below) * grid.step) / math.expm1(grid.step)
    codes = (below + (uniforms < share)).astype(np.int64)
    return np.minimum(codes, (1 << grid.bits) - 1)


def _halved(values: NDArray[np.float32], low: float, high: float) -> NDArray[np.uint16]:
    scaled = (np.nan_to_num(values.astype(np.float64), neginf=low) - low) / (high - low) * UNIT
    codes: NDArray[np.uint16] = np.rint(np.clip(scaled, 0, UNIT)).astype("<u2")
    return codes


def _wholed(codes: NDArray[np.int64], low: float, high: float) -> NDArray[np.float32]:
    return (low + codes * ((high - low) / UNIT)).astype(np.float32)


def pack(values: NDArray[np.integer], width: int) -> bytes:
    """Non-negative integers at `width` bits each (at most 24), little-endian throughout."""
    if width in (8, 16):
        return values.astype(f"<u{width // 8}").tobytes()
    bits = (values.astype(np.uint32)[:, None] >> np.arange(width, dtype=np.uint32)) & 1
    return np.packbits(bits.astype(np.uint8).reshape(-1), bitorder="little").tobytes()


def unpack(data: NDArray[np.uint8], count: int, width: int) -> NDArray[np.int64]:
    """The reverse of `pack`."""
    if width in (8, 16):
        return np.frombuffer(data.tobytes(), f"<u{width // 8}", count).astype(np.int64)
    padded = np.concatenate([data, np.zeros(4, np.uint8)]).astype(np.uint32)
    start = np.arange(count, dtype=np.int64) * width
    byte = start >> 3
    word = padded[byte] | padded[byte + 1] << 8 | padded[byte + 2] << 16 | padded[byte + 3] << 24
    found: NDArray[np.int64] = ((word >> (start & 7).astype(np.uint32)) & ((1 << width) - 1)).astype(np.int64)
    return found

"""The stored entries of one sequence as bytes, and back. NumPy alone; the specification is `docs/store.md`.

An entry is the number `id · n + target`, n being the number of targets. Sorted, entries of the same token are
neighbours, and their gaps are small where a token is frequent in the sequence: the code adapts to each, without a
table. The logarithm of a weight takes `bits` bits, on a grid from `floor` to 0. A weight is rounded to one of its two
neighbours on the grid at random, so that its expectation is right.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from potstill.store.packing import (
    FloatType,
    bytes_of_floats,
    pack,
    pack_ascending,
    pack_floats,
    unpack,
    unpack_ascending,
    unpack_floats,
)


@dataclass(frozen=True)
class TensorPart:
    """A tensor that a store keeps of each sequence.

    Attributes:
        name: as in `signals.Signals.taps`, or `HIDDEN`, `LOGITS`.
        rows: the unit of a row: a target, a token of the sequence, or the whole example (one row).
        shape: of a row.
        dtype: see `packing.pack_floats`.
    """

    name: str
    rows: Literal["targets", "tokens", "example"]
    shape: tuple[int, ...]
    dtype: FloatType = "bfloat16"

    @property
    def size(self) -> int:
        """Numbers in a row."""
        return math.prod(self.shape)

    def count(self, targets: int, tokens: int) -> int:
        """Rows in a sequence."""
        return {"targets": targets, "tokens": tokens, "example": 1}[self.rows]


HIDDEN, LOGITS = "response.hidden", "response.logits"
"""Tensors that are a response: the input of the teacher's output layer [n, H], and its logits [n, V]."""


@dataclass(frozen=True)
class Grid:
    """How numbers are quantised, and which tensors are kept.

    Attributes:
        vocab: tokens of the teacher; entropies are stored from 0 to log(vocab).
        bits: of a weight.
        floor: the smallest logarithm of a weight that can be stored (negative); smaller ones are stored as `floor`. If
            0, weights are whole multiples of `constant`, at most 2^bits + 1 times it.
        constant: the weight of entries that are stored without one (the τ of `threshold`, 1 / N of `sampled`); 0: none.
    """

    vocab: int
    bits: int
    floor: float
    constant: float
    tensors: tuple[TensorPart, ...] = ()

    @property
    def step(self) -> float:
        """The spacing of the grid of logarithms, in nats: the largest error of a logarithm."""
        return -self.floor / ((1 << self.bits) - 1)

    def facts(self) -> dict[str, Any]:
        """The grid as JSON values."""
        return {**asdict(self), "tensors": [{**asdict(part), "shape": list(part.shape)} for part in self.tensors]}

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Grid:
        """The grid from such JSON values."""
        parts = tuple(TensorPart(**{**part, "shape": tuple(part["shape"])}) for part in facts["tensors"])
        return cls(**{**facts, "tensors": parts})

    @classmethod
    def threshold(cls, vocab: int, tau: float, tensors: tuple[TensorPart, ...] = ()) -> Grid:
        """For `estimators.threshold`: 64 steps from τ to 1, each at most 8 % at τ = 0.01, and 5 % at 0.05."""
        return cls(vocab, 6, min(math.log(tau), -1.0), tau, tensors)

    @classmethod
    def sampled(cls, vocab: int, draws: int, tensors: tuple[TensorPart, ...] = ()) -> Grid:
        """For `estimators.sampled`: counts, without error."""
        return cls(vocab, max(1, (draws - 2).bit_length()), 0.0, 1 / draws, tensors)

    @classmethod
    def topk(cls, vocab: int, tensors: tuple[TensorPart, ...] = ()) -> Grid:
        """For `estimators.topk`: down to exp(−24), in steps of 0.04 %."""
        return cls(vocab, 16, -24.0, 0.0, tensors)

    @classmethod
    def hidden(cls, vocab: int, width: int, dtype: FloatType, tensors: tuple[TensorPart, ...] = ()) -> Grid:
        """For a store of hidden states: no entries, but the input of the output layer, [n, width]."""
        return cls(vocab, 1, -1.0, 0.0, (TensorPart(HIDDEN, "targets", (width,), dtype), *tensors))

    @classmethod
    def dense(cls, vocab: int, dtype: FloatType = "float32", tensors: tuple[TensorPart, ...] = ()) -> Grid:
        """For a store of logits: no entries, but all logits, [n, vocab]."""
        return cls(vocab, 1, -1.0, 0.0, (TensorPart(LOGITS, "targets", (vocab,), dtype), *tensors))

    @classmethod
    def features(cls, vocab: int, tensors: tuple[TensorPart, ...]) -> Grid:
        """For a store of inner tensors alone, of sequences without targets."""
        return cls(max(vocab, 2), 1, -1.0, 0.0, tensors)


@dataclass(frozen=True)
class Entries:
    """What is kept of the distributions at n targets, ragged: entries `offsets[i]:offsets[i + 1]` are of target i.

    `entropy` [n] is that of the full distribution and `target_log_prob` [n] the target's, both in nats; `rest` [n] the
    logarithm of the mass that is not kept (of `topk` alone, else empty). `tensors` by name, [rows, *shape].
    """

    offsets: NDArray[np.int64]
    ids: NDArray[np.int32]
    weights: NDArray[np.float32]
    entropy: NDArray[np.float32]
    target_log_prob: NDArray[np.float32]
    rest: NDArray[np.float32]
    tensors: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)


TARGET_FLOOR, REST_FLOOR = -32.0, -64.0
"""The target's logarithm, and that of the remaining mass, are stored from here to 0."""
NUMBER_BITS, REST_BITS = 12, 16


def encode(entries: Entries, grid: Grid, uniforms: NDArray[np.float64]) -> bytes:
    """The bytes of a sequence.

    Args:
        uniforms: in [0, 1), one per entry; each decides to which neighbour on the grid the weight is rounded.

    Raises:
        ValueError: an id is outside the vocabulary, a target has an id twice, a weight is above 1 or not on the grid,
            or a tensor is missing or has another shape.
    """
    ids, weights = entries.ids.astype(np.int64), entries.weights.astype(np.float64)
    check_ids(entries, grid)
    if weights.size and weights.max() > 1 + 1e-6:
        raise ValueError("a weight is above 1")
    bare = np.isclose(weights, grid.constant, rtol=1e-6, atol=0) if grid.constant else np.zeros(ids.size, bool)
    targets = entries.entropy.size
    keys = ids * max(targets, 1) + np.repeat(np.arange(targets), np.diff(entries.offsets))
    order = np.lexsort((keys, bare))
    own = ids.size - int(bare.sum())
    sorted_keys = keys[order]
    lists = sorted_keys[:own], sorted_keys[own:]
    if any(keys.size and np.diff(keys).min(initial=1) < 1 for keys in lists):
        raise ValueError("a target has an id twice")
    rest = bool(entries.rest.size)
    parts = [
        np.array([own, ids.size - own], "<u4").tobytes() + bytes([rest]),
        *map(pack_ascending, lists),
        pack(_codes(weights[order[:own]], grid, uniforms[order[:own]]), grid.bits),
        pack(_scaled(entries.entropy, 0.0, math.log(grid.vocab), NUMBER_BITS), NUMBER_BITS),
        pack(_scaled(entries.target_log_prob, TARGET_FLOOR, 0.0, NUMBER_BITS), NUMBER_BITS),
        *([pack(_scaled(entries.rest, REST_FLOOR, 0.0, REST_BITS), REST_BITS)] if rest else []),
        *(_tensor_bytes(entries, part) for part in grid.tensors),
    ]
    return b"".join(parts)


def decode(data: bytes | memoryview, targets: int, grid: Grid, tokens: int = 0) -> Entries:
    """The entries of a sequence: those of each target in the order of ids, and those with a stored weight first.

    Args:
        targets: of the sequence.
        tokens: of the sequence; needed where a tensor has rows for each.

    Raises:
        ValueError: the bytes are not those of such a sequence.
    """
    raw = np.frombuffer(data, np.uint8)
    keys, at = _keys_of(raw, targets, grid)
    own = keys[0].size

    def take(count: int, width: int) -> NDArray[np.int64]:
        nonlocal at
        first, at = at, at + (count * width + 7) // 8
        if at > raw.size:
            raise ValueError("a sequence ends early")
        return unpack(raw[first:at], count, width)

    narrow = np.dtype(np.int32 if grid.vocab * targets < 1 << 31 else np.int64)
    key: NDArray[np.int64] = np.concatenate(keys).astype(narrow)
    ids = key // max(targets, 1)
    target = key - ids * targets
    order = np.argsort(target.astype(np.uint16 if targets <= 1 << 16 else np.int64), kind="stable")
    weights = np.full(key.size, grid.constant, np.float32)
    weights[:own] = _weights(take(own, grid.bits), grid)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(target, minlength=targets))])
    entropy = _unscaled(take(targets, NUMBER_BITS), 0.0, math.log(grid.vocab), NUMBER_BITS)
    target_log_prob = _unscaled(take(targets, NUMBER_BITS), TARGET_FLOOR, 0.0, NUMBER_BITS)
    rest = _unscaled(take(targets if raw[8] else 0, REST_BITS), REST_FLOOR, 0.0, REST_BITS)
    tensors = {}
    for part in grid.tensors:
        rows = part.count(targets, tokens)
        first, at = at, at + rows * bytes_of_floats(part.size, part.dtype)
        if at > raw.size:
            raise ValueError("a sequence ends early")
        tensors[part.name] = unpack_floats(raw[first:at], rows, part.size, part.dtype).reshape(rows, *part.shape)
    if at != raw.size:
        raise ValueError("bytes follow the end of a sequence")
    return Entries(
        offsets, ids.astype(np.int32, copy=False)[order], weights[order], entropy, target_log_prob, rest, tensors
    )


def ids_in(data: bytes | memoryview, targets: int, grid: Grid) -> NDArray[np.int32]:
    """The ids of all entries of a sequence, in no order of meaning. Raises as `decode`."""
    keys, _ = _keys_of(np.frombuffer(data, np.uint8), targets, grid)
    ids: NDArray[np.int32] = (np.concatenate(keys) // max(targets, 1)).astype(np.int32)
    return ids


def renamed(data: bytes | memoryview, targets: int, grid: Grid, names: NDArray[np.int32]) -> bytes:
    """The bytes of a sequence whose ids are others, as if it had been encoded with these: no number is rounded again.

    Args:
        targets: of the sequence.
        names: the new id of each old one [V], no two alike.

    Raises:
        ValueError: as `decode`.
    """
    raw = np.frombuffer(data, np.uint8)
    keys, at = _keys_of(raw, targets, grid)
    new, each = [], max(targets, 1)
    for found in keys:
        ids = found // each
        new.append(names[ids].astype(np.int64) * each + (found - ids * each))
    order, end = np.argsort(new[0]), at + (new[0].size * grid.bits + 7) // 8
    if end > raw.size:
        raise ValueError("a sequence ends early")
    weights = pack(unpack(raw[at:end], order.size, grid.bits)[order], grid.bits)
    lists = [pack_ascending(np.sort(found)) for found in new]
    return b"".join([raw[:9].tobytes(), *lists, weights, raw[end:].tobytes()])


def _keys_of(raw: NDArray[np.uint8], targets: int, grid: Grid) -> tuple[list[NDArray[np.int64]], int]:
    """The two lists of entries at the head of a sequence, id · n + target of each, and where they end."""
    if raw.size < 9:
        raise ValueError("a sequence of fewer than nine bytes")
    keys, at = [], 9
    for count in map(int, raw[:8].view("<u4")):
        if count > 8 * raw.size:
            raise ValueError("a sequence ends early")
        found, used = unpack_ascending(raw[at:], count)
        keys.append(found)
        at += used
    if any(found.size and found[-1] >= grid.vocab * targets for found in keys):
        raise ValueError("a sequence has an entry of no target or no token")
    return keys, at


def check_ids(entries: Entries, grid: Grid) -> None:
    """Check that every id is one of the vocabulary's.

    Raises:
        ValueError: one is not.
    """
    ids = entries.ids
    if ids.size and (ids.min() < 0 or ids.max() >= grid.vocab):
        raise ValueError(f"an id is outside the vocabulary of {grid.vocab} tokens")


def _tensor_bytes(entries: Entries, part: TensorPart) -> bytes:
    tensor = entries.tensors.get(part.name)
    if tensor is None or tensor.shape[1:] != part.shape:
        found = "missing" if tensor is None else f"of shape {tensor.shape}"
        raise ValueError(f"{part.name} is {found}, and its rows should have the shape {part.shape}")
    return pack_floats(tensor.reshape(tensor.shape[0], part.size), part.dtype)


def _codes(weights: NDArray[np.float64], grid: Grid, uniforms: NDArray[np.float64]) -> NDArray[np.int64]:
    """Codes, drawn so that the decoded weights have the expectation `weights`."""
    most = (1 << grid.bits) - 1
    if not grid.floor:
        codes = np.rint(weights / grid.constant).astype(np.int64) - 2
        if codes.size and (codes.min() < 0 or codes.max() > most):
            raise ValueError("a weight is not on the grid")
        return codes
    exact = np.clip((np.log(np.maximum(weights, 1e-300)) - grid.floor) / grid.step, 0, most)
    below = np.floor(exact)
    # With weights w0 < w1 = w0 · exp(step) of the neighbours, w1 with probability (w − w0) / (w1 − w0).
    share = np.expm1((exact - below) * grid.step) / math.expm1(grid.step)
    return np.minimum((below + (uniforms < share)).astype(np.int64), most)


def _weights(codes: NDArray[np.int64], grid: Grid) -> NDArray[np.float32]:
    table = np.arange(1 << grid.bits)
    values = np.exp(grid.floor + table * grid.step) if grid.floor else (table + 2) * grid.constant
    found: NDArray[np.float32] = values.astype(np.float32)[codes]
    return found


def _scaled(values: NDArray[np.float32], low: float, high: float, bits: int) -> NDArray[np.int64]:
    scaled = (np.nan_to_num(values.astype(np.float64), neginf=low) - low) / (high - low) * ((1 << bits) - 1)
    return np.rint(np.clip(scaled, 0, (1 << bits) - 1)).astype(np.int64)


def _unscaled(codes: NDArray[np.int64], low: float, high: float, bits: int) -> NDArray[np.float32]:
    if not codes.size:
        return np.zeros(0, np.float32)
    return _numbers(low, high, bits)[codes]


@lru_cache(maxsize=8)
def _numbers(low: float, high: float, bits: int) -> NDArray[np.float32]:
    """The value of each code."""
    values: NDArray[np.float32] = np.linspace(low, high, 1 << bits).astype(np.float32)
    return values

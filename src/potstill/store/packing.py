"""Integers and floats as bytes, and back: vectorised, NumPy alone. The specification is `docs/store.md`.

`pack`           integers of one width
`pack_ascending` ascending integers, close to the entropy of their gaps
`pack_floats`    rows of floats as float32, bfloat16, or int8 with a scale for each 64
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

BLOCK = 64
"""How many gaps share a width, and how many floats a scale. A full block of any width ends on a byte."""
_WIDEST = 34
"""Maximum bits of a gap's low part. With at most 2²⁸ bits of high parts, sums of gaps fit into 63 bits."""

FloatType = Literal["float32", "bfloat16", "int8"]


def pack(values: NDArray[np.integer], width: int) -> bytes:
    """Non-negative integers at `width` bits each (at most 32), lowest bit first."""
    if width in (8, 16):
        return values.astype(f"<u{width // 8}").tobytes()
    bits = (values.astype(np.uint32)[:, None] >> np.arange(width, dtype=np.uint32)) & 1
    return np.packbits(bits.astype(np.uint8).reshape(-1), bitorder="little").tobytes()


def unpack(data: NDArray[np.uint8], count: int, width: int) -> NDArray[np.int64]:
    """The reverse of `pack`."""
    if width in (8, 16):
        return np.frombuffer(data.tobytes(), f"<u{width // 8}", count).astype(np.int64)
    if width == 12:
        triples = np.zeros((-(-count // 2), 3), np.int64)
        triples.reshape(-1)[: data.size] = data
        low, middle, high = triples.T
        return np.stack([low | (middle & 15) << 8, middle >> 4 | high << 4], 1).reshape(-1)[:count]
    return _extract(data, np.arange(count, dtype=np.int64) * width, (1 << width) - 1)


def _extract(data: NDArray[np.uint8], start: NDArray[np.int64], mask: NDArray[np.int64] | int) -> NDArray[np.int64]:
    """The integers that begin at bits `start`, under a mask of their widths."""
    padded = np.zeros(data.size + 8, np.uint8)
    padded[: data.size] = data
    words = np.ndarray((data.size + 1,), "<i8", padded, strides=(1,))
    found: NDArray[np.int64] = (words[start >> 3] >> (start & 7)) & mask
    return found


def pack_ascending(values: NDArray[np.int64]) -> bytes:
    """Strictly ascending non-negative integers: the low bits of each gap, in a width chosen for its block of 64, and
    the rest in unary (Rice 1979; for sorted ids, partitioned Elias-Fano).

    For geometric gaps it takes 0.03 bits per value more than their entropy, and 8 bits per block.
    """
    gaps = np.diff(values, prepend=-1) - 1
    sizes = _block_sizes(gaps.size)
    padded = np.zeros(sizes.size * BLOCK, np.int64)
    padded[: gaps.size] = gaps
    candidates = np.arange(min(_WIDEST, int(gaps.max(initial=0)).bit_length()) + 1)
    unary = np.stack([(padded >> width).reshape(-1, BLOCK).sum(1) for width in candidates], 1)
    widths = (unary + sizes[:, None] * (1 + candidates)).argmin(1)
    width = np.repeat(widths, sizes)
    ends = np.cumsum((gaps >> width) + 1)
    ones = np.zeros(int(ends[-1]) if ends.size else 0, np.uint8)
    ones[ends - 1] = 1
    bit = np.arange(int(width.sum())) - np.repeat(np.cumsum(width) - width, width)
    low = (np.repeat(gaps, width) >> bit) & 1
    high = np.packbits(ones, bitorder="little").tobytes()
    parts = [len(high).to_bytes(4, "little"), widths.astype(np.uint8).tobytes()]
    return b"".join([*parts, np.packbits(low.astype(np.uint8), bitorder="little").tobytes(), high])


def unpack_ascending(data: NDArray[np.uint8], count: int) -> tuple[NDArray[np.int64], int]:
    """The reverse of `pack_ascending`: `count` integers, and the number of bytes that they took.

    Raises:
        ValueError: the bytes do not hold that many.
    """
    sizes = _block_sizes(count)
    first = 4 + sizes.size
    if data.size < first:
        raise ValueError("a sequence ends early")
    widths = data[4:first].astype(np.int64)
    if widths.max(initial=0) > _WIDEST:
        raise ValueError("a width is out of range")
    bits = widths * BLOCK
    before = np.cumsum(bits) - bits
    middle = first + (int(widths @ sizes) + 7) // 8
    end = middle + int(data[:4].view("<u4")[0])
    if data.size < end or end - middle > 1 << 25:
        raise ValueError("a sequence ends early")
    starts = (before[:, None] + widths[:, None] * np.arange(BLOCK)).reshape(-1)[:count]
    masks = np.repeat((1 << widths) - 1, sizes)
    low = _extract(data[first:middle], starts, masks)
    ones = np.flatnonzero(np.unpackbits(data[middle:end], bitorder="little").view(np.bool_))
    if ones.size != count:
        raise ValueError("a sequence holds another number of entries than it states")
    high = ones.copy()
    high[1:] -= ones[:-1] + 1
    gaps = (high << np.repeat(widths, sizes)) + low + 1
    return np.cumsum(gaps) - 1, end


def _block_sizes(count: int) -> NDArray[np.int64]:
    sizes = np.full(-(-count // BLOCK), BLOCK, np.int64)
    sizes[-1:] -= -count % BLOCK
    return sizes


# ---- floats ------------------------------------------------------------------------------------------------


def bytes_of_floats(size: int, dtype: FloatType) -> int:
    """Bytes of a row of `size` floats."""
    return {"float32": 4 * size, "bfloat16": 2 * size, "int8": size + 2 * -(-size // BLOCK)}[dtype]


def pack_floats(rows: NDArray[np.float32], dtype: FloatType) -> bytes:
    """Rows [n, size] of floats.

    `int8`: codes, and a bfloat16 scale per 64 neighbours of a row; errors are at most 1/252 of the largest of the 64.

    Raises:
        ValueError: a number is not finite, for `int8`.
    """
    if dtype == "float32":
        return rows.astype("<f4").tobytes()
    if dtype == "bfloat16":
        return _bfloat16(rows).tobytes()
    if not np.isfinite(rows).all():
        raise ValueError("a number is not finite")
    blocks = _blocked(rows)
    # Rounded up, so that no code is above 127.
    scales = (_bfloat16(np.abs(blocks).max(2, initial=0) / 127 * (1 + 2**-8)).astype(np.uint32) << 16).view(np.float32)
    codes = np.rint(blocks / np.where(scales > 0, scales, 1)[:, :, None]).clip(-127, 127).astype(np.int8)
    count, size = rows.shape
    return codes.reshape(count, blocks.shape[1] * BLOCK)[:, :size].tobytes() + _bfloat16(scales).tobytes()


def unpack_floats(data: NDArray[np.uint8], count: int, size: int, dtype: FloatType) -> NDArray[np.float32]:
    """The reverse of `pack_floats`: rows [count, size]."""
    raw = data.tobytes()
    if dtype == "float32":
        return np.frombuffer(raw, "<f4").astype(np.float32).reshape(count, size)
    if dtype == "bfloat16":
        return _float32(np.frombuffer(raw, "<u2")).reshape(count, size)
    codes = np.frombuffer(raw, np.int8, count * size).reshape(count, size).astype(np.float32)
    scales = _float32(np.frombuffer(raw, "<u2", offset=count * size)).reshape(count, -(-size // BLOCK))
    return codes * np.repeat(scales, BLOCK, axis=1)[:, :size]


def _blocked(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """[n, size] as [n, blocks, 64], padded with zeros."""
    count, size = rows.shape
    padded = np.zeros((count, -(-size // BLOCK) * BLOCK), np.float32)
    padded[:, :size] = rows
    return padded.reshape(count, -(-size // BLOCK), BLOCK)


def _bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The upper 16 bits, rounded to nearest even; NaN stays one."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    codes: NDArray[np.uint16] = np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype("<u2")
    return codes


def _float32(codes: NDArray[np.uint16]) -> NDArray[np.float32]:
    return (codes.astype(np.uint32) << 16).view(np.float32)

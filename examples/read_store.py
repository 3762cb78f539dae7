"""Reads a signal store with NumPy alone. The format is specified in docs/store.md.

python examples/read_store.py STORE [RECORD]
"""

import json
import sys
from pathlib import Path

import numpy as np


def unpack(data, count, width):
    """Integers of `width` bits each, little-endian."""
    bits = np.unpackbits(data, bitorder="little")[: count * width].reshape(count, width)
    return bits.astype(np.int64) @ (1 << np.arange(width))


def ascending(raw, count):
    """Ascending integers (low bits of their gaps, then the rest in unary), and the bytes that follow."""
    blocks = -(-count // 64)
    widths, at, low = raw[4 : 4 + blocks].astype(int), 4 + blocks, []
    for first, width in zip(range(0, count, 64), widths, strict=True):
        size = min(64, count - first)
        low.append(unpack(raw[at:], size, width))
        at += (size * width + 7) // 8
    end = at + int(raw[:4].view("<u4")[0])
    ones = np.flatnonzero(np.unpackbits(raw[at:end], bitorder="little"))
    high = np.diff(ones, prepend=-1) - 1
    gaps = (high << np.repeat(widths, 64)[:count]) + np.concatenate([np.zeros(0, int), *low])
    return np.cumsum(gaps + 1) - 1, raw[end:]


def floats(raw, rows, size, dtype):
    """Rows of floats."""
    if dtype == "float32":
        return raw.view("<f4").reshape(rows, size)
    if dtype == "bfloat16":
        return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32).reshape(rows, size)
    codes, blocks = raw[: rows * size].view(np.int8).reshape(rows, size), -(-size // 64)
    return codes * np.repeat(floats(raw[rows * size :], rows, blocks, "bfloat16"), 64, axis=1)[:, :size]


def read(folder, record):
    """Of a record: per target a dictionary from token to weight; entropy and log-probability of the target; tensors."""
    folder = Path(folder)
    facts = json.loads((folder / "store.json").read_text())
    vocab = facts["grid"]["vocab"]
    for shard in facts["shards"]:
        data = folder / shard["name"]
        for line in map(json.loads, data.with_suffix(".jsonl").read_text().splitlines()):
            if line["record"] == record:
                whole = np.fromfile(data, np.uint8)
                frequent = unpack(whole[4:], int(whole[:4].view("<u4")[0]), max(1, (vocab - 1).bit_length()))
                token_of = np.concatenate([frequent, np.setdiff1d(np.arange(vocab), frequent)])
                blob = whole[line["offset"] : line["offset"] + line["bytes"]]
                return decode(blob, line["targets"], line["length"], facts["grid"], token_of)
    raise KeyError(record)


def decode(raw, targets, length, grid, token_of):
    own, bare, has_rest = *raw[:8].view("<u4").tolist(), raw[8]
    with_weight, raw = ascending(raw[9:], own)
    without, raw = ascending(raw, bare)

    def take(count, width):
        nonlocal raw
        size = (count * width + 7) // 8
        values, raw = unpack(raw[:size], count, width), raw[size:]
        return values

    code, bits, floor = take(own, grid["bits"]), grid["bits"], grid["floor"]
    step = -floor / (2**bits - 1)
    weights = np.exp(floor + code * step) if floor else (code + 2) * grid["constant"]
    entropy = take(targets, 12) * (np.log(grid["vocab"]) / 4095)
    target = take(targets, 12) * (32 / 4095) - 32
    take(targets if has_rest else 0, 16)  # · 64 / 65535 − 64: the logarithm of the mass that is not kept
    entries = [{} for _ in range(targets)]
    for keys, weight in ((with_weight, weights), (without, np.full(bare, grid["constant"]))):
        for rank, at, value in zip(keys // max(targets, 1), keys % max(targets, 1), weight, strict=True):
            entries[at][int(token_of[rank])] = float(value)
    tensors = {}
    for part in grid["tensors"]:
        rows = {"targets": targets, "tokens": length, "example": 1}[part["rows"]]
        size = int(np.prod(part["shape"]))
        blocks = -(-size // 64)
        used = rows * {"float32": 4 * size, "bfloat16": 2 * size, "int8": size + 2 * blocks}[part["dtype"]]
        tensors[part["name"]] = floats(raw[:used], rows, size, part["dtype"]).reshape(rows, *part["shape"])
        raw = raw[used:]
    return entries, entropy, target, tensors


if __name__ == "__main__":
    if len(sys.argv) < 3:
        lines = (Path(sys.argv[1]) / "shard-00000.jsonl").read_text().splitlines()
        print("\n".join(json.loads(line)["record"] for line in lines))
    else:
        found = read(sys.argv[1], sys.argv[2])
        for entries, entropy, target in zip(*found[:3], strict=True):
            print(f"entropy {entropy:.3f}, target {target:.3f}:", {t: round(w, 4) for t, w in entries.items()})

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


def read(folder, record):
    """Of each target of a record: a dictionary from token to weight, the entropy, and the target's log-probability."""
    folder = Path(folder)
    facts = json.loads((folder / "store.json").read_text())
    grid = facts["grid"]
    for shard in facts["shards"]:
        data = folder / shard["name"]
        for line in map(json.loads, data.with_suffix(".jsonl").read_text().splitlines()):
            if line["record"] == record:
                with data.open("rb") as file:
                    file.seek(line["offset"])
                    return decode(np.frombuffer(file.read(line["bytes"]), np.uint8), line["targets"], grid)
    raise KeyError(record)


def decode(raw, targets, grid):
    at = 3

    def take(count, width):
        nonlocal at
        size = (count * width + 7) // 8
        at += size
        return unpack(raw[at - size : at], count, width)

    with_weight, without = take(targets, int(raw[0])), take(targets, int(raw[1]))
    ids = take(int((with_weight + without).sum()), max(1, (grid["vocab"] - 1).bit_length()))
    step = -grid["floor"] / (2 ** grid["bits"] - 1)
    weights = np.exp(grid["floor"] + take(int(with_weight.sum()), grid["bits"]) * step)
    entropy = take(targets, 16) * (np.log(grid["vocab"]) / 65535)
    target = take(targets, 16) * (64 / 65535) - 64
    found, token, weight = [], iter(ids.tolist()), iter(weights.tolist())
    for own, constant in zip(with_weight, without, strict=True):
        entries = [(next(token), next(weight)) for _ in range(own)]
        entries += [(next(token), grid["constant"]) for _ in range(constant)]
        found.append(entries)
    return found, entropy, target


if __name__ == "__main__":
    if len(sys.argv) < 3:
        lines = (Path(sys.argv[1]) / "shard-00000.jsonl").read_text().splitlines()
        print("\n".join(json.loads(line)["record"] for line in lines))
    else:
        for entries, entropy, target in zip(*read(sys.argv[1], sys.argv[2]), strict=True):
            print(f"entropy {entropy:.3f}, target {target:.3f}:", {t: round(w, 4) for t, w in entries})

"""What reading few tokens costs SmolLM2-135M on one thread, with the kernels of `decoding/few_rows.py` and without.

    python -m benchmarks.few_rows --json

One process, fp32, batch 1; all variants in turn, each second of it the processor's for this thread, so that other work
on the machine falls on the figures by its use of caches and memory alone. `floor` is one pass over as many bytes as the
linear layers have, by `Tensor.sum`. v(n) is the time of reading n tokens behind 60 by the time of reading one.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.claims import Aim, claims_of, command_line
from benchmarks.harness import machine, say
from benchmarks.speculate import Bench
from potstill.decoding import few_rows
from potstill.decoding.cached_model import CachedModel
from potstill.decoding.speculative import Request, SpeculativeDecoder

AIMS = [Aim("loop without a draft / generate", "×", least=1.1)]
TURNS, MOST, AHEAD = 7, 9, 60


def seconds(call: Callable[[], object]) -> float:
    """Of this thread."""
    begun = time.thread_time()
    call()
    return time.thread_time() - begun


def plain(bench: Bench) -> CachedModel:
    """The target with `nn.Linear` as it is."""
    least, few_rows.LEAST_BYTES = few_rows.LEAST_BYTES, 2**62
    try:
        return CachedModel(bench.target.model)
    finally:
        few_rows.LEAST_BYTES = least


def main() -> None:
    parser = command_line("benchmarks.few_rows", __doc__)
    parser.add_argument("--tokens", type=int, default=24)
    options = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(None, options.tokens)
    readers = {"plain": plain(bench), "few rows": bench.target.cached}
    prompt = bench.prompts(1)[0]
    linear = [module for module in bench.target.model.modules() if isinstance(module, nn.Linear)]
    weights = torch.ones(sum(module.weight.numel() for module in linear))
    generate = bench.peers(None, 0.0)

    def loop(reader: CachedModel) -> Callable[[], object]:
        decoder = SpeculativeDecoder(reader)
        return lambda: decoder.write(Request([prompt], options.tokens))

    with torch.no_grad():
        calls = {f"loop, {name}": loop(reader) for name, reader in readers.items()}
        calls["generate"] = lambda: generate(prompt, options.tokens, 0)
        ids = torch.randint(100, 40_000, (1, AHEAD + MOST), generator=torch.Generator().manual_seed(0))
        for call in calls.values():
            call()
        found: dict[str, list[float]] = {name: [] for name in (*calls, "floor")}
        for turn in range(TURNS):
            names = list(calls)
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                found[name].append(seconds(calls[name]) / options.tokens)
            found["floor"].append(seconds(weights.sum))
        for reader in readers.values():
            reader.start(AHEAD + MOST)
            reader(ids[:, :AHEAD], [0], [0])
        for _ in range(-1, TURNS):
            for n in range(1, MOST + 1):
                for name, reader in readers.items():
                    spent = seconds(partial(reader, ids[:, AHEAD : AHEAD + n], [AHEAD]))
                    found.setdefault(f"read {n}, {name}", []).append(spent)
    rows: list[dict[str, Any]] = [
        {"variant": name, "seconds": statistics.median(spent), "least": min(spent), "most": max(spent)}
        for name, spent in found.items()
    ]
    for row in rows:
        say(f"{row['variant']}: {1000 * row['seconds']:.1f} ms")
    medians = {name: statistics.median(spent) for name, spent in found.items()}
    values = {"loop without a draft / generate": medians["generate"] / medians["loop, few rows"]}
    result = {"benchmark": "few_rows", "machine": machine(torch.device("cpu")), "rows": rows}
    print(json.dumps({**result, "claims": claims_of(AIMS, values)}))


if __name__ == "__main__":
    main()

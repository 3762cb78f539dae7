"""What a signal store costs and loses, per estimator: bytes a token, errors, rates of encoding and decoding.

    python -m benchmarks.signal_store --json                  20,000 tokens of web text, SmolLM2-135M
    python -m benchmarks.signal_store --tokens 2000           a quick look

The distributions are those of the demo's teacher over web text (OpenWebText fragments); errors are of the stored
weights against them, by each estimator's own draws, quantisation included. `bytes` is of the encoded blobs over their
targets: counts, ids, weights, entropy and the target's log-probability (4 bytes of each).

    teacher            the forward pass and the softmax alone, tokens a second
    threshold_N        τ found so that some N bytes a token are stored
    sampled_50         RS-KD with 50 draws
    topk_N             the N largest, with the remaining mass

`peers` are sizes from published layouts, not measured: DistillKit 328 to 344 bytes at k = 128, 121 to 127 at k = 50.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.claims import Aim, claims_of
from benchmarks.harness import machine
from potstill.console import Console
from potstill.models.resolve import resolve
from potstill.recipe.data import PackagedData
from potstill.registry import build
from potstill.signals import Sparse
from potstill.store.codec import Entries, Grid, decode, encode
from potstill.store.estimators import (
    joined,
    sampled,
    squared_error_of_sampled,
    squared_error_of_threshold,
    threshold,
    threshold_for,
    topk,
)

AIMS = [
    Aim("bytes of threshold at RS-KD's squared error", "bytes", most=22),
    Aim("times lower squared error of threshold at RS-KD's bytes", "", least=3.5),
    Aim("decoded tokens a second and core, threshold", "1/s", least=2e6),
    Aim("encoding as a multiple of the teacher's speed", "", least=20),
]
LENGTH, CHUNK = 256, 16
Keep = Callable[[Tensor, Tensor], tuple[Sparse, Tensor]]


def texts() -> Iterator[str]:
    """Web text, as the packaged data set has it."""
    for row in build(PackagedData(kind="package", name="webtext")).rows():
        yield str(getattr(row.content, "text", None))


def distributions(tokens: int) -> tuple[list[tuple[Tensor, Tensor]], float]:
    """(log p [n,V], next tokens [n]) of pieces of text, and the tokens a second that made them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = resolve("smollm2-135m-instruct", console=Console("quiet")).path
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    made, seen, spent = [], 0, 0.0
    for text in texts():
        ids = tokenizer(text, return_tensors="pt").input_ids[:, :LENGTH]
        if ids.shape[1] < 64:
            continue
        started = time.perf_counter()
        with torch.inference_mode():
            log_p = model(ids).logits[0, :-1].float().log_softmax(1)
        spent += time.perf_counter() - started
        made.append((log_p.half(), ids[0, 1:]))  # half the memory; this is the reference
        seen += log_p.shape[0]
        if seen >= tokens:
            break
    return made, seen / spent


def measure(pieces: list[tuple[Tensor, Tensor]], keep: Keep, grid: Grid) -> dict[str, Any]:
    """One estimator over all pieces."""
    random = torch.Generator().manual_seed(0)
    totals = dict.fromkeys(("bytes", "targets", "squared", "kl", "tv", "entries"), 0.0)
    encoding = decoding = 0.0
    for log_p, targets in pieces:
        log_p = log_p.float().log_softmax(1)
        uniforms = torch.rand(log_p.shape[0], 64, generator=random)
        started = time.perf_counter()
        parts = [keep(log_p[at : at + CHUNK], uniforms[at : at + CHUNK]) for at in range(0, log_p.shape[0], CHUNK)]
        sparse, rest = joined([part for part, _ in parts]), torch.cat([left for _, left in parts])
        draws = np.random.default_rng(0).random(sparse.ids.numel())
        blob = encode(entries_of(sparse, rest, log_p, targets), grid, draws)
        encoding += time.perf_counter() - started
        started = time.perf_counter()
        found = decode(blob, log_p.shape[0], grid)
        decoding += time.perf_counter() - started
        p = log_p.exp()
        rows = torch.repeat_interleave(torch.arange(log_p.shape[0]), torch.from_numpy(np.diff(found.offsets)))
        stored = torch.zeros_like(p).index_put_(
            (rows, torch.from_numpy(found.ids).long()), torch.from_numpy(found.weights)
        )
        totals["bytes"] += len(blob)
        totals["entries"] += sparse.ids.numel()
        totals["targets"] += log_p.shape[0]
        totals["squared"] += float((stored - p).square().sum())
        totals["tv"] += float((stored - p).abs().sum()) / 2
        # KL from the teacher to the stored, normalised distribution, over the stored tokens: the limit of a student of
        # it.
        normalised = stored / stored.sum(1, keepdim=True).clamp_min(1e-9)
        totals["kl"] += float(torch.where(stored > 0, p * (log_p - normalised.clamp_min(1e-9).log()), 0).sum())
    per = {name: totals[name] / totals["targets"] for name in ("bytes", "squared", "kl", "tv", "entries")}
    per["encoded_per_second"], per["decoded_per_second"] = (totals["targets"] / s for s in (encoding, decoding))
    return per


def entries_of(sparse: Sparse, rest: Tensor, log_p: Tensor, targets: Tensor) -> Entries:
    """The entries, as the codec takes them."""
    target = log_p.gather(1, targets[:, None]).squeeze(1)
    arrays = (sparse.offsets, sparse.ids, sparse.weights, sparse.entropy, target, rest)
    offsets, ids, weights, entropy, at_target, left = (t.numpy() for t in arrays)
    return Entries(offsets, ids, weights.astype(np.float32), entropy, at_target, left)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--tokens", type=int, default=20_000)
    asked = parser.parse_args()
    pieces, teacher_rate = distributions(asked.tokens)
    vocab = pieces[0][0].shape[1]
    sample = torch.cat([log_p for log_p, _ in pieces[:6]]).float().log_softmax(1)
    none = torch.zeros(0)

    def thresholded(tau: float) -> tuple[Keep, Grid]:
        grid = Grid(vocab, 8, math.log(tau), tau)
        return (lambda log_p, u: (threshold(log_p, tau, u[:, 0]), none)), grid

    def drawn(count: int) -> tuple[Keep, Grid]:
        return (lambda log_p, u: (sampled(log_p, u[:, :count]), none)), Grid(vocab, 8, -math.log(count), 1 / count)

    def largest(k: int) -> tuple[Keep, Grid]:
        return (lambda log_p, u: topk(log_p, k)), Grid(vocab, 16, -24.0, 0.0)

    of_rskd = float(squared_error_of_sampled(sample, 50).mean())
    equal = equal_error(sample, of_rskd)
    variants = {"sampled_50": drawn(50), "threshold_equal_error": thresholded(equal)}
    rows: dict[str, dict[str, Any]] = {name: measure(pieces, *variant) for name, variant in variants.items()}
    budget = rows["sampled_50"]["bytes"]
    for name, wanted in (("threshold_20", 20.0), ("threshold_40", 40.0), ("threshold_equal_bytes", budget)):
        rows[name] = measure(pieces, *thresholded(for_bytes(sample, wanted)))
    rows |= {f"topk_{k}": measure(pieces, *largest(k)) for k in (8, 32, 50)}
    values = {
        AIMS[0].name: rows["threshold_equal_error"]["bytes"],
        AIMS[1].name: rows["sampled_50"]["squared"] / rows["threshold_equal_bytes"]["squared"],
        AIMS[2].name: rows["threshold_20"]["decoded_per_second"],
        AIMS[3].name: rows["threshold_20"]["encoded_per_second"] / teacher_rate,
    }
    if not asked.json:
        for name, row in rows.items():
            print(f"{name:24}", "  ".join(f"{key} {value:.4g}" for key, value in row.items()))
    result = {
        "benchmark": "signal_store",
        "machine": machine(torch.device("cpu")),
        "tokens": sum(log_p.shape[0] for log_p, _ in pieces),
        "rows": [
            {"variant": "teacher", "tokens_per_second": teacher_rate},
            *({"variant": n, **r} for n, r in rows.items()),
        ],
        "peers": {"DistillKit k=128": [328, 344], "DistillKit k=50": [121, 127]},
        "claims": claims_of(AIMS, values),
    }
    print(json.dumps(result), flush=True)
    return 0


def equal_error(log_p: Tensor, error: float) -> float:
    """The τ at which `threshold` has this squared error on average, by bisection: the error grows with τ."""
    low, high = 1e-6, 1.0
    for _ in range(50):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if float(squared_error_of_threshold(log_p, middle).mean()) > error else (middle, high)
    return low


def for_bytes(log_p: Tensor, wanted: float) -> float:
    """The τ at which some `wanted` bytes a token are stored: 5 or so for what every token has, and 2 or 3 an entry."""
    tau, entries = 0.0, (wanted - 5) / 2.4
    for _ in range(4):
        tau = threshold_for(log_p, entries)
        p = log_p.exp()
        exact = float((p >= tau).sum(1).float().mean())
        entries = (wanted - 5 - exact) / 2
    return tau


if __name__ == "__main__":
    raise SystemExit(main())

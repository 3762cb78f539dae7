"""What a signal store costs and loses, per estimator: bytes a token, errors, rates of encoding and decoding.

    python -m benchmarks.signal_store --json                  200,000 tokens of web text, SmolLM2-135M
    python -m benchmarks.signal_store --tokens 2000           a quick look

The distributions are those of the demo's teacher over web text (OpenWebText fragments); errors are of the stored
weights against them, by each estimator's own draws, quantisation included. `bytes` is of the encoded blobs over their
targets: entries, weights, entropy and the target's log-probability (3 bytes for both). Ids have the order of the first
batch, as in a shard. Errors of a token, with p the teacher's distribution and w the stored weights:

    mse   Σ (w − p)²            tv   ½ Σ |w − p|            kl   KL(w / Σ w ‖ p); of hidden states KL(p ‖ stored)
    ece   of the largest weight as the confidence in its token, in 15 bins; the teacher's own is in its row

    teacher            the forward pass and the softmax alone, tokens a second
    threshold_N        τ found so that some N bytes a token are stored
    sampled_50         RS-KD with 50 draws, in this format
    topk_N             the N largest, with the remaining mass
    hidden_bf16, int8  the input of the output layer, without the output layer itself

`peers` are bytes a token of other layouts. RS-KD's: 3 an entry (17 bits and 7). Parquet: the entries of `threshold_20`
as lists, with zstd. DistillKit's, from its published layout and not measured: 328 to 344 at k = 128, 121 to 127 at 50.
`floors` are what entropy allows a code that knows the frequency of each id, but not the text before it (3 bytes for the
two numbers and 6 bits a weight included).
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.claims import Aim, claims_of, command_line
from benchmarks.harness import machine
from potstill.calibration import BINS, ece, equal_width, gap_sums
from potstill.console import Console
from potstill.models.resolve import resolve
from potstill.recipe.data import PackagedData
from potstill.registry import build
from potstill.signals import Sparse
from potstill.store.codec import HIDDEN, Entries, Grid, decode, encode
from potstill.store.estimators import (
    entries_of,
    joined,
    sampled,
    squared_error_of_sampled,
    squared_error_of_threshold,
    tau_for_budget,
    threshold,
    topk,
)
from potstill.store.files import by_frequency, ranks_of

AIMS = [
    Aim("bytes of threshold at RS-KD's squared error", "bytes", most=22),
    Aim("times lower squared error of threshold at the bytes of RS-KD's layout", "", least=3.5),
    Aim("times lower squared error of threshold at RS-KD's bytes in this format", "", least=3.5),
    Aim("decoded tokens a second and core, threshold", "1/s", least=2e6),
    Aim("encoding as a multiple of the teacher's speed", "", least=20),
]
LENGTH, CHUNK, BATCH = 1024, 16, 8
Keep = Callable[[Tensor, Tensor], tuple[Sparse, Tensor]]


def texts() -> Iterator[str]:
    """Web text, as the packaged data set has it."""
    for row in build(PackagedData(kind="package", name="webtext")).rows():
        yield str(getattr(row.content, "text", None))


@dataclass(frozen=True)
class Piece:
    """A piece of text: log p [n,V], the input of the output layer [n,H], the next tokens [n]."""

    log_p: Tensor
    hidden: Tensor
    targets: Tensor


class Teacher:
    """The demo's teacher, timed."""

    def __init__(self) -> None:
        path = resolve("smollm2-135m-instruct", console=Console("quiet")).path
        self.model = AutoModelForCausalLM.from_pretrained(path).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.seconds, self.tokens = 0.0, 0

    def pieces(self, tokens: int) -> Iterator[Piece]:
        """Whole texts, joined to pieces of `LENGTH`, until there are so many tokens."""
        waiting: list[int] = []
        for text in texts():
            waiting += [*self.tokenizer(text).input_ids, self.tokenizer.eos_token_id]
            while len(waiting) >= LENGTH and self.tokens < tokens:
                yield self._piece(torch.tensor([waiting[:LENGTH]]))
                waiting = waiting[LENGTH:]
            if self.tokens >= tokens:
                return

    @torch.inference_mode()
    def _piece(self, ids: Tensor) -> Piece:
        started = time.process_time()
        hidden = self.model.model(ids).last_hidden_state[0, :-1]
        log_p = torch.cat([self.model.lm_head(rows).log_softmax(1) for rows in hidden.split(CHUNK)])
        self.seconds += time.process_time() - started
        self.tokens += log_p.shape[0]
        return Piece(log_p, hidden, ids[0, 1:])


class Measured:
    """One estimator: what it costs and loses, piece by piece. Rates are of processor seconds."""

    def __init__(self, keep: Keep, grid: Grid) -> None:
        self.keep, self.grid = keep, grid
        self.random = torch.Generator().manual_seed(0)
        self.ranks: NDArray[np.int32] | None = None
        self.totals = dict.fromkeys(("bytes", "targets", "mse", "kl", "tv", "entries"), 0.0)
        self.encoding = self.decoding = 0.0
        self.bins = np.zeros(BINS + 1)
        self.kept: list[Entries] = []

    def batch(self, pieces: list[Piece]) -> None:
        """Encode, decode and compare some pieces."""
        for piece in pieces:
            piece_entries = self._entries(piece)
            self.kept.append(piece_entries)
        if self.ranks is None:
            self.ranks = ranks_of(by_frequency(self.kept, self.grid.vocab), self.grid.vocab)
        order = np.argsort(self.ranks).astype(np.int32)
        for piece, entries in zip(pieces, self.kept, strict=True):
            started = time.process_time()
            draws = np.random.default_rng(0).random(entries.ids.size)
            blob = encode(replace(entries, ids=self.ranks[entries.ids]), self.grid, draws)
            ended = time.process_time()
            found = decode(blob, entries.entropy.size, self.grid)
            found = replace(found, ids=order[found.ids])
            self.decoding += time.process_time() - ended
            self.encoding += ended - started
            self.totals["bytes"] += len(blob)
            self._compare(piece, found)
        self.kept = []

    def _entries(self, piece: Piece) -> Entries:
        log_p = piece.log_p
        uniforms = torch.rand(log_p.shape[0], 64, generator=self.random)
        started = time.process_time()
        parts = [self.keep(log_p[at : at + CHUNK], uniforms[at : at + CHUNK]) for at in range(0, log_p.shape[0], CHUNK)]
        sparse, rest = joined([part for part, _ in parts]), torch.cat([left for _, left in parts])
        target_log_prob = log_p.gather(1, piece.targets[:, None]).squeeze(1)
        entries = entries_of(replace(sparse, rest=rest if rest.numel() else None), target_log_prob)
        self.encoding += time.process_time() - started
        return entries

    def _compare(self, piece: Piece, found: Entries) -> None:
        row = torch.repeat_interleave(torch.arange(piece.log_p.shape[0]), torch.from_numpy(np.diff(found.offsets)))
        ids, w = torch.from_numpy(found.ids).long(), torch.from_numpy(found.weights).double()
        log_p = piece.log_p[row, ids].double()
        p, mass = log_p.exp(), torch.zeros(piece.log_p.shape[0]).double().index_add(0, row, w)
        self.totals["entries"] += ids.numel()
        self.totals["targets"] += piece.log_p.shape[0]
        squares = sum(float(rows.exp().square().sum()) for rows in piece.log_p.split(CHUNK))
        self.totals["mse"] += squares + float((w * (w - 2 * p)).sum())
        self.totals["tv"] += (piece.log_p.shape[0] + float(((w - p).abs() - p).sum())) / 2
        share = w / mass[row]
        self.totals["kl"] += float((share * (share.log() - log_p)).sum())
        largest = torch.zeros_like(mass).scatter_reduce_(0, row, w, "amax")
        top = w == largest[row]
        right = (ids[top] == piece.targets[row[top]]).double()
        add_to_bins(self.bins, w[top].clamp(max=1).numpy(), right.numpy())

    def row(self) -> dict[str, float]:
        """The figures a token."""
        names = ("bytes", "mse", "kl", "tv", "entries")
        per = {name: self.totals[name] / self.totals["targets"] for name in names}
        rates = (self.totals["targets"] / seconds for seconds in (self.encoding, self.decoding))
        per["encoded_per_second"], per["decoded_per_second"] = rates
        return {**per, "ece": ece_of(self.bins)}


def add_to_bins(bins: NDArray[np.float64], confidence: NDArray[np.float64], right: NDArray[np.float64]) -> None:
    """Add the gaps [BINS] of some targets, and in the last place their number [BINS + 1]."""
    bins[:-1] += gap_sums(confidence, right, equal_width(confidence, BINS), BINS)
    bins[-1] += confidence.size


def ece_of(bins: NDArray[np.float64]) -> float:
    """ECE of what `add_to_bins` added up."""
    return float(ece(bins[:-1], bins[-1]))


class Rounded:
    """Stored hidden states: the divergence that rounding them causes, by the teacher's own output layer."""

    def __init__(self, teacher: Teacher, vocab: int, width: int, dtype: Literal["bfloat16", "int8"]) -> None:
        self.teacher, self.grid, self.width = teacher, Grid.hidden(vocab, width, dtype), width
        self.totals = dict.fromkeys(("bytes", "targets", "compared", "mse", "kl", "tv"), 0.0)
        self.encoding = self.decoding = 0.0

    @torch.inference_mode()
    def batch(self, pieces: list[Piece]) -> None:
        """Encode and decode all; compare 64 rows of each piece."""
        for piece in pieces:
            count = piece.log_p.shape[0]
            no_numbers, no_entries = np.zeros(count, np.float32), np.zeros(0, np.float32)
            offsets, ids = np.zeros(count + 1, np.int64), np.zeros(0, np.int32)
            hidden_states = {HIDDEN: piece.hidden.numpy()}
            nothing = Entries(offsets, ids, no_entries, no_numbers, no_numbers, no_entries, hidden_states)
            started = time.process_time()
            blob = encode(nothing, self.grid, np.zeros(0))
            ended = time.process_time()
            hidden = torch.from_numpy(decode(blob, count, self.grid).tensors[HIDDEN])
            self.decoding += time.process_time() - ended
            self.encoding += ended - started
            self.totals["bytes"] += len(blob)
            self.totals["targets"] += count
            log_q = self.teacher.model.lm_head(hidden[:64]).log_softmax(1)
            log_p = piece.log_p[:64]
            self.totals["compared"] += log_p.shape[0]
            self.totals["mse"] += float((log_q.exp() - log_p.exp()).square().sum())
            self.totals["tv"] += float((log_q.exp() - log_p.exp()).abs().sum()) / 2
            self.totals["kl"] += float((log_p.double().exp() * (log_p.double() - log_q.double())).sum())

    def row(self) -> dict[str, float]:
        """The figures a token."""
        per = {name: self.totals[name] / self.totals["compared"] for name in ("mse", "kl", "tv")}
        rates = (self.totals["targets"] / seconds for seconds in (self.encoding, self.decoding))
        per["encoded_per_second"], per["decoded_per_second"] = rates
        return {"bytes": self.totals["bytes"] / self.totals["targets"], **per}


def thresholded(tau: float, vocab: int) -> Measured:
    """Threshold sampling at τ."""
    return Measured(lambda log_p, u: (threshold(log_p, tau, u[:, 0]), torch.zeros(0)), Grid.threshold(vocab, tau))


def drawn(count: int, vocab: int) -> Measured:
    """RS-KD."""
    return Measured(lambda log_p, u: (sampled(log_p, u[:, :count]), torch.zeros(0)), Grid.sampled(vocab, count))


def largest(k: int, vocab: int) -> Measured:
    """Top-k."""
    return Measured(lambda log_p, _: topk(log_p, k), Grid.topk(vocab))


def for_bytes(pieces: list[Piece], wanted: float, make: Callable[[float], Measured]) -> float:
    """The τ at which these pieces take `wanted` bytes a token."""

    def bytes_at(tau: float) -> float:
        measured = make(tau)
        measured.batch(pieces)
        return measured.row()["bytes"]

    return tau_for_budget(bytes_at, wanted)


def equal_error(log_p: Tensor, error: float) -> float:
    """The τ at which `threshold` has this squared error on average, by bisection: the error grows with τ."""
    low, high = 1e-6, 1.0
    for _ in range(30):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if float(squared_error_of_threshold(log_p, middle).mean()) > error else (middle, high)
    return low


def parquet_bytes(pieces: list[Piece], tau: float) -> float:
    """Bytes a token of the same entries as Parquet lists: int32 ids, float16 weights, two numbers; zstd."""
    columns: dict[str, list[Any]] = {"ids": [], "weights": [], "entropy": [], "target": []}
    for piece in pieces:
        sparse = threshold(piece.log_p, tau, torch.rand(piece.log_p.shape[0]))
        bounds = sparse.offsets.tolist()
        for first, last in itertools.pairwise(bounds):
            columns["ids"].append(sparse.ids[first:last].numpy())
            columns["weights"].append(sparse.weights[first:last].half().numpy())
        columns["entropy"] += sparse.entropy.half().numpy().tolist()
        columns["target"] += piece.log_p.gather(1, piece.targets[:, None]).squeeze(1).half().numpy().tolist()
    types = {"ids": pa.list_(pa.int32()), "weights": pa.list_(pa.float16())}
    types |= {name: pa.float32() for name in ("entropy", "target")}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({n: pa.array(c, types[n]) for n, c in columns.items()}), sink, compression="zstd")
    size = int(sink.getvalue().size)
    return size / len(columns["entropy"])


def floor_bytes(pieces: list[Piece], tau: float) -> float:
    """What entropy allows, in bytes a token: ids as sets drawn from their own frequencies, less the order of each set;
    6 bits a weight; 3 bytes for the two numbers."""
    sparse = [threshold(piece.log_p, tau, torch.rand(piece.log_p.shape[0])) for piece in pieces]
    ids = torch.cat([part.ids for part in sparse]).long()
    counts = torch.cat([part.offsets.diff() for part in sparse])
    share = ids.bincount().double() / ids.numel()
    bits = float(-share[ids].log2().sum()) - float(torch.lgamma(counts.double() + 1).sum()) / math.log(2)
    exact = sum(float((part.weights > tau * (1 + 1e-6)).sum()) for part in sparse)
    return (bits + 6 * exact) / 8 / counts.shape[0] + 3


def main() -> int:
    """The program."""
    parser = command_line("benchmarks.signal_store", __doc__)
    parser.add_argument("--tokens", type=int, default=200_000)
    asked = parser.parse_args()
    teacher = Teacher()
    pieces = teacher.pieces(asked.tokens)
    first = list(itertools.islice(pieces, 4))
    vocab, width = first[0].log_p.shape[1], first[0].hidden.shape[1]
    sample = torch.cat([piece.log_p[::8] for piece in first])
    equal = equal_error(sample, float(squared_error_of_sampled(sample, 50).mean()))
    rskd = drawn(50, vocab)
    rskd.batch(first)
    budget = rskd.row()["bytes"]
    layout = 3 * rskd.row()["entries"]
    taus = {
        name: for_bytes(first[:2], wanted, lambda tau: thresholded(tau, vocab))
        for name, wanted in (
            ("threshold_20", 20.0),
            ("threshold_40", 40.0),
            ("threshold_equal_bytes", budget),
            ("threshold_rskd_layout", layout),
        )
    }
    taus["threshold_equal_error"] = equal
    measured: dict[str, Measured | Rounded] = {"sampled_50": drawn(50, vocab)}
    measured |= {name: thresholded(tau, vocab) for name, tau in taus.items()}
    measured |= {f"topk_{k}": largest(k, vocab) for k in (8, 50)}
    measured |= {
        "hidden_bf16": Rounded(teacher, vocab, width, "bfloat16"),
        "hidden_int8": Rounded(teacher, vocab, width, "int8"),
    }
    confidence = np.zeros(BINS + 1)
    batches = itertools.chain([first], iter(lambda: list(itertools.islice(pieces, BATCH)), []))
    for batch in batches:
        for one in measured.values():
            one.batch(batch)
        for piece in batch:
            top, ids = piece.log_p.max(1)
            add_to_bins(confidence, top.exp().double().numpy(), (ids == piece.targets).double().numpy())
    rows = {name: one.row() for name, one in measured.items()}
    teacher_rate = teacher.tokens / teacher.seconds
    values = {
        AIMS[0].name: rows["threshold_equal_error"]["bytes"],
        AIMS[1].name: rows["sampled_50"]["mse"] / rows["threshold_rskd_layout"]["mse"],
        AIMS[2].name: rows["sampled_50"]["mse"] / rows["threshold_equal_bytes"]["mse"],
        AIMS[3].name: rows["threshold_20"]["decoded_per_second"],
        AIMS[4].name: rows["threshold_20"]["encoded_per_second"] / teacher_rate,
    }
    if not asked.json:
        for name, row in rows.items():
            print(f"{name:24}", "  ".join(f"{key} {value:.4g}" for key, value in row.items()))
    result = {
        "benchmark": "signal_store",
        "machine": machine(torch.device("cpu")),
        "tokens": teacher.tokens,
        "rows": [
            {"variant": "teacher", "tokens_per_second": teacher_rate, "ece": ece_of(confidence)},
            *({"variant": name, **({"tau": taus[name]} if name in taus else {}), **row} for name, row in rows.items()),
        ],
        "peers": {
            "DistillKit k=128": [328, 344],
            "DistillKit k=50": [121, 127],
            "RS-KD, its layout": 3 * rows["sampled_50"]["entries"],
            "Parquet lists": parquet_bytes(first, taus["threshold_20"]),
        },
        "floors": {name: floor_bytes(first, taus[name]) for name in ("threshold_20", "threshold_equal_error")},
        "claims": claims_of(AIMS, values),
    }
    print(json.dumps(result), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

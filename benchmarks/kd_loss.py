"""The distillation loss of one batch, forward and backward: time and peak memory, side by side.

    python -m benchmarks.kd_loss --json                          forward KL, and forward KL + hard CE, in fp32
    python -m benchmarks.kd_loss --objective jsd --dtype bfloat16
    python -m benchmarks.kd_loss --grid --resume grid.jsonl      all divergences, vocabularies, widths and dtypes

From hidden states and output weights of N rows to the loss and the gradients of the student's hidden states and weight.
Each variant has fresh processes of its own, rounds are interleaved, gradients start as None.

    products            the four matrix products alone: the floor. Chunked and whole; the faster one counts
    ours                the fused sweep
    naive               whole logits and autograd
    liger               Liger's `chunked_loss`, with no hard loss, at the best of several chunk sizes
    trl                 TRL's `ChunkedDivergenceFunction`, with the tile sizes that it ships

Half of the tokens masked (`--masked`) and a vocabulary of 262,144 are measured for ours. Peaks are those of the first
call at full size in a process that has run a tiny one: all that the call takes above its inputs, gradients included.

With `--objective` or `--grid` there is a cell for each vocabulary, teacher's width (a multiple of the student's),
masked share and dtype. Its floor is the products in its own shapes and dtype, in chunks of 256 rows or of as many as
ours, whichever are faster. The peers are measured on the objectives that they have, and every gradient of a few rows is
held against fp64, on several draws.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import kd_grid
from benchmarks.claims import Aim, claims_of, command_line
from benchmarks.harness import Row, Variant, has_peer, machine, print_result, ratio, run_interleaved, say
from benchmarks.kd_variants import OBJECTIVES, PRODUCT_CHUNK_ROWS, fastest_products, measure

MODULE = "benchmarks.kd_loss"
LARGE_VOCAB = 262_144
LIGER_CHUNKS = (128, 256, 512, 1024, 2048)


def variants_of(options: argparse.Namespace) -> list[Variant]:
    """The variants to measure; prints a note if a peer is not installed."""

    def wanted(name: str) -> bool:
        return not options.only or name in options.only

    shared = {
        "rows": options.rows,
        "vocab": options.vocab[0],
        "width": options.hidden,
        "teacher_hidden": options.teacher_hidden[0],
        "masked": 0.0,
        "objective": "forward_kl",
        "temperature": options.temperature,
        "hard_ce": False,
        "dtype": options.dtype[0],
        "device": options.device,
        "calls": options.calls,
    }

    def variant(name: str, by: str, *, rounds: int | None = None, **changes: Any) -> Variant:
        return Variant(name, {"by": by, **shared, **changes}, rounds)

    variants = [
        variant("products chunked", "products", chunk_rows=PRODUCT_CHUNK_ROWS),
        variant("ours KL", "ours"),
        variant("ours KL+CE", "ours", hard_ce=True),
        variant("products whole", "products", chunk_rows=None),
        variant("naive KL", "naive"),
        variant("naive KL+CE", "naive", hard_ce=True),
    ]
    if options.masked[0]:
        variants.insert(3, variant("ours KL masked", "ours", masked=options.masked[0]))
    if wanted("liger KL") and has_peer("liger_kernel", "the comparison with Liger"):
        best = best_liger(lambda **changes: variant("liger KL", "liger", **changes))
        variants += [variant("liger KL", "liger", **best), variant("liger KL+CE", "liger", hard_ce=True, **best)]
    if wanted("trl KL") and has_peer("trl", "the comparison with TRL"):
        from trl.kernels import chunked_divergence

        tiles = {
            "token_chunk_size": chunked_divergence.TOKEN_CHUNK_SIZE,
            "vocab_chunk_size": chunked_divergence.VOCAB_CHUNK_SIZE,
        }
        variants.append(variant("trl KL", "trl", **tiles))
    if options.large_vocab:
        variants.append(variant("ours KL large", "ours", rounds=1, vocab=options.large_vocab, calls=1))
    return [one for one in variants if wanted(one.name)]


def best_liger(variant: Callable[..., Variant]) -> dict[str, Any]:
    """Liger's settings for this machine: the fastest chunk size, then whether compiling helps. One process each."""
    tried: list[dict[str, Any]] = []

    def attempt(**changes: Any) -> None:
        tried.append({**changes, "seconds": run_interleaved(MODULE, [variant(**changes)], 1)[0]["seconds"]})

    for chunk_size in LIGER_CHUNKS:
        say(f"search: Liger, chunk_size={chunk_size}")
        attempt(chunk_size=chunk_size, compiled=False)
    best = min(tried, key=lambda one: float(one["seconds"]))
    say(f"search: Liger, chunk_size={best['chunk_size']}, compiled")
    try:
        attempt(chunk_size=best["chunk_size"], compiled=True)
    except RuntimeError as error:
        say(f"Liger cannot be compiled here, and runs uncompiled: {str(error).strip().splitlines()[-1]}")
    best = min(tried, key=lambda one: float(one["seconds"]))
    return {"chunk_size": best["chunk_size"], "compiled": best["compiled"], "search": tried}


def ratios_of(rows: Sequence[Row]) -> dict[str, float | None]:
    """The ratios to the floor and to the other variants."""
    floor = fastest_products(rows)
    return {
        "KL / products": ratio(rows, "ours KL", floor),
        "KL / trl": ratio(rows, "ours KL", "trl KL"),
        "KL / liger": ratio(rows, "ours KL", "liger KL"),
        "KL / naive": ratio(rows, "ours KL", "naive KL"),
        "KL+CE / KL": ratio(rows, "ours KL+CE", "ours KL"),
        "KL+CE / liger": ratio(rows, "ours KL+CE", "liger KL+CE"),
        "masked / whole": ratio(rows, "ours KL masked", "ours KL"),
    }


AIMS = [
    Aim("KL / products", "×", most=1.2),
    Aim("KL / liger", "×", most=0.95),
    Aim("JSD / products", "×", most=1.25),
]
"""In fp32, at V = 49,152 and equal widths; `--objective jsd` gives the last."""


def values_of(ratios: Mapping[str, float | None]) -> dict[str, float | None]:
    """The values of the aims, from the few variants or from the cell of the grid with their shapes."""
    cell = "V=49152 H_t=1x masked=0 float32 ours"
    in_grid = {
        "KL / products": ratios.get(f"{cell} forward_kl / products"),
        "KL / liger": ratios.get(f"{cell} forward_kl / liger"),
        "JSD / products": ratios.get(f"{cell} jsd / products"),
    }
    return {name: ratios.get(name) or value for name, value in in_grid.items()}


def refuse_unequal(rows: Sequence[Row]) -> None:
    """Check that the variants of one objective computed the same loss and gradient; otherwise their times are not
    comparable."""
    for hard in (False, True):
        same = [
            r for r in rows if "loss" in r and r["hard_ce"] == hard and not r["masked"] and "large" not in r["variant"]
        ]
        for key in ("loss", "weight_gradient_norm"):
            for row in same:
                middle = statistics.median([other[key] for other in same])
                if abs(row[key] - middle) > 1e-4 * abs(middle):
                    raise RuntimeError(f"{row['variant']} computes something else: {key} {row[key]} against {middle}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = command_line(MODULE, __doc__, workers=True)
    parser.add_argument("--objective", nargs="+", choices=[*OBJECTIVES, "all"], help="cells of these")
    parser.add_argument("--grid", action="store_true", help="cells of all vocabularies, widths, shares and dtypes")
    parser.add_argument("--resume", type=Path, help="keep the cells that are done in this file, and take them from it")
    parser.add_argument("--repeats", type=int, default=3, help="rounds: fresh processes per variant (3)")
    parser.add_argument("--calls", type=int, default=3, help="timed calls per process (3)")
    parser.add_argument("--rows", type=int, help="N, rows of the batch (2048; in cells fewer for large vocabularies)")
    parser.add_argument("--vocab", type=int, nargs="+", help="V (49152)")
    parser.add_argument("--hidden", type=int, default=576, help="H of the student (576)")
    parser.add_argument("--teacher-hidden", type=int, nargs="+", help="H of the teacher in multiples of that (1)")
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16"], help="dtype of the models (float32)")
    parser.add_argument("--temperature", type=float, default=1.0, help="T of the KL (1)")
    parser.add_argument(
        "--masked", type=float, nargs="+", help="shares of tokens masked (0.5 in the masked variant; 0: none)"
    )
    parser.add_argument("--large-vocab", type=int, default=LARGE_VOCAB, help="V of the large variant; 0: none")
    parser.add_argument("--only", nargs="+", metavar="VARIANT", help="only these variants")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")
    options = parser.parse_args(argv)
    if options.worker:
        print(json.dumps(measure(json.loads(options.worker))))
        return
    about = machine(torch.device(options.device))
    if options.grid or options.objective:
        rows, ratios = kd_grid.run(MODULE, options, best_liger)
        claims = claims_of(AIMS, values_of(ratios))
        print_result("kd_loss", about, rows, ratios, only_json=options.json, claims=claims)
        return
    for name, usual in (("vocab", [49_152]), ("teacher_hidden", [1]), ("dtype", ["float32"]), ("masked", [0.5])):
        setattr(options, name, getattr(options, name) or usual)
    options.rows = options.rows or 2048
    variants = variants_of(options)
    rows = run_interleaved(MODULE, variants, options.repeats)
    refuse_unequal(rows)
    ratios = ratios_of(rows)
    print_result("kd_loss", about, rows, ratios, only_json=options.json, claims=claims_of(AIMS, values_of(ratios)))


if __name__ == "__main__":
    main()

"""The distillation loss of one batch, forward and backward: time and peak memory, side by side.

    python -m benchmarks.kd_loss --json

Forward KL, and forward KL + hard CE, of N rows from hidden states and output weights, to the loss and the gradients of
the student's hidden states and weight, all in fp32. Each variant has fresh processes of its own, rounds are
interleaved, gradients start as None.

    products            the four matrix products alone: the floor. Chunked and whole; the faster one counts
    ours                the fused sweep
    naive               whole logits and autograd
    liger               Liger's `chunked_loss`, with no hard loss, at the best of several chunk sizes
    trl                 TRL's `ChunkedDivergenceFunction`, with the tile sizes that it ships

Half of the tokens masked (`--masked`) and a vocabulary of 262,144 are measured for ours. Peaks are those of the first
call at full size in a process that has run a tiny one: all that the call takes above its inputs, gradients included.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import (
    PeakMemory,
    Row,
    Variant,
    has_peer,
    machine,
    print_result,
    ratio,
    run_interleaved,
    say,
    seconds_of,
)
from potstill.objectives import fused_sweep
from potstill.objectives.divergences import forward_kl, hard_ce
from potstill.objectives.response import ForwardKLRule, HardCERule
from potstill.signals import IGNORE, Head

MODULE = "benchmarks.kd_loss"
LARGE_VOCAB = 262_144
LIGER_CHUNKS = (128, 256, 512, 1024, 2048)
PRODUCT_CHUNK_ROWS = 256


@dataclass(frozen=True)
class World:
    """What a variant is given: hidden states and output weights of both, and the labels."""

    hidden: Tensor
    weight: Tensor
    teacher_hidden: Tensor
    teacher_weight: Tensor
    labels: Tensor

    @classmethod
    def random(cls, rows: int, vocab: int, width: int, masked: float, device: torch.device) -> World:
        """Logits of standard deviation 3 or so; a share of `masked` of the labels, evenly spread, is masked."""
        generator = torch.Generator(device).manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, device=device)

        hidden, teacher_hidden = normal(rows, width), normal(rows, width)
        weight, teacher_weight = (normal(vocab, width).mul_(3 / math.sqrt(width)) for _ in range(2))
        labels = torch.randint(0, vocab, (rows,), generator=generator, device=device)
        if masked:
            labels[(torch.arange(rows, device=device) * masked) % 1 < masked] = IGNORE
        return cls(hidden.requires_grad_(), weight.requires_grad_(), teacher_hidden, teacher_weight, labels)


def ours(world: World, settings: Mapping[str, Any]) -> Tensor:
    kept = (world.labels != IGNORE).nonzero().squeeze(-1)
    whole = kept.numel() == world.labels.numel()
    rows = slice(None) if whole else kept
    student = Head(world.hidden[rows], world.weight)
    teacher = Head(world.teacher_hidden[rows], world.teacher_weight)
    rules: list[Any] = [(ForwardKLRule(settings["temperature"]), 1.0 / kept.numel())]
    if settings["hard_ce"]:
        rules.append((HardCERule(), 1.0 / kept.numel()))
    return fused_sweep(student, teacher, world.labels[rows], rules).loss


def naive(world: World, settings: Mapping[str, Any]) -> Tensor:
    student = world.hidden @ world.weight.t()
    with torch.no_grad():
        teacher = world.teacher_hidden @ world.teacher_weight.t()
    loss = forward_kl(student, teacher, settings["temperature"]).mean()
    return loss + hard_ce(student, world.labels).mean() if settings["hard_ce"] else loss


def liger(world: World, settings: Mapping[str, Any]) -> Tensor:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(
        weight_hard_loss=1.0 if settings["hard_ce"] else 0.0,
        weight_soft_loss=1.0,
        beta=0.0,
        temperature=settings["temperature"],
        compiled=settings["compiled"],
        chunk_size=settings["chunk_size"],
    )
    value: Tensor = loss(world.hidden, world.weight, world.teacher_hidden, world.teacher_weight, world.labels)
    return value


def trl(world: World, settings: Mapping[str, Any]) -> Tensor:
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    apply: Any = ChunkedDivergenceFunction.apply
    divergence, _ = apply(
        world.hidden, world.weight, None, world.teacher_hidden, world.teacher_weight, None, 0.0, settings["temperature"]
    )
    mean: Tensor = divergence.mean()
    return mean


@torch.no_grad()
def products(world: World, settings: Mapping[str, Any]) -> None:
    """student and teacher logits, the gradient of the hidden states and that of the weight, with nothing between."""
    chunk = settings["chunk_rows"] or world.hidden.shape[0]
    vocab = world.weight.shape[0]
    student, teacher = (torch.empty(chunk, vocab, device=world.hidden.device) for _ in range(2))
    grad_hidden, grad_weight = torch.empty_like(world.hidden), torch.empty_like(world.weight)
    for start in range(0, world.hidden.shape[0], chunk):
        part = slice(start, start + chunk)
        hidden = world.hidden[part]
        here = slice(0, hidden.shape[0])
        torch.mm(hidden, world.weight.t(), out=student[here])
        torch.mm(world.teacher_hidden[part], world.teacher_weight.t(), out=teacher[here])
        torch.mm(student[here], world.weight, out=grad_hidden[part])
        if start == 0:
            torch.mm(student[here].t(), hidden, out=grad_weight)
        else:
            grad_weight.addmm_(student[here].t(), hidden)


LOSSES: dict[str, Callable[[World, Mapping[str, Any]], Tensor]] = {
    "ours": ours,
    "naive": naive,
    "liger": liger,
    "trl": trl,
}


def measure(settings: Mapping[str, Any]) -> Row:
    """The worker: one variant in this process."""
    device = torch.device(settings["device"])
    loss_of = LOSSES.get(settings["by"])

    def call(world: World) -> dict[str, float]:
        world.hidden.grad = world.weight.grad = None
        if loss_of is None:
            products(world, settings)
            return {}
        loss = loss_of(world, settings)
        loss.backward()
        assert world.weight.grad is not None
        return {"loss": loss.item(), "weight_gradient_norm": world.weight.grad.norm().item()}

    call(World.random(8, 64, 16, 0.0, device))
    world = World.random(settings["rows"], settings["vocab"], settings["width"], settings["masked"], device)
    peak = PeakMemory(device)
    peak.start()
    found: dict[str, Any] = {}
    seconds = [seconds_of(lambda: found.update(call(world)), device)]
    peak_bytes = peak.bytes()
    for _ in range(settings["calls"]):
        seconds.append(seconds_of(lambda: found.update(call(world)), device))
    beyond = None if peak_bytes is None else peak_bytes - world.weight.numel() * world.weight.element_size()
    # The first call warms up the full sizes, and is timed only where it is the only one.
    timed = seconds[1:] or seconds
    return {"seconds": timed, "peak_bytes": peak_bytes, "peak_beyond_weight_gradient_bytes": beyond, **found}


def variants_of(options: argparse.Namespace) -> list[Variant]:
    """What to measure; says so where a peer is not installed."""

    def wanted(name: str) -> bool:
        return not options.only or name in options.only

    shared = {
        "rows": options.rows,
        "vocab": options.vocab,
        "width": options.hidden,
        "masked": 0.0,
        "temperature": options.temperature,
        "hard_ce": False,
        "dtype": "float32",
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
    if options.masked:
        variants.insert(3, variant("ours KL masked", "ours", masked=options.masked))
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
    """The figures that are promised, and those to the other variants."""
    products = [row for row in rows if row["by"] == "products"]
    floor = min(products, key=lambda row: float(row["seconds"]))["variant"] if products else "products"
    return {
        "KL / products": ratio(rows, "ours KL", floor),
        "KL / trl": ratio(rows, "ours KL", "trl KL"),
        "KL / liger": ratio(rows, "ours KL", "liger KL"),
        "KL / naive": ratio(rows, "ours KL", "naive KL"),
        "KL+CE / KL": ratio(rows, "ours KL+CE", "ours KL"),
        "KL+CE / liger": ratio(rows, "ours KL+CE", "liger KL+CE"),
        "masked / whole": ratio(rows, "ours KL masked", "ours KL"),
    }


def refuse_unequal(rows: Sequence[Row]) -> None:
    """Variants of one objective must have found the same loss and gradient, or their times mean nothing."""
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
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--json", action="store_true", help="print only the JSON object")
    parser.add_argument("--repeats", type=int, default=3, help="rounds: fresh processes per variant (3)")
    parser.add_argument("--calls", type=int, default=3, help="timed calls per process (3)")
    parser.add_argument("--rows", type=int, default=2048, help="N, rows of the batch (2048)")
    parser.add_argument("--vocab", type=int, default=49_152, help="V (49152)")
    parser.add_argument("--hidden", type=int, default=576, help="H of both models (576)")
    parser.add_argument("--temperature", type=float, default=1.0, help="T of the KL (1)")
    parser.add_argument(
        "--masked", type=float, default=0.5, help="share of tokens masked in the masked variant; 0: none"
    )
    parser.add_argument("--large-vocab", type=int, default=LARGE_VOCAB, help="V of the large variant; 0: none")
    parser.add_argument("--only", nargs="+", metavar="VARIANT", help="only these variants")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.worker:
        print(json.dumps(measure(json.loads(options.worker))))
        return
    about = machine(torch.device(options.device))
    variants = variants_of(options)
    rows = run_interleaved(MODULE, variants, options.repeats)
    refuse_unequal(rows)
    print_result("kd_loss", about, rows, ratios_of(rows), only_json=options.json)


if __name__ == "__main__":
    main()

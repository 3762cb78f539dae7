"""Does the advice hold? Twelve pairs of SmolLM2-135M and a draft, most of them bad ideas: each forecast, and measured.

    python -m benchmarks.advice --json --lines FILE        all pairs, some 12 minutes of a core
    python -m benchmarks.advice --only deep --tokens 16    a quick look

Of each pair the target answers sample prompts; from these texts and from times measured here comes the forecast, with
the best number of drafted tokens, and "use it" or "do not". Then loop and draft decode other prompts in turn,
with that number, in batches of the pair's size. fp32, one process. `--lines FILE` keeps each finished pair, and goes on
with the others.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.claims import Aim, claims_of, command_line
from benchmarks.draft_training import texts_of, trained, two_layers
from benchmarks.harness import KeptRows, machine, say
from benchmarks.speculate import FREQUENT, MOST, PROMPTS, SAMPLES, Bench
from potstill.data import prompt_ids
from potstill.decoding.cached_model import CachedModel, first_layers
from potstill.decoding.drafts import LookupDraft
from potstill.decoding.speculative import Request, SpeculativeDecoder
from potstill.decoding.tree import best_nodes
from potstill.heads import MedusaHeads
from potstill.models.anatomy import effective_head
from potstill.recipe.speculate import LayersDraft, LookupDraftSettings, MedusaDraftSettings
from potstill.speculate.advice import advise
from potstill.speculate.costs import measure
from potstill.speculate.opening import OpenDraft
from potstill.speculate.traces import accuracies, agreement, head_ranks, lookups, sampler_of, trace_of, write_text
from potstill.speculation import Advice

AIMS = [
    Aim("pairs forecast and measured", "count", least=10),
    Aim("use it, and slower by more than 5 %", "count", most=0),
    Aim("forecasts within 10 % of the measured speed-up", "share", least=0.9),
]
ALL = tuple(PROMPTS)
RANKS = 4
TRAINED_ON, STEPS = 8, 24
"""Texts of each prompt that a draft is trained on, and steps of four texts."""


@dataclass(frozen=True)
class Pair:
    """A draft for the target, kinds of prompts, a temperature and a batch size."""

    name: str
    draft: Callable[[Bench], OpenDraft]
    kinds: tuple[str, ...] = ALL
    temperature: float = 0.0
    batch: int = 1


def early_exit(layers: int, tokens: torch.Tensor | None) -> Callable[[Bench], OpenDraft]:
    """The target's first layers, untrained; with some tokens alone."""

    def opened(bench: Bench) -> OpenDraft:
        target = bench.target
        reader = CachedModel(first_layers(target.model, layers), tokens, cache=target.cached)
        return OpenDraft(LayersDraft(layers=layers), "", reader, None, None)

    return opened


def lookup(bench: Bench) -> OpenDraft:
    """What followed earlier in the text."""
    return OpenDraft(LookupDraftSettings(), "", None, LookupDraft(), None)


def trained_elsewhere(bench: Bench) -> OpenDraft:
    """The target's first two layers, trained for a minute on what it writes of code and lists."""
    asked = [ids_of(text, bench) for kind in ("code", "lists") for text in PROMPTS[kind]]
    rows = texts_of(bench, asked * TRAINED_ON, bench.tokens)
    with torch.enable_grad():
        trained(draft := two_layers(bench), bench, {"kind": "forward_kl"}, rows, STEPS, 0)
    draft.eval().requires_grad_(False)
    return OpenDraft(LayersDraft(layers=2), "", CachedModel(draft, SOME), None, draft)


def untrained_heads(bench: Bench) -> OpenDraft:
    """Medusa heads as they begin."""
    target = bench.target
    output = effective_head(target.model)
    assert output is not None
    heads = MedusaHeads(output.weight.shape[1], target.cached.vocab_size, 3, torch.arange(FREQUENT))
    heads.start_from(output.weight, output.scale)
    return OpenDraft(MedusaDraftSettings(weights=Path(".")), "", None, None, None, heads.requires_grad_(False))


SOME, RARE = torch.arange(FREQUENT), torch.arange(30_000, 30_000 + FREQUENT)

PAIRS = (
    Pair("too deep", early_exit(25, SOME)),
    Pair("half as deep", early_exit(15, SOME)),
    Pair("too weak", early_exit(1, SOME)),
    Pair("weak, all tokens", early_exit(2, None)),
    Pair("tokens of another domain", early_exit(20, RARE)),
    Pair("a lookup where text repeats", lookup, ("copying",)),
    Pair("a lookup where it does not", lookup, ("chat",)),
    Pair("a lookup, sampled", lookup, ("copying", "lists"), temperature=0.7),
    Pair("a lookup, batch 16", lookup, ("copying",), batch=16),
    Pair("too deep, batch 16", early_exit(20, SOME), batch=16),
    Pair("heads that are not trained", untrained_heads),
    Pair("trained on another domain", trained_elsewhere, ("chat",)),
)


def ids_of(text: str, bench: Bench) -> list[int]:
    """The token ids of a prompt."""
    return list(prompt_ids(({"role": "user", "content": text},), bench.chat, None))


def forecast(bench: Bench, pair: Pair, draft: OpenDraft, prompts: Sequence[Sequence[int]]) -> tuple[Advice, Any]:
    """The advice, and the nodes of heads."""
    target, sampler, tokens = bench.target, sampler_of(pair.temperature), bench.tokens
    alone, nothing = SpeculativeDecoder(target.cached), lambda amount: None
    texts = [write_text(alone, p, tokens, bench.stops, sampler, 100 + i) for i, p in enumerate(prompts)]
    ranks = [head_ranks(target.model, draft.heads, text, RANKS) for text in texts] if draft.heads is not None else []
    nodes = best_nodes(accuracies(ranks, RANKS), MOST) if ranks else ()
    rows = [[*texts[i % len(texts)].prompt, *texts[i % len(texts)].written] for i in range(pair.batch)]
    ahead = sum(len(text.prompt) for text in texts) // len(texts)
    timings = {}
    for size in sorted({1, pair.batch}):
        timed = measure(target.cached, draft.timed(nodes), rows[:size], ahead, sampler, MOST, target.device, nothing)
        timings[size] = [timed.medians(), *timed.resampled(0)]
    traces = [
        trace_of(
            text,
            tokens,
            agreement(target.cached, draft.reader, text, sampler, target.device) if draft.reader else None,
            lookups(draft.lookup, text, MOST, target.cached.vocab_size) if draft.lookup else None,
            ranks[number] if ranks else None,
            nodes,
        )
        for number, text in enumerate(texts)
    ]
    return advise(traces, timings, MOST, 0.0, pair.temperature, pair.batch), nodes


def measured(bench: Bench, pair: Pair, decoders: Sequence[SpeculativeDecoder], prompts: Sequence[list[int]]) -> float:
    """Seconds per token of the first decoder ÷ of the second, on batches in turn."""
    batches = [list(prompts[start : start + pair.batch]) for start in range(0, len(prompts), pair.batch)]
    seconds, tokens = [0.0, 0.0], [0, 0]
    for number, batch in enumerate(batches):
        for place in (number % 2, 1 - number % 2):
            begun = time.perf_counter()
            request = Request(batch, bench.tokens, bench.stops, sampler_of(pair.temperature))
            tokens[place] += sum(map(len, decoders[place].write(request, seed=number)))
            seconds[place] += time.perf_counter() - begun
    return (seconds[0] / tokens[0]) / (seconds[1] / tokens[1])


def run(bench: Bench, pair: Pair, of_each: int) -> dict[str, Any]:
    """One pair: what was advised, and what came of it."""
    known = [ids_of(text, bench) for kind in pair.kinds for text in SAMPLES[kind][: 8 // len(pair.kinds)]]
    tried = [ids_of(text, bench) for kind in pair.kinds for text in PROMPTS[kind]] * of_each
    tried = (tried * pair.batch)[: max(pair.batch, len(tried))]
    draft = pair.draft(bench)
    advice, nodes = forecast(bench, pair, draft, known)
    drafting = SpeculativeDecoder(bench.target.cached, draft.drafting(0.0, nodes), gamma=advice.best)
    speedup = measured(bench, pair, (SpeculativeDecoder(bench.target.cached), drafting), tried)
    best = advice.at_best.speedup
    return {
        "pair": pair.name,
        "temperature": pair.temperature,
        "batch": pair.batch,
        "gamma": advice.best,
        "forecast": best.value,
        "low": best.low,
        "high": best.high,
        "use": advice.use,
        "measured": speedup,
        "reason": advice.reason,
    }


def values_of(rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """The figures that are aimed at."""
    if not rows:
        return {}
    return {
        "pairs forecast and measured": float(len(rows)),
        "use it, and slower by more than 5 %": float(sum(row["use"] and row["measured"] < 0.95 for row in rows)),
        "forecasts within 10 % of the measured speed-up": sum(
            abs(row["forecast"] / row["measured"] - 1) <= 0.1 for row in rows
        )
        / len(rows),
    }


def main() -> None:
    parser = command_line("benchmarks.advice", __doc__)
    parser.add_argument("--lines", type=Path, help="keep each pair here, and go on")
    parser.add_argument("--only", default="", help="pairs with this in their name")
    parser.add_argument("--prompts", type=int, default=1, help="times that the prompts are decoded")
    parser.add_argument("--tokens", type=int, default=48)
    options = parser.parse_args()
    bench = Bench(None, options.tokens)
    rows = []
    kept = KeptRows(options.lines, {"prompts": options.prompts, "tokens": options.tokens})
    with torch.no_grad():
        for pair in PAIRS:
            if options.only in pair.name:
                row = kept.row(pair.name, partial(run, bench, pair, options.prompts))
                rows.append(row)
                say(f"{pair.name}: measured {row['measured']:.2f} ×, forecast {row['forecast']:.2f} ×; {row['reason']}")
    claims = claims_of(AIMS, values_of(rows))
    print(json.dumps({"benchmark": "advice", "machine": machine(torch.device("cpu")), "rows": rows, "claims": claims}))


if __name__ == "__main__":
    main()

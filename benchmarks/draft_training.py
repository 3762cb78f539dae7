"""Which objective trains the best draft? Two layers of SmolLM2-135M on the target's own text, and Medusa heads beside.

    python -m benchmarks.draft_training --json --lines FILE                   20 minutes of a core
    python -m benchmarks.draft_training --seeds 1 --steps 2 --train 8 --json  a quick look

`--lines FILE` keeps each finished training, and goes on with the others.

The target writes a text for each prompt at T = 0.7; drafts learn from them, the same rows for the same steps, with one
objective each: `hard_ce` is the text alone. `forward_kl, own text` learns from them for half of the steps, then from
what the draft itself writes behind the same prompts. `forward_kl, while serving` learns from what a `Collector` kept
while the untrained draft helped the target to write behind these prompts: no teacher runs in training. The acceptance α
of a drafted token, Σ min(p, q), is measured before and after on texts of held-out prompts, at T = 0.7 and greedy;
`tokens_per_round` is what rounds of four drafted tokens give, computed over these texts. fp32, one process.
"""

from __future__ import annotations

import copy
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, TrainingArguments
from transformers.utils import logging as transformers_logging

from benchmarks.claims import Aim, claims_of, command_line
from benchmarks.harness import KeptRows, machine, say
from benchmarks.speculate import FREQUENT, Bench
from potstill.console import Console
from potstill.data import prompt_ids, read_sides
from potstill.data.problems import as_prompt
from potstill.decoding.cached_model import CachedModel
from potstill.decoding.drafts import ModelDraft
from potstill.decoding.generator import batches_by_length, write
from potstill.decoding.speculative import Request, SpeculativeDecoder
from potstill.decoding.tree import best_nodes
from potstill.heads import MedusaHeads
from potstill.recipe import load_recipe
from potstill.recipe.students import First, FromTeacher
from potstill.speculate.collecting import Collector, load_collected
from potstill.speculate.forecast import Timing, expected
from potstill.speculate.traces import Text, accuracies, agreement, head_ranks, sampler_of, trace_of, write_text
from potstill.students import build_student
from potstill.train import DistillTrainer
from potstill.types import Record, Sampling

OWN_TEXT, SERVING = ", own text", ", while serving"
TEXT = "hard_ce"
OURS = (
    *("forward_kl", "reverse_kl", "total_variation", "acceptance"),
    *(f"forward_kl{how}" for how in (OWN_TEXT, SERVING)),
)
GAMMA, RANKS = 4, 4
TEMPERATURE = 0.7
AIMS = [Aim("best objective − text alone, α at T = 0.7", "points", least=5)]

Row = dict[str, Any]


def prompts_of(bench: Bench, amount: int) -> list[list[int]]:
    """Prompts of the recipe `speculative_draft`, as token ids."""
    recipe = load_recipe("recipes/speculative_draft.yaml")
    records = [record for record in read_sides(recipe.data).train if isinstance(record, Record)][:amount]
    asked = [as_prompt(record, True) for record in records]
    return [list(prompt_ids(r.messages or r.prompt or "", bench.chat, None)) for r in asked if isinstance(r, Record)]


def texts_of(
    bench: Bench, prompts: Sequence[Sequence[int]], tokens: int, writer: PreTrainedModel | None = None
) -> list[Mapping[str, list[int]]]:
    """What the target, or another writer, writes behind each prompt, as training rows; the prompts are not learned."""
    rows: list[Mapping[str, list[int]]] = []
    sampling = Sampling(temperature=TEMPERATURE, max_new_tokens=tokens)
    for batch in batches_by_length(prompts, 16):
        asked = [prompts[number] for number in batch]
        written = write(
            writer or bench.target.model,
            asked,
            sampling,
            samples=[0] * len(asked),
            most_new=tokens,
            stop_ids=bench.stops,
            pad_id=bench.stops[0],
            seed=0,
        )
        for prompt, answer in zip(asked, written, strict=True):
            rows.append({"input_ids": [*prompt, *answer], "labels": [-100] * len(prompt) + answer})
    return rows


def two_layers(bench: Bench) -> PreTrainedModel:
    """The draft before it is trained: the target's first two layers, with its last norm and head."""
    target, quiet = bench.target, Console("quiet")
    two = FromTeacher(layers=First(first=2))
    built = build_student(two, teacher=target.source, tokenizer_source=target.source.path, seed=0, console=quiet).model
    assert isinstance(built, PreTrainedModel)
    draft: PreTrainedModel = built.float()
    return draft


def collected(bench: Bench, draft: PreTrainedModel, prompts: Sequence[Sequence[int]], tokens: int, folder: Path) -> Row:
    """Save what the target writes with this draft, prompt by prompt; what that costs, each text once more without."""
    collector, drafting = Collector(bench.target.model), ModelDraft(CachedModel(draft.eval()))
    watched = SpeculativeDecoder(bench.target.cached, drafting, gamma=GAMMA, watcher=collector)
    plain = SpeculativeDecoder(bench.target.cached, drafting, gamma=GAMMA)
    spent = {"watched": 0.0, "plain": 0.0}
    for number, prompt in enumerate(prompts):
        request = Request([prompt], tokens, bench.stops, sampler_of(TEMPERATURE))
        turns = [("watched", watched), ("plain", plain)]
        texts = []
        for name, decoder in turns[:: 1 if number % 2 else -1]:
            began = time.perf_counter()
            texts.append(decoder.write(request, seed=number))
            spent[name] += time.perf_counter() - began
        assert texts[0] == texts[1], "watching changes no text"
    collector.save(folder)
    size = sum(file.stat().st_size for file in (folder / "store").glob("shard-*.bin"))
    return {"slower": spent["watched"] / spent["plain"] - 1, "bytes_per_token": size / collector.tokens}


def trained(
    student: PreTrainedModel,
    bench: Bench,
    objective: Mapping[str, Any],
    rows: Sequence[Any],
    steps: int,
    seed: int,
    teacher: Any = None,
) -> DistillTrainer:
    """A training of some steps of four rows."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=4,
            learning_rate=1e-3,
            lr_scheduler_type="cosine",
            seed=seed,
            data_seed=seed,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        trainer = DistillTrainer(
            student,
            teacher or bench.target.model,
            arguments,
            [dict(objective)],
            train_dataset=list(rows),
            processing_class=bench.target.tokenizer,
        )
        trainer.train()
    return trainer


def acceptance(bench: Bench, draft: PreTrainedModel, texts: Mapping[float, Sequence[Text]]) -> Row:
    """α by temperature, and tokens a round."""
    found: Row = {}
    reader = CachedModel(draft.eval())
    for temperature, written in texts.items():
        sampler, target = sampler_of(temperature), bench.target
        agreed = [agreement(target.cached, reader, text, sampler, target.device) for text in written]
        traces = [trace_of(text, bench.tokens, a, None) for text, a in zip(written, agreed, strict=True)]
        found[_key(temperature)] = float(np.concatenate([a.alpha for a in agreed]).mean())
        found[f"tokens_per_round {_key(temperature)}"] = _tokens_per_round(traces)
    return found


def accuracy(bench: Bench, heads: MedusaHeads, texts: Mapping[float, Sequence[Text]]) -> Row:
    """The share of right best choices of each head, and tokens a round of a tree of as many nodes."""
    found: Row = {}
    for temperature, written in texts.items():
        ranks = [head_ranks(bench.target.model, heads, text, RANKS) for text in written]
        by_rank = accuracies(ranks, RANKS)
        nodes = best_nodes(by_rank, GAMMA)
        traces = [trace_of(t, bench.tokens, None, None, r, nodes) for t, r in zip(written, ranks, strict=True)]
        found[_key(temperature)] = by_rank[0][0]
        found[f"heads {_key(temperature)}"] = [head[0] for head in by_rank]
        found[f"tokens_per_round {_key(temperature)}"] = _tokens_per_round(traces)
    return found


def _key(temperature: float) -> str:
    return "greedy" if temperature == 0 else f"T = {temperature:g}"


def _tokens_per_round(traces: Sequence[Any]) -> float:
    nothing = np.zeros(GAMMA + 1)
    rounds = sum(expected(trace, Timing(nothing, nothing, nothing), GAMMA)[0] for trace in traces)
    return float(sum(trace.length - 1 for trace in traces) / rounds)


def main() -> None:
    parser = command_line("benchmarks.draft_training", __doc__)
    parser.add_argument("--lines", type=Path, help="keep each training here, and go on")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--train", type=int, default=32, help="prompts to learn from")
    parser.add_argument("--tokens", type=int, default=40, help="of each text")
    parser.add_argument("--only", nargs="*", default=[TEXT, *OURS, "medusa"])
    options = parser.parse_args()
    transformers_logging.set_verbosity_error()
    bench = Bench(None, options.tokens)
    prompts = prompts_of(bench, options.train + 8)
    rows = texts_of(bench, prompts[8:], options.tokens)
    alone = SpeculativeDecoder(bench.target.cached)
    texts = {
        t: [write_text(alone, p, options.tokens, bench.stops, sampler_of(t), i) for i, p in enumerate(prompts[:8])]
        for t in (0.0, TEMPERATURE)
    }
    target, first = bench.target, two_layers(bench)
    tokens = sum(len(row["input_ids"]) for row in rows)

    def arm(objective: str, seed: int) -> Row:
        if objective == "untrained":
            measured = acceptance(bench, first, texts)
        elif objective == "medusa":
            student, settings = copy.deepcopy(target.model).requires_grad_(False), {"kind": "medusa"}
            settings |= {"heads": 4, "frequent": FREQUENT}  # type: ignore[dict-item]
            trainer = trained(student, bench, settings, rows, options.steps, seed)
            heads = next(iter(trainer.module.projectors.children()))
            assert isinstance(heads, MedusaHeads)
            measured = accuracy(bench, heads.eval(), texts)
        elif objective.endswith(SERVING):
            draft, kind = copy.deepcopy(first).requires_grad_(True), objective.removesuffix(SERVING)
            with tempfile.TemporaryDirectory() as folder:
                cost = collected(bench, first, prompts[8:], options.tokens, Path(folder))
                served, stored = load_collected(Path(folder))
                trained(draft, bench, {"kind": kind}, served, options.steps, seed, stored)
            measured = {**acceptance(bench, draft, texts), "collecting": cost}
        else:
            draft, (kind, *own) = copy.deepcopy(first).requires_grad_(True), objective.split(OWN_TEXT)
            trained(draft, bench, {"kind": kind}, rows, options.steps // (2 if own else 1), seed)
            if own:
                written = texts_of(bench, prompts[8:], options.tokens, draft.eval())
                trained(draft, bench, {"kind": kind}, written, options.steps - options.steps // 2, seed)
            measured = acceptance(bench, draft, texts)
        return {"objective": objective, "seed": seed, **measured}

    kept = KeptRows(options.lines, {name: getattr(options, name) for name in ("steps", "train", "tokens")})
    found: list[Row] = []
    for objective, seed in [("untrained", 0), *((o, seed) for seed in range(options.seeds) for o in options.only)]:
        found.append(kept.row(f"{objective}, seed {seed}", partial(arm, objective, seed)))
        say(json.dumps(found[-1]))
    key = _key(TEMPERATURE)
    means = {o: statistics.mean(r[key] for r in found if r["objective"] == o) for o in {r["objective"] for r in found}}
    ours = [means[objective] for objective in OURS if objective in means]
    gained = 100 * (max(ours) - means[TEXT]) if ours and TEXT in means else None
    values = {AIMS[0].name: gained}
    facts = {"training_tokens": tokens, "steps": options.steps, "means": means}
    result = {"benchmark": "draft_training", "machine": machine(torch.device("cpu")), **facts, "rows": found}
    print(json.dumps({**result, "claims": claims_of(AIMS, values)}))


if __name__ == "__main__":
    main()

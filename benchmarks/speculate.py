"""Speculative decoding of SmolLM2-135M side by side: `model.generate`, assisted generation of `transformers`, our loop.

    python -m benchmarks.speculate --json                    an early exit and lookups
    python -m benchmarks.speculate --json --draft FOLDER     lookups and a draft that was trained
    python -m benchmarks.speculate --prompts 1 --tokens 32 --json     a quick look

`FOLDER` is the `speculate/draft` of a run of `recipes/speculative_draft.yaml`. `--lines FILE` keeps what was measured
of each prompt, and goes on with the others.

One process, fp32, batch 1. Prompts are of four kinds (chat, code, copying, lists), as many of each as `--prompts` says.
All variants take a prompt in turn before the next one, in an order that turns, so that other load falls on all alike;
greedy and at T = 0.7. Figures are seconds per token of all prompts together, as ratios.

    generate          model.generate
    loop              our loop without a draft
    assisted-K        transformers' assisted generation with the same draft and K tokens a round, without its
                      confidence threshold (constant schedule)
    ours-K            our loop with the same draft
    frequent-K        with the same draft, 8,192 tokens of its output layer
    chained-K         with a lookup, and then that
    tree-K            with that as a tree of K nodes, of four choices at a place
    chained tree-K    with a lookup, and then that tree
    lookup-K          with a lookup alone, of the n-grams with the best forecast
    layers-K          with an early exit of two layers and 8,192 tokens, where no draft is given

`forecast` holds for every variant of ours what `potstill speculate` would have said of it, from times measured before
and from the target's texts for other prompts of the same kinds, four of each (`SAMPLES`), with its interval over these.
`forecast_of_the_same` is from the same times and the texts of the prompts that are measured: what it misses is the
forecast's own error, and what `forecast` misses besides is that texts differ.
The measured speed-up has one over its own prompts. `generate` and `assisted-K` are run greedy alone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.claims import Aim, claims_of, command_line
from benchmarks.harness import KeptRows, Row, machine, say
from potstill.console import Console
from potstill.data import ChatTokenizer, prompt_ids
from potstill.decoding.cached_model import CachedModel, first_layers
from potstill.decoding.drafts import LookupDraft
from potstill.decoding.generator import stop_token_ids
from potstill.decoding.sampler import Sampler
from potstill.decoding.speculative import Request, SpeculativeDecoder
from potstill.decoding.tree import Path as Node
from potstill.frequent import learned_tokens
from potstill.recipe.speculate import ChainedDraftSettings, LayersDraft, LookupDraftSettings
from potstill.recipe.teachers import LocalTeacher
from potstill.speculate.advice import WORTH, advise, fit_shortest, fit_tree
from potstill.speculate.costs import Runs, Timed, measure, speedup
from potstill.speculate.forecast import Trace, gain
from potstill.speculate.opening import OpenDraft, Target, open_folder, open_target
from potstill.speculate.traces import Agreement, Text, agreement, lookups, ranks_ahead, sampler_of, trace_of, write_text

MOST, FREQUENT, RANKS = 8, 8192, 4
GAMMAS = (1, 2, 3, 8)  # a block of 4 tokens costs hardly more than one of 3, and one of 9 hardly more than one of 5
FROM_OTHERS = "forecasts within 10 % of the measured speed-up"
FROM_THE_SAME = "forecasts from the same prompts within 10 %"
AIMS = [
    Aim("loop without a draft / generate", "×", least=1.1),
    Aim("same draft / assisted at its best", "×", least=1.3),
    Aim("best draft / loop, greedy", "×", least=1.5),
    Aim("best draft / loop, T = 0.7", "×", least=1.3),
    Aim("share of time outside the models", "share", most=0.05),
    Aim(FROM_OTHERS, "share", least=0.9),
    Aim(FROM_THE_SAME, "share", least=0.9),
    Aim("use it, and slower by more than 5 %", "count", most=0),
]
PROMPTS = {
    "chat": (
        "My sourdough keeps coming out flat and dense. What am I doing wrong?",
        "How far should I stand from a campfire, and how do I put it out safely?",
    ),
    "code": (
        "Write a Python function that returns the prime numbers below n, with a docstring.",
        "Write a Python class Stack with push, pop and peek, and an example of its use.",
    ),
    "copying": (
        'Repeat this text word for word: "The copper still stands in the long room beside the river. Every morning the '
        'keeper lights the fire under the copper still, and every evening he puts it out."',
        'Correct the spelling and repeat the text: "The keper of the still wakes befor dawn. He carries the water from '
        'the river to the still, and he counts the casks in the cellar beneath the still."',
    ),
    "lists": (
        "List the days of the week, and beside each of them one thing to do on that day.",
        "List the numbers from one to twenty, each on its own line, in words.",
    ),
}
"""What is measured."""
SAMPLES = {
    "chat": (
        "What is a good way to start running if I have not done any sport for years?",
        "My neighbour's dog barks all night. How do I talk to her about it?",
        "Why does bread go stale faster in the fridge?",
        "I have one free day in a big city. How should I spend it?",
    ),
    "code": (
        "Write a Python function that reverses the words of a sentence, with a docstring.",
        "Write a Python class Queue with push, pop and size, and an example of its use.",
        "Write a Python function that counts how often each letter occurs in a text.",
        "Write a JavaScript function that adds up the numbers of an array, and show how it is called.",
    ),
    "copying": (
        'Repeat this text word for word: "The old lighthouse stands on the rock beyond the harbour. Every evening the '
        'keeper climbs the stairs of the old lighthouse, and every morning he puts out the lamp."',
        'Correct the spelling and repeat the text: "The gardner waters the roses befor breakfast. She carries the can '
        'from the well to the roses, and she counts the buds along the wall beneath the window."',
        'Copy this text: "A river rises in the hills, runs through the woods, and reaches the sea behind the town. In '
        'the woods it is narrow, and behind the town it is wide."',
        'Put this text into capital letters only where a sentence begins: "the baker sells bread in the morning. the '
        'baker sells cake in the afternoon. in the evening the baker sleeps."',
    ),
    "lists": (
        "List the months of the year, and beside each of them one fruit that is ripe in that month.",
        "List ten European countries with their capitals, each on its own line.",
        "List the planets of the solar system in order, with one fact about each.",
        "List the letters from A to M, each on its own line, with an animal that begins with it.",
    ),
}
"""What forecasts are made from."""

Decode = Callable[[Sequence[int], int, int], int]
"""Writes behind a prompt, with a budget and a seed; returns the number of tokens."""


class Bench:
    """The models, and every variant at one temperature."""

    def __init__(self, draft: Path | None, tokens: int) -> None:
        self.tokens = tokens
        settings = LocalTeacher(model="smollm2-135m-instruct", device="cpu")
        self.target: Target = open_target(settings, "float32", Console("quiet"))
        self.chat = ChatTokenizer.from_transformers(self.target.tokenizer)
        self.stops = stop_token_ids(self.target.model, self.chat.eos_id)
        self.draft = open_folder(draft, self.target) if draft is not None else None
        learned = learned_tokens(draft) if draft is not None else None
        self.some = torch.arange(FREQUENT) if learned is None else learned

    def prompts(self, of_each: int, among: Mapping[str, Sequence[str]] = PROMPTS) -> list[list[int]]:
        """Token ids, kind by kind in turn."""
        asked = [kind[number % len(kind)] for number in range(of_each) for kind in among.values()]
        return [list(prompt_ids(({"role": "user", "content": text},), self.chat, None)) for text in asked]

    def drafts(self) -> dict[str, OpenDraft]:
        """What ours drafts with."""
        layers, some = LayersDraft(layers=2, frequent=len(self.some)), self.some
        found = {"lookup": OpenDraft(LookupDraftSettings(), "", None, LookupDraft(), None)}
        if self.draft is None:
            exit_ = CachedModel(first_layers(self.target.model, 2), some, cache=self.target.cached)
            return found | {"layers": OpenDraft(layers, "", exit_, None, None)}
        frequent, chained = CachedModel(self.draft, some), ChainedDraftSettings(then=layers)
        tree = LayersDraft(layers=2, frequent=FREQUENT, ranks=RANKS)
        return found | {
            "ours": OpenDraft(layers, "", CachedModel(self.draft), None, self.draft),
            "frequent": OpenDraft(layers, "", frequent, None, self.draft),
            "chained": OpenDraft(chained, "", frequent, LookupDraft(), self.draft),
            "tree": OpenDraft(tree, "", frequent, None, self.draft),
            "chained tree": OpenDraft(ChainedDraftSettings(then=tree), "", frequent, LookupDraft(), self.draft),
        }

    def ours(
        self, draft: OpenDraft | None, nodes: Sequence[Node], gamma: int, temperature: float, spent: list[float]
    ) -> Decode:
        """Our loop; its (time outside the models, all time) are added to `spent`."""
        drafting = draft.drafting(nodes=nodes) if draft is not None else None
        decoder = SpeculativeDecoder(self.target.cached, drafting, gamma=gamma)
        sampler = sampler_of(temperature)

        def decode(prompt: Sequence[int], budget: int, seed: int) -> int:
            (written,) = decoder.write(Request([prompt], budget, self.stops, sampler), seed)
            account = decoder.account
            spent[0] += account.other_seconds
            spent[1] += account.seconds
            return len(written)

        return decode

    def peers(self, gamma: int | None, temperature: float) -> Decode:
        """`model.generate`, assisted if gamma is given."""
        generate: Any = self.target.model.generate
        settings: dict[str, Any] = {"do_sample": temperature > 0}
        settings |= {"temperature": temperature, "top_k": 0} if temperature > 0 else {}
        if gamma is not None and self.draft is not None:
            own = self.draft.generation_config
            own.num_assistant_tokens, own.num_assistant_tokens_schedule = gamma, "constant"
            own.assistant_confidence_threshold = 0.0

        def decode(prompt: Sequence[int], budget: int, seed: int) -> int:
            torch.manual_seed(seed)
            settings["max_new_tokens"] = budget
            if gamma is not None and self.draft is not None:
                self.draft.generation_config.num_assistant_tokens = gamma
                settings["assistant_model"] = self.draft
            ids = torch.tensor([list(prompt)])
            written = generate(ids, attention_mask=torch.ones_like(ids), eos_token_id=self.stops, **settings)
            return int(written.shape[1] - len(prompt))

        return decode

    def variants(self, temperature: float, spent: list[float], forecasts: Mapping[str, Row]) -> dict[str, Decode]:
        """Every variant at one temperature."""
        found = {"loop": self.ours(None, (), 1, temperature, [0.0, 0.0])}
        if temperature == 0:
            found["generate"] = self.peers(None, temperature)
        for gamma in GAMMAS:
            if self.draft is not None and temperature == 0:
                found[f"assisted-{gamma}"] = self.peers(gamma, temperature)
            for name, draft in self.drafts().items():
                row = forecasts[f"{name}-{gamma}"]
                if draft.lookup is not None:
                    draft = replace(draft, lookup=LookupDraft(draft.lookup.longest, row["shortest"]))
                nodes = [tuple(node) for node in row["nodes"]]
                found[f"{name}-{gamma}"] = self.ours(draft, nodes, gamma, temperature, spent)
        return found

    def forecasts(
        self, samples: Sequence[Sequence[int]], prompts: Sequence[Sequence[int]], temperature: float
    ) -> dict[str, Row]:
        """The forecast speed-up of every variant of ours from the texts of samples, and whether it is advised; and with
        the same times from those of the prompts on which it is measured."""
        sampler, device = sampler_of(temperature), self.target.device
        alone = SpeculativeDecoder(self.target.cached)
        texts, others = (
            [write_text(alone, p, self.tokens, self.stops, sampler, first + i) for i, p in enumerate(some)]
            for first, some in ((100, samples), (0, prompts))
        )
        rows = [[*texts[0].prompt, *texts[0].written]]
        ahead = sum(len(text.prompt) for text in texts) // len(texts)
        found: dict[str, Row] = {}
        agreed: dict[CachedModel, list[Agreement]] = {}  # two drafts have one reader
        for name, draft in self.drafts().items():
            reader = draft.reader
            if reader is not None and reader not in agreed:
                both = [*texts, *others]
                agreed[reader] = [agreement(self.target.cached, reader, text, sampler, device) for text in both]
            read = agreed[reader] if reader is not None else [None] * len(texts + others)
            nodes: tuple[Node, ...] = ()
            timed, shortest = self._time(draft, nodes, rows, ahead, sampler), None
            traces = self._traces(texts, read, None)
            if (lookup := draft.lookup) is not None:
                sizes = range(1, lookup.longest + 1)
                looked = {size: self._traces(texts, read, LookupDraft(lookup.longest, size)) for size in sizes}
                shortest = fit_shortest({size: [of] for size, of in looked.items()}, [timed.medians()], MOST)
                lookup, traces = LookupDraft(lookup.longest, shortest), looked[shortest]
            own = self._traces(others, read[len(texts) :], lookup)
            if reader is not None and draft.choices > 1:
                ranks = [ranks_ahead(one.ranks, MOST, draft.choices) for one in agreed[reader]]
                nodes = fit_tree(traces, ranks[: len(texts)], timed.medians(), MOST, draft.choices)
                timed = self._time(draft, nodes, rows, ahead, sampler)
                if nodes:
                    paired = zip([*traces, *own], ranks, strict=True)
                    trees = [replace(trace, ranks=of_trace, nodes=nodes) for trace, of_trace in paired]
                    traces, own = trees[: len(texts)], trees[len(texts) :]
            advice = advise(traces, {1: [timed.medians(), *timed.resampled(0)]}, MOST, 0.0, temperature, 1)
            for forecast in advice.forecasts:
                if forecast.gamma in GAMMAS:
                    interval = forecast.speedup
                    found[f"{name}-{forecast.gamma}"] = {
                        "forecast": interval.value,
                        "forecast_interval": [interval.low, interval.high],
                        "forecast_of_the_same": gain(own, [timed.medians()], forecast.gamma).speedup.value,
                        "advised": interval.low > WORTH,
                        "nodes": nodes,
                        "shortest": shortest,
                    }
        return found

    def _traces(
        self, texts: Sequence[Text], read: Sequence[Agreement | None], lookup: LookupDraft | None
    ) -> list[Trace]:
        vocab_size = self.target.cached.vocab_size
        return [
            trace_of(text, self.tokens, own, lookups(lookup, text, MOST, vocab_size) if lookup else None)
            for text, own in zip(texts, read, strict=False)
        ]

    def _time(
        self, draft: OpenDraft, nodes: Sequence[Node], rows: Sequence[Sequence[int]], ahead: int, sampler: Sampler
    ) -> Timed:
        target, drafting = self.target.cached, draft.timed(nodes)
        return measure(target, drafting, rows, ahead, sampler, MOST, self.target.device, lambda amount: None)


def in_turn(variants: dict[str, Decode], prompt: Sequence[int], budget: int, turn: int, spent: list[float]) -> Row:
    """The seconds and tokens of each variant for one prompt, and the two parts of `spent`."""
    if turn == 0:
        for decode in variants.values():
            decode(prompt, 8, 0)  # warms up
    seconds, tokens, names = {}, {}, list(variants)
    before = list(spent)
    first = turn % len(names)
    for name in names[first:] + names[:first]:
        begun = time.perf_counter()
        tokens[name] = variants[name](prompt, budget, turn)
        seconds[name] = time.perf_counter() - begun
    return {"seconds": seconds, "tokens": tokens, "spent": [spent[i] - before[i] for i in range(2)]}


def seconds_per_token(measured: Sequence[Row]) -> dict[str, float]:
    """Of each variant, over all prompts."""
    return {
        name: sum(row["seconds"][name] for row in measured) / sum(row["tokens"][name] for row in measured)
        for name in measured[0]["seconds"]
    }


def measured_speedup(measured: Sequence[Row], name: str) -> Row:
    """Over the loop without a draft, with an interval over prompts."""
    alone, drafted = (
        Runs([row["seconds"][variant] for row in measured], [row["tokens"][variant] for row in measured])
        for variant in ("loop", name)
    )
    found = speedup(alone, drafted)
    return {"speedup": found.value, "speedup_interval": [found.low, found.high]}


def values_of(rows: Sequence[dict[str, Any]], outside: float | None) -> dict[str, float | None]:
    """The figures that are aimed at, from rows of variant, temperature, seconds per token and forecast."""
    by = {(row["temperature"], row["variant"]): row["seconds"] for row in rows}
    drafted = [row for row in rows if row["forecast"] is not None]
    values: dict[str, float | None] = {"share of time outside the models": outside}
    if ("greedy", "generate") in by:
        values["loop without a draft / generate"] = by["greedy", "generate"] / by["greedy", "loop"]
    assisted = [v for (t, name), v in by.items() if t == "greedy" and name.startswith("assisted")]
    same = [v for (t, name), v in by.items() if t == "greedy" and name.startswith("ours")]
    values["same draft / assisted at its best"] = min(assisted) / min(same) if assisted and same else None
    for temperature in ("greedy", "T = 0.7"):
        found = [row["seconds"] for row in drafted if row["temperature"] == temperature]
        if found:
            values[f"best draft / loop, {temperature}"] = by[temperature, "loop"] / min(found)
    measured = [(by[row["temperature"], "loop"] / row["seconds"], row) for row in drafted]
    if measured:
        for key, name in (("forecast", FROM_OTHERS), ("forecast_of_the_same", FROM_THE_SAME)):
            near = [abs(row[key] / speedup - 1) <= 0.1 for speedup, row in measured]
            values[name] = sum(near) / len(near)
        slower = sum(row["advised"] and speedup < 0.95 for speedup, row in measured)
        values["use it, and slower by more than 5 %"] = float(slower)
    return values


def main() -> None:
    parser = command_line("benchmarks.speculate", __doc__)
    parser.add_argument("--draft", type=Path, help="folder of a trained draft")
    parser.add_argument("--lines", type=Path, help="keep what was measured of each prompt here, and go on")
    parser.add_argument("--prompts", type=int, default=2, help="of each kind")
    parser.add_argument("--samples", type=int, default=4, help="prompts of each kind that forecasts are made from")
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    bench = Bench(options.draft, options.tokens)
    prompts = bench.prompts(options.prompts)
    settings = {"draft": str(options.draft), "prompts": options.prompts, "tokens": options.tokens}
    settings["samples"] = options.samples
    kept = KeptRows(options.lines, settings)
    rows: list[Row] = []
    spent, outside = [0.0, 0.0], [0.0, 0.0]
    with torch.no_grad():
        for called, temperature in (("greedy", 0.0), ("T = 0.7", 0.7)):
            samples = bench.prompts(options.samples, SAMPLES)
            forecasts = kept.row(f"{called}, forecasts", partial(bench.forecasts, samples, prompts, temperature))
            variants, measured = bench.variants(temperature, spent, forecasts), []
            for turn, prompt in enumerate(prompts):
                made = partial(in_turn, variants, prompt, options.tokens, turn, spent)
                measured.append(kept.row(f"{called}, prompt {turn}", made))
                outside = [outside[i] + measured[-1]["spent"][i] for i in range(2)]
                say(f"{called}, prompt {turn + 1}/{len(prompts)}: {json.dumps(measured[-1]['seconds'])}")
            for name, seconds in seconds_per_token(measured).items():
                row = {"variant": name, "temperature": called, "seconds": seconds, **measured_speedup(measured, name)}
                row |= forecasts.get(name, {"forecast": None, "forecast_of_the_same": None, "advised": False})
                rows.append(row)
                said = f"{called} {name}: {1000 * seconds:.1f} ms a token, {row['speedup']:.2f} × the loop"
                if row["forecast"]:
                    said += f", forecast {row['forecast']:.2f}, of the same prompts {row['forecast_of_the_same']:.2f}"
                say(said)
    claims = claims_of(AIMS, values_of(rows, outside[0] / outside[1] if outside[1] else None))
    result = {"benchmark": "speculate", "machine": machine(torch.device("cpu")), "rows": rows, "claims": claims}
    print(json.dumps(result))


if __name__ == "__main__":
    main()

"""Claims about decoding with SmolLM2-135M-Instruct itself: greedy text is the one of `model.generate`, sampled text has
the joint distribution of the target. A campaign of hours: POTSTILL_REAL_SHARE (0 to 1) takes a share of it, and each
test is a piece of its own (`-k "greedy and lookup-1-part2"`, `-k "joint and frequent-part0"`)."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from potstill.console import Console
from potstill.decoding.acceptance import Chance
from potstill.decoding.cached_model import CachedModel, first_layers
from potstill.decoding.drafts import ChainedDraft, Draft, LookupDraft, ModelDraft, early_exit
from potstill.decoding.rows import Rows
from potstill.decoding.sampler import Sampler
from potstill.decoding.speculative import Request, SpeculativeDecoder
from potstill.recipe.teachers import LocalTeacher
from potstill.speculate.opening import Target, open_target
from potstill.speculate.traces import sampler_of

pytestmark = [pytest.mark.long, pytest.mark.slow]

SHARE = float(os.environ.get("POTSTILL_REAL_SHARE", "1"))
PARTS = range(4)
"""Of the prompts, and of the seeds."""
PROMPTS, TOKENS = max(2, round(50 * SHARE)), 128
RUNS, ROWS, CELLS = max(3, round(25 * SHARE)), 320, 8
FREQUENT = torch.arange(8192)
DEPTH = 20
"""Layers of the drafts: enough that drafted tokens stand."""

KINDS: dict[str, Callable[[CachedModel], Draft | None]] = {
    "alone": lambda target: None,
    "model": lambda target: ModelDraft(CachedModel(first_layers(target.model, DEPTH))),
    "layers": lambda target: early_exit(target, DEPTH),
    "frequent": lambda target: early_exit(target, DEPTH, FREQUENT),
    "lookup": lambda target: LookupDraft(),
    "chained": lambda target: ChainedDraft([LookupDraft(), early_exit(target, DEPTH)]),
    "stopped": lambda target: early_exit(target, DEPTH, threshold=0.3),
}


@pytest.fixture(scope="module")
def target() -> Target:
    return open_target(LocalTeacher(model="smollm2-135m-instruct", device="cpu"), "float32", Console("quiet"))


def prompts(target: Target, part: int) -> list[list[int]]:
    lines = (Path(__file__).parents[2] / "recipes" / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    asked = [json.loads(line)["prompt"] for line in lines[part * PROMPTS : (part + 1) * PROMPTS]]
    template = target.tokenizer.apply_chat_template
    return [
        list(template([{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False))
        for text in asked
    ]


@pytest.mark.parametrize("part", PARTS, ids="part{}".format)
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_text_is_the_models_own(
    target: Target, generated: Callable[[list[int]], list[int]], kind: str, batch: int, part: int
) -> None:
    asked = prompts(target, part)
    decoder = SpeculativeDecoder(target.cached, KINDS[kind](target.cached), gamma=4)
    stood = 0
    for start in range(0, len(asked), batch):
        rows = asked[start : start + batch]
        written = decoder.write(Request(rows, TOKENS))
        stood += decoder.account.accepted
        # `generate` takes rows apart: padding on the left would make another sum of the same row.
        assert written == [generated(row) for row in rows]
    assert stood > 0 or kind == "alone", "or nothing was tested"


@pytest.fixture(scope="module")
def generated(target: Target) -> Callable[[list[int]], list[int]]:
    """The text of `model.generate`, made once for each prompt."""
    made: dict[tuple[int, ...], list[int]] = {}
    generate: Callable[..., Tensor] = target.model.generate

    def text(prompt: list[int]) -> list[int]:
        if tuple(prompt) not in made:
            ids = torch.tensor([prompt])
            settings = {"do_sample": False, "max_new_tokens": TOKENS, "eos_token_id": None}
            made[tuple(prompt)] = generate(ids, attention_mask=torch.ones_like(ids), **settings)[0].tolist()
        return made[tuple(prompt)][len(prompt) :]

    return text


@pytest.mark.parametrize("part", PARTS, ids="part{}".format)
@pytest.mark.parametrize("kind", ["layers", "frequent"])
@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_two_sampled_tokens_have_the_joint_distribution_of_the_target(
    target: Target, kind: str, top_p: float, part: int, record_property: Callable[[str, object], None]
) -> None:
    """Chi-square over 64 cells: eight classes of first tokens of like probability, by eight of second ones. The prompt
    is short, since it is read once for each of the rows."""
    prompt = target.tokenizer("Once upon a time")["input_ids"]
    assert isinstance(prompt, list)
    sampler = sampler_of(1.0, top_p)
    first, class_of_first = _distribution(target, sampler, [prompt])
    # Second tokens are classed by their number, so that the classes are the same behind every first token.
    likely = torch.topk(first[0], min(200, int((first[0] > 0).sum()))).indices
    second, _ = _distribution(target, sampler, [[*prompt, int(token)] for token in likely])
    class_of_second = _classes((first[0, likely, None] * second).sum(0))
    expected = torch.zeros(CELLS, CELLS, dtype=torch.float64)
    for token, row in zip(likely, second, strict=True):
        by_class = torch.zeros(CELLS, dtype=torch.float64).index_add_(0, class_of_second, row.double())
        expected[class_of_first[token]] += first[0, token].double() * by_class
    # What lies behind rarer first tokens is left out on both sides.
    decoder = SpeculativeDecoder(target.cached, KINDS[kind](target.cached), gamma=2)
    known, values = set(likely.tolist()), []
    for seed in range(part * RUNS, (part + 1) * RUNS):
        written = _first_two(decoder, prompt, sampler, seed)
        counts = Counter((int(class_of_first[a]), int(class_of_second[b])) for a, b in written if a in known)
        wanted = expected / expected.sum() * counts.total()
        cells = [(i, j) for i in range(CELLS) for j in range(CELLS) if wanted[i, j] >= 1]
        observed = [counts[cell] for cell in cells]
        among = torch.stack([wanted[cell] for cell in cells])
        values.append(chisquare(observed, (among / among.sum() * sum(observed)).numpy()).pvalue)
    record_property("p-values", values)
    print(f"{kind}, top-p {top_p}, seeds from {part * RUNS}: p = {[round(float(value), 4) for value in values]}")
    assert sum(value <= 0.001 for value in values) <= 1


def _first_two(decoder: SpeculativeDecoder, prompt: list[int], sampler: Sampler, seed: int) -> list[list[int]]:
    """Two tokens of every row, in rounds that may draft both."""
    written: list[list[int]] = [[] for _ in range(ROWS)]
    for news in decoder.rounds(Request([prompt] * ROWS, 4, (), sampler), Chance(seed, torch.device("cpu"))):
        for row, tokens in news.items():
            written[row].extend(tokens)
        if min(map(len, written)) >= 2:
            break
    return [row[:2] for row in written]


def _distribution(target: Target, sampler: Sampler, texts: list[list[int]]) -> tuple[Tensor, Tensor]:
    found = []
    for text in texts:
        rows = Rows([text], 0, target.cached.vocab_size, torch.device("cpu"))
        target.cached.start(rows.capacity)
        with torch.no_grad():
            logits = target.cached(rows.block([0], len(text)), [0], [len(text) - 1])
        found.append(sampler.distributions(logits, rows, 0)[0, 0])
    p = torch.stack(found)
    return p, _classes(p[0])


def _classes(p: Tensor) -> Tensor:
    """A class of each token, eight of like probability: tokens in order of probability go to the emptiest."""
    order = torch.argsort(p, descending=True)
    classes, mass = torch.zeros(len(p), dtype=torch.long), [0.0] * CELLS
    for token in order[:2000].tolist():
        emptiest = mass.index(min(mass))
        classes[token] = emptiest
        mass[emptiest] += float(p[token])
    return classes

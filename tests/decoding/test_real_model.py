"""Claims about decoding with SmolLM2-135M-Instruct itself: greedy text is the one of `model.generate`, sampled text has
the joint distribution of the target. A campaign of hours; POTSTILL_REAL_SHARE (0 to 1) takes a part of it."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from potstill.console import Console
from potstill.decoding.cached_model import CachedModel
from potstill.decoding.drafts import ChainedDraft, Draft, LookupDraft, ModelDraft, early_exit
from potstill.decoding.speculative import Request, SpeculativeDecoder
from potstill.recipe.teachers import LocalTeacher
from potstill.speculate.opening import Target, open_target
from potstill.speculate.traces import sampler_of

pytestmark = [pytest.mark.long, pytest.mark.slow]

SHARE = float(os.environ.get("POTSTILL_REAL_SHARE", "1"))
PROMPTS, TOKENS, RUNS, ROWS, CELLS = max(2, round(200 * SHARE)), 128, max(3, round(100 * SHARE)), 640, 8
FREQUENT = torch.arange(8192)

KINDS: dict[str, Callable[[CachedModel], Draft]] = {
    "model": lambda target: ModelDraft(CachedModel(target.model, FREQUENT)),
    "layers": lambda target: early_exit(target, 20),
    "frequent": lambda target: early_exit(target, 20, FREQUENT),
    "lookup": lambda target: LookupDraft(),
    "chained": lambda target: ChainedDraft([LookupDraft(), early_exit(target, 20)]),
    "stopped": lambda target: early_exit(target, 20, threshold=0.3),
}


@pytest.fixture(scope="module")
def target() -> Target:
    return open_target(LocalTeacher(model="smollm2-135m-instruct", device="cpu"), "float32", Console("quiet"))


def prompts(target: Target) -> list[list[int]]:
    lines = (Path(__file__).parents[2] / "recipes" / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    asked = [json.loads(line)["prompt"] for line in lines[:PROMPTS]]
    template = target.tokenizer.apply_chat_template
    return [
        list(template([{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False))
        for text in asked
    ]


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_text_is_the_models_own(target: Target, kind: str, batch: int) -> None:
    asked = prompts(target)
    decoder = SpeculativeDecoder(target.cached, KINDS[kind](target.cached), gamma=4)
    alone = SpeculativeDecoder(target.cached)
    stood = 0
    for start in range(0, len(asked), batch):
        rows = asked[start : start + batch]
        written = decoder.write(Request(rows, TOKENS))
        stood += decoder.account.accepted
        # Rows apart: padding on the left would make another sum of the same row.
        assert written == [_generated(target, row) for row in rows]
        assert written == alone.write(Request(rows, TOKENS))
    assert stood > 0, "or nothing was tested"


def _generated(target: Target, prompt: Sequence[int]) -> list[int]:
    ids = torch.tensor([list(prompt)])
    generate: Callable[..., Tensor] = target.model.generate
    written = generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=TOKENS, eos_token_id=None
    )
    return [int(token) for token in written[0, len(prompt) :]]


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (1.0, 0.8)])
@pytest.mark.parametrize("kind", ["layers", "frequent"])
def test_two_sampled_tokens_have_the_joint_distribution_of_the_target(
    target: Target, kind: str, temperature: float, top_p: float
) -> None:
    """Chi-square over 64 cells: eight classes of first tokens of like probability, by eight of second ones."""
    prompt = prompts(target)[0]
    sampler = sampler_of(temperature, top_p)
    first, class_of_first = _distribution(target, sampler, [prompt])
    # Second tokens are classed by their number, so that the classes are the same behind every first token.
    likely = torch.topk(first[0], 200).indices
    second, _ = _distribution(target, sampler, [[*prompt, int(token)] for token in likely])
    class_of_second = _classes((first[0, likely, None] * second).sum(0))
    expected = torch.zeros(CELLS, CELLS, dtype=torch.float64)
    for token, row in zip(likely, second, strict=True):
        by_class = torch.zeros(CELLS, dtype=torch.float64).index_add_(0, class_of_second, row.double())
        expected[class_of_first[token]] += first[0, token].double() * by_class
    mass = float(expected.sum())  # what lies behind rarer first tokens is left out on both sides
    decoder = SpeculativeDecoder(target.cached, KINDS[kind](target.cached), gamma=3)
    good = 0
    known = set(likely.tolist())
    for seed in range(RUNS):
        written = decoder.write(Request([prompt] * ROWS, 2, (), sampler), seed)
        pairs = [(a, b) for a, b in written if a in known]
        counts = Counter((int(class_of_first[a]), int(class_of_second[b])) for a, b in pairs)
        cells = [(i, j) for i in range(CELLS) for j in range(CELLS) if expected[i, j] / mass * len(pairs) >= 1]
        observed = [counts[cell] for cell in cells]
        wanted = torch.tensor([float(expected[cell]) for cell in cells])
        wanted *= sum(observed) / wanted.sum()
        good += chisquare(observed, wanted.numpy()).pvalue > 0.001
    assert good >= RUNS - max(1, RUNS // 100)


def _distribution(target: Target, sampler: object, texts: list[list[int]]) -> tuple[Tensor, Tensor]:
    from potstill.decoding.rows import Rows
    from potstill.decoding.sampler import Sampler

    assert isinstance(sampler, Sampler)
    found = []
    for text in texts:
        rows = Rows([text], 0, target.cached.vocab_size, torch.device("cpu"))
        target.cached.start(rows.capacity)
        with torch.no_grad():
            logits = target.cached(rows.block([0], len(text)), [0], last=1)
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

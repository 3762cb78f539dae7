"""Claims about linear layers of few rows: each way is the same product, the fastest is taken, the model stays."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from potstill.decoding import few_rows
from potstill.decoding.cached_model import CachedModel
from potstill.decoding.drafts import LookupDraft, ModelDraft
from potstill.decoding.few_rows import FewRows, linear, ways, with_few_rows
from potstill.decoding.speculative import Request, SpeculativeDecoder
from tiny_models import FAMILIES, Family, tiny_model

PROMPTS = [[5, 9, 30], [7], [40, 41, 42, 43, 44]]


@pytest.fixture
def every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small matrices are timed too, and nothing is known yet."""
    monkeypatch.setattr(few_rows, "LEAST_BYTES", 0)
    monkeypatch.setattr(few_rows, "_chosen", {})


@torch.no_grad()
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 8, 16])
def test_each_way_is_the_same_product(rows: int, biased: bool) -> None:
    torch.manual_seed(rows)
    x, weight, bias = torch.randn(rows, 48), torch.randn(33, 48), torch.randn(33) if biased else None
    wanted = nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    assert len(ways(rows)) > 1
    for multiply in ways(rows):
        torch.testing.assert_close(multiply(x, weight, bias).double(), wanted, rtol=1e-4, atol=1e-4)


def test_the_fastest_way_is_taken_and_one_that_fails_is_not(every_size: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def slow(*given: Any) -> Tensor:
        time.sleep(0.02)
        return nn.functional.linear(*given)

    def quick(*given: Any) -> Tensor:
        asked.append("quick")
        return nn.functional.linear(*given)

    def fails(*given: Any) -> Tensor:
        raise NotImplementedError

    monkeypatch.setattr(few_rows, "ways", lambda rows: [slow, fails, quick])
    weight = torch.randn(4, 3)
    assert few_rows.way(weight, None, 2, [weight]) is quick
    count = len(asked)
    assert few_rows.way(weight, None, 2, [weight]) is quick and len(asked) == count, "timed once"
    with torch.no_grad():
        linear(torch.randn(1, 2, 3), weight, None, [weight])
    assert len(asked) == count + 1


def test_with_gradients_a_layer_is_the_plain_one(every_size: None) -> None:
    layer = with_few_rows(tiny_model(seed=3)).lm_head
    assert type(layer) is FewRows
    layer(torch.randn(1, 2, layer.in_features)).sum().backward()
    assert layer.weight.grad is not None


def test_a_small_model_is_left_alone_and_a_view_leaves_the_model_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(seed=3)
    assert with_few_rows(model) is model
    monkeypatch.setattr(few_rows, "LEAST_BYTES", 0)
    view = with_few_rows(model)
    assert {id(p) for p in view.parameters()} == {id(p) for p in model.parameters()}
    assert not any(isinstance(module, FewRows) for module in model.modules())
    linears = [module for module in view.modules() if isinstance(module, nn.Linear)]
    assert linears and all(type(module) is FewRows for module in linears)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_text_is_the_models_own_whatever_the_way(
    family: Family, every_size: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are filled up to a multiple of four in every linear layer, output layer and draft."""
    filled: set[int] = set()

    def way(weight: Tensor, bias: Tensor | None, rows: int, alike: Any) -> few_rows.Way:
        filled.add(-rows % 4)
        return few_rows._turned(rows + -rows % 4)

    monkeypatch.setattr(few_rows, "way", way)
    model = tiny_model(family, seed=3, spread=0.3)
    wanted = SpeculativeDecoder(model).write(Request(PROMPTS, 1))
    drafts = (None, LookupDraft(), ModelDraft(CachedModel(tiny_model(family, seed=3, spread=0.29)), threshold=0.05))
    texts = [SpeculativeDecoder(model, draft, gamma=3).write(Request(PROMPTS, 30)) for draft in drafts]
    for prompt, text in zip(PROMPTS, texts[0], strict=True):
        ids = torch.tensor([prompt])
        own = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=30, do_sample=False)
        assert text[: own.shape[1] - len(prompt)] == own[0, len(prompt) :].tolist()
    assert texts[1] == texts[2] == texts[0] and [row[:1] for row in texts[0]] == wanted
    assert filled == {0, 1, 2, 3}, "or nothing was tested"

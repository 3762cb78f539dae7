"""Claims about linear layers of few rows: each way is the same product, the fastest is taken, the model stays."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from potstill.decoding import few_rows
from potstill.decoding.cached_model import CachedModel
from potstill.decoding.drafts import LookupDraft, ModelDraft
from potstill.decoding.few_rows import FewRows, kept_choice, linear, ways, with_few_rows
from potstill.decoding.speculative import Request, SpeculativeDecoder
from tiny_models import FAMILIES, Family, tiny_model

PROMPTS = [[5, 9, 30], [7], [40, 41, 42, 43, 44]]


@pytest.fixture
def every_size(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Small matrices are timed too, and nothing is known yet."""
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path))
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
    for multiply in ways(rows).values():
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

    monkeypatch.setattr(few_rows, "ways", lambda rows: {"plain": slow, "fails": fails, "quick": quick})
    weight = torch.randn(4, 3)
    assert few_rows.way(weight, None, 2, [weight]) is quick
    count = len(asked)
    assert few_rows.way(weight, None, 2, [weight]) is quick and len(asked) == count, "timed once"
    with torch.no_grad():
        linear(torch.randn(1, 2, 3), weight, None, [weight])
    assert len(asked) == count + 1


PROCESS = """
import sys
from potstill.decoding.few_rows import kept_choice
wanted = sys.argv[1]
print(kept_choice("a case", ["plain", "turned 2"], lambda: wanted), kept_choice("another", [wanted], lambda: wanted))
"""


def test_every_process_of_a_machine_takes_the_way_that_the_first_chose(tmp_path: Path) -> None:
    """Two ways may be alike within the noise; a seeded text must not depend on which of them was timed faster."""
    found = [
        subprocess.run(
            [sys.executable, "-c", PROCESS, wanted],
            env=os.environ | {"POTSTILL_CACHE": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split("\n")[0]
        for wanted in ("turned 2", "plain")
    ]
    assert found == ["turned 2 turned 2", "turned 2 plain"], "a way that is not known here is chosen anew"


def test_of_two_processes_that_choose_at_once_the_first_to_keep_it_is_followed(every_size: None) -> None:
    def late() -> str:
        assert kept_choice("a case", ["plain", "quick"], lambda: "quick") == "quick"
        return "plain"

    assert kept_choice("a case", ["plain", "quick"], late) == "quick"


def test_choices_of_other_cases_are_kept_and_damaged_ones_made_again(every_size: None, tmp_path: Path) -> None:
    weight = torch.randn(4, 3)
    cases = [(torch.float32, 1), (torch.float32, 2), (torch.float64, 1)]
    for dtype, rows in cases:
        few_rows.way(weight.to(dtype), None, rows, [weight.to(dtype)])
    (file,) = (tmp_path / "kernels").glob("*.json")
    kept = json.loads(file.read_text())
    assert {case.partition(", threads")[0] for case in kept if case} == {
        "4 x 3 float32, rows 1",
        "4 x 3 float32, rows 2",
        "4 x 3 float64, rows 1",
    }
    file.write_text("{")
    assert kept_choice("a case", ["plain"], lambda: "plain") == "plain" and "a case" in json.loads(file.read_text())


def test_without_a_cache_folder_a_process_chooses_for_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "file"))
    assert kept_choice("a case", ["plain"], lambda: "plain") == "plain"


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

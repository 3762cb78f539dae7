"""What a live model's signals stand for: its own logits, unchanged by packing, padding, adapters or checkpointing."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import BloomConfig, BloomForCausalLM

from potstill.errors import ModelError
from potstill.models.anatomy import model_layers
from potstill.models.live import check_head, check_packing, live_signals
from potstill.signals import Ask, Batch, Signals, View
from tiny_models import FAMILIES, VOCAB, Family, tiny_model

PAD = 2  # also the end token


def view_of(*rows: list[list[int]], width: int | None = None) -> View:
    """A view of rows, each a list of segments, padded on the right."""
    width = width or max(sum(map(len, row)) for row in rows)
    ids, positions, segments = (torch.zeros(len(rows), width, dtype=torch.long) for _ in range(3))
    ids += PAD
    for b, row in enumerate(rows):
        at = 0
        for number, segment in enumerate(row, start=1):
            span = slice(at, at + len(segment))
            ids[b, span] = torch.tensor(segment)
            positions[b, span] = torch.arange(len(segment))
            segments[b, span] = number
            at += len(segment)
    return View(ids, positions, segments)


def words(count: int, seed: int) -> list[int]:
    return torch.randint(3, VOCAB, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def real_positions(view: View) -> Tensor:
    return (view.segment_ids > 0).flatten().nonzero().squeeze(-1)


def signals_of(
    model: Any, view: View, positions: Tensor | None = None, taps: Iterable[str] = (), *, response: bool = True
) -> Signals:
    return live_signals(model, batch_of(view, positions), "teacher", Ask(response, frozenset(taps)))


def batch_of(view: View, positions: Tensor | None = None) -> Batch:
    """A batch whose targets are the real tokens, or the positions given."""
    rows = real_positions(view) if positions is None else positions
    return Batch(view, view, view.input_ids.flatten()[rows], {"student": rows, "teacher": rows})


def head_logits(model: Any, view: View) -> Tensor:
    head = signals_of(model, view).head
    assert head is not None
    return head.logits()


def own_logits(model: Any, segment: list[int]) -> Tensor:
    """The model's own logits for one row alone, by the plainest call there is."""
    with torch.no_grad():
        logits: Tensor = model(input_ids=torch.tensor([segment]), use_cache=False).logits[0]
    return logits


A, B, C = words(9, 1), words(5, 2), words(12, 3)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_head_gives_the_models_own_logits(family: Family, tied: bool) -> None:
    model = tiny_model(family, tied=tied)
    ours = head_logits(model, view_of([A]))
    torch.testing.assert_close(ours, own_logits(model, A), rtol=1e-5, atol=1e-5)
    assert ours.std() > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_segments_do_not_see_each_other(family: Family) -> None:
    model = tiny_model(family, **({"sliding_window": 4} if family in ("gemma2", "mistral") else {}))
    packed = head_logits(model, view_of([A, B], [C]))
    alone = torch.cat([own_logits(model, segment) for segment in (A, B, C)])
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_on_the_right_changes_nothing(family: Family) -> None:
    model = tiny_model(family)
    padded = head_logits(model, view_of([A], [B], width=20))
    torch.testing.assert_close(padded, torch.cat([own_logits(model, A), own_logits(model, B)]), rtol=1e-5, atol=1e-5)


def test_only_the_rows_asked_come_in_the_order_asked() -> None:
    model = tiny_model()
    view = view_of([A], [A[::-1]])
    everything = head_logits(model, view)
    some = signals_of(model, view, torch.tensor([11, 2])).head
    assert some is not None
    torch.testing.assert_close(some.logits(), everything[[11, 2]])


@pytest.mark.parametrize("family", FAMILIES)
def test_taps_are_the_models_own_hidden_states(family: Family) -> None:
    model, view = tiny_model(family), view_of([A])
    with torch.no_grad():
        own = model(input_ids=view.input_ids, output_hidden_states=True, use_cache=False).hidden_states
    signals = signals_of(model, view, taps=["hidden.0", "hidden.2", "hidden.4"], response=False)
    assert signals.head is None and signals.dense is None
    assert sorted(signals.taps) == ["hidden.0", "hidden.2", "hidden.4"]
    for name, state in signals.taps.items():
        torch.testing.assert_close(state, own[int(name.removeprefix("hidden."))], rtol=1e-5, atol=1e-5)


def test_taps_leave_no_hooks_behind() -> None:
    model, view = tiny_model(), view_of([A])
    signals_of(model, view, taps=["hidden.1"], response=False)
    assert not any(layer._forward_pre_hooks for layer in model.model.layers)


def test_a_state_that_the_model_does_not_have_is_refused() -> None:
    with pytest.raises(ModelError, match=r"hidden state 5 of a model with 4 layers"):
        signals_of(tiny_model(), view_of([A]), taps=["hidden.5"])


def loss_gradients(model: Any, view: View, layers: list[int]) -> dict[str, Tensor]:
    """Gradients of a sum over logits and taps, for every parameter that trains."""
    model.zero_grad()
    signals = signals_of(model, view, taps=[f"hidden.{k}" for k in layers])
    logits = signals.head.logits() if signals.head is not None else signals.dense.logits  # type: ignore[union-attr]
    (logits.log_softmax(-1)[:, 7].sum() + sum(tap.square().sum() for tap in signals.taps.values())).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing_gives_the_same_gradients(family: Family) -> None:
    model, view = tiny_model(family).train(), view_of([A, B], [C])
    expected = loss_gradients(model, view, [1, 3])
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ran: list[str] = []
    model_layers(model)[0].mlp.register_forward_pre_hook(lambda *_: ran.append("mlp"))
    found = loss_gradients(model, view, [1, 3])
    assert ran == ["mlp", "mlp"], "the layer was not computed again in the backward pass"
    assert found.keys() == expected.keys() and expected
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize("family", FAMILIES)
def test_lora_everywhere_equals_the_merged_model_and_trains(family: Family) -> None:
    torch.manual_seed(5)
    config = LoraConfig(target_modules=["q_proj", "down_proj", "c_attn", "lm_head"], init_lora_weights=False)
    model, view = get_peft_model(tiny_model(family, tied=False), config), view_of([A, B])
    gradients = loss_gradients(model, view, [])
    assert any("lm_head.lora_A" in name for name in gradients) and any("lm_head.lora_B" in name for name in gradients)
    assert all("lora_" in name and grad.abs().max() > 0 for name, grad in gradients.items())
    ours = head_logits(model, view).detach()
    merged = copy.deepcopy(model).merge_and_unload()
    torch.testing.assert_close(ours, torch.cat([own_logits(merged, A), own_logits(merged, B)]), rtol=1e-4, atol=1e-4)


def test_a_head_that_cannot_be_taken_apart_falls_back_to_dense_and_says_so() -> None:
    torch.manual_seed(5)
    config = LoraConfig(target_modules=["lm_head"], use_dora=True, init_lora_weights=False)
    model, view = get_peft_model(tiny_model("gemma2", tied=False), config), view_of([A])
    with pytest.warns(UserWarning, match="DoraLinearVariant"):
        signals = signals_of(model, view)
    assert signals.head is None and signals.dense is not None
    torch.testing.assert_close(signals.dense.logits, own_logits(model, A), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_check_head_accepts_every_family_in_fp32_and_bf16(family: Family) -> None:
    view = view_of([A, B], [C])
    assert check_head(tiny_model(family), batch_of(view)) < 1e-5
    assert check_head(tiny_model(family).bfloat16(), batch_of(view)) < 3e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_check_head_catches_an_unknown_scale(dtype: torch.dtype) -> None:
    model = tiny_model("granite").to(dtype)
    model.lm_head.register_forward_hook(lambda module, args, output: output * 0.9)
    with pytest.raises(ModelError, match=r"0\.9\d* times as large"):
        check_head(model, batch_of(view_of([A])))


def test_check_head_catches_a_change_before_the_head() -> None:
    model = tiny_model("llama")
    model.lm_head.register_forward_pre_hook(lambda module, args: (args[0] + 0.1,))
    with pytest.raises(ModelError, match="in a way that potstill does not know"):
        check_head(model, batch_of(view_of([A])))


def test_check_head_leaves_every_module_in_its_mode() -> None:
    model = tiny_model("gpt2", resid_pdrop=0.5, embd_pdrop=0.5).train()
    model.transformer.h[1].eval()
    modes = [module.training for module in model.modules()]
    assert check_head(model, batch_of(view_of([A]))) < 1e-5
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize("family", FAMILIES)
def test_check_packing_accepts_every_family_in_fp32_and_bf16(family: Family) -> None:
    view = view_of([A, B], [C])
    assert check_packing(tiny_model(family), view) < 1e-5
    assert check_packing(tiny_model(family).bfloat16(), view) < 3e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_check_packing_catches_a_family_whose_segments_see_each_other(dtype: torch.dtype) -> None:
    # BLOOM's ALiBi counts positions from its attention mask, and does not ask for any.
    shape = BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.2)
    bloom = BloomForCausalLM(shape).eval().to(dtype)
    with pytest.raises(ModelError, match="BloomForCausalLM lets packed records see each other"):
        check_packing(bloom, view_of([A, B], [C]))

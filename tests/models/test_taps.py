"""Taps: the model's own inner tensors, by name, on the graph, and nothing left behind."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import DebertaV2Config, DebertaV2Model
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from potstill.errors import ModelError
from potstill.models.anatomy import dims
from potstill.models.taps import tapped
from potstill.objectives.attention import attention_scores
from potstill.signals import Signals
from tiny_models import ENCODER_VOCAB, ENCODERS, FAMILIES, VOCAB, EncoderFamily, Family, tiny_encoder, tiny_model

IDS = torch.randint(5, min(VOCAB, ENCODER_VOCAB), (2, 7), generator=torch.Generator().manual_seed(1))
ATTENTION = ("queries.1", "keys.1", "values.1")
IMPLEMENTATIONS = ("eager", "sdpa")


def run(model: Any, names: Sequence[str]) -> dict[str, Tensor]:
    with tapped(model, names) as taps:
        model(input_ids=IDS)
    return taps


def attention_of(taps: dict[str, Tensor], layer: int, *, causal: bool) -> Tensor:
    """Attention weights [B,A,T,T], made of tapped queries and keys alone."""
    queries, keys = taps[f"queries.{layer}"], taps[f"keys.{layer}"]
    keys = keys.repeat_interleave(queries.shape[1] // keys.shape[1], dim=1)
    scores = queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1])
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)
    return scores.softmax(-1)


# ---- attention -----------------------------------------------------------------------------------------------


# So small a cap that scores without it are far off.
SCALED: dict[str, dict[str, Any]] = {
    "granite": {"attention_multiplier": 0.5},
    "gemma2": {"attn_logit_softcapping": 0.5},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_tapped_queries_and_keys_make_the_models_own_attention(family: Family) -> None:
    """After rotary embedding, with grouped heads, whatever the family scales by (Granite's is not 1/√d), and its
    soft-cap (Gemma 2's)."""
    model = tiny_model(family, **SCALED.get(family, {}))
    model.set_attn_implementation("eager")
    with torch.no_grad():
        taps = run(model, ["queries.0", "keys.0", "queries.2", "keys.2"])
        own = model(input_ids=IDS, output_attentions=True).attentions
    for layer in (0, 2):
        scores = attention_scores(Signals(taps=taps, dims=dims(model)), layer, "teacher")
        weights = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf).softmax(-1)
        torch.testing.assert_close(weights, own[layer], rtol=1e-4, atol=1e-5)
    assert float(own[2].std()) > 0.01


@pytest.mark.parametrize("family", ENCODERS)
def test_tapped_queries_and_keys_make_an_encoders_own_attention(family: EncoderFamily) -> None:
    model = tiny_encoder(family)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        taps = run(model, ["queries.3", "keys.3"])
        own = model(input_ids=IDS, output_attentions=True).attentions
    torch.testing.assert_close(attention_of(taps, 3, causal=False), own[3], rtol=1e-4, atol=1e-5)


WAYS = [(family, way) for family in (*ENCODERS, "llama", "granite") for way in IMPLEMENTATIONS] + [("gemma2", "eager")]


@pytest.mark.parametrize(("family", "implementation"), WAYS)
def test_a_model_says_the_same_while_it_is_tapped(family: Any, implementation: str) -> None:
    model = tiny_encoder(family) if family in ENCODERS else tiny_model(family)
    model.set_attn_implementation(implementation)
    with torch.no_grad():
        before = model(input_ids=IDS)[0]
        with tapped(model, [*ATTENTION, "hidden.2"]) as taps:
            inside = model(input_ids=IDS)[0]
    assert torch.equal(inside, before)
    shapes = {name: tuple(tap.shape) for name, tap in taps.items()}
    heads = 4 if family in ENCODERS else 2
    assert shapes == {"queries.1": (2, 4, 7, 8)} | {"keys.1": (2, heads, 7, 8), "values.1": (2, heads, 7, 8)} | {
        "hidden.2": (2, 7, 32)
    }


def test_both_implementations_give_the_same_queries_keys_and_values() -> None:
    found = []
    for implementation in IMPLEMENTATIONS:
        model = tiny_model("llama")
        model.set_attn_implementation(implementation)
        found.append(run(model, ATTENTION))
    for name in ATTENTION:
        torch.testing.assert_close(found[0][name], found[1][name])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_nothing_is_left_behind_not_even_by_an_error(implementation: str) -> None:
    model = tiny_encoder("bert")
    model.set_attn_implementation(implementation)
    registered, local = dict(ALL_ATTENTION_FUNCTIONS), dict(ALL_ATTENTION_FUNCTIONS._local_mapping)
    run(model, [*ATTENTION, "hidden.0", "hidden.4", "module:encoder.layer.1.output"])
    with pytest.raises(ZeroDivisionError), tapped(model, [*ATTENTION, "hidden.0", "hidden.4", "module:pooler"]):
        raise ZeroDivisionError
    assert dict(ALL_ATTENTION_FUNCTIONS) == registered and dict(ALL_ATTENTION_FUNCTIONS._local_mapping) == local
    assert model.config._attn_implementation == implementation
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_two_models_tapped_at_once_do_not_see_each_other(implementation: str) -> None:
    student, teacher, bystander = tiny_model("llama", seed=1), tiny_model("llama", seed=2), tiny_model("llama", seed=3)
    for model in (student, teacher, bystander):
        model.set_attn_implementation(implementation)
    alone = [run(model, ATTENTION) for model in (student, teacher)]
    said = bystander(input_ids=IDS).logits
    with tapped(teacher, ATTENTION) as theirs, tapped(student, ATTENTION) as ours:
        teacher(input_ids=IDS)
        student(input_ids=IDS)
        assert torch.equal(bystander(input_ids=IDS).logits, said)
    for found, expected in zip((ours, theirs), alone, strict=True):
        assert all(torch.equal(found[name], expected[name]) for name in ATTENTION)


def test_attention_outside_the_interface_is_refused() -> None:
    shape = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = DebertaV2Model(DebertaV2Config(**shape, intermediate_size=16))
    with pytest.raises(ModelError, match="does not go through transformers' attention interface"):
        run(model, ["queries.0"])


# ---- gradients and checkpointing -----------------------------------------------------------------------------

TAPS = (*ATTENTION, "queries.3", "hidden.0", "hidden.2", "hidden.4")


def gradients_of(model: Any, names: Sequence[str]) -> dict[str, Tensor]:
    """Of a loss over tapped tensors alone, computed after the context has closed."""
    model.zero_grad()
    taps = run(model, names)
    sum(tap.square().sum() * (number + 1) for number, tap in enumerate(taps.values())).backward()  # type: ignore[union-attr]
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("family", "implementation"), WAYS)
def test_tapped_gradients_are_the_same_with_checkpointing(family: Any, implementation: str) -> None:
    more: dict[str, Any] = {"attention_multiplier": 0.5} if family == "granite" else {}
    model = (tiny_encoder(family) if family in ENCODERS else tiny_model(family, **more)).train()
    model.set_attn_implementation(implementation)
    module = next(
        name for name, _ in model.named_modules() if name.endswith(("layers.1.mlp", "layer.1.output", "1.ffn"))
    )
    names = [*TAPS, f"module:{module}"]
    expected = gradients_of(model, names)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ran: list[str] = []
    model.get_submodule(module).register_forward_pre_hook(lambda *_: ran.append("again"))
    found = gradients_of(model, names)
    assert ran == ["again", "again"], "the layer was not computed again in the backward pass"
    assert found.keys() == expected.keys()
    assert sum(float(g.abs().max()) > 0 for g in found.values()) > 20
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-4)


def test_what_checkpointing_computes_again_does_not_take_the_place_of_what_was_tapped() -> None:
    model = tiny_model("llama").train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with tapped(model, ["queries.1", "module:model.layers.1.mlp"]) as taps:
        model(input_ids=IDS)
        first = dict(taps)
        sum(tap.sum() for tap in taps.values()).backward()  # type: ignore[union-attr]
    assert all(taps[name] is first[name] for name in first)


# ---- states and modules --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ENCODERS)
def test_states_are_an_encoders_own(family: EncoderFamily) -> None:
    model = tiny_encoder(family, "sequence_classification")
    with torch.no_grad():
        taps = run(model, [f"hidden.{k}" for k in range(5)])
        own = model(input_ids=IDS, output_hidden_states=True).hidden_states
    assert len(own) == 5
    assert all(torch.equal(taps[f"hidden.{k}"], state) for k, state in enumerate(own))


def convnet() -> nn.Sequential:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
    return nn.Sequential(body, nn.Flatten(), nn.Linear(4 * 36, 3))


def test_any_module_of_any_model_is_tapped_by_its_path() -> None:
    model, pixels = convnet(), torch.rand(2, 1, 8, 8)
    with tapped(model, ["module:0.0", "module:2"]) as taps:
        logits = model(pixels)
    assert torch.equal(taps["module:2"], logits)
    assert torch.equal(taps["module:0.0"], model[0][0](pixels))
    taps["module:0.0"].sum().backward()
    assert model[0][0].weight.grad is not None and model[2].weight.grad is None


def test_paths_inside_a_peft_wrapper_are_the_models_own() -> None:
    model = tiny_model("llama")
    expected = run(model, ["module:model.layers.1.mlp", "queries.1", "hidden.2"])
    wrapped = get_peft_model(model, LoraConfig(target_modules=["down_proj", "q_proj"]))
    found = run(wrapped, ["module:model.layers.1.mlp", "queries.1", "hidden.2"])
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])
    assert found["queries.1"].requires_grad


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["module:model.layers.1.mpl"], r"no module 'model.layers.1.mpl'; did you mean 'model.layers.1.mlp'"),
        (["module:model.nothing.like.it"], r"model has: embed_tokens, layers"),
        (["hidden.5"], r"hidden state 5 of a model with 4 layers"),
        (["keys.4"], r"attention of layer 4 of a model with 4 layers"),
        (["hiden.1"], r"no tap of the name 'hiden.1'"),
        (["hidden.last"], r"no tap of the name 'hidden.last'"),
    ],
)
def test_a_name_that_the_model_does_not_have_is_refused_with_what_it_has(names: list[str], said: str) -> None:
    with pytest.raises(ModelError, match=said) as caught:
        run(tiny_model("llama"), names)
    assert caught.value.fix


def test_a_module_of_ones_own_has_no_numbered_layers() -> None:
    with pytest.raises(ModelError, match="no model of transformers"), tapped(convnet(), ["hidden.1"]):
        pass


def test_a_tensor_that_never_came_by_is_an_error_when_the_context_closes() -> None:
    model = tiny_model("llama")
    with pytest.raises(ModelError, match="no tensor came by for module:lm_head"), tapped(model, ["module:lm_head"]):
        model.model(input_ids=IDS)


def test_a_module_that_gives_no_tensor_is_named() -> None:
    class Counts(nn.Module):
        def forward(self, x: Tensor) -> int:
            return len(x)

    with pytest.raises(ModelError, match="module:0 gives no tensor but a int"):
        model = nn.Sequential(Counts(), nn.Identity())
        with tapped(model, ["module:0"]):
            model(torch.zeros(2))

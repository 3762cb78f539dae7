"""The parts of a model are found, and an adapter on the head is part of its effective weight, gradients included."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, TaskType, get_peft_model
from torch import nn
from transformers import AutoModel

from potstill.errors import ModelError
from potstill.models import anatomy
from tiny_models import FAMILIES, VOCAB, Family, tiny_model


def with_lora_on_head(family: Family = "llama", *, tied: bool = False, **lora: Any) -> PeftModel:
    """A tiny model with a LoRA of noticeable size on its head alone."""
    config = LoraConfig(r=4, lora_alpha=12, target_modules=["lm_head"], init_lora_weights=False, **lora)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return get_peft_model(tiny_model(family, tied=tied), config)


@pytest.mark.parametrize("family", FAMILIES)
def test_decoder_layers_and_sizes_are_found_in_every_family(family: Family) -> None:
    model = tiny_model(family, layers=3, hidden=32, heads=4)
    layers = anatomy.model_layers(model)
    assert len(layers) == 3
    assert sum(p.numel() for p in layers.parameters()) > 0.3 * sum(p.numel() for p in model.parameters())
    found = anatomy.dims(model)
    assert (found.vocab, found.hidden, found.layers, found.heads) == (VOCAB, 32, 3, 4)
    assert found.kv_heads == (4 if family == "gpt2" else 2)


def test_layers_are_not_mistaken_for_another_list_of_equal_length() -> None:
    model = tiny_model("llama", layers=3)
    model.model.register_module("aaa_gates", nn.ModuleList([nn.Linear(2, 2) for _ in range(3)]))
    assert anatomy.model_layers(model) is model.model.layers


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_are_found_inside_a_peft_wrapper(family: Family) -> None:
    model = tiny_model(family)
    wrapped = get_peft_model(model, LoraConfig(target_modules="all-linear", fan_in_fan_out=family == "gpt2"))
    assert anatomy.unwrap(wrapped) is model
    assert len(anatomy.model_layers(wrapped)) == 4
    assert anatomy.dims(wrapped) == anatomy.dims(model)


def test_a_tied_head_is_the_embedding_itself() -> None:
    model = tiny_model("llama", tied=True)
    head = anatomy.effective_head(model)
    assert head is not None and head.weight is model.get_input_embeddings().weight


def test_scale_and_softcap_come_from_the_configuration() -> None:
    assert anatomy.scale_and_softcap(tiny_model("gemma2")) == (1.0, 2.0)
    assert anatomy.scale_and_softcap(tiny_model("gemma2", final_logit_softcapping=None)) == (1.0, None)
    assert anatomy.scale_and_softcap(tiny_model("cohere", logit_scale=0.25)) == (0.25, None)
    assert anatomy.scale_and_softcap(tiny_model("granite", logits_scaling=8.0)) == (0.125, None)


@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere", "granite"])
def test_lora_on_the_head_is_part_of_the_effective_weight(family: Family) -> None:
    model = with_lora_on_head(family)
    head = anatomy.effective_head(model)
    assert head is not None
    plain = model.get_base_model().get_output_embeddings().get_base_layer().weight
    assert (head.weight - plain).abs().max() > 0.1
    merged = model.merge_and_unload().get_output_embeddings().weight
    torch.testing.assert_close(head.weight, merged, rtol=1e-6, atol=1e-6)


def test_the_effective_weight_passes_gradients_to_the_adapter() -> None:
    model = with_lora_on_head()
    hidden = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    upstream = torch.randn(5, VOCAB, generator=torch.Generator().manual_seed(2))
    layer = model.get_base_model().get_output_embeddings()
    factors = [layer.lora_A["default"].weight, layer.lora_B["default"].weight]

    expected = torch.autograd.grad((layer(hidden) * upstream).sum(), factors)
    head = anatomy.effective_head(model)
    assert head is not None
    found = torch.autograd.grad(((hidden @ head.weight.T) * upstream).sum(), factors)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        assert theirs.abs().max() > 0.1


def test_a_switched_off_or_merged_adapter_is_not_added_again() -> None:
    model = with_lora_on_head()
    layer = model.get_base_model().get_output_embeddings()
    with model.disable_adapter():
        head = anatomy.effective_head(model)
        assert head is not None and head.weight is layer.get_base_layer().weight
    before = anatomy.effective_head(model)
    model.merge_adapter()
    after = anatomy.effective_head(model)
    assert before is not None and after is not None
    torch.testing.assert_close(after.weight, before.weight)


def test_a_head_trained_whole_by_peft_is_the_trained_copy() -> None:
    model = get_peft_model(tiny_model(tied=False), LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]))
    trained = model.get_base_model().lm_head.modules_to_save["default"].weight
    head = anatomy.effective_head(model)
    assert head is not None and head.weight is trained and trained.requires_grad
    with model.disable_adapter():
        head = anatomy.effective_head(model)
        assert head is not None and head.weight is not trained


@pytest.mark.parametrize(
    ("lora", "training", "reason"),
    [({"use_dora": True}, False, "DoraLinearVariant"), ({"lora_dropout": 0.25}, True, "dropout 0.25")],
)
def test_a_head_that_is_no_single_weight_is_not_taken_apart_and_says_why(
    lora: dict[str, Any], training: bool, reason: str
) -> None:
    model = with_lora_on_head(**lora).train(training)
    assert anatomy.effective_head(model) is None
    assert reason in (anatomy.why_no_head(model) or "")


def test_adapter_dropout_matters_in_training_only() -> None:
    model = with_lora_on_head(lora_dropout=0.25).eval()
    assert anatomy.effective_head(model) is not None
    assert anatomy.why_no_head(model) is None


def test_a_packed_integer_head_is_not_taken_for_a_linear_one() -> None:
    class Packed(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 2

    model = tiny_model(tied=False)
    model.set_output_embeddings(Packed(32, VOCAB, bias=False))
    assert anatomy.effective_head(model) is None
    assert "Packed" in (anatomy.why_no_head(model) or "")


def test_models_without_a_head_or_with_virtual_tokens_are_refused() -> None:
    encoder = AutoModel.from_config(tiny_model().config)
    with pytest.raises(ModelError, match="no causal language model"):
        anatomy.inner_decoder(encoder)
    with pytest.raises(ModelError, match="no output layer"):
        anatomy.output_layer(encoder)
    prompted = get_peft_model(
        tiny_model(), PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=2, tokenizer_name_or_path="x")
    )
    with pytest.raises(ModelError, match="virtual tokens"):
        anatomy.unwrap(prompted)
    with pytest.raises(ModelError, match="not a transformers model"):
        anatomy.unwrap(nn.Linear(2, 2))

"""Objectives on inner tensors, on live models of transformers: an encoder, and a decoder with grouped heads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from potstill.models.anatomy import dims
from potstill.models.live import live_signals
from potstill.models.unchanged import evaluating
from potstill.objectives.attention import attention_scores, example_ids_of, visible_pairs
from potstill.recipe import features, relations
from potstill.recipe.objectives import ObjectiveSettings
from potstill.registry import build
from potstill.signals import Ask, Batch, Dims

ENCODER = {"student": "encoder.layer.0.output", "teacher": "encoder.layer.3.output"}
DECODER = {"student": "model.layers.0.mlp", "teacher": "model.layers.3.mlp"}
SIZES: dict[str, Any] = {"vocab_size": 50, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 32}


def bert(**changes: int) -> PreTrainedModel:
    return BertModel(BertConfig(**{**SIZES, "hidden_size": 32, **changes}))


def llama(**changes: int) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, "hidden_size": 32, "num_key_value_heads": 2, **changes}))


def every(paths: dict[str, str], over: Any) -> tuple[ObjectiveSettings, ...]:
    modules = features.Modules(**paths)
    return (
        features.HiddenCosine(over=over, layers="uniform"),
        features.HiddenMSE(over=over, layers="every_other", project="always", projection_init="pca"),
        features.HiddenSmoothL1(over=over, layers="embeddings"),
        features.AttentionScores(),
        features.AttentionKL(),
        features.Hint(modules=modules),
        relations.RKDDistance(),
        relations.RKDAngle(pooling="last"),
        relations.SimilarityPreserving(at=modules),
        relations.MiniLMv1(),
        relations.MiniLMv2(relation_heads=8, teacher_layer=2),
    )


def texts(lengths: tuple[int, ...], time: int, packed: bool = False) -> dict[str, Tensor]:
    """Texts of one seed, one a row or all in one; padding is full of another token."""
    gen = torch.Generator().manual_seed(0)
    ids = [torch.randint(0, 50, (n,), generator=gen) for n in lengths]
    segments = [torch.full((n,), number if packed else 1) for number, n in enumerate(lengths, 1)]
    positions = [torch.arange(n) for n in lengths]
    if packed:
        ids, segments, positions = ([torch.cat(parts)] for parts in (ids, segments, positions))

    def padded(rows: list[Tensor], value: int) -> Tensor:
        return torch.stack([torch.cat([row, torch.full((time - len(row),), value)]) for row in rows])

    return {
        "input_ids": padded(ids, 7),
        "segment_ids": padded(segments, 0),
        "position_ids": padded(positions, 0),
        "classes": torch.zeros(len(ids), dtype=torch.long),
    }


def loss_of(settings: ObjectiveSettings, student: nn.Module, teacher: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Its loss; whatever it builds is drawn from one seed and initialised from the same signals."""
    objective, batch, sizes = build(settings), Batch.from_inputs(inputs), Dims(dims(student), dims(teacher))
    ask = objective.ask(sizes)
    with evaluating(teacher), torch.no_grad():
        taught = live_signals(teacher, batch, "teacher", ask["teacher"])
    with evaluating(student):  # no dropout, so that two passes are the same
        given = live_signals(student, batch, "student", ask["student"])
    torch.manual_seed(0)
    module = objective.build(sizes)
    if module is not None:
        with torch.no_grad():
            objective.initialise(module, given, taught, batch)
    total: Tensor = objective(given, taught, batch, module).values.sum() / objective.count(batch)
    return total


def gradients(loss: Tensor, model: nn.Module) -> Tensor:
    found = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)
    return torch.cat([g.flatten() for g in found])


@pytest.fixture(scope="module")
def encoders() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return bert(hidden_size=16, num_hidden_layers=2), bert()


@pytest.fixture(scope="module")
def decoders() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return llama(hidden_size=16, num_hidden_layers=2), llama()


def check_padding(settings: ObjectiveSettings, models: tuple[nn.Module, nn.Module]) -> None:
    student, _ = models
    short, long = (loss_of(settings, *models, texts((7, 4, 5), time)) for time in (7, 10))
    assert short > 1e-6
    torch.testing.assert_close(long, short, rtol=1e-4, atol=1e-7)
    one, two = gradients(short, student), gradients(long, student)
    assert one.abs().max() > 0
    # Angles and distances are small differences of states; those are right to about 1e-7 of their size.
    assert (one - two).norm() / one.norm() < 2e-5


@pytest.mark.parametrize("settings", every(ENCODER, "tokens"), ids=lambda s: s.kind)
def test_an_encoder_learns_by_it_whatever_the_padding(settings: ObjectiveSettings, encoders: Any) -> None:
    check_padding(settings, encoders)


@pytest.mark.parametrize("settings", every(DECODER, "tokens"), ids=lambda s: s.kind)
def test_a_decoder_learns_by_it_whatever_the_padding(settings: ObjectiveSettings, decoders: Any) -> None:
    check_padding(settings, decoders)


@pytest.mark.parametrize("settings", every(DECODER, "tokens"), ids=lambda s: s.kind)
def test_a_decoder_learns_the_same_from_packed_texts(settings: ObjectiveSettings, decoders: Any) -> None:
    lengths = (7, 4, 5)
    alone = loss_of(settings, *decoders, texts(lengths, 7))
    packed = loss_of(settings, *decoders, texts(lengths, 18, packed=True))
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_distributions_are_those_that_transformers_says(kind: str, encoders: Any, decoders: Any) -> None:
    # After rotary embedding and with grouped heads, in every layer.
    model = (encoders if kind == "encoder" else decoders)[1]
    inputs = texts((7, 4), 7)
    batch = Batch.from_inputs(inputs)
    ask = Ask(taps=frozenset(f"{part}.{k}" for part in ("queries", "keys") for k in range(4)))
    with evaluating(model), torch.no_grad():
        given = live_signals(model, batch, "student", ask)
        model.set_attn_implementation("eager")
        mask = batch.text("student").attention_mask
        own = model(input_ids=inputs["input_ids"], attention_mask=mask, output_attentions=True).attentions
        model.set_attn_implementation("sdpa")
    visible = visible_pairs(example_ids_of(batch), causal=kind == "decoder")[:, None]
    real = mask.bool()[:, None, :, None].expand(-1, 4, -1, 7)
    for layer in range(4):
        ours = attention_scores(given, layer, "student").masked_fill(~visible, -1e9).softmax(-1)
        torch.testing.assert_close(ours[real], own[layer][real])

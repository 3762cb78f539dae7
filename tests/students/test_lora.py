"""Adapters on students: only they train, they start as nothing, and they can be merged."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peft import PeftModel

from potstill.errors import RecipeError
from potstill.models.anatomy import model_layers
from potstill.recipe.students import FromConfig, FromTeacher, Lora
from potstill.students import BuiltStudent
from tiny_models import FAMILIES, VOCAB, Family

from .conftest import TeacherMaker

Build = Callable[..., BuiltStudent]
IDS = torch.randint(3, VOCAB, (2, 9), generator=torch.Generator().manual_seed(1))


@pytest.mark.filterwarnings("error:fan_in_fan_out")
@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_adapter_trains_and_starts_as_nothing(family: Family, teacher_of: TeacherMaker, build: Build) -> None:
    plain = build(FromTeacher(), teacher_of(family))
    built = build(FromTeacher(lora=Lora(r=3)), teacher_of(family))
    assert isinstance(built.model, PeftModel)
    trained = {name: p for name, p in built.model.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    assert built.facts["trainable_parameters"] == sum(p.numel() for p in trained.values())
    assert built.facts["parameters"] == plain.facts["parameters"] == plain.facts["trainable_parameters"]
    with torch.no_grad():
        torch.testing.assert_close(built.model(IDS).logits, plain.model(IDS).logits)
    wrapped = [m for m in model_layers(built.model)[0].modules() if hasattr(m, "lora_A")]
    assert len(wrapped) == (4 if family == "gpt2" else 7)


def test_the_recipes_rank_scale_and_targets_are_used(teacher_of: TeacherMaker, build: Build) -> None:
    lora = Lora(r=3, alpha=7.5, dropout=0.25, target_modules=("q_proj", "v_proj"))
    layer = model_layers(build(FromTeacher(lora=lora), teacher_of()).model)[0]
    assert layer.self_attn.q_proj.lora_A["default"].weight.shape == (3, 32)
    assert layer.self_attn.q_proj.scaling["default"] == 2.5
    assert layer.self_attn.q_proj.lora_dropout["default"].p == 0.25
    assert not hasattr(layer.self_attn.k_proj, "lora_A") and hasattr(layer.self_attn.v_proj, "lora_A")


def test_an_adapter_goes_on_random_weights_too(teacher_of: TeacherMaker, build: Build) -> None:
    built = build(FromConfig(config={"num_hidden_layers": 1}, lora=Lora()), teacher_of())
    assert isinstance(built.model, PeftModel)


def test_modules_that_are_not_there_are_refused(teacher_of: TeacherMaker, build: Build) -> None:
    with pytest.raises(RecipeError, match=r"student\.lora\.target_modules: .*nosuch"):
        build(FromTeacher(lora=Lora(target_modules=("nosuch",))), teacher_of())


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`", "ignore:Model with")
@pytest.mark.parametrize("name", ["lm_head", "embed_tokens"])
def test_an_adapter_on_one_of_two_tied_weights_is_refused(name: str, teacher_of: TeacherMaker, build: Build) -> None:
    lora = Lora(target_modules=("q_proj", name))
    with pytest.raises(RecipeError, match="tied to the embeddings"):
        build(FromTeacher(lora=lora), teacher_of(tied=True))
    assert build(FromTeacher(lora=lora), teacher_of(tied=False)).facts["trainable_parameters"] > 0

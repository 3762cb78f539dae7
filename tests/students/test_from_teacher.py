"""Students of the teacher's layers: the teacher's tensors, in new places, in a model that works."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, Qwen3MoeConfig
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from potstill.console import Console
from potstill.errors import ModelError, RecipeError
from potstill.models.anatomy import model_layers
from potstill.models.resolve import resolve
from potstill.recipe.students import ByInfluence, FromConfig, FromTeacher, StudentSettings
from potstill.students import BuiltStudent
from potstill.students.depth import copy_layers
from tiny_models import FAMILIES, VOCAB, Family, tiny_model

from .conftest import TeacherMaker

Build = Callable[..., BuiltStudent]
IDS = torch.randint(3, VOCAB, (2, 9), generator=torch.Generator().manual_seed(1))


def open_model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(IDS, use_cache=False).logits
    return out


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_of_the_student_is_the_teachers(
    family: Family, tied: bool, teacher_of: TeacherMaker, build: Build
) -> None:
    source = teacher_of(family, layers=5, tied=tied)
    teacher, built = open_model(source.path), build(FromTeacher(layers=(0, 3, 4)), source)
    student = built.model
    assert built.facts["layers"] == [0, 3, 4]
    for mine, theirs in zip(model_layers(student), [model_layers(teacher)[i] for i in (0, 3, 4)], strict=True):
        ours, expected = mine.state_dict(), theirs.state_dict()
        assert ours.keys() == expected.keys()
        assert all(torch.equal(ours[name], expected[name]) for name in expected)
    layer_numbers = {id(p) for p in model_layers(student).parameters()}
    others = {n: p for n, p in student.named_parameters() if id(p) not in layer_numbers}
    assert others
    assert all(torch.equal(p, teacher.get_parameter(n)) for n, p in others.items())
    tie = student.get_input_embeddings().weight is student.get_output_embeddings().weight
    assert tie == tied == student.config.tie_word_embeddings


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_of_all_layers_computes_what_the_teacher_does(
    family: Family, teacher_of: TeacherMaker, build: Build
) -> None:
    source = teacher_of(family)
    student = build(FromTeacher(layers=(0, 1, 2, 3)), source).model
    assert torch.equal(logits(student), logits(open_model(source.path)))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_student_computes_what_the_teacher_does_without_the_other_layers(
    family: Family, teacher_of: TeacherMaker, build: Build
) -> None:
    source = teacher_of(family)
    teacher = open_model(source.path)
    for index in (1, 2):  # an identity in place of a layer, through the teacher's own code
        model_layers(teacher)[index].register_forward_hook(lambda module, args, out: args[0])
    student = build(FromTeacher(layers=(0, 3)), source).model
    torch.testing.assert_close(logits(student), logits(teacher), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_student_generates_and_survives_saving(
    family: Family, teacher_of: TeacherMaker, build: Build, tmp_path: Path
) -> None:
    student = build(FromTeacher(), teacher_of(family)).model
    written = student.generate(IDS[:1], max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert written.shape == (1, 13)
    layer_numbers = [m.layer_idx for m in model_layers(student).modules() if hasattr(m, "layer_idx")]
    assert sorted(set(layer_numbers)) == [0, 1]
    student.save_pretrained(tmp_path)
    reopened = open_model(tmp_path)
    assert torch.equal(logits(reopened), logits(student))
    assert reopened.config.num_hidden_layers == 2 and reopened.dtype == torch.float32
    assert reopened.get_input_embeddings().weight is reopened.get_output_embeddings().weight, (
        "what was tied is tied no more"
    )


def test_layer_types_are_cut_with_the_layers(teacher_of: TeacherMaker, build: Build) -> None:
    source = teacher_of("gemma2", layers=6)
    assert open_model(source.path).config.layer_types == ["sliding_attention", "full_attention"] * 3
    student = build(FromTeacher(layers=(1, 2, 3)), source).model
    assert student.config.layer_types == ["full_attention", "sliding_attention", "full_attention"]
    assert [layer.self_attn.sliding_window for layer in model_layers(student)] == [None, 64, None]


def test_a_student_that_loses_a_kind_of_layer_is_warned_of(
    teacher_of: TeacherMaker, build: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    build(FromTeacher(layers="every_other"), teacher_of("gemma2"), console=Console("lines"))
    assert "keeps none of the teacher's full_attention layers" in capsys.readouterr().err
    build(FromTeacher(layers=(0, 1)), teacher_of("gemma2"), console=Console("lines"))
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize("settings", [FromTeacher(), FromConfig(config={"num_hidden_layers": 1})])
def test_generation_settings_are_carried_over(
    settings: StudentSettings, teacher_of: TeacherMaker, build: Build, tmp_path: Path
) -> None:
    folder = shutil.copytree(teacher_of().path, tmp_path / "teacher")
    GenerationConfig(eos_token_id=[2, 0], pad_token_id=2, repetition_penalty=1.125).save_pretrained(folder)
    carried = build(settings, replace(teacher_of(), path=folder)).model.generation_config
    assert (carried.eos_token_id, carried.repetition_penalty) == ([2, 0], 1.125)


def test_a_student_names_no_folder_of_the_teacher(teacher_of: TeacherMaker, build: Build) -> None:
    assert build(FromTeacher(), teacher_of()).model.config._name_or_path == ""
    assert build(FromConfig(config={"num_hidden_layers": 1}), teacher_of()).model.config._name_or_path == ""


def test_a_bf16_teacher_gives_an_fp32_student_of_the_same_numbers(
    teacher_of: TeacherMaker, build: Build, tmp_path: Path
) -> None:
    source = teacher_of()
    open_model(source.path).bfloat16().save_pretrained(tmp_path)
    student = build(FromTeacher(), replace(source, path=tmp_path), tokenizer_source=source.path).model
    stored = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in student.parameters()} == {torch.float32}
    assert torch.equal(student.model.layers[1].mlp.up_proj.weight, stored.model.layers[2].mlp.up_proj.weight.float())


def test_the_end_tokens_embedding_learns_though_it_pads_too(teacher_of: TeacherMaker, build: Build) -> None:
    student = build(FromTeacher(), teacher_of(tied=False)).model
    assert student.config.pad_token_id == student.config.eos_token_id == 2
    student(torch.tensor([[5, 2, 6]]), use_cache=False).logits[0, -1, 7].backward()
    assert student.get_input_embeddings().weight.grad[2].abs().max() > 0


def test_layers_of_differing_make_are_refused(teacher_of: TeacherMaker, build: Build, tmp_path: Path) -> None:
    config = Qwen3MoeConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=32,
        moe_intermediate_size=8,
        num_experts=4,
        num_experts_per_tok=2,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        mlp_only_layers=[1],
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    source = replace(teacher_of(), path=tmp_path)
    with pytest.raises(ModelError, match="no student can be made of these layers of Qwen3MoeForCausalLM"):
        build(FromTeacher(layers=(0, 2)), source, tokenizer_source=teacher_of().path)


def test_a_tensor_that_has_no_place_in_the_student_is_not_dropped_in_silence() -> None:
    teacher, student = tiny_model(layers=2), tiny_model(layers=1, seed=1)
    teacher.model.layers[0].mlp.register_parameter("gate_bias", torch.nn.Parameter(torch.ones(3)))
    copy_layers(teacher, student, [1])  # layer 0 is not kept, so it may have what it likes
    with pytest.raises(ModelError, match=r"model\.layers\.0\.mlp\.gate_bias has no place in the student"):
        copy_layers(teacher, student, [0])


def test_a_teacher_that_is_not_here_or_data_that_are_missing_are_said(teacher_of: TeacherMaker, build: Build) -> None:
    with pytest.raises(RecipeError, match="needs a teacher"):
        build(FromTeacher(), None)
    with pytest.raises(RecipeError, match="looks at the training data"):
        build(FromTeacher(layers=ByInfluence(by_influence=1)), teacher_of())


@pytest.mark.slow
def test_half_of_smollm2_has_81_million_parameters_of_134(build: Build) -> None:
    source = resolve("smollm2-135m-instruct", console=Console("lines"))
    built = build(FromTeacher(layers="every_other"), source)
    assert built.facts["layers"] == list(range(0, 30, 2))
    assert built.facts["parameters"] == 81_413_568
    assert built.facts["teacher_parameters"] == 134_515_008
    assert built.facts["trainable_parameters"] == built.facts["parameters"]
    assert built.model.get_input_embeddings().weight is built.model.get_output_embeddings().weight

"""Students of random weights: the shape asked, the teacher's tokens, nothing guessed in silence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from potstill.errors import ModelError, RecipeError
from potstill.recipe.students import FromConfig
from potstill.students import BuiltStudent
from tiny_models import FAMILIES, VOCAB, Family, make_tiny_tokenizer, tiny_config

from .conftest import TeacherMaker

Build = Callable[..., BuiltStudent]
IDS = torch.tensor([[5, 6, 7, 2]])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mapping_changes_the_teachers_shape(family: Family, teacher_of: TeacherMaker, build: Build) -> None:
    changes = {"num_hidden_layers": 2, "hidden_size": 16}
    built = build(FromConfig(config=changes), teacher_of(family))
    config = built.model.config
    assert (config.num_hidden_layers, config.hidden_size, config.vocab_size) == (2, 16, VOCAB)
    assert built.model(IDS).logits.shape == (1, 4, VOCAB)
    assert {p.dtype for p in built.model.parameters()} == {torch.float32}
    assert built.facts["layers"] is None
    assert 0 < built.facts["parameters"] < built.facts["teacher_parameters"]


def test_what_the_teacher_derives_is_derived_anew(teacher_of: TeacherMaker, build: Build) -> None:
    student = build(FromConfig(config={"hidden_size": 16, "num_hidden_layers": 3}), teacher_of("gemma2")).model
    assert student.config.head_dim == 4
    assert student.config.layer_types == ["sliding_attention", "full_attention", "sliding_attention"]
    kept = build(FromConfig(config={"hidden_size": 16, "head_dim": 8}), teacher_of("llama")).model
    assert kept.config.head_dim == 8
    wide = build(FromConfig(config={"num_attention_heads": 2}), teacher_of("llama", kv_heads=4)).model
    assert wide.config.num_key_value_heads == 2 and wide.config.head_dim == 16


def test_the_familys_own_names_are_known_too(teacher_of: TeacherMaker, build: Build) -> None:
    assert build(FromConfig(config={"n_layer": 1}), teacher_of("gpt2")).model.config.num_hidden_layers == 1


@pytest.mark.parametrize("as_folder", [True, False])
def test_a_config_file_or_its_folder_gives_the_shape(
    as_folder: bool, teacher_of: TeacherMaker, build: Build, tmp_path: Path
) -> None:
    tiny_config("gpt2", layers=1, eos_token_id=77, pad_token_id=78).save_pretrained(tmp_path)
    path = tmp_path if as_folder else tmp_path / "config.json"
    student = build(FromConfig(config=path), teacher_of("llama")).model
    assert student.config.model_type == "gpt2" and student.config.num_hidden_layers == 1
    assert student(IDS).logits.shape == (1, 4, VOCAB)
    # The tokenizer is the teacher's, hence the special tokens too.
    assert (student.config.eos_token_id, student.config.pad_token_id) == (2, 2)
    assert student.generation_config.eos_token_id == 2


def test_without_generation_settings_the_special_tokens_are_still_the_teachers(
    teacher_of: TeacherMaker, build: Build, tmp_path: Path
) -> None:
    folder = shutil.copytree(teacher_of().path, tmp_path / "teacher")
    (folder / "generation_config.json").unlink()
    student = build(FromConfig(config={"num_hidden_layers": 1}), replace(teacher_of(), path=folder)).model
    assert (student.generation_config.eos_token_id, student.generation_config.pad_token_id) == (2, 2)


def test_a_tokenizer_without_a_model_says_the_special_tokens(build: Build, tmp_path: Path) -> None:
    make_tiny_tokenizer().save_pretrained(tmp_path)
    shape = {"model_type": "llama", "vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 1}
    shape |= {"num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 16}
    student = build(FromConfig(config=shape), None, tokenizer_source=tmp_path).model
    assert (student.config.bos_token_id, student.config.eos_token_id) == (0, 2)  # the family has 1 and 2
    assert student.generation_config.eos_token_id == 2


def test_the_end_token_starts_with_an_embedding_though_it_pads_too(teacher_of: TeacherMaker, build: Build) -> None:
    student = build(FromConfig(config={"num_hidden_layers": 1}), teacher_of()).model
    assert student.config.pad_token_id == 2
    assert student.get_input_embeddings().weight[2].abs().max() > 0


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"num_hidden_layerz": 2}, ValidationError, r"key 'num_hidden_layerz'.*did you mean 'num_hidden_layers'"),
        ({"model_type": "gpt22"}, ValidationError, r"no model_type 'gpt22'; did you mean 'gpt2'"),
        ({"layer_types_": 2}, ValidationError, r"no configuration of transformers has a key"),
        ({"conv_bias": True}, RecipeError, r"unknown key 'conv_bias' of a llama configuration"),
        ({"vocab_size": 100}, RecipeError, r"vocab_size 100 is smaller.*ids up to 258.*set vocab_size to 259"),
        ({"hidden_size": "big"}, ModelError, r"LlamaConfig does not accept.*expected int"),
        ({"num_attention_heads": 0}, ModelError, r"no model can be made in this shape|does not accept"),
        ({"num_hidden_layers": "three"}, ModelError, r"LlamaConfig does not accept.*expected int"),
        ({"num_key_value_heads": 3}, ModelError, r"no model can be made in this shape"),
    ],
)
def test_impossible_shapes_are_refused_with_the_fix(
    changes: dict[str, Any], error: type[Exception], words: str, teacher_of: TeacherMaker, build: Build
) -> None:
    with pytest.raises(error, match=rf"(?s){words}"):
        build(FromConfig(config=changes), teacher_of())


def test_a_larger_vocabulary_is_allowed(teacher_of: TeacherMaker, build: Build) -> None:
    assert build(FromConfig(config={"vocab_size": 320}), teacher_of()).model(IDS).logits.shape[-1] == 320


def test_missing_or_unusable_files_are_said(teacher_of: TeacherMaker, build: Build, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such configuration"):
        build(FromConfig(config=tmp_path / "config.json"), teacher_of())
    with pytest.raises(RecipeError, match="no teacher whose folder is here"):
        build(FromConfig(config={"num_hidden_layers": 1}), None)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5", "is_encoder_decoder": True}))
    with pytest.raises(ModelError, match="encoder-decoder"):
        build(FromConfig(config=tmp_path), teacher_of())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no-such-family"}))
    with pytest.raises(ModelError, match="cannot be read"):
        build(FromConfig(config=tmp_path), teacher_of())

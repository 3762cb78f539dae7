"""Students beyond causal language models: encoders with their heads, classifiers of images, modules of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from pydantic import ValidationError
from torch import nn
from transformers import GPT2Config

from potstill.console import Console
from potstill.errors import ModelError, RecipeError
from potstill.models.anatomy import model_layers
from potstill.models.folder import ModelSource
from potstill.models.labels import labels_of
from potstill.models.plain import save_module
from potstill.models.saving import save_model
from potstill.models.tasks import task_of
from potstill.recipe.students import ByInfluence, Existing, FromConfig, FromTeacher, Lora, ModuleStudent
from potstill.signals import Batch, View
from potstill.students import BuiltStudent, build_student
from tiny_models import (
    ENCODER_VOCAB,
    ENCODERS,
    EncoderFamily,
    make_tiny_classifier,
    make_tiny_convnet,
    make_tiny_encoder,
    make_tiny_masked_lm,
    tiny_encoder,
)

CLASSES = ("ale", "malt", "rye")
MAKERS: dict[str, Any] = {
    "sentence_embedding": make_tiny_encoder,
    "masked_lm": make_tiny_masked_lm,
    "sequence_classification": make_tiny_classifier,
}
IDS = torch.randint(5, ENCODER_VOCAB, (2, 7), generator=torch.Generator().manual_seed(0))
PIXELS = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
CONVNEXT: dict[str, Any] = {
    "model_type": "convnext",
    "num_channels": 1,
    "patch_size": 2,
    "num_stages": 2,
    "hidden_sizes": [4, 8],
    "depths": [1, 1],
    "image_size": 8,
}
NET = """
from torch import nn
def net(width):
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(width * 36, 3))
"""


def source_of(folder: Path) -> ModelSource:
    return ModelSource(folder, "tiny", revision="", digest="", licence="")


def make(settings: Any, teacher: Path | None, task: Any, **more: Any) -> BuiltStudent:
    asked: dict[str, Any] = {"tokenizer_source": teacher, "seed": 0, "console": Console("quiet")}
    return build_student(settings, teacher=source_of(teacher) if teacher else None, task=task, **asked | more)


# ---- from the teacher's layers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("task", MAKERS)
@pytest.mark.parametrize("family", ENCODERS)
def test_an_encoders_layers_embeddings_and_head_are_the_teachers(
    family: EncoderFamily, task: Any, tmp_path: Path
) -> None:
    built = make(FromTeacher(layers=(0, 2, 3)), MAKERS[task](tmp_path / "t", family), task)
    student, teacher = built.model, tiny_encoder(family, task)
    assert task_of(student) == task and built.facts["layers"] == [0, 2, 3] and "new_weights" not in built.facts
    for mine, theirs in zip(model_layers(student), [model_layers(teacher)[i] for i in (0, 2, 3)], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), theirs.parameters(), strict=True))
    layer_numbers = {id(p) for p in model_layers(student).parameters()}
    others = {n: p for n, p in student.named_parameters() if id(p) not in layer_numbers}
    assert len(others) >= 4
    assert all(torch.equal(p, teacher.get_parameter(n)) for n, p in others.items())
    assert built.facts["parameters"] < built.facts["teacher_parameters"] == sum(p.numel() for p in teacher.parameters())
    if task == "masked_lm":
        assert student.get_input_embeddings().weight is student.get_output_embeddings().weight  # type: ignore[operator]


def test_all_layers_make_the_teacher_again(tmp_path: Path) -> None:
    built = make(FromTeacher(layers=(0, 1, 2, 3)), make_tiny_classifier(tmp_path / "t"), "sequence_classification")
    expected = tiny_encoder("bert", "sequence_classification")(input_ids=IDS).logits
    assert torch.equal(built.model(input_ids=IDS).logits, expected)


def test_a_task_that_the_teacher_has_no_head_for_gets_a_new_one_and_says_so(tmp_path: Path) -> None:
    folder = make_tiny_encoder(tmp_path / "t")
    built = make(FromTeacher(), folder, "sequence_classification", labels=("a", "b"))
    assert built.facts["new_weights"] == ["classifier.bias", "classifier.weight"]
    assert built.model(input_ids=IDS).logits.shape == (2, 2) and labels_of(built.model) == ("a", "b")
    again = make(FromTeacher(), folder, "sequence_classification", labels=("a", "b"))
    other = make(FromTeacher(), folder, "sequence_classification", labels=("a", "b"), seed=1)
    head = "classifier.weight"
    assert torch.equal(built.model.get_parameter(head), again.model.get_parameter(head))
    assert not torch.equal(built.model.get_parameter(head), other.model.get_parameter(head))


def test_the_layers_that_change_an_encoders_states_most_are_kept(tmp_path: Path) -> None:
    folder = make_tiny_classifier(tmp_path / "t")
    teacher = tiny_encoder("bert", "sequence_classification")
    with torch.no_grad():
        for part in (model_layers(teacher)[1].attention.output, model_layers(teacher)[1].output):
            part.dense.weight.zero_()  # type: ignore[union-attr,operator]
            part.dense.bias.zero_()  # type: ignore[union-attr,operator]
    teacher.save_pretrained(folder)
    segments = torch.ones_like(IDS)
    segments[1, 4:] = 0
    view = View(IDS * segments, torch.arange(7).expand(2, -1), segments)
    at = torch.tensor([0, 1])
    batch = Batch(view, view, at, {"student": at, "teacher": at}, "examples")
    settings = FromTeacher(layers=ByInfluence(by_influence=3, records=2))
    built = make(settings, folder, "sequence_classification", influence_batches=lambda: [batch])
    assert built.facts["layers"] == [0, 2, 3], "the layer that does nothing but norm is left out"


def test_a_teacher_without_like_layers_cannot_be_cut(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    module = make(ModuleStudent(source=f"{tmp_path}/net.py:net", arguments={"width": 2}), None, "image_classification")
    save_module(module.model, tmp_path / "t")
    with pytest.raises(RecipeError, match="a module of your own"):
        make(FromTeacher(), tmp_path / "t", "image_classification")
    with pytest.raises(RecipeError, match="that is a module of your own"):
        make(FromConfig(config={"hidden_size": 3}), tmp_path / "t", "image_classification")


# ---- from a configuration ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ENCODERS)
def test_a_narrower_encoder_in_the_teachers_shape_but_for_what_is_changed(
    family: EncoderFamily, tmp_path: Path
) -> None:
    changes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    built = make(FromConfig(config=changes), make_tiny_classifier(tmp_path / "t", family), "sequence_classification")
    config: Any = built.model.config
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (16, 2, 2)
    assert built.model(input_ids=IDS).logits.shape == (2, 3) and labels_of(built.model) == CLASSES
    assert built.facts["parameters"] < built.facts["teacher_parameters"] / 2


def test_a_family_is_made_by_its_name_and_keys() -> None:
    built = make(FromConfig(config=CONVNEXT), None, "image_classification", labels=CLASSES)
    assert built.model(pixel_values=PIXELS).logits.shape == (2, 3) and labels_of(built.model) == CLASSES
    assert built.facts["model_type"] == "convnext" and built.facts["teacher_parameters"] is None
    resnet = {"model_type": "resnet", "num_channels": 1, "embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1]}
    small = make(FromConfig(config=resnet | {"layer_type": "basic"}), None, "image_classification", labels=CLASSES)
    assert small.model(pixel_values=PIXELS).logits.shape == (2, 3)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (CONVNEXT | {"hidden_size": [4, 8]}, r"a convnext configuration has no key 'hidden_size'"),
        (CONVNEXT | {"model_type": "convnet"}, r"no model_type 'convnet'; did you mean 'convnext"),
        ({"model_type": "bert"}, r"no model can be made in this shape: Unrecognized configuration class"),
    ],
)
def test_a_family_that_is_not_for_the_task_is_refused(config: dict[str, Any], said: str) -> None:
    with pytest.raises((ValidationError, RecipeError, ModelError), match=said):
        make(FromConfig(config=config), None, "image_classification", labels=CLASSES)


def test_a_configuration_for_another_task_is_refused(tmp_path: Path) -> None:
    GPT2Config(architectures=["GPT2LMHeadModel"]).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ModelError, match="is no classifier of images"):
        make(FromConfig(config=tmp_path / "gpt2"), None, "image_classification")


# ---- existing ones -----------------------------------------------------------------------------------------------


def test_an_existing_encoder_gets_a_head_for_the_classes_of_the_data(tmp_path: Path) -> None:
    folder = make_tiny_encoder(tmp_path / "t", "distilbert")
    built = make(Existing(model=str(folder)), None, "sequence_classification", labels=CLASSES, tokenizer_source=folder)
    assert built.model(input_ids=IDS).logits.shape == (2, 3) and labels_of(built.model) == CLASSES
    assert set(built.facts["new_weights"]) == {
        f"{part}.{kind}" for part in ("pre_classifier", "classifier") for kind in ("weight", "bias")
    }


def test_an_existing_classifier_keeps_its_head_and_its_classes(tmp_path: Path) -> None:
    folder = make_tiny_classifier(tmp_path / "t")
    asked: dict[str, Any] = {"tokenizer_source": folder}
    built = make(Existing(model=str(folder)), None, "sequence_classification", labels=CLASSES, **asked)
    assert "new_weights" not in built.facts
    with pytest.raises(ModelError, match="class 0 of the model is 'ale', and of the data 'rye'"):
        make(Existing(model=str(folder)), None, "sequence_classification", labels=CLASSES[::-1], **asked)
    with pytest.raises(ModelError, match="is no causal language model"):
        make(Existing(model=str(folder)), None, "causal_lm", **asked)


def test_an_existing_convnet_or_module_of_a_run_is_a_student(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    module = make(ModuleStudent(source=f"{tmp_path}/net.py:net", arguments={"width": 2}), None, "image_classification")
    save_model(module.model, tmp_path / "run/train/model")
    for model in (str(make_tiny_convnet(tmp_path / "c")), f"run:{tmp_path}/run"):
        built = make(Existing(model=model), None, "image_classification", labels=CLASSES)
        assert isinstance(built.model, nn.Module) and labels_of(built.model) == CLASSES


# ---- modules of one's own ----------------------------------------------------------------------------------------


def test_a_module_is_built_the_same_from_the_same_seed_and_says_of_what(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    settings = ModuleStudent(source=f"{tmp_path}/net.py:net", arguments={"width": 2})
    first, again = (make(settings, None, "image_classification", labels=CLASSES) for _ in range(2))
    other = make(settings, None, "image_classification", labels=CLASSES, seed=1)
    assert torch.equal(first.model(PIXELS), again.model(PIXELS))
    assert not torch.equal(first.model(PIXELS), other.model(PIXELS))
    assert first.facts["source"] == "net.py:net" and first.facts["arguments"] == {"width": 2}
    assert len(first.facts["digest"]) == 64 and first.facts["parameters"] == 2 * 9 + 2 + 72 * 3 + 3
    assert labels_of(first.model) == CLASSES


def test_a_module_may_start_from_weights(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    source = f"{tmp_path}/net.py:net"
    first = make(ModuleStudent(source=source, arguments={"width": 2}), None, "image_classification")
    save_model(first.model, tmp_path / "saved")
    weights = tmp_path / "saved" / "model.safetensors"
    settings = ModuleStudent(source=source, arguments={"width": 2}, weights=weights)
    again = make(settings, None, "image_classification", seed=7)
    assert torch.equal(first.model(PIXELS), again.model(PIXELS))
    wider = ModuleStudent(source=source, arguments={"width": 3}, weights=weights)
    with pytest.raises(ModelError, match="these weights are not those of"):
        make(wider, None, "image_classification")


def test_a_module_is_no_student_for_texts(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    with pytest.raises(RecipeError, match="takes arrays and gives classes, and the task is masked_lm"):
        make(ModuleStudent(source=f"{tmp_path}/net.py:net", arguments={"width": 2}), None, "masked_lm")


# ---- adapters ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ENCODERS)
@pytest.mark.parametrize("task", MAKERS)
def test_an_encoder_takes_an_adapter_and_merges_it(task: Any, family: EncoderFamily, tmp_path: Path) -> None:
    built = make(FromTeacher(lora=Lora(r=2, alpha=8)), MAKERS[task](tmp_path / "t", family), task)
    assert isinstance(built.model, PeftModel) and task_of(built.model) == task
    trained = [name for name, p in built.model.named_parameters() if p.requires_grad]
    heads = {name for name in trained if "lora_" not in name}
    assert len(trained) > len(heads) and bool(heads) == (task == "sequence_classification")
    assert all("modules_to_save" in name for name in heads)
    with torch.no_grad():
        for p in built.model.parameters():
            if p.requires_grad:
                p.normal_(0.0, 0.1)
        before = built.model(input_ids=IDS)[0]
        merged: Any = built.model.merge_and_unload()
        torch.testing.assert_close(merged(input_ids=IDS)[0], before, rtol=1e-4, atol=1e-4)


def test_a_new_masked_head_is_not_left_frozen_under_an_adapter(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="an adapter would leave the new head as it was drawn"):
        make(FromTeacher(lora=Lora(r=2)), make_tiny_encoder(tmp_path / "t"), "masked_lm")

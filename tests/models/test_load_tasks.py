"""Models opened for a task: the head that is there, a new one where there is none, and classes that are the data's."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from potstill.errors import ModelError
from potstill.models.folder import ModelSource
from potstill.models.labels import labels_of, name_classes
from potstill.models.load import load_model, open_model
from potstill.models.tasks import task_of
from tiny_models import (
    ENCODERS,
    EncoderFamily,
    make_tiny_causal_lm,
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


def opened(folder: Path, **asked: Any) -> tuple[Any, tuple[str, ...]]:
    return open_model(ModelSource(folder, "tiny", "", "", ""), dtype="float32", device="cpu", **asked)


@pytest.mark.parametrize("task", MAKERS)
@pytest.mark.parametrize("family", ENCODERS)
def test_a_model_opens_as_what_it_was_saved_as(family: EncoderFamily, task: Any, tmp_path: Path) -> None:
    model, new = opened(MAKERS[task](tmp_path / "m", family))
    assert task_of(model) == task and new == ()
    expected = tiny_encoder(family, task)
    assert all(torch.equal(p, expected.get_parameter(name)) for name, p in model.named_parameters())


@pytest.mark.parametrize("own", MAKERS)
@pytest.mark.parametrize("task", MAKERS)
@pytest.mark.parametrize("family", ENCODERS)
def test_an_encoder_keeps_its_weights_for_another_task_and_gets_a_new_head(
    family: EncoderFamily, task: Any, own: Any, tmp_path: Path
) -> None:
    model, new = opened(MAKERS[own](tmp_path / "m", family), task=task)
    assert task_of(model) == task
    assert bool(new) == (task not in ("sentence_embedding", own))
    expected = dict(tiny_encoder(family, own).base_model.named_parameters())
    inside = {n: p for n, p in model.base_model.named_parameters() if not n.startswith("pooler")}
    assert len(inside) > 20 and all(torch.equal(p, expected[name]) for name, p in inside.items())
    assert set(new) <= model.state_dict().keys() and not any(f"{name}" in expected for name in new)


def test_a_new_head_is_said_and_depends_on_the_callers_seed(tmp_path: Path) -> None:
    source = ModelSource(make_tiny_encoder(tmp_path / "m"), "tiny", "", "", "")
    heads = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        with pytest.warns(UserWarning, match=r"tiny: the head is new, its weights are random \(classifier"):
            model: Any = load_model(source, task="sequence_classification", labels=CLASSES, device="cpu")
        heads.append(model.classifier.weight)
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


def test_a_head_that_is_there_is_said_nothing_about(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = ModelSource(make_tiny_classifier(tmp_path / "m"), "tiny", "", "", "")
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        load_model(source, task="sequence_classification", labels=CLASSES, device="cpu")
    assert capfd.readouterr() == ("", "")


def test_a_new_heads_classes_are_named_and_saved_with_it(tmp_path: Path) -> None:
    labels = [f"class {n}" for n in range(12)]  # sorted as texts, 10 would come before 2
    model, _ = opened(make_tiny_encoder(tmp_path / "m"), task="sequence_classification", labels=labels)
    assert model.classifier.weight.shape == (12, 32)
    model.save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved/config.json").read_text())["id2label"]["11"] == "class 11"
    again, new = opened(tmp_path / "saved", labels=labels)
    assert new == () and labels_of(again) == tuple(labels)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["ale", "rye", "malt"], r"class 1 of the model is 'malt', and of the data 'rye'"),
        (["ale", "malt"], r"the model has 3 classes, and the data 2"),
        (["ale", "malt", "oats", "rye"], r"the model has 3 classes, and the data 4: 'oats' is not among its own"),
    ],
)
@pytest.mark.parametrize("maker", [make_tiny_classifier, make_tiny_convnet])
def test_classes_that_are_others_are_refused(maker: Any, labels: list[str], said: str, tmp_path: Path) -> None:
    folder = maker(tmp_path / "m")
    opened(folder, labels=CLASSES)
    with pytest.raises(ModelError, match=said):
        opened(folder, labels=labels)


def test_classes_that_nobody_named_are_refused_with_the_fix(tmp_path: Path) -> None:
    folder = make_tiny_classifier(tmp_path / "m", labels=("LABEL_0", "LABEL_1", "LABEL_2"))
    assert labels_of(opened(folder)[0]) is None
    with pytest.raises(ModelError, match=r"the classes of this model have no names.*\n.*id2label.*ale, malt, rye"):
        opened(folder, labels=CLASSES)


def test_names_are_given_to_a_model_in_memory_once(tmp_path: Path) -> None:
    model = tiny_encoder("bert", "sequence_classification", labels=("LABEL_0", "LABEL_1", "LABEL_2"))
    name_classes(model, CLASSES)
    assert labels_of(model) == CLASSES and model.config.label2id["rye"] == 2
    with pytest.raises(ModelError, match="class 0 of the model is 'ale'"):
        name_classes(model, ["rye", "malt", "ale"])
    unnamed = tiny_encoder("bert", "sequence_classification", labels=("LABEL_0", "LABEL_1", "LABEL_2"))
    with pytest.raises(ModelError, match="gives 3 classes, and the data have 2"):
        name_classes(unnamed, ["a", "b"])


def test_a_causal_head_is_never_drawn_anew(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"bert \(BertModel\) is no causal language model"):
        opened(make_tiny_encoder(tmp_path / "m"), task="causal_lm")
    with pytest.raises(ModelError, match="is no classifier of texts"):
        opened(make_tiny_convnet(tmp_path / "c"), task="sequence_classification")


def test_a_missing_layer_is_an_error_whatever_the_task(tmp_path: Path) -> None:
    folder = make_tiny_encoder(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 5}))
    for task in ("sentence_embedding", "masked_lm", "sequence_classification"):
        with pytest.raises(ModelError, match=r"weights are missing: .*encoder\.layer\.4"):
            opened(folder, task=task)


def test_a_convnet_opens_as_what_it_is(tmp_path: Path) -> None:
    model, new = opened(make_tiny_convnet(tmp_path / "m"), task="image_classification")
    assert task_of(model) == "image_classification" and labels_of(model) == CLASSES and new == ()


def test_a_causal_model_has_no_classes(tmp_path: Path) -> None:
    model, _ = opened(make_tiny_causal_lm(tmp_path / "m"))
    assert labels_of(model) is None and isinstance(model, nn.Module)

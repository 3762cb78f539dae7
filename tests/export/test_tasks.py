"""Encoders, classifiers, vision models and modules of one's own go out as what they are, and open again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from potstill.artifacts import Work, read_artifact, write_artifact
from potstill.console import Console
from potstill.errors import ModelError
from potstill.export.stage import stage
from potstill.models.plain import build_module, load_module, save_module
from potstill.recipe import Recipe, parse_recipe
from potstill.stage import Context
from potstill.tasks import Task
from tiny_models import ENCODER_VOCAB, make_tiny_wordpiece, tiny_convnet, tiny_encoder

NET = """
from torch import nn


def net(width):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 3))
"""
TEXTS: tuple[tuple[Task, Any], ...] = (
    ("sequence_classification", AutoModelForSequenceClassification),
    ("masked_lm", AutoModelForMaskedLM),
    ("sentence_embedding", AutoModel),
)


def recipe_of(task: Task, **export: Any) -> Recipe:
    images = task == "image_classification"
    objective = {"kind": "rkd_distance"} if task == "sentence_embedding" else {"kind": "hard_ce"}
    return parse_recipe(
        {
            "name": "exported",
            "task": task,
            "teacher": {"kind": "local", "model": "acme/teacher"},
            "student": {"kind": "module", "source": "net.py:net"} if images else {"kind": "from_teacher"},
            "data": {"kind": "digits"} if images else {"kind": "jsonl", "path": "x.jsonl"},
            "train": {"objectives": [objective]},
            "export": [{"kind": "huggingface", **export}],
        },
        base=Path("/"),
    )


def exported(run: Path, task: Task, save: Any, **export: Any) -> tuple[Path, Work]:
    """The export of a run whose student is what `save` puts into its folder."""
    with write_artifact(run, "train", "0" * 64, settings={}, inputs={}, seed=0) as work:
        save(work.path / "model")
        # What training leaves beside a student, and nobody is to get.
        save_file({"w": torch.zeros(2)}, work.path / "model" / "projectors.safetensors")
    recipe = recipe_of(task, **export)
    made, train = stage(recipe, 0), read_artifact(run / "train")
    assert train is not None
    with write_artifact(run, made.name, "1" * 64, settings={}, inputs={}, seed=0) as work:
        made.write(Context(recipe, run, {"train": train}, work, Console("quiet")))
    return run / made.name, work


def saved(model: Any, *, tokenizer: bool = True) -> Any:
    def save(folder: Path) -> None:
        model.save_pretrained(folder)
        if tokenizer:
            make_tiny_wordpiece().save_pretrained(folder)

    return save


@pytest.mark.parametrize(("task", "opener"), TEXTS)
def test_an_encoder_opens_with_its_head_and_its_tokenizer(task: Any, opener: Any, tmp_path: Path) -> None:
    model = tiny_encoder(task=task)
    folder, _ = exported(tmp_path, task, saved(model))
    inputs = AutoTokenizer.from_pretrained(folder)("malt and rye", return_tensors="pt")
    opened = opener.from_pretrained(folder)
    with torch.no_grad():
        torch.testing.assert_close(opened(**inputs)[0], model(**inputs)[0], rtol=0, atol=1e-6)
    weights = (tmp_path / "train/model/model.safetensors").read_bytes()
    assert (folder / "model.safetensors").read_bytes() == weights
    assert not (folder / "projectors.safetensors").exists() and not (folder / "generation_config.json").exists()


def test_classes_keep_their_names(tmp_path: Path) -> None:
    folder, _ = exported(tmp_path, "sequence_classification", saved(tiny_encoder(task="sequence_classification")))
    assert json.loads((folder / "config.json").read_text())["id2label"] == {"0": "ale", "1": "malt", "2": "rye"}


@pytest.mark.parametrize(("task", "opener"), TEXTS)
def test_another_precision_keeps_the_head(task: Any, opener: Any, tmp_path: Path) -> None:
    folder, _ = exported(tmp_path, task, saved(tiny_encoder(task=task)), dtype="bfloat16")
    before, after = (load_file(f / "model.safetensors") for f in (tmp_path / "train/model", folder))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name].bfloat16(), after[name]) for name in before)
    assert opener.from_pretrained(folder, dtype="auto").dtype == torch.bfloat16


def test_rows_without_a_token_are_trimmed_of_a_masked_model_and_left_to_a_classifier(tmp_path: Path) -> None:
    wide = {"vocab_size": ENCODER_VOCAB + 7}
    folder, work = exported(tmp_path / "masked", "masked_lm", saved(tiny_encoder(task="masked_lm", **wide)))
    assert work.counts["output rows without a token, trimmed"] == 7
    opened = AutoModelForMaskedLM.from_pretrained(folder)
    ids = torch.tensor([[2, 9, 4, 3]])
    expected = tiny_encoder(task="masked_lm", **wide)(ids).logits[..., :ENCODER_VOCAB]
    torch.testing.assert_close(opened(ids).logits, expected, rtol=0, atol=1e-6)
    classifier = tiny_encoder(task="sequence_classification", **wide)
    folder, work = exported(tmp_path / "classes", "sequence_classification", saved(classifier))
    assert not any("trimmed" in name for name in work.counts)


def test_a_vision_model_needs_no_tokenizer(tmp_path: Path) -> None:
    model = tiny_convnet()
    folder, _ = exported(tmp_path, "image_classification", saved(model, tokenizer=False))
    pixels = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    opened = AutoModelForImageClassification.from_pretrained(folder)
    with torch.no_grad():
        torch.testing.assert_close(opened(pixels).logits, model(pixels).logits, rtol=0, atol=0)


def test_a_module_of_ones_own_goes_out_with_its_file_and_opens_again(tmp_path: Path) -> None:
    module = net_in(tmp_path)
    folder, work = exported(tmp_path, "image_classification", lambda to: save_module(module, to))
    assert {f.name for f in folder.iterdir()} == {
        "model.safetensors",
        "module.json",
        "net.py",
        "README.md",
        "manifest.json",
        "provenance.json",
    }
    pixels = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(load_module(folder)(pixels), module(pixels), rtol=0, atol=0)
    assert any("transformers does not open it" in warning for warning in work.warnings)


def test_a_module_in_another_precision_is_refused(tmp_path: Path) -> None:
    module = net_in(tmp_path)
    with pytest.raises(ModelError, match="exported as it was trained") as caught:
        exported(tmp_path, "image_classification", lambda to: save_module(module, to), dtype="float16")
    assert "dtype: keep" in str(caught.value)


def net_in(folder: Path) -> torch.nn.Module:
    (folder / "net.py").write_text(NET)
    return build_module("net.py:net", {"width": 5}, base=folder).eval()

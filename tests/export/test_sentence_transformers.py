"""An embedding student gives the same vectors in sentence-transformers, whatever its pooling."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest

from potstill.artifacts import Work
from potstill.console import Console
from potstill.errors import MissingExtra, ModelError
from potstill.export import base, sentence_transformers
from potstill.export.base import Student
from potstill.export.sentence_transformers import SentenceTransformers
from potstill.recipe import Pooling, SentenceTransformersExport
from tiny_models import make_tiny_encoder

NEEDS = pytest.mark.needs("sentence-transformers")


def exported(model: Path, out: Path, pooling: Pooling = "mean", **settings: object) -> Work:
    out.mkdir()
    work = Work(out, resumed=False)
    asked = SentenceTransformersExport.model_validate({"check_prompts": 4} | settings)
    student = Student(model, None, [], False, "sentence_embedding", pooling=pooling)
    SentenceTransformers(asked).export(student, work, Console("quiet"))
    return work


@NEEDS
@pytest.mark.parametrize("pooling", get_args(Pooling))
def test_the_vectors_are_the_students(pooling: Pooling, tmp_path: Path) -> None:
    model = make_tiny_encoder(tmp_path / "model")
    found = exported(model, tmp_path / "out", pooling).facts["check"]
    assert found["farthest"] < 1e-6 and found["texts"] == 4
    card = (tmp_path / "out" / "README.md").read_text()
    assert "1 − cos is at most" in card and "(tolerance 1e-05)" in card


@NEEDS
def test_another_pooling_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swapped = {**sentence_transformers._MODES, "mean": "cls_token", "first": "mean_tokens"}
    monkeypatch.setattr(sentence_transformers, "_MODES", swapped)
    with pytest.raises(ModelError, match="1 − cos"):
        exported(make_tiny_encoder(tmp_path / "model"), tmp_path / "out")


def test_unchecked_it_needs_no_package_and_the_card_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "find_spec", lambda _: None)
    model = make_tiny_encoder(tmp_path / "model")
    exported(model, tmp_path / "out", check_prompts=0)
    assert "not compared" in (tmp_path / "out" / "README.md").read_text()
    modules = json.loads((tmp_path / "out" / "modules.json").read_text())
    assert [module["path"] for module in modules] == ["", "1_Pooling", "2_Normalize"]
    with pytest.raises(MissingExtra, match="sentence_transformers"):
        exported(model, tmp_path / "other")


def test_only_embeddings_go_there() -> None:
    assert SentenceTransformersExport().why_not("sentence_embedding") is None
    assert SentenceTransformersExport().why_not("sequence_classification")

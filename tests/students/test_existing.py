"""A student that is already there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from potstill.errors import ModelError
from potstill.recipe.students import Existing, Lora
from potstill.students import BuiltStudent

from .conftest import TeacherMaker

Build = Callable[..., BuiltStudent]


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))


def test_an_existing_model_is_opened_in_fp32(teacher_of: TeacherMaker, build: Build) -> None:
    source = teacher_of("qwen2", layers=2)
    built = build(Existing(model=str(source.path)), teacher_of("llama"))
    stored = AutoModelForCausalLM.from_pretrained(source.path)
    assert built.model.config.model_type == "qwen2"
    assert all(torch.equal(p, stored.get_parameter(n)) for n, p in built.model.named_parameters())
    assert {p.dtype for p in built.model.parameters()} == {torch.float32}
    assert built.facts["layers"] is None and built.facts["model"] == source.path.name and built.facts["digest"]


def test_an_existing_model_takes_an_adapter(teacher_of: TeacherMaker, build: Build) -> None:
    built = build(Existing(model=str(teacher_of().path), lora=Lora(r=2)), None)
    assert built.facts["teacher_parameters"] is None
    assert 0 < built.facts["trainable_parameters"] < built.facts["parameters"]


def test_a_model_that_is_not_there_is_said(build: Build, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such model"):
        build(Existing(model=str(tmp_path / "absent")), None)

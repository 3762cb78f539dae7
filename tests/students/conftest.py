"""Tiny teachers on disk, and the plain way to build a student of one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from potstill.console import Console
from potstill.models.folder import ModelSource
from potstill.recipe.students import StudentSettings
from potstill.students import BuiltStudent, build_student
from tiny_models import make_tiny_causal_lm

TeacherMaker = Callable[..., ModelSource]


@pytest.fixture(scope="session")
def teacher_of(tmp_path_factory: pytest.TempPathFactory) -> TeacherMaker:
    """`teacher_of(family, layers=…, …)`: a tiny teacher's folder, made once per shape; treat it as read-only."""
    made: dict[str, ModelSource] = {}

    def make(family: Any = "llama", **shape: Any) -> ModelSource:
        key = repr((family, sorted(shape.items())))
        if key not in made:
            folder = make_tiny_causal_lm(tmp_path_factory.mktemp("teachers") / family, family, **shape)
            made[key] = ModelSource(folder, f"tiny-{family}", revision="", digest="", licence="")
        return made[key]

    return make


@pytest.fixture
def build(teacher_of: TeacherMaker) -> Callable[..., BuiltStudent]:
    """`build(settings, teacher)`, quietly, with the teacher's tokenizer and seed 0 unless said otherwise."""

    def of(settings: StudentSettings, teacher: ModelSource | None, **more: Any) -> BuiltStudent:
        source: Path = more.pop("tokenizer_source", None) or (teacher or teacher_of()).path
        defaults: dict[str, Any] = {"seed": 0, "console": Console("quiet")}
        return build_student(settings, teacher=teacher, tokenizer_source=source, **defaults | more)

    return of

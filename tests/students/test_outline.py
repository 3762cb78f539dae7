"""The outline of a student has the parameters of the one that is built, by name and shape, and no weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from potstill.console import Console
from potstill.recipe.students import Existing, FromConfig, FromTeacher, Lora, StudentSettings
from potstill.students.base import Materials
from potstill.students.outline import outline_of_student
from tiny_models import FAMILIES, Family, make_tiny_encoder

from .conftest import TeacherMaker

LORA = Lora(r=2, target_modules=("q_proj", "v_proj"))
KINDS: list[StudentSettings] = [
    FromTeacher(),
    FromTeacher(layers=(0,), lora=LORA),
    FromConfig(config={"num_hidden_layers": 1}),
    FromConfig(config={"num_hidden_layers": 1}, lora=LORA),
]


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


def outline(settings: StudentSettings, teacher: Any, **changes: Any) -> nn.Module:
    made = outline_of_student(settings, Materials(teacher, teacher.path, Console("quiet"), **changes))
    assert made is not None
    assert all(p.is_meta for p in made.parameters())
    return made


@pytest.mark.parametrize("settings", KINDS, ids=["layers", "layers+lora", "random", "random+lora"])
def test_names_and_shapes_are_those_of_the_student(settings: Any, teacher_of: TeacherMaker, build: Any) -> None:
    teacher = teacher_of()
    assert shapes(outline(settings, teacher)) == shapes(build(settings, teacher).model)


@pytest.mark.parametrize("family", FAMILIES)
def test_in_every_family(family: Family, teacher_of: TeacherMaker, build: Any) -> None:
    teacher = teacher_of(family)
    assert shapes(outline(FromTeacher(), teacher)) == shapes(build(FromTeacher(), teacher).model)


def test_a_new_head_has_a_row_for_each_class(teacher_of: TeacherMaker, tmp_path: Path) -> None:
    encoder = make_tiny_encoder(tmp_path / "encoder")
    settings = Existing(model=str(encoder))
    made = outline(settings, teacher_of(), task="sequence_classification", labels=["a", "b", "c"])
    assert shapes(made)["classifier.weight"][0] == 3


def test_a_model_that_is_not_here_has_no_outline() -> None:
    materials = Materials(None, None, Console("quiet"))
    assert outline_of_student(Existing(model="some/where"), materials) is None
    assert outline_of_student(FromTeacher(), materials) is None

"""Building is a function of its arguments: same seed, same weights, and nobody else's random numbers are touched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from potstill.console import Console
from potstill.recipe.students import FromConfig, FromTeacher, Lora, StudentSettings
from potstill.students import BuiltStudent
from potstill.students.build import parameters_of
from tiny_models import FAMILIES, Family

from .conftest import TeacherMaker

Build = Callable[..., BuiltStudent]
KINDS: list[StudentSettings] = [
    FromTeacher(lora=Lora(r=2)),
    FromConfig(config={"num_hidden_layers": 2}),
    FromConfig(config={"num_hidden_layers": 2}, lora=Lora(r=2)),
]


def weights(built: BuiltStudent) -> dict[str, Any]:
    return {name: p.detach() for name, p in built.model.named_parameters()}


@pytest.mark.parametrize("settings", KINDS, ids=["lora", "random", "random+lora"])
def test_the_same_seed_gives_the_same_weights_whatever_was_drawn_before(
    settings: StudentSettings, teacher_of: TeacherMaker, build: Build
) -> None:
    first = weights(build(settings, teacher_of(), seed=7))
    torch.rand(11)
    again, other = weights(build(settings, teacher_of(), seed=7)), weights(build(settings, teacher_of(), seed=8))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_the_callers_random_numbers_are_left_alone(teacher_of: TeacherMaker, build: Build) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    build(KINDS[2], teacher_of())
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_teachers_parameters_are_those_in_its_files(family: Family, tied: bool, teacher_of: TeacherMaker) -> None:
    source = teacher_of(family, tied=tied)
    stored = sum(tensor.numel() for tensor in load_file(source.path / "model.safetensors").values())
    assert parameters_of(source) == stored


def test_what_was_built_is_said_in_one_line(
    teacher_of: TeacherMaker, build: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    built = build(FromTeacher(layers=(0, 3), lora=Lora(r=2)), teacher_of(), console=Console("lines"))
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("student: ") and "of its 4 layers 0, 3" in line and "adapters" in line
    assert built.facts["kind"] == "from_teacher" and built.facts["seed"] == 0
    assert not built.model.training

"""A teacher that would change with its student is refused, however the two are tied; what is safe is let pass."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from train.small import trainer, weights_of
from train.test_tasks import CE, KL, Net, images, made

from potstill.errors import UserError
from potstill.recipe import EnsembleTeacher, LocalTeacher
from potstill.signals import Batch
from potstill.teachers.ensemble import Ensemble
from potstill.train.coerce import GivenTeacher
from tiny_models import tiny_model


class Around(nn.Module):
    """A module around another, which is one of its parts."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.scale = inner, nn.Parameter(torch.ones(()))

    def forward(self, pixels: Any) -> Any:
        return self.scale * self.inner(pixels)


class Hidden(nn.Module):
    """A module that calls another which is none of its parts."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.held, self.last = [inner], nn.Linear(3, 3)

    def forward(self, pixels: Any) -> Any:
        return self.last(self.held[0](pixels))


class ByFunction(nn.Module):
    """A module that computes with another's weights, which are neither its parameters nor its buffers."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.own = Net(4, 2)
        self.call = lambda pixels: torch.func.functional_call(self.own, dict(inner.named_parameters()), (pixels,))

    def forward(self, pixels: Any) -> Any:
        return self.call(pixels)


class Transposed(nn.Module):
    """A net whose last weight is a view of another's, held as a plain attribute."""

    def __init__(self, other: Any) -> None:
        super().__init__()
        self.body, self.last = nn.Sequential(*list(Net(4, 2))[:-1]), nn.Linear(3, 3)
        self.weight = other[-1].weight.detach().t()

    def forward(self, pixels: Any) -> Any:
        return self.last(self.body(pixels) @ self.weight)


def in_one_part(student: Any) -> nn.Module:
    teacher = Net(4, 2)
    teacher[0] = student[0]
    return teacher


def tied_through_a_parametrization(student: Any) -> nn.Module:
    class Theirs(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight + student[-1].weight

    teacher = Net(4, 2)
    nn.utils.parametrize.register_parametrization(teacher[-1], "weight", Theirs())
    return teacher


WRAPPED: dict[str, Callable[[nn.Module], Any]] = {
    "is its student": lambda student: student,
    "wraps its student": Around,
    "is compiled from its student": lambda student: torch.compile(student, backend="eager"),
    "has a part of its student": in_one_part,
    "holds its student in a list": Hidden,
    "computes with its student's weights": ByFunction,
    "has a view of its student's weight": Transposed,
    "is tied to its student by a parametrization": tied_through_a_parametrization,
    "is a teacher of its student": GivenTeacher,
    "is a teacher of a wrapped student": lambda student: GivenTeacher(Around(student)),
    "has its student among others": lambda student: Ensemble(
        EnsembleTeacher(members=(LocalTeacher(model="a"), LocalTeacher(model="b"))),
        [GivenTeacher(Net(4, 2)), GivenTeacher(student)],
    ),
}


@pytest.mark.parametrize("how", WRAPPED)
def test_a_teacher_is_refused_that(how: str, tmp_path: Path) -> None:
    student = Net(4, 1)
    with pytest.raises(UserError, match=r"learn along|lose its dropout") as error:
        made(tmp_path, student, WRAPPED[how](student), [KL], images(12)).train()
    assert error.value.where == "teacher" and error.value.fix is not None and "deepcopy" in error.value.fix


@pytest.mark.parametrize("around", [Around, lambda inner: nn.Sequential(inner, nn.Linear(3, 3))])
def test_a_student_that_contains_its_teacher_is_refused(around: Callable[[nn.Module], Any], tmp_path: Path) -> None:
    teacher = Net(4, 2)
    with pytest.raises(UserError, match="shares modules with the student"):
        made(tmp_path, around(teacher), teacher, [KL], images(12))


def test_a_student_that_calls_a_teacher_which_it_does_not_train_is_safe(tmp_path: Path) -> None:
    teacher = Net(4, 2)
    before = weights_of(teacher)
    given = made(tmp_path, Hidden(teacher), teacher, [KL], images(12))
    given.train()
    assert all(torch.equal(before[name], now) for name, now in weights_of(teacher).items())


# ---- adapters ----------------------------------------------------------------------------------------------------

LORA = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.5)


class WithoutAdapter(GivenTeacher):
    """The base of a student with an adapter, as its teacher: the adapter is switched off while it answers."""

    def signals(self, batch: Batch, ask: Any) -> Any:
        with torch.no_grad(), self.model.disable_adapter():
            return super().signals(batch, ask)


class Careful(WithoutAdapter):
    """The same, and every module is put back into its mode."""

    def signals(self, batch: Batch, ask: Any) -> Any:
        modes = {part: part.training for part in self.model.modules()}
        try:
            return super().signals(batch, ask)
        finally:
            for part, mode in modes.items():
                part.training = mode


def test_an_adapters_base_is_refused_as_a_teacher(tmp_path: Path) -> None:
    base = tiny_model(layers=2, seed=1)
    student = get_peft_model(base, LORA)
    for teacher in (base, student):
        with pytest.raises(UserError, match="shares modules"):
            trainer(tmp_path, student=student, teacher=teacher, objectives=[KL])


def test_two_adapters_on_one_base_are_refused(tmp_path: Path) -> None:
    base = tiny_model(layers=2, seed=1)
    teacher = get_peft_model(base, LORA, adapter_name="teacher")
    student = get_peft_model(base, LORA, adapter_name="student")
    with pytest.raises(UserError, match="shares modules"):
        trainer(tmp_path, student=student, teacher=teacher, objectives=[KL])


def test_two_adapters_whose_bases_share_frozen_weights_are_safe(tmp_path: Path) -> None:
    first, second = tiny_model(layers=2, seed=1), tiny_model(layers=2, seed=1)
    for (_, theirs), (_, ours) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        ours.data = theirs.data
    teacher, student = get_peft_model(first, LORA), get_peft_model(second, LORA)
    before = weights_of(teacher)
    trainer(tmp_path, student=student, teacher=teacher, objectives=[KL], max_steps=2).train()
    assert all(torch.equal(before[name], now) for name, now in weights_of(teacher).items())


def test_a_base_without_its_adapter_teaches_if_the_student_keeps_its_mode(tmp_path: Path) -> None:
    def of(kind: type[GivenTeacher]) -> Any:
        student = get_peft_model(tiny_model(layers=2, seed=1), LORA)
        return trainer(tmp_path, student=student, teacher=kind(student), objectives=[KL, CE], max_steps=2)

    with pytest.raises(UserError, match="puts the student into evaluation mode"):
        of(WithoutAdapter).train()
    given = of(Careful)
    before = weights_of(given.student)
    given.train()
    after = weights_of(given.student)
    assert {name for name in before if not torch.equal(before[name], after[name])}
    assert all(torch.equal(before[name], after[name]) for name in before if "lora" not in name)


# ---- the look itself ---------------------------------------------------------------------------------------------


def test_asking_the_teacher_changes_neither_student_nor_teacher(tmp_path: Path) -> None:
    student, teacher = Net(4, 1), Net(9, 2)
    given = made(tmp_path, student, teacher, [KL], images(12))
    before = copy.deepcopy((student.state_dict(), teacher.state_dict())), torch.get_rng_state()
    given._check_student(given._first_rows()[:2])
    for one, other in zip(before[0], (student.state_dict(), teacher.state_dict()), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(before[1], torch.get_rng_state())


def test_a_teacher_that_draws_numbers_is_not_taken_for_one_that_learns_along(tmp_path: Path) -> None:
    class Noisy(Net):
        def forward(self, pixels: Any) -> Any:
            return super().forward(pixels + 0.3 * torch.randn_like(pixels))

    made(tmp_path, Net(4, 1), Noisy(9, 2), [KL], images(12), max_steps=1).train()

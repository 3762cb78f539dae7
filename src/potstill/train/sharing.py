"""A teacher must not change with its student: the KL between them would stay 0, or mean nothing.

`refuse_shared` compares modules and memory when a loaded model is given. `check_independent` asks the teacher itself
before the first step, which finds what no list of tensors shows: a student behind a function, in a list, or in a
teacher of the user's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from potstill.errors import UserError
from potstill.models.unchanged import unchanged
from potstill.signals import Ask, Batch
from potstill.teachers.base import Teacher

_COPY = "give a copy: teacher=copy.deepcopy(model)"
_SAME = 1e-4
"""Maximum relative difference of sums over the same signals, computed twice."""


def refuse_shared(teacher: nn.Module, student: nn.Module) -> None:
    """Refuse a loaded teacher that has modules or trained weights of its student, or contains it, or is part of it.

    Weights are compared by memory, since two parameters, or views of one tensor, may share it. A frozen weight may be
    shared.

    Raises:
        UserError: it would change along with its student.
    """
    if {id(m) for m in teacher.modules()} & {id(m) for m in student.modules()}:
        raise UserError(
            "the teacher shares modules with the student: it would learn along, and the student would lose its dropout",
            where="teacher",
            fix=_COPY,
        )
    memory = {_memory(t) for t in (*teacher.parameters(), *teacher.buffers())} - {None}
    shared = sorted(name for name, tensor in _changing(student).items() if _memory(tensor) in memory)
    if shared:
        raise UserError(
            f"the teacher shares {len(shared)} tensors with the student ({shared[0]}, …): it would learn along",
            where="teacher",
            fix=f"{_COPY}, or freeze what they share (requires_grad_(False))",
        )


def check_independent(teacher: Teacher, student: nn.Module, batch: Batch, ask: Ask) -> None:
    """Check that a teacher's signals stay the same when the student's weights change, and that it leaves the student in
    training mode. Three passes of the teacher over the batch; nothing is changed afterwards.

    Raises:
        UserError: they do not, or it does not.
    """
    with unchanged(student):
        student.train()
        first = _sums(teacher.signals(batch, ask))
        if not all(part.training for part in student.modules()):
            raise UserError(
                "the teacher puts the student into evaluation mode: the student would lose its dropout",
                where="teacher",
                fix=f"{_COPY}, or a teacher that leaves the student's mode as it is",
            )
        again = _sums(teacher.signals(batch, ask))
        with _other_weights(student):
            changed = _sums(teacher.signals(batch, ask))
    known = first.isfinite() & again.isfinite()
    size = first.abs().clamp_min(1e-30)
    noise = ((again - first).abs() / size).clamp_min(_SAME)
    # A sum that is no longer finite has changed too.
    if bool((known & ~((changed - first).abs() / size <= 10 * noise)).any()):
        raise UserError(
            "the teacher's signals change when the student's weights do: it would learn along",
            where="teacher",
            fix=_COPY,
        )


def _changing(student: nn.Module) -> dict[str, Tensor]:
    """The tensors of a student that training changes: learning weights, and saved buffers (running means), by name."""
    saved = student.state_dict(keep_vars=True).keys()
    return {
        **{name: p for name, p in student.named_parameters() if p.requires_grad},
        **{name: b for name, b in student.named_buffers() if name in saved},
    }


def _memory(tensor: Tensor) -> tuple[torch.device, int] | None:
    """The address of a tensor's storage; None if it has none."""
    if tensor.is_meta or tensor.numel() == 0:
        return None
    return tensor.device, tensor.untyped_storage().data_ptr()


@contextmanager
def _other_weights(student: nn.Module) -> Iterator[None]:
    """Quite other weights within the context, in the same memory. Takes a copy of the weights, less than the gradients
    and optimiser states that come later."""
    changing = [tensor for tensor in _changing(student).values() if tensor.is_floating_point()]
    with torch.no_grad():
        held = [tensor.detach().clone() for tensor in changing]
        try:
            for tensor in changing:
                # Zeros (fresh adapters), signs and scales (before a normalisation) all change.
                tensor.mul_(-2).add_(0.1)
            yield
        finally:
            for tensor, value in zip(changing, held, strict=True):
                tensor.copy_(value)


def _sums(signals: object) -> Tensor:
    """Two sums of each floating-point tensor in some signals [2 × tensors], in float64."""
    found = [
        total
        for tensor in _tensors(signals)
        for total in (tensor.sum(dtype=torch.float64), torch.linalg.vector_norm(tensor, dtype=torch.float64))
    ]
    return torch.stack([total.detach().cpu() for total in found]) if found else torch.zeros(0, dtype=torch.float64)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point() and value.numel():
            yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))
